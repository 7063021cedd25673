"""A stranger's model of its own class, by command line alone: checked, repaired, exported, and back in its own code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import theriac as th
from theriac.models import make_own

CODE = """
from torch import nn

class SmallNet(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        self.head = nn.Linear(256, classes)

    def forward(self, x):
        return self.head(self.body(x))
"""
WRAP = ("--wrap", "mean=[0.5]", "--wrap", "std=[0.5]")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A class without BatchNorm, trained by plain code on digits of which a tenth carry a patch."""
    folder = tmp_path_factory.mktemp("their files")
    (folder / "their_net.py").write_text(CODE)
    name = f"{folder / 'their_net.py'}:SmallNet"
    net = make_own(name)
    poisoned = th.attacks.BadNets(target=3, poison_rate=0.1).poison(th.load("digits").train).split
    x, y = (poisoned.x.float() / 255 - 0.5) / 0.5, poisoned.y
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    draw = torch.Generator().manual_seed(0)
    for _ in range(12):
        for rows in torch.randperm(len(x), generator=draw).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    state = {f"module.{k}": v for k, v in net.state_dict().items()}
    torch.save({"epoch": 12, "state_dict": state}, folder / "w.pt")
    return name, folder / "w.pt"


def test_the_whole_way(theriac, stranger: tuple[str, Path], tmp_path: Path) -> None:
    name, weights = stranger
    own = ("--model", name, "--weights", weights, "--data", "digits")
    checked = theriac("check", *own, "--json")
    assert checked.code == 1  # not as it was opened: the network wants pixels from -1 to 1
    assert checked.json["best"]["options"]["mean"] == pytest.approx([0.5], abs=0.25)
    attack = ("--attack", "badnets", "--target", "3", "--precision", "fp32")
    before = theriac("eval", *own, *WRAP, *attack, "--json")
    assert before.code == 0, before.err
    assert before.json["evaluation"]["asr"]["value"] > 0.8
    run = tmp_path / "fixed"
    options = ("--method", "antidote", "--option", "epochs=4", "--clean", "0.2", "--out", run)
    repaired = theriac("repair", *own, *WRAP, *attack, *options, "--json")
    assert repaired.code == 0, repaired.err
    written = theriac("export", run, "--like", weights, "--out", tmp_path / "out", "--json")
    assert written.code == 0, written.err
    exported = torch.load(written.json["written"], weights_only=True)
    assert exported["epoch"] == 12
    net = make_own(name)
    net.load_state_dict({k.removeprefix("module."): v for k, v in exported["state_dict"].items()})
    x = torch.rand(4, 1, 8, 8)
    fixed = th.load_model(run, into=make_own(name))
    torch.testing.assert_close(net.eval()((x - 0.5) / 0.5), fixed(x))  # the same but for the memory format
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert "repaired by **antidote**" in card
    assert "What is not guaranteed" in card
    after = theriac("eval", run, "--model", name, "--json")
    assert after.code == 0, after.err
    assert after.json["evaluation"] == json.loads((run / "run.json").read_text())["evaluation"]


def test_refusals(theriac, stranger: tuple[str, Path], tmp_path: Path) -> None:
    name, weights = stranger
    both = theriac("eval", weights, "--model", name, "--weights", weights, "--data", "digits")
    assert (both.code, "one of them names the weights" in both.err) == (2, True)
    none = theriac("eval", "--data", "digits")
    assert (none.code, "MODEL is missing" in none.err) == (2, True)
    assert theriac("eval", "--model", f"{name}x", "--data", "digits").code == 2
    assert theriac("export", tmp_path / "no", "--to", "nonsense").code == 2


def test_a_run_whose_classes_stand_in_another_order_knows_its_own_rows(
    theriac, stranger: tuple[str, Path], tmp_path: Path
) -> None:
    """Its record is of rows that were renumbered for the model; loaded again, they are the same rows."""
    name, weights = stranger
    order = [str(k) for k in (9, 8, 7, 6, 5, 4, 3, 2, 1, 0)]
    state = torch.load(weights)["state_dict"]
    turned = {k: v.flip(0) if "head" in k else v for k, v in state.items()}
    torch.save(turned, tmp_path / "turned.pt")
    classes = ("--wrap", f"classes={json.dumps(order)}")
    own = ("--model", name, "--weights", tmp_path / "turned.pt", "--data", "digits", *WRAP, *classes)
    run = tmp_path / "run"
    made = theriac(
        "repair", *own, "--method", "ft", "--option", "epochs=1", "--clean", "200", "--precision", "fp32", "--out", run
    )
    assert made.code == 0, made.err
    again = theriac("eval", run, "--model", name, "--json")
    assert again.code == 0, again.err
    assert "are not those that" not in again.err
    shown = theriac("report", run)
    assert shown.code == 0, shown.err
    assert "are not there any more" not in shown.err
    card = theriac("export", run, "--out", tmp_path / "out")
    assert card.code == 0, card.err
    assert "- The bare network takes these pixels less 0.5, divided by 0.5" in (tmp_path / "out" / "MODEL_CARD.md").read_text()


def test_rows_of_some_of_its_classes_are_enough(theriac, stranger: tuple[str, Path], tmp_path: Path) -> None:
    name, weights = stranger
    digits = th.load("digits")
    there = digits.test.y != 3
    torch.save({"x": digits.test.x[there], "y": digits.test.y[there]}, tmp_path / "nine.pt")
    own = ("--model", name, "--weights", weights, "--data", tmp_path / "nine.pt", *WRAP, "--json")
    assert "gives 10 classes" not in (refused := theriac("eval", *own)).err
    assert refused.code == 2
    counted = theriac("eval", *own, "--wrap", f"classes={json.dumps(list(digits.card.classes))}")
    assert counted.code == 0, counted.err
    model = th.models.open_own(name, card=digits.card, weights=weights, wrapping={"mean": [0.5], "std": [0.5]})
    rows = th.evaluate(model, digits.test.where(there), run=th.Run(quiet=True, precision="fp32"))
    assert counted.json["evaluation"]["acc"]["value"] == pytest.approx(rows.acc.value, abs=0.01)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Digits as an ``.npz`` without a test part: 200 rows."""
    rows = th.load("digits").train.sample(200, stratified=True)
    np.savez(tmp_path / "digits.npz", x=rows.x.numpy(), y=rows.y.numpy())
    return tmp_path / "digits.npz"


@pytest.mark.parametrize(
    ("options", "total"),
    [
        ((), 200),
        (("--rows", "1000"), 200),
        (("--rows", "200"), 200),
        (("--rows", "100"), 100),
        (("--data-option", "val_share=0.1"), 200),
        (("--data-option", "test_share=0.2"), 40),
    ],
)
def test_a_limit_of_rows_is_one_of_all_rows(
    theriac, stranger: tuple[str, Path], pictures: Path, options: tuple[str, ...], total: int
):
    name, weights = stranger
    done = theriac("eval", "--model", name, "--weights", weights, *WRAP, "--data", pictures, *options, "--json")
    assert done.code == 0, done.err
    assert done.json["evaluation"]["acc"]["total"] == total


def test_color_pictures_for_a_gray_network_are_told_their_option(theriac, stranger: tuple[str, Path], pictures: Path) -> None:
    name, weights = stranger
    held = dict(np.load(pictures))
    np.savez(pictures, x=held["x"].repeat(3, 1), y=held["y"])
    own = ("--model", name, "--weights", weights, "--data", pictures)
    done = theriac("check", *own)
    assert done.code == 2
    assert "takes gray pictures, and these have colors; load them gray (--data-option channels=1)" in done.err
    assert theriac("check", *own, "--data-option", "channels=1", "--json").json["best"]["accuracy"]["value"] > 0.9


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
def test_a_sound_program_is_not_called_damaged(theriac, stranger: tuple[str, Path], tmp_path: Path) -> None:
    name, _ = stranger
    torch.jit.script(make_own(name)).save(str(tmp_path / "m.pt"))
    done = theriac("eval", "--model", name, "--weights", tmp_path / "m.pt", "--data", "digits")
    assert done.code == 2
    assert "was not opened: it is a TorchScript program" in done.err
    assert "damaged" not in done.err
