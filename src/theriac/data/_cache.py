"""A cache of decoded pictures, keyed by content: never half written, rebuilt when damaged, safe to delete at any time.

An entry is two files: ``<key>.npy`` (uint8 (N, C, H, W)) and, written last, ``<key>.json`` (shape and checksum).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from theriac.core.errors import InputError
from theriac.core.files import cache_folder as folder
from theriac.core.files import opened, read_json, read_npy, write_atomically, write_json

FORMAT = 1  # raise it when decoding changes, so that old entries are not taken for new ones
Pixels = npt.NDArray[np.uint8]
Shape = tuple[int, ...]
Make = Callable[[], tuple[Shape, Iterator[Pixels]]]
"""What builds an entry: its shape, and its rows in order, in chunks."""


def key_of(*parts: Any) -> str:
    """A short name for whatever determines an entry (plain data)."""
    return hashlib.sha256(json.dumps([FORMAT, *parts]).encode()).hexdigest()[:40]


def content_of(files: Sequence[Path]) -> str:
    """sha256 over the contents of files, in order.

    The answer is remembered under the files' names, sizes and times of change, so that a folder of many files isn't read
    again for every run. The time of the last change of any kind is among them: that of the content is easily set back.
    """
    stamp = hashlib.sha256()
    for file in files:
        at = file.stat()
        stamp.update(
            os.fsencode(file.resolve()) + f"\0{at.st_size}\0{at.st_mtime_ns}\0{at.st_ctime_ns}\0{at.st_ino}\n".encode()
        )
    key = key_of("files", stamp.hexdigest())
    known = recall(key).get("content")
    if isinstance(known, str):
        return known
    digest = hashlib.sha256()
    for file in files:
        with opened(file) as source:
            digest.update(hashlib.file_digest(source, "sha256").digest())
    note(key, {"content": digest.hexdigest()})
    return digest.hexdigest()


@dataclass(frozen=True)
class Entry:
    """Decoded pictures, on disk or (where the cache can't be written) in memory."""

    key: str
    shape: Shape
    checksum: int = 0
    held: Pixels | None = None

    @property
    def nbytes(self) -> int:
        """Size of the pixels."""
        return math.prod(self.shape)

    @property
    def path(self) -> Path:
        """Where the pixels lie."""
        return folder() / f"{self.key}.npy"

    def read(self, mapped: bool) -> torch.Tensor:
        """The pixels, uint8 (N, C, H, W), memory-mapped or in memory.

        Raises:
            ValueError: If the file is damaged. Memory-mapped files are checked for size and header only.
            OSError: If it can't be read.
        """
        if self.held is not None:
            return torch.from_numpy(self.held)
        # "c": torch wants writable memory; what is written there would stay in memory and never reach the file
        array = read_npy(self.path, mode="c" if mapped else None)
        if array.shape != self.shape or array.dtype != np.uint8:
            raise ValueError(f"{self.path} holds {array.dtype} {array.shape}, expected uint8 {self.shape}")
        if not mapped and zlib.crc32(array.data) != self.checksum:
            raise ValueError(f"{self.path} has another checksum than when it was written")
        return torch.from_numpy(array)


def ensure(key: str, make: Make, budget: int) -> Entry:
    """The entry of a key, built if it is not there or visibly damaged.

    Args:
        key: Its name, from :func:`key_of`.
        make: Builds it. Its chunks go to disk one by one; the whole is never held.
        budget: Largest number of bytes to hold in memory where the cache can't be written.

    Raises:
        InputError: If the cache can't be written and the pictures don't fit the budget.
    """
    entry = _find(key)
    if entry is not None:
        return entry
    try:
        return _build(key, make)
    except OSError as error:
        shape, chunks = make()
        if math.prod(shape) > budget:
            raise InputError(
                f"the cache folder {folder()} can't be written ({error.strerror or error}), and {math.prod(shape):,} bytes of "
                f"pictures exceed memory_budget {budget:,}; set THERIAC_CACHE to a folder with space"
            ) from None
        held = np.concatenate(list(chunks))
        return Entry(key, shape, held=held)


def read(entry: Entry, mapped: bool, make: Make, budget: int) -> torch.Tensor:
    """The pixels of an entry; a damaged one is built again."""
    try:
        return entry.read(mapped)
    except (OSError, ValueError, EOFError):
        forget(entry.key)
        return ensure(entry.key, make, budget).read(mapped)


def forget(key: str) -> None:
    """Remove an entry."""
    for suffix in ("json", "npy"):
        (folder() / f"{key}.{suffix}").unlink(missing_ok=True)


def recall(key: str) -> dict[str, Any]:
    """What :func:`note` wrote under a key; empty if there is nothing or it is damaged."""
    try:
        note = read_json(folder() / f"note-{key}.json")
    except InputError:
        return {}
    return note if isinstance(note, dict) else {}


def note(key: str, facts: dict[str, Any]) -> None:
    """Remember a small result (plain data), if the cache can be written."""
    with suppress(OSError):
        write_json(folder() / f"note-{key}.json", facts)


def _find(key: str) -> Entry | None:
    try:
        note = read_json(folder() / f"{key}.json")
        entry = Entry(key, tuple(int(n) for n in note["shape"]), int(note["crc32"]))
        return entry if entry.path.stat().st_size > entry.nbytes else None  # a header comes before the pixels
    except (InputError, OSError, KeyError, TypeError, ValueError):
        return None


def _build(key: str, make: Make) -> Entry:
    shape, chunks = make()
    checksum = 0

    def write(temporary: Path) -> None:
        nonlocal checksum
        with temporary.open("wb") as sink:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(sink, header)
            rows = 0
            for chunk in chunks:
                checksum = zlib.crc32(chunk.data, checksum)
                sink.write(chunk.data)
                rows += len(chunk)
        if rows != shape[0]:
            raise InputError(f"the source announced {shape[0]} rows and gave {rows}; it may have changed while it was read")

    write_atomically(folder() / f"{key}.npy", write)
    write_json(folder() / f"{key}.json", {"shape": list(shape), "crc32": checksum})
    return Entry(key, shape, checksum)
