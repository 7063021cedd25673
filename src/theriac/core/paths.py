"""Places to read from and to write to: what can be refused about them is refused before work, and one run owns its folder."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from theriac.core.errors import BusyError, InputError, TheriacError, shortened
from theriac.core.interrupts import something_to_undo

try:
    import fcntl
except ImportError:  # pragma: no cover - not on this system; folders are not locked there
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_RESULTS = (".html", ".htm", ".sarif", ".svg", ".pdf", ".md")  # of files that are written and never read
_NAME, _PATH = 255, 4095  # bytes of a name and of a path that common file systems take


class DiskFullError(TheriacError, OSError):
    """There is no room left to write; what was written before stays."""


def as_path(name: str, value: object) -> Path:
    """A path that a person gave, with ``~`` expanded.

    Args:
        name: What a message calls it.
        value: A text or a path.

    Raises:
        InputError: If it is none, is empty, names an unknown user or can't be a path on a common file system.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise InputError(f"{name} is {shortened(value)}; expected a path")
    text = os.fspath(value)
    if not isinstance(text, str) or not text:
        raise InputError(f"{name} is {shortened(text)}; expected a path as text")
    try:
        path = Path(text).expanduser()
        longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
        total = len(os.fsencode(path))
    except RuntimeError:
        raise InputError(f"{name} is {shortened(text)}, and there is no such user") from None
    except UnicodeEncodeError:
        raise InputError(f"{name} is {shortened(text)}, which is no valid text") from None
    if "\0" in text:
        raise InputError(f"{name} is {shortened(text)}, which holds a zero byte")
    if longest > _NAME or total > _PATH:
        raise InputError(f"{name} is {shortened(text)}, which is too long: a name has at most {_NAME} bytes, a path {_PATH:,}")
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # opening it will say what is wrong
        return path
    except OSError as error:  # links that lead in a circle
        raise InputError(f"{name} is {shortened(text)}, which can't be opened: {error.strerror}") from None
    return path


def is_stream(path: Path) -> bool:
    """Whether a path is a device, a pipe or a socket, in whose place no file may be put."""
    return path.exists() and not (path.is_file() or path.is_dir())


