"""Reading files that may be hostile, and writing files that are never seen half written."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError

from theriac.core.errors import InputError
from theriac.core.files.archives import Archive, DamagedError, unpacked_size
from theriac.core.files.gate import UNPACKED_FLOOR, UNPACKED_RATIO, is_regular, opened, read_bytes, regular, shown
from theriac.core.files.pickles import Stranger
from theriac.core.files.programs import check_program
from theriac.core.files.records import parse_json, read_json, read_json_lines
from theriac.core.files.tensors import check_safetensors, load_torch, read_npy, read_npz, read_safetensors
from theriac.core.interrupts import something_to_undo
from theriac.core.paths import DiskFullError, as_path, is_full, is_stream, temporary_folder
from theriac.core.text import json_text

__all__ = [
    "UNPACKED_FLOOR",
    "UNPACKED_RATIO",
    "Archive",
    "DamagedError",
    "Stranger",
    "cache_folder",
    "check_safetensors",
    "is_plain",
    "is_regular",
    "load_program_safely",
    "load_tensors_safely",
    "opened",
    "parse_json",
    "read_bytes",
    "read_json",
    "read_json_lines",
    "read_npy",
    "read_npz",
    "read_safetensors",
    "refuse_bomb",
    "regular",
    "shown",
    "unpacked_size",
    "write_atomically",
    "write_json",
]


def cache_folder() -> Path:
    """``$THERIAC_CACHE``, else ``$XDG_CACHE_HOME/theriac``, else ``~/.cache/theriac``; all in it may be deleted at any time."""
    own = os.environ.get("THERIAC_CACHE")
    if own:
        return as_path("THERIAC_CACHE", own)
    return as_path("XDG_CACHE_HOME", os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "theriac"


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Write to a temporary name beside ``path`` and rename, so that ``path`` is either old or complete.

    Args:
        path: Where the file shall be. A device or a pipe, such as ``/dev/stdout``, stays what it is and gets the bytes.
        write: Called with the temporary path.

    Raises:
        InputError: If ``path`` is a folder.
        DiskFullError: If there is no room; ``path`` is as it was.
    """
    path = Path(path)
    something_to_undo()
    if path.is_dir():
        raise InputError(f"{shown(path)} is a folder, and no file is put in its place")
    if is_stream(path):
        with temporary_folder() as folder:
            write(folder / path.name)
            with (folder / path.name).open("rb") as made, _stream(path) as out:
                shutil.copyfileobj(made, out)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        write(temporary)
        if temporary.is_file():  # whatever a writer makes of it: who may read a file is what the umask says
            temporary.chmod(_usual_mode())
        os.replace(temporary, path)
    except Exception as error:
        if is_full(error):
            raise DiskFullError(f"the disk is full: {path.name} could not be written to {path.parent}") from None
        if isinstance(error, SafetensorError):  # what the system refused, in its own words
            raise OSError(str(error)) from None
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


@functools.cache
def _usual_mode() -> int:
    """Permissions of a new file, by this process's umask, which can be read by setting it alone."""
    umask = os.umask(0o077)
    os.umask(umask)
    return 0o666 & ~umask


def _stream(path: Path) -> BinaryIO:
    """A device or a pipe, open for writing.

    Raises:
        InputError: If it is a pipe that no process reads, which would wait for ever.
    """
    try:
        handle = os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        nobody = f"{shown(path)} is a pipe that no process reads"
        raise InputError(
            nobody if error.errno == errno.ENXIO else f"{shown(path)} can't be written: {error.strerror}"
        ) from None
    if hasattr(os, "set_blocking"):
        os.set_blocking(handle, True)
    return os.fdopen(handle, "wb")


def write_json(path: str | Path, data: Any) -> Path:
    """Write JSON atomically, indented, NaN refused."""
    text = json_text(data, indent=1, allow_nan=False) + "\n"
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def load_tensors_safely(path: str | Path, map_location: Any = "cpu", *, tensors_only: bool = False) -> Any:
    """Open a ``torch.save`` file without importing or calling anything that it names.

    Both of torch's formats and all pickle protocols are read by a machine of our own (see :mod:`theriac.core.files.pickles`),
    so torch never sees the file. Besides tensors (dense, sparse, quantized) and plain containers, NumPy's numbers and arrays
    of numbers or text are taken.

    Args:
        path: The file.
        map_location: The device to put tensors on.
        tensors_only: Take a file that names other things too, and leave an inert :class:`~theriac.core.files.pickles.Stranger`
            in the place of each; nothing of them is imported, looked up or run.

    Raises:
        UnsafeFileError: If the file asks for anything but tensors and plain containers; names what it wanted to import.
        InputError: If it is missing, damaged, or beyond the bounds.
    """
    path = Path(path)
    if not is_regular(path):
        raise InputError(f"{shown(path)} is not a file")
    return load_torch(regular(path), map_location, tensors_only, refuse_bomb)


def load_program_safely(path: str | Path) -> Any:
    """Open a program that ``torch.export`` wrote (``.pt2``), after its graph was found to call operators of torch only.

    Args:
        path: The file.

    Returns:
        The ``torch.export.ExportedProgram``, on the CPU.

    Raises:
        UnsafeFileError: If it holds pickled objects, compiled code, or calls anything but operators of torch; names what.
        InputError: If it is missing, damaged, or of a version that torch does not read.
    """
    path = check_program(path, refuse_bomb, load_tensors_safely)
    try:
        with path.open("rb") as file:  # torch looks at the name otherwise
            program = torch.export.load(io.BytesIO(file.read()))
    except Exception as error:  # what a damaged graph provokes in there
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(f"{shown(path)} can't be read as an exported program: {reason}") from None
    if getattr(program, "_guards_code", None):  # Python text from the file, which torch would compile and run
        program._guards_code = []
    return program


def refuse_bomb(path: Path, total: int) -> None:
    """Refuse an archive that unpacks to far more than it is: a bomb, if it comes from a stranger.

    Raises:
        InputError: With both sizes.
    """
    here = path.stat().st_size
    most = max(UNPACKED_FLOOR, UNPACKED_RATIO * here)
    if total > most:
        raise InputError(f"{path} has {here:,} bytes and unpacks to {total:,}; at most {most:,} are taken")


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a plain array with data: not sparse, quantized or nested, and not on the device ``meta``."""
    return tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized or tensor.is_nested)
