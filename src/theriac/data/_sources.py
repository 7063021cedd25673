"""What a folder holds: which files belong to the training, test and validation part."""

from __future__ import annotations

import os
import re
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path

from theriac.core.errors import InputError
from theriac.core.text import is_utf8
from theriac.data._images import MAX_FILE, SUFFIXES

PARTS = {"train": ("train", "training"), "test": ("test", "testing"), "val": ("validation", "valid", "val", "dev")}
MAX_FILES = 5_000_000
OTHER_PICTURES = (".gif", ".tif", ".tiff", ".avif", ".heic", ".jxl", ".jp2", ".ico", ".tga")


def part_of(name: str) -> str | None:
    """The part that a file or folder name announces: "train-00000-of-00002" is "train"; None if it announces none."""
    start = re.split(r"[-_.\d]", name.lower(), maxsplit=1)[0]
    return next((part for part, words in PARTS.items() if start in words), None)


def _hidden(name: str) -> bool:
    """Whether a system left a file or folder there: names with a dot, and what archives of macOS bring along."""
    return name.startswith(".") or name == "__MACOSX"


def files_by_part(folder: Path, suffixes: Sequence[str], deeper: bool = False) -> dict[str, list[Path]]:
    """Files of a kind by part, each part in ascending order of path.

    Looks in the folder itself and in folders named after a part; with ``deeper``, in the one subfolder that has some. Without
    a test part, the validation part is the test part. Files that announce no part are the training part if no other file is,
    and are left out otherwise.

    Raises:
        InputError: If there is no training part, or several subfolders hold data.
    """
    here = [p for p in sorted(folder.iterdir()) if not _hidden(p.name)]
    by_part: dict[str | None, list[Path]] = {}
    for path in here:
        if path.suffix.lower() in suffixes and path.is_file():
            by_part.setdefault(part_of(path.stem), []).append(path)
        elif part_of(path.name) and path.is_dir():
            inner = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes and p.is_file())
            if inner:
                by_part.setdefault(part_of(path.name), []).extend(inner)
    if not by_part and deeper:
        below = {p: files for p in here if p.is_dir() and (files := files_by_part(p, suffixes))}
        if len(below) > 1:
            raise InputError(f"{folder} holds data in {', '.join(p.name for p in below)}; name one of these folders")
        return next(iter(below.values()), {})
    if "train" not in by_part and None in by_part:
        by_part["train"] = by_part.pop(None)
    parts = {part: by_part[part] for part in PARTS if part in by_part}
    if parts and "train" not in parts:
        raise InputError(f"{folder} holds a {' and a '.join(parts)} part and no training part (train-*{suffixes[0]})")
    if "test" not in parts and "val" in parts:
        parts["test"] = parts.pop("val")
    return parts


def parquet_before_pictures(folder: Path) -> dict[str, list[Path]]:
    """Parquet files by part that count before any folders of pictures beside them: here, or in ``data/`` as hubs have them."""
    below = folder / "data"
    return files_by_part(folder, (".parquet",)) or (files_by_part(below, (".parquet",)) if below.is_dir() else {})


def class_folders(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """Pictures by part and class from ``folder/class/*`` or ``folder/part/class/*``; empty if there are none.

    Raises:
        InputError: If a class folder holds no picture, or there is no training part.
    """
    below = [p for p in sorted(folder.iterdir()) if p.is_dir() and not _hidden(p.name)]
    by_part: dict[str, Path] = {}
    for path in below:
        part = part_of(path.name)
        if part and path.name.lower() in PARTS[part]:
            if part in by_part:
                raise InputError(
                    f"{folder} holds {by_part[part].name} and {path.name}, which both name the {part} part; expected one"
                )
            by_part[part] = path
    train = _classes(by_part["train"]) if "train" in by_part else {}
    if train:  # else a folder called train is a class, beside truck and tram
        parts = {"train": train, **{part: _classes(path) for part, path in by_part.items() if part != "train"}}
        for part, classes in parts.items():
            if not classes:
                refuse_unread(by_part[part])
        if "test" not in parts and "val" in parts:
            parts["test"] = parts.pop("val")
        return parts
    if by_part and len(by_part) == len(below) and "train" not in by_part:
        raise InputError(f"{folder} holds {', '.join(p.name for p in below)} and no training part (a folder called train)")
    classes = _classes(folder)
    stray = [p for part, p in by_part.items() if part != "train" and _classes(p)]
    if classes and stray:  # else its rows would be a class of their own in the training set
        raise InputError(f"{stray[0]} holds class folders, but there is no training part beside it (a folder called train)")
    return {"train": classes} if classes else {}


def refuse_unread(folder: Path) -> None:
    """Refuse a folder in which nothing was found to read, if it holds pictures of other kinds.

    Raises:
        InputError: Naming one of them, and the endings that are read.
    """
    left_out = [name for _, _, names in os.walk(folder) for name in sorted(names) if name.lower().endswith(OTHER_PICTURES)]
    if left_out:
        raise InputError(
            f"{folder} holds {len(left_out):,} pictures (such as {left_out[0]}), and none of a kind that we read; "
            f"convert them to one of {', '.join(SUFFIXES)}"
        )


def _classes(folder: Path) -> dict[str, list[Path]]:
    classes: dict[str, list[Path]] = {}
    left_out: list[str] = []
    linked: list[Path] = []
    total = 0
    for path in sorted(folder.iterdir()):
        if not path.is_dir() or _hidden(path.name):
            continue
        if not path.name.isprintable() or not is_utf8(path.name):
            raise InputError(f"the class folder {path.name!a} has a name that is no readable text; rename it")
        pictures = []
        for root, below, names in os.walk(path):
            linked += [Path(root, name) for name in below if Path(root, name).is_symlink()]
            for name in names:
                if name.startswith("."):
                    continue
                if name.lower().endswith(SUFFIXES):
                    pictures.append(_regular(Path(root, name)))
                elif name.lower().endswith(OTHER_PICTURES):
                    left_out.append(name)
        total += len(pictures)
        if total > MAX_FILES:
            raise InputError(f"{folder} holds more than {MAX_FILES:,} pictures; convert it to parquet")
        classes[path.name] = sorted(pictures)
    if not any(classes.values()):
        return {}
    for name, pictures in classes.items():
        if not pictures:
            raise InputError(f"class folder {folder / name} holds no picture ({', '.join(SUFFIXES)})")
    if linked:
        warnings.warn(
            f"{len(linked)} linked folders below the classes of {folder} are left out (such as {linked[0]}): links are not "
            "followed there, since they may lead in circles",
            stacklevel=2,
        )
    if left_out:
        warnings.warn(
            f"{len(left_out)} pictures in {folder} are left out (such as {left_out[0]}); only {', '.join(SUFFIXES)} are read",
            stacklevel=2,
        )
    return classes


def _regular(path: Path) -> Path:
    """Refuse pipes and devices, which never end, and files too large for a picture, before anything is read."""
    try:
        at = path.stat()
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from None
    if not stat.S_ISREG(at.st_mode):
        raise InputError(f"{path} is no regular file")
    if at.st_size > MAX_FILE:
        raise InputError(f"{path} has {at.st_size:,} bytes; a picture may have {MAX_FILE:,}")
    return path
