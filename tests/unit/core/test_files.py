"""Files: written whole or not at all, and never believed when they come from outside."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from theriac.core.errors import InputError, UnsafeFileError
from theriac.core.files import load_tensors_safely, read_json, write_atomically, write_json


class Payload:
    """Unpickling this makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def modern(thing: object, path: Path) -> None:
    torch.save(thing, path)


def legacy(thing: object, path: Path) -> None:
    torch.save(thing, path, _use_new_zipfile_serialization=False)


def bare(thing: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(thing))


def oldest(thing: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(thing, protocol=0))


@pytest.mark.parametrize("write", [modern, legacy, bare, oldest])
@pytest.mark.parametrize("hide", [lambda p: p, lambda p: {"model": {"weight": torch.zeros(2), "x": [1, p]}}])
def test_an_unsafe_pickle_is_refused_and_not_run(tmp_path, write, hide):
    marker, path = tmp_path / "was_run", tmp_path / "model.pt"
    write(hide(Payload(marker)), path)
    with pytest.raises(UnsafeFileError, match=r"model\.pt was not opened: it would import .*mkdir"):
        load_tensors_safely(path)
    assert not marker.exists()
    if write is bare:  # the control: this file does what it says when it is opened carelessly
        pickle.loads(path.read_bytes())
        assert marker.exists()


def test_a_pickled_module_is_refused_by_name(tmp_path):
    for write in (modern, legacy):
        write(nn.Linear(2, 2), tmp_path / "model.pt")
        with pytest.raises(UnsafeFileError, match=r"torch\.nn\.modules\.linear\.Linear"):
            load_tensors_safely(tmp_path / "model.pt")


def test_tensors_and_plain_containers_are_loaded(tmp_path):
    thing = {"weights": {"a": torch.arange(3), "b": torch.ones(2, dtype=torch.bfloat16)}, "list": [1, 2.5, "x", None, True]}
    for write in (modern, legacy):
        write(thing, tmp_path / "fine.pt")
        loaded = load_tensors_safely(tmp_path / "fine.pt")
        assert torch.equal(loaded["weights"]["a"], thing["weights"]["a"])
        assert loaded["list"] == thing["list"]


def test_a_truncated_old_file_is_called_damaged_not_unsafe(tmp_path):
    path = tmp_path / "old.pt"
    legacy({"a": torch.randn(1000)}, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged") as caught:
        load_tensors_safely(path)
    assert not isinstance(caught.value, UnsafeFileError)
    assert "weights_only" not in str(caught.value)  # no advice to open it carelessly


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "cut.pt"
    torch.save({"a": torch.randn(1000)}, path)
    whole = path.read_bytes()
    for keep in (0, 1, 10, 500, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:keep])
        with pytest.raises(InputError, match=r"cut\.pt is (damaged|empty|not a torch file)"):
            load_tensors_safely(path)


@pytest.mark.parametrize("content", [b"PK\x03\x04nonsense", b"\x80\x05nonsense", b"hello", b"\x00" * 100])
def test_garbage_is_refused(tmp_path, content):
    path = tmp_path / "garbage.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"garbage\.pt"):
        load_tensors_safely(path)


def test_a_foreign_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(InputError, match="damaged"):
        load_tensors_safely(tmp_path / "x.zip")


@pytest.mark.parametrize("name", ["missing.pt", "."])
def test_missing_files_and_folders_are_refused(tmp_path, name):
    with pytest.raises(InputError, match="is not a file"):
        load_tensors_safely(tmp_path / name)


# writing


def test_a_failing_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "kept.txt"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_between_writing_and_renaming_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "kept.json"
    write_json(path, {"a": 1})

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_made_and_files_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "c.json"
    assert write_json(path, {"x": [1, 2]}) == path
    write_json(path, {"x": 3})
    assert read_json(path) == {"x": 3}


def test_json_refuses_nan_and_strange_things(tmp_path):
    with pytest.raises(ValueError, match=r"JSON compliant|float"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": io.BytesIO()})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{", b"{'a': 1}", b"\xff\xfe\x00", b'{"a": 1} x'])
def test_damaged_json_is_refused(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.json is not valid JSON"):
        read_json(tmp_path / "x.json")


def test_missing_and_huge_json_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"x\.json can't be read"):
        read_json(tmp_path / "x.json")
    with pytest.raises(InputError, match="can't be read"):
        read_json(tmp_path)
    (tmp_path / "x.json").write_text("[" + "1, " * 100 + "1]")
    with pytest.raises(InputError, match="at most 100 are read"):
        read_json(tmp_path / "x.json", limit=100)


def test_deeply_nested_json_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"x\.json"):
        read_json(tmp_path / "x.json")


def test_an_archive_that_unpacks_to_far_more_than_it_is_is_refused(tmp_path, monkeypatch):
    from theriac.core import files

    monkeypatch.setattr(files, "UNPACKED_FLOOR", 1 << 16)
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(1 << 22))
    with pytest.raises(InputError, match=r"and unpacks to 4,194,304; at most"):
        load_tensors_safely(path)
    torch.save({"x": torch.zeros(1 << 20)}, path)  # as large as it unpacks to
    assert load_tensors_safely(path)["x"].numel() == 1 << 20


def test_tensors_that_store_less_than_they_claim_or_have_no_data_are_refused(tmp_path):
    path = tmp_path / "odd.pt"
    torch.save({"a": [torch.zeros(1).expand(1 << 40)]}, path)
    with pytest.raises(InputError, match="of which it stores fewer"):
        load_tensors_safely(path)
    gray = torch.zeros(50, 1, 8, 8).expand(-1, 3, -1, -1)
    torch.save(gray, path)
    assert load_tensors_safely(path).shape == (50, 3, 8, 8)
    torch.save({"x": torch.eye(3).to_sparse()}, path)  # a checkpoint may hold it; whoever needs a plain one refuses it
    assert torch.equal(load_tensors_safely(path)["x"].to_dense(), torch.eye(3))
    torch.save({"x": torch.zeros(3, device="meta")}, path)
    with pytest.raises(InputError, match="without data"):
        load_tensors_safely(path)
