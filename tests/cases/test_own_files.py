"""A person's own checkpoint, own trigger, and fewer rows than there are, from the command line."""

from __future__ import annotations

import json
import shutil
import string
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import theriac as th
from theriac.cli.main import app

MODEL = ("--data", "digits", "--model", "preact_resnet18", "--width", "4", "--device", "cpu", "--precision", "fp32")


def call(*words: object):
    found = CliRunner().invoke(app, [str(w) for w in words])
    return found.exit_code, found.stdout, found.stderr


@pytest.fixture(scope="module")
def checkpoint(trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a training script leaves one: two state dicts, and an object of a class that we do not know."""
    path = tmp_path_factory.mktemp("files") / "last.pth"
    net = trained.get_submodule("net")
    noise = {k: torch.zeros_like(v) for k, v in net.state_dict().items()}
    torch.save({"state_dict": noise, "state_dict_ema": net.state_dict(), "name": string.Template("run $n")}, path)
    return path


def test_a_checkpoint_with_a_foreign_object_is_refused_with_the_way_out(checkpoint):
    code, _, told = call("eval", checkpoint, *MODEL)
    assert code == 2
    assert "string.Template" in told
    assert "--tensors-only" in told


def test_eval_takes_one_of_several_state_dicts(checkpoint, trained, run):
    code, out, told = call("eval", checkpoint, *MODEL, "--tensors-only", "--weights-key", "state_dict_ema", "--json")
    assert code == 0, told
    want = th.evaluate(trained, th.load("digits").test, run=run).acc
    assert json.loads(out)["evaluation"]["acc"]["hits"] == want.hits > 0.8 * want.total
    code, out, told = call("eval", checkpoint, *MODEL, "--tensors-only", "--json")
    assert code == 0, told
    assert "--weights-key" in told
    assert any("'state_dict' was taken" in note for note in json.loads(out)["warnings"])
    assert json.loads(out)["degenerate"]  # a network of zeros


def test_repair_takes_one_of_several_state_dicts(checkpoint, tmp_path):
    words = ("--tensors-only", "--weights-key", "state_dict_ema", "--method", "clp", "--out", tmp_path / "run", "--json")
    code, out, told = call("repair", checkpoint, *MODEL, *words)
    assert code == 0, told
    assert json.loads(out)["before"]["acc"]["value"] > 0.8


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--tensors-only", "--weights-key", "nosuch"), "'state_dict', 'state_dict_ema'"),
        (("--weights-key", "state_dict"), "--tensors-only"),
    ],
)
def test_a_key_that_is_not_there(checkpoint, words, says):
    code, _, told = call("eval", checkpoint, *MODEL, *words)
    assert code == 2
    assert says in told


def test_a_run_folder_has_no_key(tmp_path, trained):
    th.save(trained, tmp_path / "run")
    for words in (("--tensors-only",), ("--weights-key", "x")):
        code, _, told = call("eval", tmp_path / "run", "--data", "digits", *words)
        assert code == 2
        assert "leave out --weights-key, --tensors-only and --wrap" in told


def write(folder: Path, rows: np.ndarray, labels: list[int], suffix: str = "png") -> Path:
    for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(row).save(folder / str(label) / f"{i}.{suffix}")
    return folder


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "victim"
    words = ("--recipe", "short_8", "--attack", "badnets", "--attack-option", "side=2", "--target", "3", "--out", folder)
    code, _, told = call("train", *MODEL, *words)
    assert code == 0, told
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, victim: Path) -> tuple[Path, Path]:
    """The test rows, clean and stamped by our own attack, as two folders of files."""
    root, rows = tmp_path_factory.mktemp("pairs"), th.load("digits").test
    planted = th.attacks.load_planted(victim)
    labels = rows.y.tolist()
    stamped = planted.stamp(rows.x, rows.y, rows.index)
    return write(root / "clean", rows.x[:, 0].numpy(), labels), write(root / "stamped", stamped[:, 0].numpy(), labels)


def test_pairs_of_folders_count_what_the_attack_counts(victim, pairs, tmp_path):
    code, out, told = call("eval", victim, "--trigger-pairs", *pairs, "--target", "3", "--json")
    assert code == 0, told
    mine, own = json.loads(out)["evaluation"], json.loads(call("eval", victim, "--json")[1])["evaluation"]
    for rate in ("acc", "asr", "ra"):
        assert (mine[rate]["hits"], mine[rate]["total"]) == (own[rate]["hits"], own[rate]["total"])
    assert mine["asr"]["value"] > 0.5  # else both could count nothing
    code, _, told = call("eval", victim, "--trigger-pairs", *pairs, "--target", "3", "--max-asr", "0.1")
    assert code == 1
    assert "above --max-asr" in told


def test_pairs_may_lack_a_class_and_differ_in_format(victim, pairs, tmp_path):
    clean, stamped = tmp_path / "clean", tmp_path / "stamped"
    shutil.copytree(pairs[0] / "5", clean / "5")
    shutil.copytree(pairs[0] / "7", clean / "7")
    for path in clean.rglob("*.png"):
        there = stamped / path.parent.name / f"{path.stem}.bmp"
        there.parent.mkdir(parents=True, exist_ok=True)
        Image.open(pairs[1] / path.parent.name / path.name).save(there)
    code, out, told = call("eval", victim, "--trigger-pairs", clean, stamped, "--target", "3", "--json")
    assert code == 0, told
    assert json.loads(out)["evaluation"]["asr"]["total"] == len(list(clean.rglob("*.png")))


def test_pairs_that_are_none_are_refused(victim, pairs, tmp_path):
    clean, stamped = pairs
    lost = tmp_path / "lost"
    shutil.copytree(stamped, lost)
    first = sorted((lost / "4").iterdir())[0]
    first.unlink()
    moved = tmp_path / "moved"
    shutil.copytree(stamped, moved)
    at = sorted((moved / "4").iterdir())[0]
    at.rename(moved / "5" / at.name)
    for words, says in (
        ((clean, stamped), "needs --target"),
        ((clean, lost, "--target", "3"), f"lacks 4/{first.stem}"),
        ((lost, clean, "--target", "3"), f"lacks 4/{first.stem}"),
        ((clean, moved, "--target", "3"), f"lacks 4/{at.stem}"),
        ((clean, clean, "--target", "3"), "same rows"),
        ((clean, tmp_path / "nosuch", "--target", "3"), "no folder"),
        ((clean, tmp_path, "--target", "3"), "lacks"),
        ((clean, stamped, "--target", "eleven"), "--target"),
        ((clean, stamped, "--target", "3", "--attack", "badnets"), "beside --attack"),
    ):
        code, _, told = call("eval", victim, "--trigger-pairs", *words)
        assert code == 2, told
        assert says in told


def test_fewer_rows_are_drawn_with_every_class_in_proportion(tmp_path):
    words = ("--recipe", "short_1", "--rows", "100", "--out", tmp_path / "run", "--json")
    code, out, told = call("train", *MODEL, *words)
    assert code == 0, told
    found = json.loads(out)["evaluation"]
    assert found["acc"]["total"] == 100
    assert {c["rows"] for c in found["classes"]} <= {9, 10, 11}
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data"]["rows"] == {"train": 100, "test": 100}
    code, out, told = call("eval", tmp_path / "run", "--json")  # the same rows again, and no complaint about them
    assert code == 0, told
    assert json.loads(out)["evaluation"] == found
    assert json.loads(out)["warnings"] == []
    code, out, told = call("eval", tmp_path / "run", "--rows", "50", "--json")
    assert code == 0, told
    assert json.loads(out)["evaluation"]["acc"]["total"] == 50
    code, out, told = call("repair", tmp_path / "run", "--rows", "50", "--method", "ft", "--clean", "0.5", "--json")
    assert code == 0, told
    assert json.loads((tmp_path / "run-ft" / "run.json").read_text())["clean"]["rows"] == 25


@pytest.mark.parametrize("rows", ["0", "-1", "1.5", "x"])
def test_rows_that_are_no_number(rows, tmp_path):
    code, _, told = call("train", *MODEL, "--rows", rows, "--out", tmp_path / "run")
    assert code == 2
    assert "--rows" in told
