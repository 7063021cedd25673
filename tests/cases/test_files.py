"""Section F: hostile files are refused in one sentence, in bounded time and memory; benign ones of all layouts load."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import theriac as th
from theriac.core.card import Card
from theriac.core.errors import InputError

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import benign  # noqa: E402 - beside this file

LARGEST, LONGEST = 1000, 20.0  # MB of the whole process, torch and the making of the files included; seconds a file


def run(group: str, folder: Path) -> list[dict[str, object]]:
    """Make and open the hostile files of a group in a process of its own, under limits."""
    env = {**os.environ, "THERIAC_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(HERE / "hostile.py"), group, str(folder)], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("group", ["pickles", "archives", "arrays", "tables", "pictures"])
def test_hostile_files_are_refused_within_bounds(group: str, tmp_path: Path):
    for case in run(group, tmp_path):
        told = str(case["told"])
        assert told.startswith(("InputError: ", "UnsafeFileError: ")), case
        assert str(case["says"]) in told, case
        assert "\n" not in told, case
        assert len(told) < 1200, case
        assert not any(word in told for word in ("weights_only", "safe_globals", "\x1b")), case  # no advice to open it unsafely
        assert float(str(case["seconds"])) < LONGEST, case
        assert int(str(case["mb"])) < LARGEST, case


def test_hostile_run_folders_end_with_code_0_or_2(tmp_path: Path):
    command = [sys.executable, "-m", "theriac", "train", "--data", "digits", "--attack", "badnets", "--recipe", "short_1"]
    command += ["--width", "8", "--out", str(tmp_path / "base"), "--quiet"]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    for case in run("records", tmp_path):
        told = str(case["told"])
        assert told.startswith(("OK", "REFUSED")), case
        assert case["says"] in ("", "ANY") or str(case["says"]) in told, case
        assert "ESCAPE CODES" not in told, case
        assert float(str(case["seconds"])) < LONGEST, case
        assert int(str(case["mb"])) < LARGEST, case


def test_benign_files_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("THERIAC_CACHE", str(tmp_path / "cache"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        counted = benign.count(tmp_path / "files")
    for kind, (plain, opted, total, said) in counted.items():
        assert plain + opted >= 0.95 * total, (kind, said)
    assert sum(c[2] for c in counted.values()) > 250


@pytest.mark.filterwarnings("ignore")  # torch warns of a class that it uses itself
def test_what_torch_writes_is_read_bit_for_bit(tmp_path: Path):
    from theriac.core.files import load_tensors_safely

    state = {
        "a": torch.randn(3, 4)[:, ::2],
        "b": torch.randn(5).bfloat16(),
        "s": torch.randn(4, 4).relu().to_sparse(),
        "q": torch.quantize_per_channel(
            torch.randn(3, 4), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0, 1, 2]), 0, torch.qint8
        ),
        "i": torch.arange(3),
        "c": torch.randn(2, dtype=torch.complex64),
    }
    state["tied"] = state["a"]
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save(state, tmp_path / "x.pt", **options)
        ours, theirs = load_tensors_safely(tmp_path / "x.pt"), torch.load(tmp_path / "x.pt", weights_only=True)
        for name, expected in theirs.items():
            assert ours[name].dtype == expected.dtype
            assert ours[name].layout == expected.layout
            if expected.is_quantized:
                assert torch.equal(ours[name].int_repr(), expected.int_repr())
                assert torch.equal(ours[name].dequantize(), expected.dequantize())
            else:
                assert torch.equal(ours[name].to_dense(), expected.to_dense())
            assert expected.layout != torch.strided or ours[name].stride() == expected.stride()
        assert ours["tied"].untyped_storage().data_ptr() == ours["a"].untyped_storage().data_ptr()


def ema(folder: Path) -> tuple[Path, nn.Linear, nn.Linear]:
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    content = {
        "state_dict": one.state_dict(),
        "state_dict_ema": two.state_dict(),
        "args": argparse.Namespace(lr=0.1),
        "epoch": 3,
    }
    torch.save(content, folder / "timm.pth")
    return folder / "timm.pth", one, two


def test_a_checkpoint_with_a_namespace_gives_its_tensors_and_runs_nothing(tmp_path: Path):
    path, one, two = ema(tmp_path)
    with pytest.warns(
        UserWarning, match=r"2 state dicts, 'state_dict', 'state_dict_ema'; the one under 'state_dict' was taken"
    ):
        model = th.load_weights(nn.Linear(2, 2), path)
    assert torch.equal(model.weight, one.weight)
    model = th.load_weights(nn.Linear(2, 2), path, key="state_dict_ema")
    assert torch.equal(model.weight, two.weight)
    with pytest.raises(InputError, match=r"key is 'ema'.*'state_dict', 'state_dict_ema'"):
        th.load_weights(nn.Linear(2, 2), path, key="ema")


def test_a_checkpoint_with_a_class_of_one_s_own_gives_its_tensors_when_they_are_asked_for(tmp_path: Path):
    saved = nn.Linear(2, 2)
    torch.save({"state_dict": saved.state_dict(), "options": benign.Options()}, tmp_path / "own.pth")
    with pytest.raises(InputError, match=r"would import benign\.Options; .*tensors_only=True"):
        th.load_weights(nn.Linear(2, 2), tmp_path / "own.pth")
    model = th.load_weights(nn.Linear(2, 2), tmp_path / "own.pth", tensors_only=True)
    assert torch.equal(model.weight, saved.weight)


@pytest.mark.parametrize("name", ["os.system", "argparse.ArgumentParser", "pathlib.Path.unlink", "builtins.eval"])
def test_a_namespace_does_not_open_the_door_for_anything_else(tmp_path: Path, name: str):
    module, _, attribute = name.rpartition(".")
    pickled = f"cargparse\nNamespace\n0c{module}\n{attribute}\n(Vtrue\ntR.".encode()
    (tmp_path / "x.pt").write_bytes(pickled)
    with pytest.raises(InputError, match=r"system|ArgumentParser|unlink|eval"):
        th.load_weights(nn.Linear(2, 2), tmp_path / "x.pt")


def test_several_state_dicts_without_a_usual_name_are_a_question(tmp_path: Path):
    torch.save({"generator": nn.Linear(2, 2).state_dict(), "judge": nn.Linear(2, 2).state_dict()}, tmp_path / "gan.pt")
    with pytest.raises(InputError, match=r"several state dicts, 'generator', 'judge'; choose one with key="):
        th.load_weights(nn.Linear(2, 2), tmp_path / "gan.pt")


def test_a_label_far_beyond_the_rows_is_refused():
    with pytest.raises(InputError, match=r"y holds 1,099,511,627,776"):
        th.Split(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1 << 40]))


def test_digits_do_not_grow_to_gigabytes():
    with pytest.raises(InputError, match="would take"):
        th.load("digits", size=2048)
    with pytest.raises(InputError, match="a row may have"):
        Card(classes=("a", "b"), channels=3, size=(30_000, 30_000))
