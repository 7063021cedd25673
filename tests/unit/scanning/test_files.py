"""What files would import or run is named, and nothing of it happens; ordinary files raise no alarm."""

from __future__ import annotations

import io
import json
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from theriac.cli.main import app
from theriac.core.errors import InputError
from theriac.scanning import inspect

CASES = Path(__file__).parents[2] / "cases"
sys.path.insert(0, str(CASES))
import benign  # noqa: E402
import hostile  # noqa: E402
from loading import Evil, field, gguf, onnx, paths_of_loading, zipped  # noqa: E402


def test_every_path_of_loading_is_named_and_nothing_runs(tmp_path: Path):
    marker = tmp_path / "marker"
    for name, (file, data, level, word) in paths_of_loading(marker).items():
        folder = tmp_path / name.replace(" ", "_")
        folder.mkdir()
        (folder / file).write_bytes(data)
        report = inspect(folder / file)
        assert report.level == level, (name, report)
        assert any(word in risk.what for risk in report.risks), (name, report)
    assert not marker.exists()


def test_hostile_pickles_are_named_and_nothing_runs(tmp_path: Path):
    cases = 0
    for name, (program, says) in hostile.programs(tmp_path / "marker").items():
        for make, suffix in ((hostile.archive, "pt"), (hostile.legacy, "pth")):
            if name in ("many_names", "long_name") and suffix == "pth":
                continue
            report = inspect(make(tmp_path / f"{name}.{suffix}", program))
            assert report.level in ("runs", "imports"), (name, report)
            first = says.split(",")[0].removeprefix("_")
            assert any(first in risk.what for risk in report.risks), (name, says, report)
            cases += 1
    assert cases > 45
    assert not (tmp_path / "marker").exists()


@pytest.mark.filterwarnings("ignore")
def test_ordinary_checkpoints_raise_no_alarm(tmp_path: Path):
    alarms, total = [], 0
    for _, name, load, _ in benign.torch_files(tmp_path):
        if "(zip)" not in name and "(old)" not in name:
            continue
        report, total = inspect(load.__defaults__[0]), total + 1
        if report.risks:
            alarms.append(name.split(" (")[0])
    assert total > 60
    assert set(alarms) <= {"options of a class of one's own"}  # which asks for its own class


def test_ordinary_files_of_other_kinds_raise_no_alarm(tmp_path: Path):
    from safetensors.torch import save_file

    save_file(nn.Linear(2, 2).state_dict(), tmp_path / "model.safetensors")
    np.save(tmp_path / "x.npy", np.zeros(3))
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    (tmp_path / "m.gguf").write_bytes(gguf("{% for m in messages %}{{ m['content'] }}{% endfor %}"))
    (tmp_path / "m.onnx").write_bytes(onnx(field(4, b"Relu")))
    (tmp_path / "m.keras").write_bytes(zipped(config_dot_json=b'{"class_name": "Dense", "module": "keras.layers"}'))
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "README.md").write_text("# A model\n")
    for ending in ("png", "jpeg", "gif", "bmp", "webp", "tiff"):
        Image.new("RGB", (9, 7), (10, 200, 30)).save(tmp_path / f"sample.{ending}")
    pieces = [field(1, text) + b"\x15" + struct.pack("<f", -n) + b"\x18\x01" for n, text in enumerate((b"<unk>", b"a", b"b"))]
    (tmp_path / "spiece.model").write_bytes(b"".join(field(1, piece) for piece in pieces) + field(2, field(1, b"corpus.txt")))
    report = inspect(tmp_path)
    assert report.level == "clean", report
    assert report.files == 15
    with pytest.raises(InputError, match="nowhere"):
        inspect(tmp_path / "nowhere")