def is_full(error: BaseException) -> bool:
    """Whether an error says that the disk is full, a quota is used up or a file may not grow further."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    text = str(error)  # safetensors keeps the system's words or number; torch only says that its writer came up short
    words = [word for code in _FULL for word in (os.strerror(code), f"os error {code}")]
    return any(word in text for word in (*words, "PytorchStreamWriter failed writing", "unexpected pos"))


@contextlib.contextmanager
def writing(name: str, path: Path) -> Iterator[None]:
    """Say in one sentence why ``path`` can't be written; a full disk is told apart.

    Raises:
        InputError: If the system refuses.
        DiskFullError: If there is no room.
    """
    something_to_undo()
    try:
        yield
    except DiskFullError:
        raise
    except OSError as error:
        if is_full(error):
            raise DiskFullError(f"the disk is full: {name} is {str(path)!r}, which can't be written") from None
        raise InputError(f"{name} is {str(path)!r}, which can't be written: {_why(error)}") from None


def _why(error: OSError) -> str:
    """What the system refused, in words; that something exists where a folder should be made says too little."""
    if isinstance(error, FileExistsError) and error.filename:
        there = Path(os.fsdecode(error.filename))
        if there.is_symlink() and not there.exists():
            return f"{there} is a link to {os.readlink(there)}, which does not exist"
        if not there.is_dir():
            return f"{there} is no folder"
    return error.strerror or str(error)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is gone afterward, after Ctrl-C too."""
    something_to_undo()
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def try_folder(name: str, folder: Path, size: int = 0) -> None:
    """Refuse a folder that can't be written, or on a disk with too little room, by writing a file to it.

    Args:
        name: What a message calls it.
        folder: It has to exist.
        size: Bytes that will be written.

    Raises:
        InputError: If writing fails.
        DiskFullError: If fewer than ``size`` bytes are free.
    """
    probe = folder / f".{uuid.uuid4().hex[:8]}.part"
    try:
        probe.write_bytes(b"theriac")
    except OSError as error:
        if is_full(error):
            raise DiskFullError(f"the disk is full: {name} is {str(folder)!r}, where nothing can be written") from None
        raise InputError(f"{name} is {str(folder)!r}, which can't be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    try:
        free = shutil.disk_usage(folder).free
    except OSError:  # a file system that does not say
        return
    if 0 < free < size:
        raise DiskFullError(
            f"{name} is {str(folder)!r}, where {_megabytes(free)} are free and about {_megabytes(size)} are needed; "
            "make room, or take another folder"
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 10_000_000 else f"{size / 1e6:,.2f} MB"


def make_folder(name: str, folder: Path, size: int = 0) -> list[Path]:
    """Make a folder where it is missing, and refuse one that can't be written (see :func:`try_folder`).

    Returns:
        The folders that were made, innermost first. Nothing is left behind if the folder is refused.

    Raises:
        InputError: If it can't be made or written, or a file is in its way.
        DiskFullError: If fewer than ``size`` bytes are free.
    """
    made: list[Path] = []
    something_to_undo()
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{name} is {str(folder)!r}, which is a file; expected a folder")
        made = [p for p in (folder, *folder.parents) if not p.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        try_folder(name, folder, size)
    except TheriacError:
        unmake(made)
        raise
    except OSError as error:
        unmake(made)
        if is_full(error):
            raise DiskFullError(f"the disk is full: {name} is {str(folder)!r}, which can't be made") from None
        raise InputError(f"{name} is {str(folder)!r}, which can't be written: {_why(error)}") from None
    return made


def try_to_make(name: str, folder: Path) -> None:
    """Refuse a folder that can't be made or written, as :func:`make_folder` does, and leave none behind."""
    unmake(make_folder(name, folder))


@contextlib.contextmanager
def filled(name: str, folder: Path, size: int = 0) -> Iterator[Path]:
    """A hidden folder to fill; what is in it appears in ``folder`` when all is there, and nothing is left if that fails.

    Raises:
        InputError: If it can't be written.
        DiskFullError: If there is no room.
    """
    made = make_folder(name, folder, size)
    waiting = folder / f".{uuid.uuid4().hex[:8]}.part"
    try:
        with writing(name, folder):
            waiting.mkdir()
            yield waiting
            for part in sorted(waiting.iterdir()):
                part.rename(folder / part.name)
    finally:
        shutil.rmtree(waiting, ignore_errors=True)
        unmake(made)  # where they are empty


PAGES = (".html", ".htm")  # endings of a page


def new_file(
    name: str,
    value: object,
    *,
    endings: Sequence[str] = (),
    apart_from: Mapping[str, object] | None = None,
    make: bool = True,
) -> Path:
    """The path of a result's file, checked before any work; its folder is made.

    Args:
        name: What a message calls it.
        value: A path. A device or a pipe takes any ending.
        endings: The endings that it may have, lower case; none: any.
        apart_from: What must not be written over, by what a message calls it; what is no path is passed over.
        make: False: its folder is tried alone, and made when the file is written.

    Raises:
        InputError: If it is a folder, has another ending, is one of ``apart_from``, or its folder can't be written.
    """
    path = as_path(name, value)
    for what, other in (apart_from or {}).items():
        if not isinstance(other, (str, Path)) or not str(other):
            continue
        other = Path(os.path.expanduser(other))
        inside = path.is_file() and other.is_dir() and path.resolve().is_relative_to(other.resolve())
        if inside and path.suffix.lower() not in _RESULTS:  # a result of before may be replaced
            raise InputError(f"{name} is {str(path)!r}, a file of {what}, and would be written over; name another file")
        if _same_file(path, other):
            raise InputError(f"{name} is {str(path)!r}, which is {what} too, and would be written over; name another file")
    if is_stream(path):
        return path
    if path.is_dir():
        raise InputError(f"{name} is {str(path)!r}, which is a folder; expected a file")
    if endings and path.suffix.lower() not in endings:
        raise InputError(f"{name} is {str(path)!r}; expected a file that ends in {' or '.join(endings)}")
    (make_folder if make else try_to_make)(name, path.parent)
    return path


def _same_file(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:  # one of them does not exist yet
        return first.absolute() == second.absolute()


def unmake(made: Iterable[Path]) -> None:
    """Remove folders that were made, innermost first, as far as they are empty."""
    for path in made:
        with contextlib.suppress(OSError):
            path.rmdir()


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which has to exist. The system releases it however the process ends.

    Where files can't be locked (some network file systems, systems without ``fcntl``) nothing is held.

    Raises:
        BusyError: If another process holds it, with its number.
    """
    if fcntl is None:  # pragma: no cover - not on this system
        yield
        return
    path = folder / LOCK
    something_to_undo()
    handle = _locked(path)
    try:
        yield
    finally:
        if handle is not None:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            os.close(handle)


def _locked(path: Path) -> int | None:
    """An open handle that holds the lock of a file, or None where files can't be locked."""
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 20, 0).decode("ascii", "replace").strip()
            os.close(handle)
            who = f"process {holder}" if holder.isdigit() else "another process"
            raise BusyError(f"{str(path.parent)!r} is in use by {who}; wait for it, or take another folder") from None
        except OSError:  # no locks on this file system: leave no file behind, but a holder's (it has a number in it) alone
            with contextlib.suppress(OSError):
                if os.fstat(handle).st_size == 0:
                    path.unlink(missing_ok=True)
            os.close(handle)
            return None
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):  # else its last owner has just removed it
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
                return handle
        os.close(handle)
