"""What a file of a model would import or run when its usual reader opens it; the file is never loaded."""

from __future__ import annotations

import bz2
import contextlib
import io
import itertools
import json
import lzma
import math
import os
import re
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from theriac.core.errors import InputError, UnsafeFileError
from theriac.core.files import (
    UNPACKED_FLOOR,
    UNPACKED_RATIO,
    Archive,
    DamagedError,
    load_tensors_safely,
    opened,
    parse_json,
    refuse_bomb,
    regular,
    shown,
)
from theriac.core.files.pickles import MAX_PICKLE
from theriac.core.files.programs import check_program
from theriac.core.files.tensors import MAX_HEADER, check_safetensors, npy_header
from theriac.core.paths import temporary_folder
from theriac.core.text import line, shorten
from theriac.scanning._opinions import second_opinions
from theriac.scanning._pickled import looks_like, names_as_pickle, names_between, names_in

Level = Literal["runs", "imports", "code", "unread"]
LOOKED_AT = 64 << 20  # bytes of a member or file that are looked at
MOST_PARTS = 64  # compressed parts that follow each other
DEEPEST, MOST_FILES = 3, 2000  # archives in archives; members or files of a folder
_ORDER: tuple[Level, ...] = ("runs", "imports", "code", "unread")


@dataclass(frozen=True, kw_only=True)
class Risk:
    """One thing that a file holds beside numbers.

    Args:
        level: "runs": a name that runs commands, code or file access when the usual reader opens the file. "imports": a name
            that the reader would import and that is on no list. "code": the format carries code or templates that run with
            the model. "unread": a part that could not be looked at.
        what: What it is, in a few words.
        where: File and member.
    """

    level: Level
    what: str
    where: str


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """The findings in a file or folder, without loading it.

    Args:
        path: Which.
        kind: Its format, by its contents.
        risks: What it holds beside numbers, worst first.
        files: How many files were looked at.
        opinions: What other scanners say, where they are installed: name and version, to "clean" or what they name.
    """

    path: str
    kind: str
    risks: tuple[Risk, ...]
    files: int = 1
    opinions: tuple[tuple[str, str], ...] = ()

    @property
    def level(self) -> Level | Literal["clean"]:
        """The worst risk's level."""
        return self.risks[0].level if self.risks else "clean"

    @property
    def risky(self) -> bool:
        """Whether it would import or run something, or carries code."""
        return self.level in ("runs", "imports", "code")

    @property
    def agreement(self) -> tuple[tuple[str, str], ...]:
        """Each other scanner with "agrees", "disagrees", or "failed"."""
        said = [(name, "failed" if text.startswith("failed") else text != "clean") for name, text in self.opinions]
        return tuple(
            (name, risky if isinstance(risky, str) else "agrees" if risky == self.risky else "disagrees")
            for name, risky in said
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        risks = [{"level": r.level, "what": r.what, "where": r.where} for r in self.risks]
        return {
            "path": self.path,
            "kind": self.kind,
            "level": self.level,
            "risks": risks,
            "files": self.files,
            "opinions": dict(self.opinions),
            "agreement": dict(self.agreement),
        }


def inspect(path: str | os.PathLike[str]) -> FileReport:
    """Say what a file, or the files of a folder, would import or run; nothing in them is loaded, imported or run.

    Args:
        path: A file of any kind, or a folder with a model's files.

    Raises:
        InputError: If there is nothing there, or no regular file.
    """
    where = Path(path)
    if not where.is_dir():
        kind, risks = _look(_File.of(where), 0)
        read = not any(risk.level == "unread" for risk in risks)  # another scanner may never end on damaged or endless files
        return FileReport(
            path=str(where), kind=kind, risks=_sorted(risks), opinions=tuple(second_opinions(where) if read else ())
        )
    files = sorted(p for p in where.rglob("*") if not p.is_dir())
    risks, kinds = list[Risk](), dict[str, None]()
    for link in (p for p in where.rglob("*") if p.is_symlink() and p.is_dir()):
        risks.append(Risk(level="unread", what="a link to a folder, which is not followed", where=str(link.relative_to(where))))
    for file in files[:MOST_FILES]:
        try:
            kind, more = _look(_File.of(file), 0)
        except InputError as error:
            kind, more = "unreadable file", [Risk(level="unread", what=str(error), where=str(file))]
        kinds[kind] = None
        risks += [replace(r, where=str(file.relative_to(where)) + r.where.removeprefix(str(file))) for r in more]
    if len(files) > MOST_FILES:
        risks.append(Risk(level="unread", what=f"{len(files) - MOST_FILES:,} more files", where=str(where)))
    if not files:
        raise InputError(f"{shown(where)} is an empty folder; expected a model's files")
    known = ", ".join(kind for kind in kinds if kind not in ("text", "picture"))
    return FileReport(path=str(where), kind=f"folder: {known or 'text'}", risks=_sorted(risks), files=len(files[:MOST_FILES]))


def _sorted(risks: Iterable[Risk]) -> tuple[Risk, ...]:
    return tuple(sorted(dict.fromkeys(risks), key=lambda risk: _ORDER.index(risk.level)))


# what is looked at: a file on disk, or a member that was unpacked


@dataclass(frozen=True)
class _File:
    """Bytes with a name. ``data`` holds at most ``LOOKED_AT`` bytes of ``size``."""

    where: str
    name: str
    size: int
    data: bytes
    path: Path | None = None

    @classmethod
    def of(cls, path: Path) -> _File:
        regular(path)
        with opened(path) as file:
            data = file.read(LOOKED_AT)
            size = file.seek(0, 2)
        return cls(str(path), path.name, size, data, path)

    def part(self, name: str, data: bytes, size: int | None = None) -> _File:
        """A member of it."""
        return _File(f"{self.where}:{line(name)[:120]}", name.rpartition("/")[2], len(data) if size is None else size, data)

    def risk(self, level: Level, what: str) -> Risk:
        return Risk(level=level, what=shorten(line(what), 200), where=self.where)

    @property
    def suffix(self) -> str:
        return self.name.lower().rpartition(".")[2] if "." in self.name else ""


_Look = tuple[str, list[Risk]]


def _look(file: _File, depth: int) -> _Look:
    """The kind of a file, by its first bytes and then by its name, and what it holds."""
    if depth > DEEPEST:
        return "nested archive", [file.risk("unread", "an archive inside an archive inside an archive")]
    look = _look_of(file)
    kind, risks = look(file, depth)
    if look in _TEXTS:
        tags = _yaml(file)
        kind, risks = "YAML" if tags and kind == "text" else kind, [*risks, *tags]
        if file.size > len(file.data):
            risks.append(file.risk("unread", f"{file.size:,} bytes; {LOOKED_AT:,} were looked at"))
    return kind, risks if look is _pickle else [*risks, *_as_pickle(file)]


def _look_of(file: _File) -> Callable[[_File, int], _Look]:
    if _is_zip_behind(file):
        return _zip
    if _is_old_tar(file):
        return _tar
    if file.path is None and file.name.lower() == "data.pkl":  # of a torch file, whatever its bytes look like
        return _pickle
    for magic, at, look in _MAGIC:
        if file.data[at : at + len(magic)] == magic:
            return look
    return next((look for test, look in _TESTS if test(file)), _unknown)


def _unknown(file: _File, depth: int) -> _Look:
    return "unknown", [file.risk("unread", "a kind of file that is not known here")]


# pickles and arrays


def _pickle(file: _File, depth: int, *, kind: str = "pickle") -> _Look:
    joblib = b"numpy_pickle" in file.data
    legacy = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." in file.data[:64]
    kind = "joblib file" if joblib else "torch file of the old format" if legacy else kind
    names = names_in(file.data, joblib=joblib, legacy=legacy)
    beside = "joblib.numpy_pickle.NDArrayWrapper"
    ordinary = ("joblib.numpy_pickle.NumpyArrayWrapper",)
    risks = [file.risk("runs", f"the pickle would call {name}") for name in names.runs[:20]]
    risks += [file.risk("imports", f"the pickle would import {name}") for name in names.unknown[:20] if name not in ordinary]
    if beside in names.unknown:
        risks.append(file.risk("unread", "arrays that joblib reads from other files, objects too"))
    if names.damaged:
        risks.append(file.risk("unread", f"the pickle was not read to its end: {names.damaged}"))
    if file.size > MAX_PICKLE and not legacy:
        risks.append(file.risk("unread", f"the pickle has {file.size:,} bytes; {MAX_PICKLE:,} were looked at"))
    return kind, risks


def _as_pickle(file: _File) -> list[Risk]:
    """What it would do if it were opened as a pickle, which another kind of file may be at the same time."""
    names = names_as_pickle(file.data)
    risks = [file.risk("runs", f"opened as a pickle, it would call {name}") for name in names.runs[:20]]
    if names.damaged:
        risks.append(file.risk("unread", "a beginning that a reader of pickles would follow further than this one"))
    return risks + [file.risk("imports", f"opened as a pickle, it would import {name}") for name in names.unknown[:20]]


def _npy(file: _File, depth: int) -> _Look:
    stream = io.BytesIO(file.data)
    try:
        shape, _, kind, begin = npy_header(stream)
    except DamagedError as error:
        if "Python objects" not in str(error):
            return "NumPy array", [file.risk("unread", str(error))]
        _, risks = _pickle(replace(file, data=file.data[stream.tell() :]), depth)
        return "NumPy array of objects", [file.risk("imports", "an array of Python objects, stored as a pickle"), *risks]
    if begin + math.prod(shape) * kind.itemsize != file.size:
        return "NumPy array", [file.risk("unread", "its size is not that of its array: something else follows, or is missing")]
    return "NumPy array", []


# archives


def _zip(file: _File, depth: int) -> _Look:
    if file.path is None:
        return _inner_zip(file, depth)
    try:
        with Archive(file.path) as archive:
            return _members(file, archive, depth)
    except DamagedError as error:
        risks = [file.risk("runs", f"a pickle inside would call {name}") for name in [*names_between(file.data)][:20]]
        return "damaged archive", [*risks, file.risk("unread", f"an archive that readers read differently: {error}")]


def _inner_zip(file: _File, depth: int) -> _Look:
    """An archive inside another, as programs of torch.export hold one of their sample inputs: looked at if it is not packed."""
    unread = "archive", [file.risk("unread", "an archive inside an archive")]
    if depth > 1 or len(file.data) < file.size:
        return unread
    with temporary_folder() as folder:
        copy = folder / "inner.zip"
        copy.write_bytes(file.data)
        try:
            with Archive(copy) as archive:
                # one that grows would let a small file cost much time
                return _members(file, archive, depth) if archive.total <= file.size else unread
        except DamagedError as error:
            return "damaged archive", [file.risk("unread", f"an archive that readers read differently: {error}")]


_EXPORTED = "/data/weights/"  # of a torch.export program, which may hold a pickle in place of numbers
_OF_NUMBERS = r"(?:^|/)(?:data\.pkl|model\.json|serialized_exported_program\.json|archive_format)$|\.data/"
_NUMBERS = r"/data/\d+$|/\.data/\d+\.storage$|/data/weights/weight_\d+$"  # members with the numbers of tensors


def _members(file: _File, archive: Archive, depth: int) -> _Look:
    names, risks = list(archive.members), list[Risk]()
    if archive.total > max(UNPACKED_FLOOR, UNPACKED_RATIO * file.size):
        return "archive", [file.risk("unread", f"an archive of {file.size:,} bytes that unpacks to {archive.total:,}")]
    looked, budget = 0, 4 * LOOKED_AT
    numbered = any(re.search(_OF_NUMBERS, name) for name in names)  # else nothing says that they are
    for name, member in archive.members.items():
        if looked >= MOST_FILES or budget <= 0:
            risks.append(file.risk("unread", f"{len(names) - looked:,} more members"))
            break
        looked += 1
        if not member.size:
            continue
        if ".." in name.split("/") or name.startswith(("/", "\\")):
            risks.append(file.risk("code", f"a member that unpacks outside of the folder: {line(name)[:80]}"))
        if numbered and re.search(_NUMBERS, name):
            head = bytearray(min(member.size, 8))
            archive.read_into(member, memoryview(head))
            if not _hides(bytes(head)) and not (_EXPORTED in name and re.match(rb"\x80[\x02-\x05]", head)):
                continue
        data = bytearray(min(member.size, LOOKED_AT))
        budget -= len(data)
        archive.read_into(member, memoryview(data))
        _, more = _look(file.part(name, bytes(data), member.size), depth + 1)
        risks += more
    return _kind_of_archive(file, names, risks)


def _hides(head: bytes) -> bool:
    """Whether bytes that should be numbers of a tensor begin as an archive or program does."""
    return head.startswith((b"PK\x03\x04", b"\x7fELF", b"7z\xbc\xaf"))


def _kind_of_archive(file: _File, names: list[str], risks: list[Risk]) -> _Look:
    ends = [name.partition("/")[2] for name in names]
    if any(end.startswith("code/") and end.endswith(".py") for end in ends) or "constants.pkl" in ends:
        spared = [r for r in risks if r.level not in ("imports", "code") or "/code/" not in r.where]
        spared = [r for r in spared if "__torch__" not in r.what and "torch.jit" not in r.what]
        return "TorchScript program", [*spared, file.risk("code", "a TorchScript program, whose code runs with the model")]
    if any(end.endswith(".data/extern_modules") for end in ends) or any(".data/ts_code" in end for end in ends):
        return "torch.package", [*risks, file.risk("code", "a torch.package, whose Python code runs when it is loaded")]
    if "data.pkl" in ends:
        several = [file.risk("unread", "an archive of several torch files")] if ends.count("data.pkl") > 1 else []
        return "torch file", [*risks, *several]
    if any(end.endswith("archive_format") or "serialized_exported_program.json" in end for end in (*ends, *names)):
        return "torch.export program", [*risks, *_program(file)]
    if "config.json" in names and any(name.endswith(".weights.h5") for name in names):
        return "Keras model", risks
    if names and all(name.endswith(".npy") for name in names):
        return "NumPy archive", risks
    if any(name.startswith("MAR-INF/") for name in names):
        return "TorchServe archive", risks
    return "archive", risks


def _program(file: _File) -> list[Risk]:
    """What in an exported program is more than a plain graph with its tensors: torch reads formulas and pickles in it."""
    if file.path is None:
        return [file.risk("unread", "an exported program inside an archive")]
    try:
        check_program(file.path, refuse_bomb, load_tensors_safely)
    except UnsafeFileError as error:
        return [file.risk("runs", str(error).removeprefix(f"{shown(file.path)} ").removeprefix("was not opened: "))]
    except InputError as error:
        return [file.risk("unread", str(error))]
    return []


def _zlib_of_joblib(file: _File, depth: int) -> _Look:
    """Joblib's own compressed format of before: the letters ZF, the length in hexadecimal, and zlib."""
    return _packed(zlib.decompressobj, "zlib")(replace(file, data=file.data[2 + len(hex(2**64)) :]), depth)


def _tar(file: _File, depth: int) -> _Look:
    risks, kind, budget = list[Risk](), "tar archive", 4 * LOOKED_AT
    source: Any = io.BytesIO(file.data) if file.path is None else opened(file.path)
    with contextlib.closing(source):
        try:
            with tarfile.open(fileobj=source, mode="r:") as archive:
                for number, member in enumerate(archive):
                    if number >= MOST_FILES or budget <= 0:
                        risks.append(file.risk("unread", "more members than are looked at"))
                        break
                    risks += _placed(file, member)
                    if not member.isreg():
                        continue
                    content = archive.extractfile(member)
                    data = b"" if content is None else content.read(min(member.size, LOOKED_AT))
                    budget -= len(data)
                    name = member.name.rpartition("/")[2]
                    if name in ("pickle", "storages", "tensors"):
                        kind, part = "torch file of the oldest format", file.part(member.name, data)
                        if name == "pickle":
                            risks += _pickle(part, depth)[1]
                            continue
                        called = dict.fromkeys([*names_as_pickle(data).runs, *names_between(data)])  # numbers lie between
                        risks += [part.risk("runs", f"a pickle would call {own}") for own in called]
                        continue
                    if data:
                        risks += _look(file.part(member.name, data, member.size), depth + 1)[1]
        except (tarfile.TarError, OSError, EOFError, ValueError, MemoryError) as error:
            risks.append(file.risk("unread", f"a damaged tar archive ({error})"))
    return kind, risks


def _placed(file: _File, member: tarfile.TarInfo) -> list[Risk]:
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return [file.risk("code", f"a member that unpacks outside of the folder: {line(member.name)[:80]}")]
    if member.issym() or member.islnk() or member.isdev():
        return [file.risk("code", f"a link or device: {line(member.name)[:80]}")]
    return []


def _packed(unpack: Callable[[], Any], kind: str) -> Callable[[_File, int], _Look]:
    def look(file: _File, depth: int) -> _Look:
        out, source, more = bytearray(), file.data, list[Risk]()
        try:
            for _ in range(MOST_PARTS):  # such a file may hold several, one after the other, which are read as one
                machine = unpack()
                out += machine.decompress(source, LOOKED_AT - len(out))
                source = machine.unused_data
                if len(out) >= LOOKED_AT or not machine.eof or not source.strip(b"\0"):
                    break
        except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
            more.append(file.risk("unread", f"{kind}, damaged ({error})"))
        else:
            if not machine.eof or source.strip(b"\0"):
                more.append(file.risk("unread", f"{kind}, of which {len(out):,} bytes were unpacked"))
        if more and not out:
            return kind, more
        inner = re.sub(r"\.(gz|bz2|xz|lzma|zlib|z)$", "", file.name, flags=re.IGNORECASE)
        inside, risks = _look(file.part(f"unpacked {inner}", bytes(out)), depth + 1)
        return f"{inside} in {kind}", [*risks, *more]

    return look


def _closed(kind: str, level: Level = "unread", what: str = "") -> Callable[[_File, int], _Look]:
    """A kind that is recognized and not analyzed."""
    return lambda file, _: (kind, [file.risk(level, what or f"{kind}, which is not analyzed")])


# other formats


def _safetensors(file: _File, depth: int) -> _Look:
    if file.path is not None:
        try:
            check_safetensors(file.path)
        except (InputError, DamagedError) as error:
            return "safetensors", [file.risk("unread", str(error))]
        return "safetensors", []
    try:
        size = int.from_bytes(file.data[:8], "little")
        header = parse_json(file.data[8 : 8 + size], file.name)
        ends = [facts["data_offsets"][1] for name, facts in header.items() if name != "__metadata__"]
        if 8 + size + max(ends, default=0) != file.size:
            raise ValueError("its size is not what it says")
    except (InputError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        return "safetensors", [file.risk("unread", f"a damaged header ({error})")]
    return "safetensors", []


_TEMPLATE = re.compile(
    rb"__(?:class|globals|builtins|import|subclasses|mro|base|bases|init|getattribute|code|self|dict)__|\bos\s*\.\s*(?:popen|system)"
    rb"|\|\s*attr\s*\(|\b(?:cycler|lipsum|joiner|namespace)\s*\.\s*__|subprocess|\bself\s*\._",
)


def _template(file: _File, text: bytes) -> list[Risk]:
    """A Jinja template, which chat programs run: harmless unless it uses internals of Python."""
    hit = _TEMPLATE.search(text)
    if hit is None:
        return []
    return [file.risk("runs", f"a chat template that reaches for {hit[0].decode('latin-1')!r}")]


_GGUF_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def _gguf(file: _File, depth: int) -> _Look:
    data, at, risks, template = file.data, 24, list[Risk](), False

    def text() -> bytes:
        nonlocal at
        (length,) = struct.unpack_from("<Q", data, at)
        at += 8 + length
        if at > len(data):
            raise ValueError("a text goes beyond what was read")
        return data[at - length : at]

    def skip(kind: int, nested: int = 0) -> None:
        nonlocal at
        if kind in _GGUF_SIZES:
            at += _GGUF_SIZES[kind]
        elif kind == 8:
            text()
        elif kind == 9 and nested < 4:
            inner, count = struct.unpack_from("<IQ", data, at)
            at += 12
            if inner in _GGUF_SIZES:
                at += _GGUF_SIZES[inner] * count
            else:
                for _ in range(count):
                    skip(inner, nested + 1)
        else:
            raise ValueError(f"a value of kind {kind}")
        if at > len(data):  # a place beyond what struct can count to is no struct.error
            raise ValueError("a value goes beyond what was read")

    try:
        _, _, _, pairs = struct.unpack_from("<IIQQ", data, 0)
        for _ in range(min(pairs, 1_000_000)):
            key = text()
            (kind,) = struct.unpack_from("<I", data, at)
            at += 4
            if kind == 8:
                value = text()
                if b"chat_template" in key:
                    template = True
                    risks += _template(file, value)
            else:
                skip(kind)
    except (struct.error, ValueError) as error:
        risks += [*_template(file, data), file.risk("unread", f"metadata that could not be read to their end ({error})")]
    return "GGUF model with a chat template" if template else "GGUF model", risks


_STANDARD = {b"", b"ai.onnx", b"ai.onnx.ml", b"ai.onnx.training", b"ai.onnx.preview.training", b"com.microsoft"}


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Fields of a protobuf message: number, and value (whole number or bytes).

    Raises:
        ValueError: If it is none.
    """
    at, end = 0, len(data)

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= end or shift > 63:
                raise ValueError("it ends too early")
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    while at < end:
        key = varint()
        number, wire = key >> 3, key & 7
        if not number or wire not in (0, 1, 2, 5):
            raise ValueError("it holds no fields")
        if wire == 0:
            yield number, varint()
            continue
        length = varint() if wire == 2 else 8 if wire == 1 else 4
        if at + length > end:
            raise ValueError("a field goes beyond its end")
        yield number, data[at : at + length]
        at += length


def _onnx(file: _File, depth: int) -> _Look:
    risks: list[Risk] = []
    try:
        if file.size > len(file.data):
            raise ValueError(f"it has {file.size:,} bytes; {LOOKED_AT:,} are looked at")
        for number, value in _fields(file.data):
            if isinstance(value, bytes) and number == 7:
                risks += _graph(file, value, 0)
            elif isinstance(value, bytes) and number == 25:
                risks += [r for n, node in _fields(value) if n == 7 and isinstance(node, bytes) for r in _node(file, node, 0)]
    except ValueError as error:
        risks.append(file.risk("unread", f"an ONNX model that could not be read to its end ({error})"))
    return "ONNX model", risks


def _graph(file: _File, data: bytes, depth: int) -> list[Risk]:
    risks: list[Risk] = []
    if depth > 20:
        return [file.risk("unread", "graphs nested more than 20 deep")]
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            risks += _node(file, value, depth)
        elif number == 5 and isinstance(value, bytes):
            for n, entry in _fields(value):
                if n == 13 and isinstance(entry, bytes):
                    pair = dict(_fields(entry))
                    place = pair.get(2)
                    if pair.get(1) == b"location" and isinstance(place, bytes):
                        outside = (
                            place.startswith((b"/", b"\\")) or b".." in place.replace(b"\\", b"/").split(b"/") or b":" in place
                        )
                        level: Level = "runs" if outside else "unread"
                        what = "outside of its folder" if outside else "beside it"
                        risks.append(file.risk(level, f"weights are read from a file {what}: {place[:80].decode('latin-1')}"))
    return risks


def _node(file: _File, data: bytes, depth: int) -> list[Risk]:
    kind, domain, risks = b"", b"", list[Risk]()
    for number, value in _fields(data):
        if not isinstance(value, bytes):
            continue
        if number == 4:
            kind = value
        elif number == 7:
            domain = value
        elif number == 5:
            for n, inner in _fields(value):
                if n in (6, 11) and isinstance(inner, bytes):
                    risks += _graph(file, inner, depth + 1)
    if domain not in _STANDARD:
        risks.append(
            file.risk("code", f"an operator of its own: {domain[:60].decode('latin-1')}.{kind[:60].decode('latin-1')}")
        )
    elif kind == b"PythonOp":
        risks.append(file.risk("code", "an operator that calls Python: PythonOp"))
    return risks


_TF = re.compile(
    rb"(?:Eager)?PyFunc(?:Stateless)?|ReadFile|WriteFile|MatchingFiles|LoadLibrary|PrintV2|SaveV2?\b|DebugIdentityV\d"
)
_LAMBDA = re.compile(rb'"class_name"\s*:\s*"(Lambda|TFOpLambda|SlicingOpLambda|__lambda__)"|\bLambda\b.{0,40}"function"', re.S)


def _saved_model(file: _File, depth: int) -> _Look:
    names = sorted({name.decode() for name in _TF.findall(file.data)})
    return "TensorFlow SavedModel", [file.risk("code", f"an operator that reaches outside: {name}") for name in names]


def _keras(file: _File, depth: int) -> _Look:
    if file.size > len(file.data):
        return "HDF5 file", [*_lambda(file), file.risk("unread", f"{file.size:,} bytes; {LOOKED_AT:,} were looked at")]
    return "HDF5 file", _lambda(file)


_PROSE = ("md", "rst", "html", "htm", "tex", "ipynb", "js", "css", "po")
_KERAS = ("keras", "keras_nlp", "keras_hub", "keras_cv", "tf_keras", "tensorflow", "builtins")
_LAMBDA_RISK = "a Keras Lambda layer, which runs stored Python code"


def _lambda(file: _File) -> list[Risk]:
    """Of a Keras configuration inside other bytes, whose letters may be escaped as in any JSON."""
    hit = _LAMBDA.search(file.data) or _LAMBDA.search(_unescaped(file.data))
    return [file.risk("runs", _LAMBDA_RISK)] if hit else []


def _unescaped(data: bytes) -> bytes:
    """Bytes in which JSON's escapes of plain letters and signs stand as these."""
    if b"\\u00" not in data:
        return data
    return re.sub(rb"\\u00([2-7][0-9a-fA-F])", lambda hit: bytes([int(hit[1], 16)]), data)


def _json(file: _File, depth: int) -> _Look:
    if 0 in file.data[:4] or file.data[:2] in (b"\xff\xfe", b"\xfe\xff"):  # JSON may be UTF-16 or 32
        wide = file.data.decode(json.detect_encoding(file.data), "replace").encode("utf-8", "replace")
        file = replace(file, data=wide, size=len(wide))
    risks, text = _lambda(file), _unescaped(file.data)
    if b'"auto_map"' in text or b'"custom_pipelines"' in text:
        risks.append(file.risk("code", "a configuration that names Python code to import (auto_map)"))
    if b"chat_template" in text:
        risks += _template(file, text)
    for module in dict.fromkeys(_modules(file)):
        risks.append(file.risk("imports", f"a Keras configuration that names the module {line(module)[:60]}"))
    return "JSON", risks


def _modules(file: _File) -> Iterator[str]:
    """Modules beside Keras's own from which a configuration takes a class, at any depth."""
    try:
        level = [parse_json(file.data, file.name)]
    except (InputError, ValueError):  # other readers may be looser
        text = _unescaped(file.data)
        named = re.findall(rb'"module"\s*:\s*"([\w.]+)"', text) if b'"class_name"' in text else []
        yield from (module.decode() for module in named if module.partition(b".")[0].decode() not in _KERAS)
        return
    while level:  # its depth is bounded
        for held in level:
            module = held.get("module") if isinstance(held, dict) and "class_name" in held else None
            if isinstance(module, str) and module.partition(".")[0] not in _KERAS:
                yield module
        held_in = [held.values() if isinstance(held, dict) else held for held in level if isinstance(held, (dict, list))]
        level = [value for values in held_in for value in values]


_YAML = re.compile(
    rb"!!python/|tag:yaml\.org,2002:python/|(?:^|[\r\n\x85\xbf])\s*%TAG\s+\S+\s+tag:yaml\.org,2002:"
    rb"|![^\s!]{0,80}python/(?:object|name|module|apply)",
    re.M,
)


def _yaml(file: _File) -> list[Risk]:
    """Tags with which a file makes Python objects where it is read as YAML; texts for people may speak of them."""
    if file.suffix in _PROSE:
        return []
    plain = re.sub(rb"%([2-7][0-9a-fA-F])", lambda hit: bytes([int(hit[1], 16)]), file.data)  # letters of a tag may be escaped
    hit = _YAML.search(file.data) or _YAML.search(plain)
    return [file.risk("runs", "a YAML tag that makes Python objects")] if hit else []


def _picture(file: _File, depth: int) -> _Look:
    return "picture", []


def _text(file: _File, depth: int) -> _Look:
    if file.suffix in ("jinja", "jinja2", "j2"):
        return "template", _template(file, file.data)
    return "text", []


def _is_text(file: _File) -> bool:
    head = file.data[:4096]
    return b"\0" not in file.data and not any(byte < 9 or 13 < byte < 27 for byte in head)


def _is_zip_behind(file: _File) -> bool:
    """Whether an archive begins behind other bytes, as its readers, which look from the end, take it."""
    if file.data[:2] == b"PK":
        return False
    if file.path is None or file.size == len(file.data):
        return b"PK\5\6" in file.data[-66_000:]
    with opened(file.path) as source:
        source.seek(-66_000, 2)
        return b"PK\5\6" in source.read()


def _is_old_tar(file: _File) -> bool:
    """Whether it is a tar archive by the sum in its first header, with or without a name of its format."""
    head, digits = file.data[:512], file.data[148:156].strip(b"\0 ")
    if len(head) < 512 or not digits or not all(48 <= digit < 56 for digit in digits):
        return False
    return int(digits, 8) == sum(head) - sum(head[148:156]) + 8 * 32


def _is_hdf5_behind(file: _File) -> bool:
    """Whether an HDF5 file begins behind a block of the user's, of 512 bytes or a power of two times that."""
    return any(file.data[512 << k : (512 << k) + 8] == b"\x89HDF\r\n\x1a\n" for k in range(18))


def _is_safetensors(file: _File) -> bool:
    size = int.from_bytes(file.data[:8], "little")
    return (file.data[8:9] == b"{" and size < MAX_HEADER) or file.suffix == "safetensors"


def _is_onnx(file: _File) -> bool:
    if file.suffix in ("onnx", "ort"):
        return True
    if not (file.data[:1] == b"\x08" and 1 <= (file.data[1:2] or b"\0")[0] <= 20):
        return False
    with contextlib.suppress(ValueError):
        numbers = {number for number, _ in itertools.islice(_fields(file.data), 10_000)}
        return {1, 7, 8} <= numbers
    return False


def _is_picture(file: _File) -> bool:
    """GIF, WebP, TIFF, or a bitmap, which also says its length."""
    head = file.data[:16]
    if head[:6] in (b"GIF87a", b"GIF89a") or head[:4] in (b"II*\0", b"MM\0*"):
        return True
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return True
    return head[:2] == b"BM" and int.from_bytes(head[2:6], "little") == file.size and head[6:10] == b"\0\0\0\0"


def _is_sentencepiece(file: _File) -> bool:
    """Whether it is a vocabulary of SentencePiece: pieces of text with a number each, then settings."""
    if file.data[:1] != b"\n" or file.size > len(file.data):
        return False
    with contextlib.suppress(ValueError):
        fields = list(_fields(file.data))
        pieces = [value for number, value in fields if number == 1 and isinstance(value, bytes)]
        fits = all(1 <= number <= 5 and isinstance(value, bytes) for number, value in fields)
        return fits and bool(pieces) and {number for piece in pieces[:100] for number, _ in _fields(piece)} <= {1, 2, 3}
    return False


def _cut(file: _File, end: bytes) -> list[Risk]:
    """Said of a file that does not end as its kind does, as far as it was read."""
    if file.size > len(file.data) or file.data.endswith(end):
        return []
    return [*_yaml(file), file.risk("unread", "it does not end as its kind does")]


_PYTHON = _closed("Python code", "code", "Python code")
_PROGRAM = _closed("program", "runs", "a native program or library")
_MAGIC: tuple[tuple[bytes, int, Callable[[_File, int], _Look]], ...] = (
    (b"PK", 0, _zip),
    (b"\x93NUMPY", 0, _npy),
    (b"ZF0x", 0, _zlib_of_joblib),
    (b"\x1f\x8b", 0, _packed(lambda: zlib.decompressobj(31), "gzip")),
    (b"BZh", 0, _packed(bz2.BZ2Decompressor, "bzip2")),
    (b"\x5d\0\0", 0, _packed(lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=128 << 20), "lzma")),
    (b"\xfd7zXZ", 0, _packed(lambda: lzma.LZMADecompressor(memlimit=128 << 20), "xz")),
    (b"\x04\x22\x4d\x18", 0, _closed("lz4 file")),
    (b"\x28\xb5\x2f\xfd", 0, _closed("zstd file")),
    (b"7z\xbc\xaf\x27\x1c", 0, _closed("7z archive")),
    (b"Rar!", 0, _closed("rar archive")),
    (b"ustar", 257, _tar),
    (b"\x89HDF\r\n\x1a\n", 0, _keras),
    (b"GGUF", 0, _gguf),
    (b"TFL3", 4, _closed("TFLite model", "unread", "a TFLite model, whose custom operators are not analyzed")),
    (b"\x7fELF", 0, _PROGRAM),
    (b"MZ", 0, _PROGRAM),
    (b"\xcf\xfa\xed\xfe", 0, _PROGRAM),
    (b"#!", 0, _closed("script", "code", "a script")),
    (b"\x89PNG", 0, _picture),
    (b"\xff\xd8\xff", 0, _picture),
    (b"PAR1", 0, lambda file, _: ("Parquet table", _cut(file, b"PAR1"))),
)
_TESTS: tuple[tuple[Callable[[_File], bool], Callable[[_File, int], _Look]], ...] = (
    (_is_hdf5_behind, _keras),
    (_is_safetensors, _safetensors),
    (
        lambda f: f.data[:1] == b"\x78" and f.data[1:2] in (b"\x01", b"\x5e", b"\x9c", b"\xda"),
        _packed(zlib.decompressobj, "zlib"),
    ),
    (lambda f: looks_like(f.data, f.name), _pickle),
    (lambda f: f.suffix in ("py", "pyc", "pyx"), _PYTHON),
    (lambda f: f.suffix in ("so", "dll", "dylib", "exe"), _PROGRAM),
    (lambda f: f.name.endswith("saved_model.pb") or f.suffix in ("pb", "pbtxt"), _saved_model),
    (_is_onnx, _onnx),
    (_is_picture, _picture),
    (_is_sentencepiece, lambda file, _: ("vocabulary of SentencePiece", [])),
    (lambda f: f.suffix in ("rds", "rda", "rdata") or f.data[:5] in (b"RDX2\n", b"RDX3\n"), _closed("R object")),
    (lambda f: f.suffix == "json" or f.data[:1] == b"{", _json),
    (_is_text, _text),
)


_TEXTS = (_text, _json, _saved_model, _unknown)
