"""Bad input: one clear sentence on stderr, exit code 2, and nothing half written."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import theriac as th

Theriac = Callable[..., Any]
Pictures = Callable[..., Path]


@pytest.fixture
def refused(theriac: Theriac, tmp_path: Path) -> Callable[..., str]:
    """Run a command that must be refused; returns its sentence."""

    def call(*words: object) -> str:
        out = tmp_path / "out" / "run"
        found = theriac(*words, "--out", out)
        assert found.code == 2, (found.code, found.err)
        assert found.out == ""
        lines = [line for line in found.err.splitlines() if not line.startswith("note: ")]
        assert len(lines) == 1, found.err
        assert lines[0].startswith("error: ")
        assert "Traceback" not in found.err
        assert not (tmp_path / "out").exists()
        return lines[0].removeprefix("error: ")

    return call


def _png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures in one folder for each of two classes."""
    for k, name in enumerate(("cat", "dog")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(12):
            (tmp_path / "pets" / name / f"{i:02d}.png").write_bytes(_png(100 * k + i))
    return tmp_path / "pets"


@pytest.fixture
def parquet(tmp_path: Path) -> Callable[..., Path]:
    """A parquet file in the Hugging Face layout."""

    def make(**columns: Any) -> Path:
        rows = {"image": [{"bytes": _png(i), "path": None} for i in range(24)], "label": [i % 2 for i in range(24)]}
        path = tmp_path / "train-00000-of-00001.parquet"
        pq.write_table(pa.table({k: v for k, v in (rows | columns).items() if v is not None}), path)
        return path

    return make


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--attack", "badnet"], "unknown attack 'badnet'; did you mean 'badnets'"),
        (["--attack", "badnets:offical"], "'official'"),
        (["--attack", "badnets", "--attack-option", "sid=3"], "'side'"),
        (["--attack", "badnets", "--attack-option", "side=big"], "side"),
        (["--attack", "badnets", "--attack-option", "pattern=stripes"], "pattern"),
        (["--attack", "badnets", "--attack-option", "side"], "KEY=VALUE"),
        (["--attack", "badnets", "--attack-option", "side=3", "--attack-option", "side=4"], "twice"),
        (["--attack", "badnets", "--attack-option", "target=1", "--target", "2"], "twice"),
        (["--attack", "badnets", "--attack-option", "preset=official"], "badnets:official"),
        (["--attack", "badnets", "--poison-rate", "1.5"], "poison_rate is 1.5; expected a number in [0, 1]"),
        (["--attack", "badnets", "--poison-rate", "nan"], "poison-rate is nan"),
        (["--attack", "badnets", "--poison-rate", "1"], "can be poisoned"),
        (["--attack", "badnets", "--target", "99"], "target is 99"),
        (["--attack", "badnets", "--target", "-1"], "target is -1"),
        (["--attack", "blended", "--attack-option", "alpha=nan"], "alpha is nan; expected a finite number"),
        (["--attack", "blended", "--attack-option", "alpha=.inf"], "finite"),
        (["--poison-rate", "0.1"], "--attack"),
        (["--model", "preact_resnet"], "'preact_resnet18'"),
        (["--model", "mlp"], "table"),
        (["--option", "depht=2"], "depht"),
        (["--width", "0"], "width"),
        (["--recipe", "shorts_8"], "'short_8'"),
        (["--device", "tpu9"], "device is 'tpu9'"),
        (["--precision", "fp99"], "fp99"),
        (["--seed", "-1"], "seed is -1"),
        (["--seed", "one"], "--seed"),
        (["--augment", "flop=true"], "'flip'"),
        (["--augment", "crop_pad=much"], "crop_pad"),
        (["--data-option", "val_shar=0.1"], "'val_share'"),
        (["--data", "digit"], "did you mean 'digits'?"),
        (["--data", "no/such/file.parquet"], "does not exist"),
        (["--size", "0"], "size"),
        (["--nonsense", "1"], "--nonsense"),
        (["--defense", "cdb"], "unknown training defense 'cdb'; did you mean 'pdb' or 'cbd'"),
        (["--defense", "sau"], "unknown training defense 'sau'"),
        (["--defense", "cbd:papr"], "'paper'"),
        (["--defense", "cbd", "--defense-option", "epoch=3"], "'epochs'"),
        (["--defense", "cbd", "--recipe", "short_2"], "--recipe short_2 is given with --defense"),
        (["--defense", "cbd", "--attack", "lira"], "--attack lira controls training itself"),
        (["--defense-option", "epochs=3"], "--defense NAME"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else None,
)
def test_train_refuses(refused: Callable[..., str], words: list[str], told: str) -> None:
    assert told in refused("train", *words)


def test_unknown_command(theriac: Theriac) -> None:
    result = theriac("trian")
    assert result.code == 2
    assert "'train'" in result.err


def test_commands_of_commands_alone_show_their_help(theriac: Theriac) -> None:
    result = theriac("zoo")
    assert result.code == 2
    assert "fetch" in result.out + result.err
    assert "error" not in result.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--method", "sav"], "'sau'"),
        (["--method", "ft:offical"], "'official'"),
        (["--method", "ft", "--option", "epoch=2"], "'epochs'"),
        (["--method", "ft", "--option", "epochs=many"], "epochs"),
        (["--method", "ft", "--option", "lr=nan"], "lr is nan"),
        (["--clean", "0"], "--clean is '0'"),
        (["--clean", "0.0"], "--clean is '0.0'"),
        (["--clean", "1.5"], "--clean is '1.5'"),
        (["--clean", "nan"], "--clean is 'nan'"),
        (["--clean", "few"], "--clean is 'few'"),
        (["--clean", "99999"], "99999"),
        (["--clean-from", "val"], "val_share"),
        (["--clean-from", "no/such/place"], "does not exist"),
        (["--model", "preact_resnet18"], "names its own architecture"),
        (["--attack", "badnets", "--target", "99"], "target is 99"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else None,
)
def test_repair_refuses(refused: Callable[..., str], victim: Path, words: list[str], told: str) -> None:
    assert told in refused("repair", victim, *words)


def test_truncated_image(refused: Callable[..., str], folder: Path) -> None:
    broken = folder / "dog" / "03.png"
    broken.write_bytes(broken.read_bytes()[:60])
    assert "03.png" in refused("train", "--data", folder)


def test_truncated_parquet(refused: Callable[..., str], parquet: Callable[..., Path]) -> None:
    path = parquet()
    path.write_bytes(path.read_bytes()[:-40])
    assert path.name in refused("train", "--data", path)


def test_missing_column(refused: Callable[..., str], parquet: Callable[..., Path]) -> None:
    told = refused("train", "--data", parquet(label=None, kind=[0, 1] * 12, sort=[1, 2] * 12))
    assert "label" in told
    assert "kind" in told
    assert "'breed'" in refused("train", "--data", parquet(), "--label", "breed")


def test_labels_out_of_range(refused: Callable[..., str], pictures: Pictures) -> None:
    assert "0.5" in refused("train", "--data", pictures(y=[0.0, 1.0, 0.5] * 20))
    path = pictures(y=[0, 1, 2] * 20, x_test=np.zeros((3, 1, 8, 8), np.uint8), y_test=np.array([0, 1, 7]))
    assert "7" in refused("train", "--data", path)


def test_one_class_only(refused: Callable[..., str], pictures: Pictures) -> None:
    assert "class" in refused("train", "--data", pictures(y=[1] * 60))


@pytest.mark.parametrize(
    ("attack", "option", "expected"),
    [
        ("tact", "sources=11", "expected a list"),
        ("sig", "delta=much", "expected a number"),
        ("bpp", "dithering=2", "expected true or false"),
        ("badnets", "side=2.5", "side is 2.5"),
    ],
)
def test_options_of_a_wrong_kind(refused: Callable[..., str], attack: str, option: str, expected: str) -> None:
    told = refused("train", "--data", "digits", "--attack", attack, "--attack-option", option)
    assert expected in told
    assert option.split("=")[0] in told


def test_empty_split(refused: Callable[..., str], pictures: Pictures) -> None:
    path = pictures(y=np.zeros(0, np.int64), x=np.zeros((0, 1, 8, 8), np.uint8))
    assert "row" in refused("train", "--data", path)


def test_model_of_another_size(refused: Callable[..., str], theriac: Theriac, victim: Path, pictures: Pictures) -> None:
    """A model of the classes 0 to 9 on data of three classes, two of which it does not know."""
    strange = pictures(y=np.array([9, 10, 11] * 20))
    told = refused("repair", victim, "--data", strange, "--method", "ft")
    assert "has 10 classes" in told
    assert "has 3 (9, 10, 11" in told
    measured = theriac("eval", victim, "--data", strange)
    assert measured.code == 2
    assert "has 10 classes" in measured.err


def test_data_of_some_of_the_classes_are_measured_with_a_note(theriac: Theriac, victim: Path, pictures: Pictures) -> None:
    measured = theriac("eval", victim, "--data", pictures())
    assert measured.code == 0
    assert "note: the test rows hold none of 7 of 10 classes ('3', '4', '5', '6', '7', '8', '9')" in measured.err


def test_a_trigger_that_is_fitted_cannot_be_named(theriac: Theriac, victim: Path) -> None:
    """A new one would not be the one that the model knows."""
    found = theriac("eval", victim, "--attack", "lf")
    assert found.code == 2
    assert "fitted while it is planted" in found.err
    assert "()" not in found.err  # no Python calls on the command line


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_weights_that_do_not_fit(refused: Callable[..., str], tmp_path: Path, suffix: str) -> None:
    data = th.load("digits")
    model = th.build("preact_resnet18", data.train, width=8)
    torch.save(model.state_dict(), tmp_path / f"wide{suffix}")
    words = ("repair", tmp_path / f"wide{suffix}", "--data", "digits", "--model", "preact_resnet18", "--width", "4")
    assert "do not fit" in refused(*words)


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("command", ["eval", "repair"])
@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_unsafe_checkpoint_is_never_run(theriac: Theriac, tmp_path: Path, command: str, how: str) -> None:
    mark, path = tmp_path / "it ran", tmp_path / "model.pt"
    if how == "torch":
        torch.save({"state_dict": _Bomb(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(_Bomb(mark)))
    found = theriac(command, path, "--data", "digits", "--model", "preact_resnet18")
    assert found.code == 2
    assert "would import" in found.err
    assert "pathlib" in found.err
    assert len(found.err.splitlines()) == 1
    assert not mark.exists()


def test_damaged_run_folder(theriac: Theriac, victim: Path, tmp_path: Path) -> None:
    for name, change in (
        ("run.json", lambda b: b[: len(b) // 2]),
        ("model.safetensors", lambda b: b[:-100]),
        ("planted.json", lambda b: b.replace(b'"badnets"', b'"nonesuch"')),
    ):
        broken = tmp_path / name
        broken.mkdir()
        for path in victim.iterdir():
            (broken / path.name).write_bytes(path.read_bytes())
        (broken / name).write_bytes(change((victim / name).read_bytes()))
        found = theriac("eval", broken)
        assert found.code == 2, (name, found.err)
        assert len(found.err.splitlines()) == 1
    assert theriac("eval", tmp_path).code == 2
    assert theriac("eval", tmp_path / "nothing").code == 2
    assert theriac("report", tmp_path / "nothing").code == 2


def test_data_that_went_away(theriac: Theriac, tiny: tuple[str, ...], pictures: Pictures, tmp_path: Path) -> None:
    path = pictures()
    assert theriac("train", *tiny, "--data", path, "--out", tmp_path / "run").code == 0
    path.rename(tmp_path / "moved.npz")
    lost = theriac("eval", tmp_path / "run")
    assert lost.code == 2
    assert "--data" in lost.err
    found = theriac("eval", tmp_path / "run", "--data", tmp_path / "moved.npz")
    assert found.code == 0, found.err


def test_unwritable_out(theriac: Theriac, tiny: tuple[str, ...], pictures: Pictures, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")
    for out in (taken, taken / "below"):
        found = theriac("train", *tiny, "--data", pictures(), "--out", out)
        assert found.code == 2
        assert "--out" in found.err
        assert str(out) in found.err
    assert taken.read_text() == "a file"


def test_foreign_folder_is_left_alone(theriac: Theriac, tiny: tuple[str, ...], pictures: Pictures, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_text("dear to me")
    for more in ([], ["--force"]):
        found = theriac("train", *tiny, "--data", pictures(), "--out", tmp_path / "photos", *more)
        assert found.code == 2
        assert "me.jpg" in found.err
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["me.jpg"]


def test_internal_error_is_short(theriac: Theriac, monkeypatch: pytest.MonkeyPatch, victim: Path) -> None:
    monkeypatch.setattr("theriac.models.store.digest", lambda path: 1 / 0)
    found = theriac("eval", victim)
    assert found.code == 4
    assert found.err.startswith("error: internal error: ZeroDivisionError")
    assert "--debug" in found.err
    assert len(found.err.splitlines()) == 1
    assert "Traceback" in theriac("--debug", "eval", victim).err


def test_a_real_process_refuses(tmp_path: Path) -> None:
    bomb = tmp_path / "model.pt"
    torch.save(_Bomb(tmp_path / "it ran"), bomb)
    found = subprocess.run([sys.executable, "-m", "theriac", "repair", str(bomb)], capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr.startswith("error: ")
    assert "pathlib" in found.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"model.pt"}


def test_nothing_from_outside_reaches_the_terminal_raw(theriac: Theriac, tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    path.write_bytes(b"cos\nget\x1b[2J\x07cwd\n(tR.")  # a pickle that calls os.<escape codes>()
    told = theriac("eval", path, "--data", "digits", "--model", "wrn_16_1")
    assert told.code == 2
    assert "\x1b" not in told.err + told.out
    assert "\x07" not in told.err + told.out


def test_a_device_that_can_not_compute(refused: Callable[..., str]) -> None:
    assert "device is 'meta', which can't compute here" in refused("train", "--data", "digits", "--device", "meta")
