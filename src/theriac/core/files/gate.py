"""The gate: only regular files of bounded size are opened, whatever a folder from outside holds."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

from theriac.core.errors import InputError
from theriac.core.text import line, shorten

UNPACKED_FLOOR, UNPACKED_RATIO = 256 << 20, 100  # a file may unpack to so many bytes, or to so many times its own size
_KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"))


def shown(path: object) -> str:
    """A path as a message shows it: one line of bounded length, without control characters."""
    return shorten(str(path))


def is_regular(path: str | os.PathLike[str]) -> bool:
    """Whether a path leads to a regular file; false for whatever can't be looked at."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def regular(path: str | os.PathLike[str], limit: int | None = None) -> Path:
    """A path that leads to a regular file of at most ``limit`` bytes.

    Pipes, sockets and devices are never opened: reading them may wait, or go on, for ever.

    Raises:
        InputError: If it is missing, something else than a regular file, too large, or nearly all holes.
    """
    try:
        about = os.stat(path)
        _check(path, about, limit)
        if about.st_size > UNPACKED_FLOOR:
            _refuse_holes(path, about)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{shown(path)} can't be read: {error.strerror}") from None
    except ValueError as error:  # a null character, or half a character
        raise InputError(f"{shown(path)} can't be read: {line(str(error))}") from None
    return Path(path)


def opened(path: str | os.PathLike[str], limit: int | None = None) -> io.BufferedReader:
    """Open a regular file of at most ``limit`` bytes for reading.

    Raises:
        InputError: As :func:`regular` does.
    """
    regular(path, limit)
    try:
        handle = os.open(
            path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        )
    except OSError as error:
        raise InputError(f"{shown(path)} can't be read: {error.strerror}") from None
    file = os.fdopen(handle, "rb")
    try:
        _check(path, os.fstat(handle), limit)  # once more, of what was opened: a name may lead elsewhere by now
    except InputError:
        file.close()
        raise
    return file


def read_bytes(path: str | os.PathLike[str], limit: int) -> bytes:
    """The contents of a regular file of at most ``limit`` bytes.

    Raises:
        InputError: As :func:`regular` does.
    """
    with opened(path, limit) as file:
        try:
            data = file.read(limit + 1)  # a file may say that it is empty and hold something, as those of /proc do
        except OSError as error:
            raise InputError(f"{shown(path)} can't be read: {error.strerror}") from None
    if len(data) > limit:
        raise InputError(f"{shown(path)} has more than {limit:,} bytes; at most {limit:,} are read")
    return data


def _check(path: object, about: os.stat_result, limit: int | None) -> None:
    if not stat.S_ISREG(about.st_mode):
        kind = next((name for test, name in _KINDS if test(about.st_mode)), "a device")
        raise InputError(f"{shown(path)} can't be read: it is {kind}; expected a regular file")
    if limit is not None and about.st_size > limit:
        raise InputError(f"{shown(path)} has {about.st_size:,} bytes; at most {limit:,} are read")


def _refuse_holes(path: str | os.PathLike[str], about: os.stat_result) -> None:
    """Refuse a file that claims far more bytes than the disk holds for it."""
    held = getattr(about, "st_blocks", about.st_size) * 512
    if about.st_size <= UNPACKED_RATIO * held or not hasattr(os, "SEEK_HOLE"):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        if os.lseek(handle, 0, os.SEEK_HOLE) < about.st_size:  # a file system that counts no blocks knows of no hole either
            raise InputError(f"{shown(path)} claims {about.st_size:,} bytes, of which it stores {held:,}; the rest are holes")
    finally:
        os.close(handle)
