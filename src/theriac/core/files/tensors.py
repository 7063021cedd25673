"""Files of tensors and arrays: torch's two formats, safetensors, .npz and .npy; read without running anything in them."""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from theriac.core.errors import InputError, UnsafeFileError
from theriac.core.files.archives import Archive, DamagedError
from theriac.core.files.gate import opened, regular, shown
from theriac.core.files.pickles import MAX_PICKLE, STORAGES, CallError, Known, Machine, Storage, Stranger
from theriac.core.files.records import parse_json
from theriac.core.text import line, shorten

MAX_HEADER = 16 << 20  # bytes of a safetensors header
MAX_TENSORS = 100_000
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # how a torch file without an archive begins
_HINT = "only tensors and plain containers are loaded"
_OPTION = (
    "load_weights(..., tensors_only=True), or --tensors-only, takes the tensors alone, without importing or running the rest"
)


# data classes of the standard library and of Lightning that ordinary checkpoints hold beside their tensors, such as the options
# of the run; they too become inert marks, and nothing is imported for them
HARMLESS = frozenset(
    {
        "argparse.Namespace",
        "types.SimpleNamespace",
        *(f"pathlib.{kind}" for kind in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")),
        *(f"pathlib._local.{kind}" for kind in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
        *(f"datetime.{kind}" for kind in ("date", "datetime", "time", "timedelta", "timezone")),
        "decimal.Decimal",
        "fractions.Fraction",
        "uuid.UUID",
        *(
            f"{package}.AttributeDict"
            for package in (
                "pytorch_lightning.utilities.parsing",
                "lightning_fabric.utilities.data",
                "lightning.fabric.utilities.data",
            )
        ),
    }
)


class _ProgramError(DamagedError):
    """A sound file of another kind, which holds code."""


def load_torch(path: Path, map_location: Any, tensors_only: bool, check: Callable[[Path, int], None]) -> Any:
    """The object of a ``torch.save`` file. See :func:`theriac.core.files.load_tensors_safely`.

    Args:
        path: A regular file.
        map_location: Where tensors go.
        tensors_only: Whether strangers in it are left as inert marks.
        check: Refuses an archive by its path and unpacked size.
    """
    machines: list[Machine] = []
    try:
        with opened(path) as file:
            start = file.read(4)
        if start[:2] == b"PK":
            with Archive(path) as archive:
                check(path, archive.total)
                contents = _from_archive(archive, map_location, machines)
        else:
            with opened(path) as file:
                contents = _from_stream(file, map_location, machines)
        trouble: ValueError | None = None
    except (DamagedError, CallError) as error:
        contents, trouble = None, error
    strangers = list(dict.fromkeys(name for machine in machines for name in machine.strangers))
    calls = isinstance(trouble, CallError)
    foreign = [name for name in strangers if name not in HARMLESS]
    if (foreign or calls or (strangers and trouble is not None)) and (trouble is not None or not tensors_only):
        named = [*foreign, *(name for name in strangers if name in HARMLESS)]
        wants = [f"import {', '.join(named[:5])}{', ...' if len(named) > 5 else ''}"] if named else []
        wants += [f"call {trouble}"] if calls else []
        hint = "ask for a safetensors file" if tensors_only or calls else f"{_OPTION}, or ask for a safetensors file"
        if isinstance(contents, Stranger):
            hint = "it is a whole pickled object, which nothing but running it opens: ask for a file of its state_dict()"
        raise UnsafeFileError(f"{shown(path)} was not opened: it would {' and '.join(wants)}; {_HINT} ({hint})") from None
    if isinstance(trouble, _ProgramError):
        raise InputError(f"{shown(path)} was not opened: {trouble}") from None
    if trouble is not None and not start:
        raise InputError(f"{shown(path)} is empty; expected a torch file") from None
    if trouble is not None and start[:1] != b"\x80" and start[:2] != b"PK":  # what reading it as a pickle met says nothing then
        raise InputError(f"{shown(path)} is not a torch file: it begins with {start!r}") from None
    if trouble is not None:
        raise InputError(f"{shown(path)} is damaged or not a torch file: {trouble}") from None
    return contents


def _from_archive(archive: Archive, where: Any, machines: list[Machine]) -> Any:
    pickles = [name for name in archive.members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise DamagedError("it is an archive, but not one that torch.save wrote")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in archive.members:
        raise _ProgramError("it is a TorchScript program, which holds code; save model.state_dict() instead")
    order = bytes(archive.read(f"{root}byteorder", 16)) if f"{root}byteorder" in archive.members else b"little"
    if order not in (b"little", b"big"):
        raise DamagedError("it names no order of bytes")
    known: dict[str, torch.UntypedStorage] = {}

    def storage(reference: tuple[Any, ...]) -> Storage:
        dtype, key, count = _referenced(reference)
        if key not in known:
            member = archive.members.get(f"{root}data/{key}")
            if member is None or member.size < count * dtype.itemsize:
                raise DamagedError(f"it lacks the storage {key[:40]!r} of {count:,} numbers")
            made = torch.UntypedStorage(member.size)
            if member.size:
                archive.read_into(member, _view(made))
            if order.decode() != sys.byteorder:
                made.byteswap(dtype)
            known[key] = _move(made, where)
        return Storage(known[key], dtype)

    machine = Machine(storage)
    machines.append(machine)
    return machine.load(io.BytesIO(archive.read(pickles[0], MAX_PICKLE)))


def _from_stream(file: io.BufferedReader, where: Any, machines: list[Machine]) -> Any:
    """The format before archives: three small pickles, the object, the storages' names, and their contents in that order."""
    length = file.seek(0, 2)
    file.seek(0)
    stream = io.BytesIO(file.read(MAX_PICKLE))
    asked_for: dict[str, tuple[torch.dtype, int]] = {}
    known: dict[str, torch.UntypedStorage] = {}
    left = length

    def note(reference: tuple[Any, ...]) -> Stranger:
        nonlocal left
        dtype, key, count = _referenced(reference)
        if key not in asked_for:
            left -= count * dtype.itemsize
            if left < 0:
                raise DamagedError("its storages claim more than the file holds")
            asked_for[key] = dtype, count
        return Stranger("a storage that is read later")

    def storage(reference: tuple[Any, ...]) -> Storage:
        dtype, key, _ = _referenced(reference)
        view = reference[5] if len(reference) == 6 else None
        if view is None:
            return Storage(known[key], dtype)
        if not isinstance(view, tuple) or len(view) != 3 or not all(type(n) is int and n >= 0 for n in view[1:]):
            raise DamagedError("a view of a storage is malformed")
        if (view[1] + view[2]) * dtype.itemsize > known[key].nbytes():
            raise DamagedError("a view goes beyond its storage")
        return Storage(known[key], dtype, view[1], view[2])

    def next_object(give: Callable[[tuple[Any, ...]], Any]) -> Any:
        machines.append(Machine(give))
        return machines[-1].load(stream)

    first = next_object(note)
    if first != _MAGIC or next_object(note) != _PROTOCOL:
        raise DamagedError("it does not begin as a torch file does")
    system, begin = next_object(note), stream.tell()
    next_object(note)  # says which storages there are; their contents come after it
    keys = next_object(note)
    big = isinstance(system, dict) and system.get("little_endian") is False
    if not isinstance(keys, list) or len(set(map(str, keys))) != len(keys) or {*map(str, keys)} != set(asked_for):
        raise DamagedError("its storages are not those that it names")
    file.seek(stream.tell())
    for key in map(str, keys):
        dtype, count = asked_for[key]
        said = file.read(8)
        if len(said) < 8 or struct.unpack(">q" if big else "<q", said)[0] != count:
            raise DamagedError(f"the storage {key[:40]!r} has another size than the file says")
        made = torch.UntypedStorage(count * dtype.itemsize)
        if made.nbytes() and file.readinto(_view(made)) < made.nbytes():
            raise DamagedError("it ends too early")
        if big != (sys.byteorder == "big"):
            made.byteswap(dtype)
        known[key] = _move(made, where)
    stream.seek(begin)
    return next_object(storage)


def _referenced(reference: tuple[Any, ...]) -> tuple[torch.dtype, str, int]:
    """Numbers, key and count of a storage, from its persistent id."""
    _, kind, key, place, count = reference[:5]
    dtype = STORAGES.get(kind.name) if isinstance(kind, Known) else kind if isinstance(kind, torch.dtype) else None
    if dtype is None or not isinstance(key, (str, int)) or type(count) is not int or not 0 <= count < 1 << 50:
        raise DamagedError("a storage has no kind, no key or no size")
    if place == "meta":
        raise DamagedError("it holds tensors without data, on the device meta")
    return dtype, str(key), count


def _view(storage: torch.UntypedStorage) -> memoryview:
    flat = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,))
    return flat.numpy().data


def _is_cpu(where: Any) -> bool:
    return where is None or torch.device(where).type == "cpu"


def _move(storage: torch.UntypedStorage, where: Any) -> torch.UntypedStorage:
    if _is_cpu(where):
        return storage
    there = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,)).to(where)
    return there.untyped_storage()


