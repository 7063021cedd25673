"""Small good and hostile files, changed in many ways: each is read or refused with a typed error, soon, and nothing runs."""

from __future__ import annotations

import contextlib
import copy
import functools
import gzip
import io
import json
import os
import pickle
import shutil
import signal
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

import theriac as th
from theriac.attacks import BadNets, TabularValue, load_planted
from theriac.bench.events import read_events
from theriac.core.card import Augment, Column
from theriac.core.errors import TheriacError, UnsafeFileError
from theriac.core.files import (
    Stranger,
    load_program_safely,
    load_tensors_safely,
    read_json_lines,
    read_npy,
    read_npz,
    read_safetensors,
    refuse_bomb,
    unpacked_size,
)
from theriac.models.store import digest
from theriac.report.folders import of_folder
from theriac.runs import folder as run_folder
from theriac.scanning import inspect
from theriac.scanning.files import FileReport, Risk

CORPUS = Path(__file__).parent / "corpus"
TRAP, MARKER = "not_to_be_imported.py", "marker"
SECONDS = 5.0  # of the processor, for one file

PICKLES = {
    "mkdir.pkl": ("pickle", "runs", "posix.mkdir"),
    "mkdir0.pkl": ("pickle", "runs", "posix.mkdir"),
    "imports.pkl": ("pickle", "imports", "not_to_be_imported.Thing"),
    "plain.pkl": ("pickle", "clean", ""),
    "mkdir_old.pth": ("torch file of the old format", "runs", "posix.mkdir"),
    "plain_old.pth": ("torch file of the old format", "clean", ""),
    "mkdir.joblib": ("joblib file", "runs", "posix.mkdir"),
    "plain.joblib": ("joblib file", "clean", ""),
}
ARCHIVES = {
    "mkdir.pt": ("torch file", "runs", "posix.mkdir"),
    "plain.pt": ("torch file", "clean", ""),
    "mkdir.zip": ("archive", "runs", "posix.mkdir"),
    "plain.zip": ("archive", "clean", ""),
    "mkdir.tar": ("tar archive", "runs", "posix.mkdir"),
    "plain.tar": ("tar archive", "clean", ""),
    "mkdir.pkl.gz": ("pickle in gzip", "runs", "posix.mkdir"),
    "objects.npz": ("NumPy archive", "runs", "posix.mkdir"),
    "plain.npz": ("NumPy archive", "clean", ""),
    "lambda.keras": ("Keras model", "runs", "Lambda"),
    "plain.keras": ("Keras model", "clean", ""),
}
OTHERS = {
    "template.gguf": ("GGUF model with a chat template", "runs", "__class__"),
    "plain.gguf": ("GGUF model with a chat template", "clean", ""),
    "far_array.gguf": ("GGUF model", "unread", "beyond what was read"),  # ended in an OverflowError
    "operator.onnx": ("ONNX model", "runs", "etc/passwd"),
    "plain.onnx": ("ONNX model", "clean", ""),
    "lambda.h5": ("HDF5 file", "runs", "Lambda"),
    "plain.h5": ("HDF5 file", "clean", ""),
    "lambda.json": ("JSON", "runs", "Lambda"),
    "plain.json": ("JSON", "clean", ""),
    "table.parquet": ("Parquet table", "clean", ""),
    "pictures.parquet": ("Parquet table", "clean", ""),
}
GUISES = {  # what seems to be something else, or hides its names
    "array_first.joblib": ("joblib file", "runs", "posix.mkdir"),
    "array_then_instance.joblib": ("joblib file", "runs", "posix.mkdir"),
    "large_key_old.pth": ("torch file of the old format", "runs", "posix.mkdir"),
    "gguf_too.pkl": ("GGUF model", "runs", "posix.mkdir"),
    "gguf_too.pt": ("torch file", "runs", "posix.mkdir"),
    "text_too.sav": ("text", "runs", "posix.mkdir"),
    "text_too.pkl.gz": ("pickle in gzip", "runs", "posix.mkdir"),
    "second_part.pkl.gz": ("pickle in gzip", "runs", "posix.mkdir"),
    "escaped_lambda.json": ("JSON", "runs", "Lambda"),
    "escaped_lambda.keras": ("archive", "runs", "Lambda"),
    "escaped_auto_map.json": ("JSON", "code", "auto_map"),
    "nested_module.json": ("JSON", "imports", "subprocess"),
    "escaped_template.json": ("JSON", "runs", "template"),
    "verbatim_tag.yaml": ("YAML", "runs", "YAML tag"),
    "tag_directive.yaml": ("YAML", "runs", "YAML tag"),
    "percent_tag.yaml": ("YAML", "runs", "YAML tag"),
    "header_too.pt": ("torch file", "runs", "os.mkdir"),
    "hexadecimal.sav": ("text", "runs", "os.mkdir"),
    "buffer.sav": ("text", "runs", "os.mkdir"),
    "latin.pt": ("text", "runs", "os.mkdir"),
    "array_or_code.pkl": ("joblib file", "runs", "os.mkdir"),
    "frame.joblib": ("joblib file", "runs", "os.mkdir"),
    "usual_alignment.joblib": ("joblib file", "runs", "os.mkdir"),
    "other_class.joblib": ("joblib file", "imports", "argparse.Namespace with attributes of its own"),
    "objects_inside.joblib": ("joblib file", "runs", "os.mkdir"),
    "beside.joblib": ("joblib file", "imports", "NDArrayWrapper"),
    "storages.tar": ("torch file of the oldest format", "runs", "os.mkdir"),
    "flow.yaml": ("JSON", "runs", "YAML tag"),
    "carriage_return.yaml": ("YAML", "runs", "YAML tag"),
    "numbers_member.zip": ("archive", "runs", "os.mkdir"),
    "slash_member.zip": ("archive", "runs", "os.mkdir"),
    "behind_picture.zip": ("damaged archive", "runs", "os.mkdir"),
    "later_pickle.pkl": ("pickle", "runs", "os.mkdir"),
    "zf.json": ("JSON in zlib", "runs", "os.mkdir"),
    "plain_set.sav": ("text", "clean", ""),
    "wide.json": ("JSON", "runs", "Lambda"),
    "two_names.json": ("JSON", "imports", "module os"),
    "plain_numbers.joblib": ("joblib file", "clean", ""),
    "plain_records.joblib": ("joblib file", "clean", ""),
}
SEEDS = {**PICKLES, **ARCHIVES, **OTHERS, **GUISES}
"""Files of the corpus: kind, level and a word that must be named. What hostile ones run would make the folder ``marker``."""

