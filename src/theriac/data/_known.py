"""Data sets known by name: where the hub has them, and how their training images may be changed.

Repositories, file names and column names come from public listings of the hub and code that uses them (evidence grade B), and
were not tried over a network; licenses are recalled (M), so check them at the origin before you pass data on.
"""

from __future__ import annotations

from dataclasses import dataclass

from theriac.core.card import Augment
from theriac.core.errors import InputError, unknown


@dataclass(frozen=True, kw_only=True)
class Known:
    """One data set."""

    repo: str = ""  # repository on the hub; empty where none of a layout that we read is known
    files: tuple[str, ...] = ("data/*.parquet",)  # patterns inside it
    label: tuple[str, ...] = ("label",)  # possible names of the label's column
    flip: bool = False  # mirrored pictures still show their class
    size: tuple[int, int] | None = None  # where the pictures differ in size
    drop: tuple[str, ...] = ()  # columns that repeat the label
    license: str = ""
    origin: str = ""  # where people get it otherwise


KNOWN: dict[str, Known] = {
    "cifar10": Known(
        repo="uoft-cs/cifar10", files=("plain_text/*.parquet",), flip=True, license="none stated; cite Krizhevsky 2009"
    ),
    "cifar100": Known(
        repo="uoft-cs/cifar100",
        files=("cifar100/*.parquet",),
        label=("label", "fine_label"),
        flip=True,
        license="none stated; cite Krizhevsky 2009",
    ),
    "fashion_mnist": Known(repo="zalando-datasets/fashion_mnist", files=("fashion_mnist/*.parquet",), flip=True, license="MIT"),
    "mnist": Known(repo="ylecun/mnist", files=("mnist/*.parquet",), license="MIT"),
    "svhn": Known(
        repo="ufldl-stanford/svhn",
        files=("cropped_digits/train-*.parquet", "cropped_digits/test-*.parquet"),
        license="non-commercial use",
    ),
    "gtsrb": Known(
        repo="tanganke/gtsrb",
        files=("data/train-*.parquet", "data/test-*.parquet"),
        size=(32, 32),  # the literature's; the pictures measure 15 to 250 pixels a side
        license="see the origin; cite Stallkamp et al. 2012",
    ),
    "tiny-imagenet": Known(
        repo="zh-plus/tiny-imagenet", flip=True, license="ImageNet terms: non-commercial research and education"
    ),
    "fairface": Known(
        repo="HuggingFaceM4/FairFace",
        files=("0.25/*.parquet",),
        label=("label", "gender"),
        flip=True,
        license="CC BY 4.0",
    ),
    "adult": Known(
        repo="scikit-learn/adult-census-income",
        files=("adult.csv",),
        label=("label", "income"),
        drop=("income",),
        license="CC BY 4.0 (UCI)",
    ),
    "german_credit": Known(
        label=("label", "credit"),
        drop=("credit",),
        license="CC BY 4.0 (UCI)",
        origin="the UCI repository (Statlog, German credit), as a CSV with column names",
    ),
}


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def canonical(name: str) -> str | None:
    """The name in :data:`KNOWN` that ``name`` spells ("CIFAR-10" is "cifar10"), or None."""
    return next((known for known in KNOWN if _plain(known) == _plain(name)), None)


def known(name: str) -> Known:
    """What is known about a data set of this name; for an unknown one, the cautious defaults."""
    canon = canonical(name)
    return Known() if canon is None else KNOWN[canon]


def policy(name: str, size: tuple[int, int], chosen: Augment | None) -> Augment:
    """How training images may be changed: what the caller says, else by the data set's name.

    Pad-and-crop by an eighth of the side, and by 4 pixels for sides of 24 to 39, the literature's habit at 28 and 32 pixels.
    Only data sets whose mirrored pictures are known to show the same class are flipped.
    """
    if chosen is not None:
        return chosen
    side = min(size)
    return Augment(crop_pad=side // 8 if side < 24 else max(4, side // 8), flip=known(name).flip)


def names() -> tuple[str, ...]:
    """Names that :func:`theriac.load` knows without a path.

    Examples:
        >>> import theriac as th
        >>> "cifar10" in th.data.names()
        True
    """
    return ("digits", *sorted(KNOWN))


def no_such_name(name: str) -> InputError:
    """An error for a source that is neither a path nor a known name."""
    error = unknown("data set", name, names())
    return InputError(f"{error} (a folder or a .parquet, .csv, .npz, .pt or .safetensors file is taken by its path)")