def read_safetensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file.

    Raises:
        InputError: If it is missing, no regular file, or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = regular(path)
    try:
        check_safetensors(path)
        return load_file(path)
    except (InputError, DamagedError) as error:
        raise InputError(f"{shown(path)} can't be read as safetensors: {error}") from None
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{shown(path)} can't be read as safetensors: {shorten(reason, 200)}") from None


def check_safetensors(path: Path) -> None:
    """Refuse a header that is too large, before it is parsed, and one that does not describe the bytes after it.

    Raises:
        InputError: If the file can't be read.
        DamagedError: If the header is too large, or none, or its tensors overlap, leave gaps, or end elsewhere than the file.
    """
    from safetensors import SafetensorError, safe_open

    with opened(path) as file:
        size = int.from_bytes(file.read(8), "little")
        if size > MAX_HEADER:
            raise DamagedError(f"its header claims {size:,} bytes; at most {MAX_HEADER:,} are read")
        header = file.read(size)
    if len(header) < size or size < 2:
        raise DamagedError("invalid header: it ends too early")
    if header.count(b'"dtype"') > MAX_TENSORS:
        raise DamagedError(f"it holds more than {MAX_TENSORS:,} tensors")
    entries = parse_json(header, "its header") if header[:1] == b"{" else None
    if not isinstance(entries, dict):
        raise DamagedError("invalid header")
    try:
        with safe_open(path, "np") as file:  # its own check of types, shapes and offsets, which reads no tensor
            file.keys()
    except (SafetensorError, OSError) as error:
        raise DamagedError(shorten(str(error), 200)) from None


