"""``theriac scan`` on every kind of model that ``theriac check`` and ``theriac eval`` open, and what its exit codes mean."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import theriac as th
from theriac.models import make_own
from theriac.scanning.models import EXIT, ModelScan

CODE = """
from torch import nn

def net():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(128, 10)
    )
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A function that makes a network, and weights for it."""
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "their.py").write_text(CODE)
    name = f"{folder / 'their.py'}:net"
    torch.save({"state_dict": make_own(name).state_dict()}, folder / "w.pt")
    return name, folder / "w.pt"


def parts(result: dict) -> list[str]:
    return [part["name"] for part in result["parts"]]


def test_codes_are_answers():
    codes = {verdict: ModelScan(name="x", verdict=verdict, reason="").exit_code for verdict in EXIT}  # type: ignore[arg-type]
    assert codes == {"clean": 0, "suspicious": 1, "backdoored": 2, "abstains": 3}


def test_a_folder_whose_data_are_unknown_is_scanned_without_its_behavior(theriac, tmp_path: Path) -> None:
    folder = th.save(th.build("preact_resnet18", th.load("digits").train, width=4), tmp_path / "net")
    done = theriac("scan", folder, "--json")
    assert done.code == 3, done.err
    assert parts(done.json) == ["file", "weights"]
    assert any("behavior" in text and "--clean" in text for text in done.json["skipped"])
    shown = theriac("scan", folder)
    assert "not looked at: the behavior" in shown.out
    assert shown.out.startswith("abstains: ")


def test_a_class_of_ones_own(theriac, own: tuple[str, Path]) -> None:
    name, weights = own
    for words in (("--model", name, "--weights", weights), (weights, "--model", name)):
        done = theriac("scan", *words, "--data", "digits", "--wrap", "mean=[0.5]", "--wrap", "std=[0.5]", "--json")
        assert done.code == 3, done.err
        assert parts(done.json) == ["file", "weights"]
        assert "head_sum" in done.json["features"]
    lacking = theriac("scan", weights, "--model", name, "--json")
    assert (lacking.code, lacking.json["status"]) == (64, "bad input")
    assert "--data" in lacking.err


def test_a_program_is_scanned_as_far_as_it_goes(theriac, own: tuple[str, Path], tmp_path: Path) -> None:
    rows = torch.export.Dim("rows")
    program = torch.export.export(make_own(own[0]).eval(), (torch.rand(2, 1, 8, 8),), dynamic_shapes=({0: rows},))
    torch.export.save(program, tmp_path / "net.pt2")
    done = theriac("scan", tmp_path / "net.pt2", "--clean", "digits", "--json")  # clean pictures say the classes
    assert done.code == 3, done.err
    assert parts(done.json) == ["file", "weights", "behavior"]
    assert any("a repaired twin" in text for text in done.json["skipped"])
    assert done.json["probability"] is None
    assert "scan the module that it was made of" in done.json["reason"]
    assert not any("not known" in risk["what"] for risk in done.json["file"]["risks"])


def test_a_checkpoint_of_another_library(theriac, tmp_path: Path) -> None:
    net = th.Builder("preact_resnet18", {"width": 4})(th.load("digits").train).net
    torch.save(
        {"model_name": "preactresnet18", "num_classes": 10, "model": net.state_dict(), "img_size": (8, 8, 1),
         "data_path": "x", "clean_data": "mnist", "bd_train": {}, "bd_test": {}}, tmp_path / "attack_result.pt"
    )  # fmt: skip
    done = theriac("scan", tmp_path / "attack_result.pt", "--data", "digits", "--json")
    assert done.code == 3, done.err
    assert parts(done.json) == ["file", "weights"]


def test_a_network_of_timm_is_made_for_the_classes_of_the_data(theriac, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("test_resnet", num_classes=10, in_chans=1).state_dict(), tmp_path / "net.pth")
    words = ("--model-option", "in_chans=1", "--wrap", "channels=1", "--wrap", "size=32", "--data", "digits", "--json")
    done = theriac("scan", "--model", "timm:test_resnet", "--weights", tmp_path / "net.pth", *words)
    assert done.code == 3, done.err
    assert parts(done.json) == ["file", "weights"]


def test_tensors_of_a_file_that_would_import_something(theriac, own: tuple[str, Path], tmp_path: Path) -> None:
    name, _ = own
    torch.save({"state_dict": make_own(name).state_dict(), "who": th.core.card.Card}, tmp_path / "w.pt")
    words = ("scan", tmp_path / "w.pt", "--model", name, "--data", "digits", "--json")
    closed = theriac(*words)
    assert (closed.code, parts(closed.json)) == (1, ["file"])
    taken = theriac(*words, "--tensors-only")
    assert (taken.code, parts(taken.json)) == (1, ["file", "weights"])  # suspicious for its file
    assert "theriac.core.card.Card" in taken.json["reason"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "MODEL is missing"),
        (("--nothing",), "No such option"),
        (("{net}", "--prior", "1"), "prior is 1"),
        (("{net}", "--prior", "x"), "should be a valid number"),
        (("{net}/nowhere",), "does not exist"),
    ],
)
def test_wrong_use_is_no_verdict(theriac, victim: Path, words: tuple[str, ...], says: str) -> None:
    done = theriac("scan", *(word.format(net=victim) for word in words))
    assert (done.code, done.out) == (64, "")
    assert says in done.err
    assert theriac("scan-data").code == 2  # other commands


def test_a_reader_that_leaves_changes_no_verdict(victim: Path) -> None:
    line = f"set -o pipefail; {sys.executable} -m theriac scan {victim} --quiet | true"
    assert subprocess.run(["bash", "-c", line], check=False, capture_output=True).returncode == 3