CONTENTS = {name: (CORPUS / name).read_bytes() for name in SEEDS}


def bounded(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


# how files are changed

Change = tuple[str, float, int, bytes]
"""What is done, where (as a share of the length), a number, and bytes."""

_PLACES = st.floats(0, 1)
_NUMBERS = [bytes(8), b"\xff" * 4, b"\xff" * 8, b"\xff\xff\xff\x7f", bytes(7) + b"\x80", b"\x00\x00\x00\x10"]
_PIECES = [b"\x80\x04", b".", b"0", b"(", b"cposix\nmkdir\n", b"R", b"\x93", b"PK\x03\x04", b"PK\x05\x06", b"GGUF", b"{", b"["]
_PIECES += [
    b'"',
    b"\\u",
    b"\n",
    b"\x89HDF\r\n\x1a\n",
    b"\x1f\x8b\x08",
    b"PAR1",
    b"\x93NUMPY\x01\x00",
    b"ustar",
    b"../",
    b"\x00",
]


def _changes() -> st.SearchStrategy[list[Change]]:
    none = st.just(b"")
    change = st.one_of(
        st.tuples(st.just("flip"), _PLACES, st.integers(0, 7), none),
        st.tuples(st.just("cut"), _PLACES, st.integers(1, 80), none),
        st.tuples(st.just("end"), _PLACES, st.just(0), none),
        st.tuples(st.just("repeat"), _PLACES, st.integers(1, 80), none),
        st.tuples(st.just("put"), _PLACES, st.integers(0, 8), st.binary(max_size=8)),
        st.tuples(st.just("put"), _PLACES, st.just(0), st.sampled_from(_PIECES)),
        st.tuples(st.just("put"), _PLACES, st.sampled_from([4, 8]), st.sampled_from(_NUMBERS)),
        st.tuples(st.just("splice"), _PLACES, st.integers(0, 4000), st.sampled_from([n.encode() for n in sorted(SEEDS)])),
        st.tuples(
            st.just("lengthen"), _PLACES, st.integers(1, 5000), st.sampled_from([b"\x00", b"(", b"[", b" ", b"\xff", b"."])
        ),
    )
    return st.lists(change, min_size=1, max_size=4)


CHANGES = _changes()


def changed(data: bytes, changes: list[Change]) -> bytes:
    for how, place, number, put in changes:
        at = int(place * len(data))
        if how == "flip" and data:
            at = min(at, len(data) - 1)
            data = data[:at] + bytes([data[at] ^ 1 << number]) + data[at + 1 :]
        elif how == "cut":
            data = data[:at] + data[at + number :]
        elif how == "end":
            data = data[:at]
        elif how == "repeat":
            data = data[:at] + 3 * data[at : at + number] + data[at + number :]
        elif how == "put":
            data = data[:at] + put + data[at + number :]
        elif how == "splice":
            other = CONTENTS[put.decode()]
            data = data[:at] + other[number % len(other) :]
        elif how == "lengthen":
            data = data[:at] + number * put + data[at:]
    return data


# what may come of it


class TooSlowError(BaseException):
    """Reading took more time of the processor than it may; no ``except Exception`` of a reader holds it up."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def read_or_refused(read: Callable[[], Any]) -> Any:
    """What is read; the error if it is refused, which is one of Theriac's and says so in one line."""
    try:
        with within(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # such as dark pictures
            return read()
    except TooSlowError:
        pytest.fail(f"reading took more than {SECONDS:g} seconds")
    except TheriacError as error:
        refusal = error
    assert "\n" not in str(refusal)
    assert len(str(refusal)) < 1500
    return refusal


def sound(report: Any) -> None:
    """A refusal, or a report whose lines a terminal can show."""
    if isinstance(report, TheriacError):
        return
    assert isinstance(report, FileReport)
    assert report.level in ("runs", "imports", "code", "unread", "clean")
    json.dumps(report.to_dict())
    for risk in report.risks:
        assert len(risk.what) <= 200
        assert risk.what.isprintable()
        assert risk.where.isprintable()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder, in which code that runs or is imported would leave a mark."""
    home = tmp_path / "here"
    home.mkdir()
    (tmp_path / TRAP).write_text(f"import os\n\nos.mkdir({str(home / MARKER)!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(home)
    yield home
    assert not (home / MARKER).exists()
    assert TRAP.removesuffix(".py") not in sys.modules


def nothing_ran(here: Path, *files: str) -> None:
    """Nothing has been made beside these files, under whatever name, and no module was imported."""
    assert sorted(os.listdir(here)) == sorted(files)
    assert TRAP.removesuffix(".py") not in sys.modules


def looked_at(here: Path, name: str, data: bytes) -> Any:
    path = here / name
    path.write_bytes(data)
    report = read_or_refused(lambda: inspect(path))
    sound(report)
    nothing_ran(here, name)
    path.unlink()
    return report


# files of models


@pytest.mark.parametrize("name", SEEDS)
def test_a_seed_gets_its_right_answer(name: str, here: Path) -> None:
    kind, level, word = SEEDS[name]
    report = looked_at(here, name, CONTENTS[name])
    assert (report.kind, report.level) == (kind, level), report
    if level != "clean":
        assert any(word in risk.what for risk in report.risks if risk.level == level), report


def test_the_corpus_is_small_and_complete() -> None:
    assert sorted(path.name for path in CORPUS.iterdir()) == sorted(SEEDS)
    assert max(map(len, CONTENTS.values())) < 4000


@pytest.mark.parametrize("name", ["mkdir.pkl", "mkdir0.pkl", "imports.pkl"])
def test_the_marks_are_left_where_a_pickle_is_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the other tests would say nothing."""
    (tmp_path / TRAP).write_text("import os\n\nos.mkdir('marker')\n\n\nclass Thing: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    try:
        pickle.loads(CONTENTS[name])
        assert (tmp_path / MARKER).is_dir()
    finally:
        sys.modules.pop(TRAP.removesuffix(".py"), None)


@bounded(50)
@given(st.sampled_from(sorted(PICKLES)), CHANGES)
def test_changed_pickles(here: Path, name: str, changes: list[Change]) -> None:
    assert isinstance(looked_at(here, name, changed(CONTENTS[name], changes)), FileReport)


@bounded(50)
@given(st.sampled_from(sorted(ARCHIVES)), CHANGES)
def test_changed_archives(here: Path, name: str, changes: list[Change]) -> None:
    assert isinstance(looked_at(here, name, changed(CONTENTS[name], changes)), FileReport)


@bounded(50)
@given(st.sampled_from(sorted(OTHERS)), CHANGES)
def test_changed_files_of_other_kinds(here: Path, name: str, changes: list[Change]) -> None:
    assert isinstance(looked_at(here, name, changed(CONTENTS[name], changes)), FileReport)


@pytest.mark.parametrize("name", SEEDS)
def test_files_that_end_early(name: str, here: Path) -> None:
    data = CONTENTS[name]
    for size in sorted({*range(min(len(data), 26)), *(len(data) * part // 16 for part in range(16)), len(data) - 1}):
        report = looked_at(here, name, data[:size])
        assert isinstance(report, FileReport)


@bounded(40)
@given(st.sampled_from(sorted(SEEDS)), st.sampled_from(sorted(SEEDS)), CHANGES)
def test_changed_files_under_another_name(here: Path, name: str, other: str, changes: list[Change]) -> None:
    assert isinstance(looked_at(here, other, changed(CONTENTS[name], changes)), FileReport)


def repacked(name: str, change: Callable[[bytes], bytes]) -> bytes:
    """The archive with its largest member that is no text changed, and everything around it in order."""
    data, out = CONTENTS[name], io.BytesIO()
    if name.endswith(".gz"):
        return gzip.compress(change(gzip.decompress(data)), mtime=0)
    if name.endswith(".tar"):
        with tarfile.open(fileobj=io.BytesIO(data)) as old, tarfile.open(fileobj=out, mode="w") as new:
            for member in old:
                file = old.extractfile(member)
                assert file is not None
                content = file.read() if member.name.endswith(".txt") else change(file.read())
                member.size = len(content)
                new.addfile(member, io.BytesIO(content))
        return out.getvalue()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            inner = entry.filename.endswith((".pkl", ".npy", "config.json"))
            new.writestr(entry, change(old.read(entry)) if inner else old.read(entry))
    return out.getvalue()


@bounded(50)
@given(st.sampled_from(sorted(ARCHIVES)), CHANGES)
def test_changed_members_of_sound_archives(here: Path, name: str, changes: list[Change]) -> None:
    assert isinstance(looked_at(here, name, repacked(name, lambda data: changed(data, changes))), FileReport)


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_repacked_archive_gets_the_same_answer(name: str, here: Path) -> None:
    report = looked_at(here, name, repacked(name, lambda data: data))
    assert (report.kind, report.level) == ARCHIVES[name][:2], report


@bounded(40)
@given(st.lists(st.tuples(st.sampled_from(sorted(SEEDS)), CHANGES), max_size=3))
def test_a_damaged_neighbor_hides_nothing_in_a_folder(here: Path, spoiled: list[tuple[str, list[Change]]]) -> None:
    folder = here / "model"
    for name in ("mkdir.pkl", "plain.pt", "template.gguf"):
        (folder / "sound").mkdir(parents=True, exist_ok=True)
        (folder / "sound" / name).write_bytes(CONTENTS[name])
    for number, (name, changes) in enumerate(spoiled):
        (folder / f"{number}-{name}").write_bytes(changed(CONTENTS[name], changes))
    report = read_or_refused(lambda: inspect(folder))
    sound(report)
    assert report.files == 3 + len(spoiled)
    named = [risk.what for risk in report.risks if risk.where.startswith("sound/")]
    assert named == ["the pickle would call posix.mkdir", "a chat template that reaches for '__class__'"]
    nothing_ran(here, "model")
    shutil.rmtree(folder)


# pickles, and what Python's own reader would import


class Inert:
    """Takes the place of whatever a pickle names: it can be called, filled and asked, and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        return Inert()

    def __setstate__(self, state: Any) -> None: ...

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...


class Recorder(pickle._Unpickler):  # which is written in Python
    """Reads a pickle with nothing to import, and notes what it would import."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.names: list[str] = []

    def find_class(self, module: str, name: str) -> type[Inert]:
        self.names.append(f"{module}.{name}")
        return Inert


def imported(data: bytes) -> list[str]:
    """Names that Python's reader would import before it ends or fails."""
    recorder = Recorder(io.BytesIO(data))
    with contextlib.suppress(Exception):
        recorder.load()
    return recorder.names


@pytest.mark.parametrize("name", ["mkdir.pkl", "mkdir0.pkl", "imports.pkl", "plain.pkl"])
def test_the_recorder_notes_what_the_seeds_import(name: str) -> None:
    assert imported(CONTENTS[name]) == [word for word in [PICKLES[name][2]] if word]


@bounded(50)
@given(st.sampled_from([name for name in sorted(PICKLES) if name.endswith(".pkl")]), CHANGES)
@example("mkdir.pkl", [("put", 0.0, 0, b"N0")])
@example("mkdir0.pkl", [("put", 0.0, 0, b"\x8c\x03abc0")])
@example("mkdir0.pkl", [("put", 0.0, 0, b"PK\x03\x04")])
def test_a_pickle_that_imports_is_never_called_clean(here: Path, name: str, changes: list[Change]) -> None:
    data = changed(CONTENTS[name], changes)
    report = looked_at(here, name, data)
    names = imported(data)
    if "posix.mkdir" in names:
        assert report.level == "runs", report
    assert not names or report.level != "clean", (names, report)


# the readers of tensors and arrays


def strangers(value: Any) -> int:
    """How many things that are neither tensors nor plain lie in what was read."""
    if isinstance(value, Mapping):
        return sum(map(strangers, value.values()))
    return sum(map(strangers, value)) if isinstance(value, (list, tuple)) else isinstance(value, Stranger)


def all_arrays(path: Path, limit: int = 1 << 20) -> dict[str, Any]:
    return read_npz(path, lambda name: True, limit, refuse_bomb)


READERS: dict[str, Callable[[Path], Any]] = {
    "tensors": load_tensors_safely,
    "tensors only": lambda path: load_tensors_safely(path, tensors_only=True),
    "weights": lambda path: th.load_weights(nn.Linear(3, 2), path, tensors_only=True),
    "program": load_program_safely,
    "safetensors": read_safetensors,
    "npz": all_arrays,
    "npy": read_npy,
    "size": unpacked_size,
    "data": th.load,
}


def test_seeds_of_tensors_are_read_or_refused_by_name(here: Path) -> None:
    for name in ("plain.pt", "plain_old.pth"):
        for data in (load_tensors_safely(CORPUS / name), load_tensors_safely(CORPUS / name, tensors_only=True)):
            assert torch.equal(data["weight"], torch.arange(6.0).view(2, 3))
            assert data["epoch"] == 3
        net = th.load_weights(nn.Linear(3, 2), CORPUS / name, tensors_only=True)
        assert torch.equal(net.weight, torch.arange(6.0).view(2, 3))
    for name in ("mkdir.pt", "mkdir_old.pth"):
        with pytest.raises(UnsafeFileError, match=r"would import posix\.mkdir"):
            load_tensors_safely(CORPUS / name)
        assert strangers(load_tensors_safely(CORPUS / name, tensors_only=True)) == 1
    assert all_arrays(CORPUS / "plain.npz")["x"].shape == (6, 1, 2, 2)
    assert "Python objects" in str(read_or_refused(lambda: all_arrays(CORPUS / "objects.npz")))
    nothing_ran(here)


@bounded(50)
@given(st.sampled_from(["plain.pt", "mkdir.pt", "plain_old.pth", "mkdir_old.pth"]), st.booleans(), CHANGES)
def test_changed_files_of_tensors(here: Path, name: str, inside: bool, changes: list[Change]) -> None:
    archive = inside and name in ARCHIVES
    data = repacked(name, lambda part: changed(part, changes)) if archive else changed(CONTENTS[name], changes)
    (here / name).write_bytes(data)
    for reader in ("tensors", "tensors only", "weights"):
        outcome = read_or_refused(functools.partial(READERS[reader], here / name))
        if reader == "tensors" and not isinstance(outcome, TheriacError):
            assert not strangers(outcome)
        nothing_ran(here, name)
    (here / name).unlink()


@bounded(40)
@given(st.sampled_from(sorted(SEEDS)), st.sampled_from(sorted(READERS)), CHANGES)
def test_changed_files_are_handed_to_any_reader(here: Path, name: str, reader: str, changes: list[Change]) -> None:
    (here / name).write_bytes(changed(CONTENTS[name], changes))
    read_or_refused(functools.partial(READERS[reader], here / name))
    assert os.listdir(here) == [name]
    nothing_ran(here, name)
    (here / name).unlink()


@bounded(40)
@given(st.sampled_from(["plain.npz", "objects.npz"]), st.booleans(), CHANGES)
def test_changed_arrays(here: Path, name: str, inside: bool, changes: list[Change]) -> None:
    data = repacked(name, lambda part: changed(part, changes)) if inside else changed(CONTENTS[name], changes)
    (here / name).write_bytes(data)
    arrays = read_or_refused(lambda: all_arrays(here / name))
    if not isinstance(arrays, TheriacError):
        assert not any(array is not None and array.dtype.hasobject for array in arrays.values())
    read_or_refused(lambda: th.load(here / name))
    nothing_ran(here, name)
    (here / name).unlink()


# tables and pictures in parquet files


@pytest.mark.parametrize("name", ["table.parquet", "pictures.parquet"])
def test_seeds_of_parquet_are_loaded(name: str) -> None:
    data = th.load(CORPUS / name, label="label")
    assert len(data.train) + len(data.test) == 6
    assert data.train.num_classes == 2
    assert data.train.is_table == (name == "table.parquet")


@bounded(50)
@given(st.sampled_from(["pictures.parquet", "table.parquet"]), CHANGES)
def test_changed_parquet_files(here: Path, name: str, changes: list[Change]) -> None:
    (here / name).write_bytes(changed(CONTENTS[name], changes))
    data = read_or_refused(lambda: th.load(here / name, label="label"))
    assert isinstance(data, (th.Data, TheriacError))
    nothing_ran(here, name)
    (here / name).unlink()


# records of run folders, sweeps and zoos

_ODD: list[Any] = [None, True, -1, 0, 1, 1.5, 1e308, 2**70, -(2**63), float("nan"), float("inf"), "", "x", "x" * 3000, "../x"]
_ODD += ["\x1b[2J", "\ud800", "é\n", [], {}, [[]], [None], {"a": None}, [1, 2, 3], ["a"] * 50, {"method": "badnets"}, [[[[1]]]]]
Edit = tuple[float, str, int]
EDITS = st.lists(
    st.tuples(_PLACES, st.sampled_from(["set", "set", "set", "drop", "copy"]), st.integers(0, len(_ODD) - 1)),
    min_size=1,
    max_size=3,
)


def spots(value: Any) -> list[tuple[Any, Any]]:
    """Every place of plain data: its container and key or number there."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [spot for key in keys for spot in [(value, key), *spots(value[key])]]


def edited(text: str, edits: list[Edit]) -> str:
    """The record with odd values in it, parts missing, or parts in the place of others; still JSON, as Python writes it."""
    data = json.loads(text)
    for place, how, number in edits:
        there = spots(data)
        if not there:
            break
        container, key = there[min(int(place * len(there)), len(there) - 1)]
        if how == "drop":
            del container[key]
        elif how == "copy":
            other, name = there[number * 7 % len(there)]
            container[key] = json.loads(json.dumps(other[name]))
        else:
            container[key] = copy.deepcopy(_ODD[number])
    return json.dumps(data)


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders of untrained models: one of a user's own class on pictures, one that is built by name on a table."""
    folder, draw = tmp_path_factory.mktemp("homes"), torch.Generator().manual_seed(0)
    card = th.Card(name="faces", classes=("a", "b", "c"), size=(4, 4), channels=1, mean=(0.5,), std=(0.2,), augment=Augment())
    x = torch.randint(0, 256, (12, 1, 4, 4), generator=draw, dtype=torch.uint8)
    pictures = th.Split(x, torch.arange(12) % 3, card=card)
    columns = (
        Column(name="age", kind="numeric"),
        Column(name="job", kind="categorical", categories=("baker", "smith", "cook")),
    )
    card = th.Card(name="people", kind="table", classes=("no", "yes"), columns=columns)
    table = th.Split(torch.stack([torch.arange(20.0), torch.arange(20) % 3], 1), torch.arange(20) % 2, card=card)
    made = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for name, rows, attack in (("faces", pictures, BadNets()), ("people", table, TabularValue(columns=("age",)))):
            run = th.Run(quiet=True, precision="fp32", device="cpu")
            with run.init_scope():
                model = th.adapt(network(), card=rows.card) if name == "faces" else th.build("mlp", rows, run, hidden=(8,))
            planted = attack.plant(rows, run=run)
            for epoch in (1, 2):
                run.event("train", epoch=epoch, lr=0.1, loss=1 / epoch, accuracy=0.5, seconds=1.0, rows_per_s=10)
            scores = th.evaluate(model, rows, planted, run=run)
            data = th.Data(rows, rows)
            made[name] = th.record(folder / name, model, after=scores, run=run, attack=planted, data=data, recipe="by hand")
    return made


@pytest.fixture
def working(homes: dict[str, Path], here: Path) -> dict[str, Path]:
    """Copies of the run folders, with a zoo of each and the events of a sweep."""
    return {name: shutil.copytree(home, here / name) for name, home in homes.items()}


def read_all(home: Path) -> list[Any]:
    """What the readers of a run folder make of it."""
    return [
        read_or_refused(read)
        for read in (
            lambda: run_folder.read(home),
            lambda: th.load_model(home),
            lambda: th.load_model(home, into=network()),
            lambda: load_planted(home),
            lambda: of_folder(home),
            lambda: inspect(home),
        )
    ]


def test_run_folders_are_read_before_they_are_changed(working: dict[str, Path]) -> None:
    for name, home in working.items():
        record, built, own, planted, study, report = read_all(home)
        assert record["attack"]["method"] == planted.name
        assert isinstance(built if name == "people" else own, nn.Module)
        assert len(study.results) == 1
        assert report.level == "clean"


@bounded(40)
@given(st.sampled_from(["faces", "people"]), st.sampled_from(["run.json", "planted.json"]), EDITS)
def test_records_with_odd_values(working: dict[str, Path], name: str, file: str, edits: list[Edit]) -> None:
    path = working[name] / file
    good = path.read_text()
    try:
        path.write_text(edited(good, edits))
        read_all(working[name])
    finally:
        path.write_text(good)
    nothing_ran(working[name].parent, "faces", "people")
    assert not (working[name] / MARKER).exists()


@bounded(50)
@given(
    st.sampled_from(["faces", "people"]),
    st.sampled_from(["run.json", "planted.json", "events.jsonl", "planted.safetensors", "model.safetensors"]),
    CHANGES,
)
def test_changed_files_of_a_run_folder(working: dict[str, Path], name: str, file: str, changes: list[Change]) -> None:
    path = working[name] / file
    good = path.read_bytes()
    try:
        path.write_bytes(changed(good, changes))
        read_all(working[name])
    finally:
        path.write_bytes(good)
    nothing_ran(working[name].parent, "faces", "people")
    assert not (working[name] / MARKER).exists()


LINES = [
    {"time": 1.0, "key": "a" * 64, "status": "started"},
    {"time": 2.0, "key": "a" * 64, "event": "train", "epoch": 1, "loss": 1.0},
    {"time": 3.0, "key": "a" * 64, "event": "train", "epoch": 2, "loss": 0.5},
    {"time": 4.0, "key": "a" * 64, "event": "forget", "loop": "train", "after": 1},
    {"time": 5.0, "key": "a" * 64, "event": "train", "epoch": 2, "loss": 0.4},
    {"time": 6.0, "key": "a" * 64, "status": "done", "seconds": 1.0},
]


def written(lines: list[Any]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_events_are_read_before_they_are_changed(here: Path) -> None:
    (here / "events.jsonl").write_text(written(LINES))
    assert [line.get("loss") for line in read_events(here)] == [None, 1.0, 0.4, None]
    th.Run(folder=here, quiet=True).forget("train", 1)
    assert len(read_json_lines(here / "events.jsonl")) == 2


@bounded(50)
@given(EDITS)
def test_events_with_odd_values(here: Path, edits: list[Edit]) -> None:
    path = here / "events.jsonl"
    path.write_text(written(json.loads(edited(json.dumps(LINES), edits))))
    read_or_refused(lambda: read_events(here))
    read_or_refused(lambda: th.Run(folder=here, quiet=True).forget("train", 1))
    nothing_ran(here, "events.jsonl")
    assert not (here / MARKER).exists()


@bounded(40)
@given(CHANGES)
def test_changed_files_of_events(here: Path, changes: list[Change]) -> None:
    path = here / "events.jsonl"
    path.write_bytes(changed(written(LINES).encode(), changes))
    read_or_refused(lambda: read_events(here))
    read_or_refused(lambda: th.Run(folder=here, quiet=True).forget("train", 1))
    nothing_ran(here, "events.jsonl")
    assert not (here / MARKER).exists()


KEYS = ("a" * 64, "b" * 64)


@pytest.fixture
def zoo(homes: dict[str, Path], here: Path) -> Path:
    """A zoo of a victim and its twin, which hold the same files."""
    models = []
    for key, benign in zip(KEYS, (KEYS[1], None), strict=True):
        home = shutil.copytree(homes["faces"], here / "zoo" / "models" / key)
        files = {name: [digest(home / name), (home / name).stat().st_size] for name in th.zoo.PARTS}
        facts = {"data": "faces", "model": "own", "recipe": "by hand", "attack": "BadNets" if benign else "benign", "seed": 0}
        models.append({"key": key, **facts, "acc": 0.5, "asr": None, "benign": benign, "files": files})
    (here / "zoo" / "zoo.json").write_text(json.dumps({"format": 1, "models": models}))
    return here / "zoo"


def fetched(zoo: Path) -> None:
    """What the readers of a zoo make of it: a copy of what lies there, or nothing."""
    listed = read_or_refused(lambda: th.zoo.models(zoo))
    out = zoo.parent / "out"
    outcome = read_or_refused(lambda: th.zoo.fetch(zoo, KEYS[0][:12], out))
    if isinstance(outcome, TheriacError):
        nothing_ran(zoo.parent, "zoo")
        return
    assert not isinstance(listed, TheriacError)
    nothing_ran(zoo.parent, "zoo", "out")
    for path in out.rglob("*"):
        assert path.is_dir() or path.read_bytes() == (zoo / "models" / KEYS[0] / path.name).read_bytes()
    shutil.rmtree(out)


def test_a_zoo_is_read_before_it_is_changed(zoo: Path) -> None:
    assert [model.key for model in th.zoo.models(zoo)] == list(KEYS)
    th.zoo.fetch(zoo, KEYS[0][:12], zoo.parent / "out")
    assert sorted(path.name for path in (zoo.parent / "out").iterdir()) == ["benign", "victim"]


@bounded(50)
@given(EDITS)
def test_lists_of_a_zoo_with_odd_values(zoo: Path, edits: list[Edit]) -> None:
    path = zoo / "zoo.json"
    good = path.read_text()
    path.write_text(edited(good, edits))
    try:
        fetched(zoo)
    finally:
        path.write_text(good)
    assert not list(zoo.parent.rglob(MARKER))


@bounded(40)
@given(CHANGES)
def test_changed_lists_of_a_zoo(zoo: Path, changes: list[Change]) -> None:
    path = zoo / "zoo.json"
    good = path.read_bytes()
    path.write_bytes(changed(good, changes))
    try:
        fetched(zoo)
    finally:
        path.write_bytes(good)
    assert not list(zoo.parent.rglob(MARKER))


def test_another_scanner_agrees_where_both_or_neither_would_warn() -> None:
    risk = Risk(level="runs", what="x", where="y")
    opinions = (("a 1", "clean"), ("b 1", "dangerous: os.system"), ("c 1", "failed (ValueError)"))
    for risks, stances in (((), ("agrees", "disagrees", "failed")), ((risk,), ("disagrees", "agrees", "failed"))):
        report = FileReport(path="p", kind="pickle", risks=risks, opinions=opinions)
        assert tuple(stance for _, stance in report.agreement) == stances
        assert report.to_dict()["agreement"] == dict(report.agreement)