@pytest.mark.parametrize("head", [b"GIF89a" + bytes(3), b"\x89PNG\n"])
def test_a_picture_that_is_a_pickle_as_well_is_named(tmp_path: Path, head: bytes):
    """Of a pickle, the first bytes of a GIF are a number, those of a PNG a truth and an object that is looked up."""
    (tmp_path / "sample").write_bytes(head + b"cos\nmkdir\n(S'nowhere'\ntR.")
    report = inspect(tmp_path / "sample")
    assert report.kind == "picture"
    assert [(risk.level, "os.mkdir" in risk.what) for risk in report.risks] == [("runs", True)]


def test_the_command_says_it_and_ends_with_its_code(tmp_path: Path):
    torch.save({"w": torch.zeros(2)}, tmp_path / "good.pt")
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(Evil(tmp_path / "marker")))
    (tmp_path / "odd.7z").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(30))
    for name, code, word in (("good.pt", 0, "nothing but numbers"), ("bad.pkl", 1, "mkdir"), ("odd.7z", 3, "not analyzed")):
        done = CliRunner().invoke(app, ["scan-file", str(tmp_path / name)])
        assert done.exit_code == code, done.output
        assert word in " ".join(done.stdout.split())
        record = json.loads(CliRunner().invoke(app, ["scan-file", str(tmp_path / name), "--json"]).stdout)
        assert bool(record["risks"]) == bool(code)
    assert CliRunner().invoke(app, ["scan-file", str(tmp_path / "nowhere")]).exit_code == 2
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("entries", "data"),
    [
        pytest.param({"a": ("F32", [2], [0, 8]), "b": ("F32", [2], [4, 12])}, 12, id="tensors that overlap"),
        pytest.param({"a": ("F32", [2], [0, 8])}, 12, id="bytes of no tensor"),
        pytest.param({"a": ("F32", [2], [0, 800])}, 8, id="a tensor that ends behind the file"),
        pytest.param({"a": ("F32", [3], [0, 8])}, 8, id="a shape of other size"),
        pytest.param({"a": ("F99", [2], [0, 8])}, 8, id="a type that does not exist"),
    ],
)
def test_a_safetensors_header_that_does_not_fit_its_bytes_is_not_called_clean(tmp_path: Path, entries, data):
    header = json.dumps({k: {"dtype": d, "shape": s, "data_offsets": o} for k, (d, s, o) in entries.items()}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(data))
    report = inspect(path)
    assert report.level == "unread", report


def test_an_exported_program_is_clean_and_what_its_sample_inputs_would_run_is_named(tmp_path: Path):
    torch.export.save(torch.export.export(nn.Linear(3, 2).eval(), (torch.zeros(2, 3),)), tmp_path / "good.pt2")
    with zipfile.ZipFile(tmp_path / "good.pt2") as archive:
        assert any(name.endswith("sample_inputs/model.pt") for name in archive.namelist())  # an archive inside the archive
        contents = {name: archive.read(name) for name in archive.namelist()}
    report = inspect(tmp_path / "good.pt2")
    assert report.level == "clean", report
    evil = io.BytesIO()
    torch.save(Evil(tmp_path / "marker"), evil)
    inner = next(name for name in contents if name.endswith("sample_inputs/model.pt"))
    with zipfile.ZipFile(tmp_path / "bad.pt2", "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, evil.getvalue() if name == inner else data)
    report = inspect(tmp_path / "bad.pt2")
    assert report.level == "runs", report
    assert any("mkdir" in risk.what and risk.where.endswith("data.pkl") for risk in report.risks)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("deep", [1, 2])
def test_archives_that_grow_or_lie_too_deep_inside_an_archive_are_not_called_clean(tmp_path: Path, deep: int):
    data, method = (bytes(1 << 20), zipfile.ZIP_DEFLATED) if deep == 1 else (b"1", zipfile.ZIP_STORED)
    for _ in range(deep + 1):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", method) as archive:
            archive.writestr("a.zip" if data[:2] == b"PK" else "a.txt", data)
        data, method = packed.getvalue(), zipfile.ZIP_STORED
    (tmp_path / "a.zip").write_bytes(data)
    report = inspect(tmp_path / "a.zip")
    assert report.level == "unread", report
    assert any("an archive inside an archive" in risk.what for risk in report.risks)
