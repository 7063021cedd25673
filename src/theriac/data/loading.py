"""``load``: from a name, a path or arrays to splits with a card."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from theriac.core.card import Augment
from theriac.core.errors import InputError
from theriac.core.files import cache_folder
from theriac.core.paths import as_path
from theriac.core.ranges import Seed, typed
from theriac.core.split import Data
from theriac.core.text import as_utf8
from theriac.data._known import KNOWN, canonical, no_such_name
from theriac.data._labels import warn_twins
from theriac.data._options import Options

TABLES = (".csv", ".tsv")
ARRAYS = (".npz", ".pt", ".pth", ".safetensors")


@typed("test", "augment", "drop", "size", "val_share", "test_share", "seed", "memory_budget")
def load(
    source: Any,
    *,
    test: Any = None,
    label: str | None = None,
    sensitive: str | Sequence[str] | None = None,
    missing_group: str = "refuse",
    size: int | Sequence[int] | None = None,
    channels: int | None = None,
    augment: Augment | None = None,
    categorical: str | Sequence[str] | None = None,
    drop: str | Sequence[str] | None = None,
    val_share: float = 0.0,
    test_share: float = 0.2,
    seed: Seed = 0,
    memory_budget: int = 4 << 30,
    white: float | None = None,
    missing: str | Sequence[str] | None = None,
    name: str | None = None,
) -> Data:
    """Load a data set: splits ``train``, ``test`` and maybe ``val``, with one card.

    What ``source`` may be:

    * ``"digits"``, which comes with scikit-learn, or a name of :func:`theriac.data.names`: taken from
      ``$THERIAC_DATA/<name>`` (by default the folder ``data`` in the cache) if that exists, else downloaded through the
      ``hub`` extra; the name of any other folder that you put there works, too;
    * a folder of parquet files (``train-*.parquet``, ``test-*.parquet``, ``validation-*.parquet``) or one such file: pictures
      as the Hugging Face hub stores them, or a table;
    * a folder of pictures, ``root/class/*.png`` or ``root/train/class/*.png`` and ``root/test/class/*.png``;
    * a CSV file with column names, or a folder with ``train.csv`` and ``test.csv``;
    * an ``.npz``, ``.safetensors`` or ``.pt`` file with ``x`` and ``y``, or ``x_train``, ``y_train``, ``x_test``, ``y_test``;
    * ``(x, y)``, or a mapping with such names; see :func:`theriac.data.from_tensors`.

    A test part that the source lacks is drawn from the training rows: seeded, every class in proportion. A validation part
    without a test part is taken as the test part. Rows keep the order of the sorted files. Decoded pictures are cached in
    ``$THERIAC_CACHE`` (by default in the user's cache folder), which may be deleted at any time.

    Args:
        source: What to load.
        test: Another source of the same kind for the test rows.
        label: Name of the label's column; by default a column called ``label``, ``target``, ``class`` or ``y``.
        sensitive: Column or columns whose values become ``Split.group``; several combine into cells ("Female & Black").
            In a table they stay features, unless ``drop`` names them.
        missing_group: What becomes of rows without a value in a sensitive column: "refuse", or "own" for a group "missing".
        size: Side, or (height, width), in pixels to resize pictures to: bilinear, antialiased. Needed where sizes differ.
        channels: 1 or 3; by default gray pictures stay gray, and a mix of gray and color becomes color.
        augment: How training pictures may be changed; by default by the data set's name, and never flipped if it is unknown.
        categorical: Columns of numbers that are codes (tables).
        drop: Columns to leave out. Those that repeat the label one to one go too, with a warning; ``()`` keeps all columns.
        val_share: Share of the training rows to hold out as ``val``, in [0, 0.9].
        test_share: Share to hold out as ``test`` where the source has no test part, in (0, 0.9].
        seed: Seed of these two draws.
        memory_budget: Bytes; pictures that need more are memory-mapped from the cache.
        white: Stored level that means white, one for all pictures, above 0: 4095 for 12 bits in files of 16. By default what
            the files declare, 255 or 65,535; a warning says so if that leaves the training pictures almost black.
        missing: Texts that mean a missing value in columns of text, such as "NA"; an empty cell and "?" always do. In a CSV
            column of numbers "NA", "nan", "null" and the like do too, with a warning.
        name: Name for the card, by default that of the folder or file. A known one decides about augmentation too.

    Raises:
        InputError: If the source is missing, damaged or unclear, or a keyword does not fit it.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits", val_share=0.1)
        >>> data.train
        Split('digits', 1294 rows of (1, 8, 8), 10 classes)
        >>> len(data.val), len(data.test), data.card.augment.flip
        (144, 359, False)
        >>> th.load("cifar11")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        theriac.core.errors.InputError: unknown data set 'cifar11'; did you mean 'cifar10' or 'cifar100'?
    """
    options = Options.of(
        test=test,
        label=label,
        sensitive=sensitive,
        missing_group=missing_group,
        size=size,
        channels=channels,
        augment=augment,
        categorical=categorical,
        drop=drop,
        val_share=val_share,
        test_share=test_share,
        seed=seed,
        memory_budget=memory_budget,
        white=white,
        missing=missing,
        name=name,
    )
    data = _load(source, options)
    if test_share != Options.test_share and not data.held_out:
        warnings.warn(
            f"test_share is {test_share:g}, which changes nothing: {data.card.name!r} has test rows of its own", stacklevel=2
        )
    warn_twins(data.card)
    return data


def _load(source: Any, options: Options) -> Data:
    if not isinstance(source, (str, os.PathLike)):
        return _arrays(source, options)
    if str(source) == "digits":
        from theriac.data._embedded import digits

        if os.path.exists("digits"):
            warnings.warn("digits is the embedded data set; the folder or file of that name here is ./digits", stacklevel=3)
        return digits(options)
    path, known = as_path("source", source), canonical(str(source))
    try:
        there = place_of(source)
        if there == path:
            named = options.name if options.name and canonical(options.name) else _name_of(path)
            return _from_path(path, named, options)
        if there is not None:
            return _from_path(there, known or path.name, options)
        if known is not None:
            return _fetched(known, options)
    except OSError as error:
        raise InputError(f"{error.filename or path} can't be read: {error.strerror or error}") from None
    if not _is_name(path):
        raise InputError(f"{path} does not exist; expected a folder, a file, or a name such as digits or cifar10")
    raise no_such_name(str(source))


def place_of(source: str | os.PathLike[str]) -> Path | None:
    """Where what :func:`load` reads for a path or a name lies; None of the embedded digits, and of what is not there yet."""
    if str(source) == "digits":
        return None
    path = as_path("source", source)
    if path.exists():
        return path
    named = canonical(str(source)) or (path if _is_name(path) else None)
    there = None if named is None else _shelf() / named
    return there if there is not None and there.exists() else None


def check_name(source: str) -> None:
    """Refuse a misspelled name of a data set before anything is read; a path may be one of another machine.

    Raises:
        InputError: If it is neither a path nor a known name, with the nearest ones.
    """
    path = as_path("source", source)
    if not _is_name(path) or canonical(source) is not None or source == "digits":
        return
    if place_of(source) is None:
        raise no_such_name(source)


def _is_name(path: Path) -> bool:
    """Whether this reads as the name of a data set rather than as a path."""
    return len(path.parts) <= 1 and not path.suffix


def _shelf() -> Path:
    """The folder in which data sets lie by their names."""
    return as_path("THERIAC_DATA", os.environ.get("THERIAC_DATA") or cache_folder() / "data")


def _name_of(path: Path) -> str:
    """The folder's name, also for a file that is called after its part, such as train.csv."""
    from theriac.data._sources import part_of

    path = path.resolve()
    return as_utf8(path.name if path.is_dir() else path.parent.name if part_of(path.stem) else path.stem)


def _fetched(name: str, options: Options) -> Data:
    from theriac.data._hub import fetch

    path, source = fetch(name, KNOWN[name])
    return _from_path(path, name, options, source)


def _from_path(path: Path, name: str, options: Options, source: str = "") -> Data:
    if path.is_file():
        return _from_file(path, name, options, source)
    if not path.is_dir():
        raise InputError(f"{path} is neither a file nor a folder")
    from theriac.data._sources import class_folders, files_by_part, parquet_before_pictures, refuse_unread

    for deeper in (False, True):
        parts = files_by_part(path, (".parquet",), True) if deeper else parquet_before_pictures(path)
        if parts:
            return _parquet(parts, name, options, source)
        folders = {} if deeper else class_folders(path)
        if folders:
            from theriac.data._folders import picture_folders

            if options.test is not None:
                test = _test_path(options.test)
                folders["test"] = class_folders(test).get("train", {})
                if not folders["test"]:
                    refuse_unread(test)
            return picture_folders(folders, name, options, source)
        parts = files_by_part(path, TABLES, deeper)
        if parts:
            from theriac.data._tables import csv_files

            return csv_files(_with_test(parts, options, TABLES), name, options, source)
    refuse_unread(path)
    raise InputError(
        f"{path} holds no data that we read; expected parquet or CSV files (train-*, test-*), "
        "or pictures in one folder for each class"
    )


def _from_file(path: Path, name: str, options: Options, source: str) -> Data:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet({"train": [path]}, name, options, source)
    if suffix in TABLES:
        from theriac.data._tables import csv_files

        return csv_files(_with_test({"train": [path]}, options, TABLES), name, options, source)
    if suffix in ARRAYS:
        from theriac.data._arrays import array_data, read_arrays

        held = None if options.test is None else read_arrays(_test_path(options.test))
        return array_data(read_arrays(path), held, name, options, source)
    known = ", ".join((".parquet", *TABLES, *ARRAYS))
    raise InputError(f"{path} is not a kind of file that we read; expected {known}, or a folder")


def _parquet(parts: Mapping[str, Sequence[Path]], name: str, options: Options, source: str) -> Data:
    from theriac.data._parquet import image_column, picture_files

    parts = _with_test(parts, options, (".parquet",))
    column = image_column(parts["train"][0], options.drop or ())
    if column is not None:
        return picture_files(parts, column, name, options, source)
    from theriac.data._tables import parquet_files

    return parquet_files(parts, name, options, source)


def _with_test(parts: Mapping[str, Sequence[Path]], options: Options, suffixes: tuple[str, ...]) -> dict[str, Sequence[Path]]:
    if options.test is None:
        return dict(parts)
    path = _test_path(options.test)
    if path.is_file():
        if path.suffix.lower() not in suffixes:
            raise InputError(f"test is {path.name}; expected a file of the training rows' kind ({', '.join(suffixes)})")
        return {**parts, "test": [path]}
    from theriac.data._sources import files_by_part

    files = files_by_part(path, suffixes, deeper=True)
    if not files:
        raise InputError(f"test is {path}, which holds no {' or '.join(suffixes)} file")
    return {**parts, "test": files["train"]}


def _test_path(test: Any) -> Path:
    if not isinstance(test, (str, os.PathLike)):
        raise InputError(f"test is a {type(test).__name__}; expected a path, as the training rows come from a path")
    path = as_path("test", test)
    if not path.exists():
        raise InputError(f"test is {path}, which does not exist")
    return path


def _arrays(source: Any, options: Options) -> Data:
    from theriac.data._arrays import array_data

    return array_data(source, options.test, "tensors", options, "")
