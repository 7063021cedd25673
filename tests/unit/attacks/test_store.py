"""A planted trigger that was saved stamps as it did before, and nothing else is loaded as one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import theriac as th
from theriac.attacks.store import load_planted, load_poisoned, save_planted, save_poisoned
from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.planted import Planted

CARD = Card(name="toy", classes=("a", "b", "c"), size=(8, 8), channels=1, mean=(0.5,), std=(0.5,))
X = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    planted = th.attacks.Blended(alpha=0.3, seed=4, target=1).plant(th.Split(X, Y, card=CARD))
    return save_planted(planted, tmp_path / "run")


def test_it_stamps_as_before(folder: Path):
    attack = th.attacks.Blended(alpha=0.3, seed=4, target=1)
    again = load_planted(folder)
    assert again.attack == attack
    assert again.card == CARD
    assert torch.equal(again.stamp(X, Y), attack.plant(th.Split(X, Y, card=CARD)).stamp(X, Y))
    assert not torch.equal(again.stamp(X, Y), X)


def test_fitted_tensors_come_back_bit_for_bit(tmp_path: Path):
    state = {"pattern": torch.randn(1, 8, 8), "channels": torch.arange(4).t(), "shared": torch.ones(3)}
    state["again"] = state["shared"]  # safetensors itself refuses shared memory
    again = load_planted(save_planted(Planted(th.attacks.BadNets(), CARD, state), tmp_path))
    assert again.state.keys() == state.keys()
    assert all(torch.equal(again.state[k], v) and again.state[k].dtype == v.dtype for k, v in state.items())


def test_it_shares_a_folder_with_the_model(folder: Path):
    split = th.Split(X, Y, card=CARD)
    model = th.build("preact_resnet18", split, width=2).eval()
    th.save(model, folder)
    result = th.evaluate(th.load_model(folder), split, load_planted(folder))
    assert result == th.evaluate(model, split, th.attacks.Blended(alpha=0.3, seed=4, target=1))


@pytest.mark.parametrize("grouped", [False, True])
def test_a_poisoned_set_comes_back_bit_for_bit(tmp_path: Path, grouped: bool):
    group = torch.tensor([0, 1, 0, 1, 0, 1]) if grouped else None
    card = CARD.replace(groups=("u", "v")) if grouped else CARD
    split = th.Split(X, Y, card=card, index=torch.arange(6) * 7, group=group)
    made = th.attacks.WaNet(poison_rate=1 / 6, strength=2.0).poison(split)
    again = load_poisoned(save_poisoned(made, tmp_path / "set", th.Run(seed=3, streams={"poison": 5})))
    for name in ("x", "y", "index"):
        assert torch.equal(getattr(again.split, name), getattr(made.split, name))
    assert (again.split.group is None) if group is None else torch.equal(again.split.group, group)
    assert torch.equal(again.kind, made.kind)
    assert torch.equal(again.y_true, made.y_true)
    assert torch.equal(again.planted.stamp(X, Y), made.planted.stamp(X, Y))
    record = json.loads((tmp_path / "set" / "poisoned.json").read_text())
    assert record["counts"] == {"rows": 6, "poison": 1, "cross": 2}
    assert (record["seed"], record["streams"]) == (3, {"poison": 5})


def test_a_changed_poisoned_set_is_refused(tmp_path: Path):
    save_poisoned(th.attacks.BadNets(poison_rate=0.5).poison(th.Split(X, Y, card=CARD)), tmp_path)
    file = tmp_path / "poisoned.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InputError, match=r"poisoned\.safetensors is not the one"):
        load_poisoned(tmp_path)
    with pytest.raises(InputError, match="poisoned is a Split; expected a Poisoned"):
        save_poisoned(th.Split(X, Y, card=CARD), tmp_path)


def test_a_state_that_does_not_fit_its_attack_is_refused_at_once(tmp_path: Path):
    save_planted(Planted(th.attacks.WaNet(), CARD, {}), tmp_path)
    with pytest.raises(InputError, match="does not fit wanet: 'field'"):
        load_planted(tmp_path)


def test_only_a_planted_is_saved(tmp_path: Path):
    with pytest.raises(InputError, match=r"planted is a BadNets; expected a Planted$"):
        save_planted(th.attacks.BadNets(), tmp_path)
    planted = th.attacks.BadNets().plant(th.Split(X, Y, card=CARD))
    with pytest.raises(InputError, match=r"planted is a Victim; expected a Planted; it holds one in \.planted"):
        save_planted(th.attacks.Victim(torch.nn.Identity(), planted), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], 7, "has format '7'"),
        (["attack"], "blended", "names no attack"),
        (["attack", "method"], "blendet", "unknown attack 'blendet'; did you mean 'blended'"),
        (["attack", "alpha"], 2.0, "alpha"),
        (["attack", "alpha"], "much", "alpha"),
        (["attack", "target"], 3, "target is 3; 'toy' has classes 0 to 2"),
        (["attack", "evil"], 1, "unknown option of blended 'evil'"),
        (["attack", "preset"], "official", "unknown option 'preset' of blended"),
        (["attack", "kind"], "repair", "unknown option 'kind' of blended"),
        (["card", "classes"], 3, "card: classes is 3"),
        (["sha256"], "0", "was a save cut short"),
    ],
)
def test_an_edited_record_is_refused(folder: Path, path: list, value: object, message: str):
    record = json.loads((folder / "planted.json").read_text())
    place = record
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (folder / "planted.json").write_text(json.dumps(record))
    with pytest.raises(InputError) as caught:
        load_planted(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["planted.json", "planted.safetensors"])
@pytest.mark.parametrize("left", [None, 0, 5])
def test_a_missing_or_truncated_file_is_refused(folder: Path, name: str, left: int | None):
    data = (folder / name).read_bytes()
    (folder / name).unlink()
    if left is not None:
        (folder / name).write_bytes(data[:left])
    with pytest.raises(InputError, match=name):
        load_planted(folder)
