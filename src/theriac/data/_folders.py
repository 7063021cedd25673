"""Folders of pictures, one for each class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from theriac.core.errors import InputError
from theriac.core.names import ranked
from theriac.core.paths import as_path
from theriac.core.ranges import typed
from theriac.core.split import Data
from theriac.core.text import lookalike
from theriac.data._images import Blob
from theriac.data._labels import ROWS, Factor
from theriac.data._options import Options
from theriac.data._picture_sets import PicturePart, picture_data
from theriac.data._sources import class_folders, parquet_before_pictures


@dataclass(frozen=True)
class FolderPictures:
    """Picture files in a fixed order."""

    files: tuple[Path, ...]

    @property
    def count(self) -> int:
        """Number of pictures."""
        return len(self.files)

    @property
    def selector(self) -> str:
        """Empty: the files alone decide which pictures these are."""
        return "files"

    def where(self, row: int) -> str:
        """The file."""
        return str(self.files[row])

    def batches(self, rows: int) -> Iterator[Sequence[Blob | None]]:
        """The files, which the decoder reads."""
        for start in range(0, len(self.files), rows):
            yield self.files[start : start + rows]


@typed("path")
def picture_files(path: str | Path, part: str = "train") -> tuple[Path, ...]:
    """The files of a folder's pictures of one part, in the order of their rows (``Split.index``).

    None if it holds none, or parquet files, which ``load`` reads instead.
    """
    path = as_path("path", path)
    there = path.is_dir() and not parquet_before_pictures(path)
    folders = class_folders(path).get(part, {}) if there else {}
    names = list(folders)
    return tuple(file for k in ranked(names) for file in folders[names[k]])


def picture_folders(parts: Mapping[str, Mapping[str, Sequence[Path]]], name: str, options: Options, source: str = "") -> Data:
    """Make the splits of pictures by part and class; rows are ordered by class name (as numbers, if all are), then by path.

    Raises:
        InputError: On a class folder that only the test part has, or what :func:`picture_data` refuses.
    """
    options.refuse("a folder of pictures has no columns (parquet files do)", "label", "sensitive", "drop")
    listed = list(parts["train"])
    classes = [listed[k] for k in ranked(listed)]
    made = {}
    for part, folders in parts.items():
        if not folders:
            raise InputError(f"the {ROWS[part]} part of {name!r} holds no folder of pictures")
        strange = sorted(set(folders) - set(classes))
        if strange:
            hint = lookalike(strange[0], classes)
            raise InputError(f"the {ROWS[part]} part has a class folder {strange[0]!r}, and the training part has none{hint}")
        files = [(path, k) for k, c in enumerate(classes) for path in folders.get(c, ())]
        codes = np.array([k for _, k in files], np.int64)
        made[part] = PicturePart(FolderPictures(tuple(path for path, _ in files)), Factor(codes, tuple(classes)))
    total = sum(len(part.label) for part in made.values())
    source = source or f"{total} picture files in one folder for each class"
    return picture_data(made, name, options, column="class folder", source=source)