def read_npz(path: Path, chosen: Callable[[str], bool], limit: int, check: Callable[[Path, int], None]) -> dict[str, Any]:
    """Some arrays of an ``.npz`` file by name; if it has none of them, the names of all, with nothing.

    Args:
        path: The file.
        chosen: Whether an array of that name shall be read.
        limit: Bytes that the arrays may take.
        check: Refuses an archive by its path and unpacked size.

    Raises:
        InputError: If it is damaged, too large, or holds objects.
    """
    try:
        with Archive(path) as archive:
            names = {name.removesuffix(".npy"): name for name in archive.members}
            if len(names) < len(archive.members):
                raise DamagedError("two of its arrays have one name")
            total = sum(archive.members[name].size for name in names.values())
            if total > limit:
                raise InputError(f"{shown(path)} unpacks to {total:,} bytes; at most {limit:,} are read")
            check(path, total)
            arrays = {n: _array(archive.read(member, limit, check=True)) for n, member in names.items() if chosen(n)}
            return arrays or dict.fromkeys(names)
    except DamagedError as error:
        raise InputError(f"{shown(path)} is not a readable .npz file ({error})") from None


def _array(data: bytearray) -> np.ndarray[Any, Any]:
    shape, fortran, dtype, begin = npy_header(io.BytesIO(data))
    if len(data) - begin != _count(shape) * dtype.itemsize:
        raise DamagedError("an array has another size than its header says")
    flat = np.frombuffer(data, dtype, offset=begin)
    return flat.reshape(shape[::-1]).transpose() if fortran else flat.reshape(shape)


def _count(shape: Iterable[int]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count


def npy_header(file: io.BufferedIOBase) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, order, type and first byte of a ``.npy`` file's array.

    Raises:
        DamagedError: If it is none, or holds objects, which only running code could restore.
    """
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version}")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except Exception as error:  # NumPy evaluates the header as a Python literal, which fails in many ways
        raise DamagedError(f"an array's header is damaged ({type(error).__name__}: {shorten(str(error), 80)})") from None
    if dtype.hasobject:
        raise DamagedError("an array holds Python objects, which only allow_pickle could read, by running them")
    if any(n < 0 for n in shape) or _count(shape) * dtype.itemsize >= 1 << 60 or len(shape) > 32:
        raise DamagedError(f"an array has the shape {str(shape)[:80]}")
    return shape, fortran, dtype, file.tell()


def read_npy(path: str | Path, what: str = "", *, mode: Literal["r", "c"] | None = "r") -> np.ndarray[Any, Any]:
    """The array of a ``.npy`` file, memory-mapped; ``mode`` None reads it.

    Raises:
        InputError: If it is missing, no regular file, damaged, or holds objects.
    """
    called = f"{what} {shown(path)}" if what else shown(path)
    path = regular(path)
    try:
        with opened(path) as file:
            shape, _, dtype, begin = npy_header(file)
            size = file.seek(0, 2)
        if size - begin < _count(shape) * dtype.itemsize:
            raise DamagedError("it is shorter than its header says")
        array: np.ndarray[Any, Any] = np.load(path, mmap_mode=mode, allow_pickle=False)
        return array
    except InputError:
        raise
    except (DamagedError, OSError, ValueError, EOFError) as error:
        raise InputError(f"{called} can't be read as a plain .npy array: {line(str(error))}") from None
