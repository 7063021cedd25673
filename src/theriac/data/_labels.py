"""Labels and sensitive cells as codes with names, and the seeded draw of held-out rows."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from theriac.core.card import Card
from theriac.core.errors import InputError, unknown
from theriac.core.names import few, ranked
from theriac.core.ranges import Seed, typed
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.core.text import lookalike, twins

Codes = npt.NDArray[np.int64]
Level = str | int | float | bool
MAX_GROUPS, MAX_CELLS = 64, 512  # values of a column, and cells; with more, groups hold too few rows to say anything
ROWS = {"train": "training", "test": "test", "val": "validation"}


@dataclass(frozen=True)
class Factor:
    """A column of few values: ``codes`` int64 (N,) into ``levels``, -1 where the value is missing."""

    codes: Codes
    levels: tuple[Level, ...]

    @classmethod
    def of(cls, values: npt.NDArray[Any]) -> Factor:
        """From numbers, booleans or text, (N,); NaN and None are missing."""
        if values.dtype == object:
            place: dict[Any, int] = {}
            codes = np.fromiter((place.setdefault(v, len(place)) for v in values), np.int64, len(values))
            return cls.of_levels(codes, list(place))
        levels, codes = np.unique(values, return_inverse=True)
        return cls.of_levels(codes, levels.tolist())

    @classmethod
    def of_levels(cls, codes: npt.NDArray[Any], levels: Sequence[Any]) -> Factor:
        """From codes and what they stand for; equal levels are merged, None, NaN and the like are missing."""
        place: dict[Level, int] = {}
        table = np.full(max(1, len(levels)), -1, np.int64)
        for i, level in enumerate(levels):
            if not is_missing(level):
                table[i] = place.setdefault(tidy(level), len(place))
        return cls(table[codes].astype(np.int64), tuple(place))

    def __len__(self) -> int:
        return len(self.codes)

    def onto(self, levels: Sequence[Level]) -> Codes:
        """Codes into other levels; -1 where the value is not among them."""
        place = {level: i for i, level in enumerate(levels)}
        table = np.array([*(place.get(level, -1) for level in self.levels), -1], np.int64)
        return table[self.codes]

    def as_text(self) -> Factor:
        """The same with all levels as text; those that read the same are one."""
        texts = [str(level) for level in self.levels]
        levels = tuple(dict.fromkeys(texts))
        return Factor(Factor(self.codes, tuple(texts)).onto(levels), levels)

    def present(self) -> tuple[Level, ...]:
        """The levels that occur, numbers before text, in ascending order; text that is all whole numbers by value."""
        used = [self.levels[i] for i in np.unique(self.codes[self.codes >= 0])]
        texts = [v for v in used if isinstance(v, str)]
        return (*sorted(v for v in used if not isinstance(v, str)), *(texts[k] for k in ranked(texts)))


def alike(parts: Mapping[str, Factor]) -> Mapping[str, Factor]:
    """The column of every part, as text if that of any is: "1" in one file and 1 in another are the same value."""
    text = any(isinstance(level, str) for factor in parts.values() for level in factor.levels)
    return {part: factor.as_text() for part, factor in parts.items()} if text else parts


def tidy(value: Level) -> Level:
    """A number that is whole becomes an int, so that 1.0 and 1 are one level."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def is_missing(value: Any) -> bool:
    """Whether this marks a missing value: None, NaN, NaT or pandas' NA."""
    try:
        return value is None or bool(value != value)
    except (TypeError, ValueError):  # NA does not say whether it equals itself
        return True


def cell_name(parts: Sequence[str]) -> str:
    """One name for a combination of values, "Female & Black"; other values give another name, whatever they hold."""
    if len(parts) == 1:
        return parts[0]
    return " & ".join(json.dumps(p, ensure_ascii=False) if "&" in p or '"' in p else p for p in parts)


def own_group(codes: Mapping[str, Codes], labels: Sequence[str], missing_group: str, what: str) -> str | None:
    """The name of the group of rows without a value; None if every row has one.

    Args:
        codes: Group numbers by part, -1 where there is no value.
        labels: Names that are taken.
        missing_group: "refuse", or "own" to make a group of them.
        what: How errors call the column.

    Raises:
        InputError: If there are such rows and they are to be refused, or on another ``missing_group``.
    """
    if missing_group not in ("refuse", "own"):
        raise unknown("missing_group", missing_group, ("refuse", "own"))
    lost = sum(int((c < 0).sum()) for c in codes.values())
    if not lost:
        return None
    if missing_group == "refuse":
        raise InputError(
            f"{what} has no value in {lost:,} of {sum(map(len, codes.values())):,} rows; give each row a group, leave these "
            "rows out, or make them a group of their own with missing_group='own' (--data-option missing_group=own)"
        )
    name = "missing"
    while name in labels:
        name = f"({name})"
    return name


_few_will_do: ContextVar[bool] = ContextVar("few_will_do", default=False)


@contextlib.contextmanager
def few_will_do() -> Iterator[None]:
    """Load rows of one class, too, or a single row of each: for a model that is there already, which they measure.

    Where no class has two rows, nothing is held out for test: both parts hold all of them.
    """
    before = _few_will_do.set(True)
    try:
        yield
    finally:
        _few_will_do.reset(before)


def classes_of(
    column: str, parts: Mapping[str, Factor], names: Sequence[str] | None = None
) -> tuple[dict[str, Codes], tuple[str, ...]]:
    """Class numbers of every part, and the class names.

    Args:
        column: How errors call the labels.
        parts: Labels by part; "train" decides which classes there are.
        names: Names of classes 0, 1, ... where the source declares them.

    Raises:
        InputError: On a missing or fractional label, too many or too few classes, or a class without training rows.
    """
    parts = parts if names is not None else alike(parts)
    train = parts["train"]
    for part, factor in parts.items():
        lost = np.flatnonzero(factor.codes < 0)
        if len(lost):
            raise InputError(f"{column} has no value in {ROWS[part]} row {lost[0]}; every row needs a label")
    levels = train.present()
    wrong = [v for v in levels if isinstance(v, float)]
    if wrong:
        raise InputError(f"{column} holds fractions such as {wrong[0]!r}; expected class names or whole numbers")
    if names is not None:
        outside = [v for v in levels if isinstance(v, str) or not 0 <= v < len(names)]
        if outside:
            hint = " (-1 marks rows without a label)" if outside[0] == -1 else ""
            raise InputError(f"{column} holds {outside[0]!r}{hint}; the declared names are for 0 to {len(names) - 1}")
    if len(levels) < 2 and not _few_will_do.get():
        raise InputError(f"{column} holds one class only, {levels[0]!r}; a classifier needs at least two")
    if len(levels) > 20 and len(levels) > len(train) / 2:
        raise InputError(f"{column} has {len(levels):,} different values in {len(train):,} rows; it is no class label")
    for part, factor in parts.items():
        strange = np.flatnonzero(factor.onto(levels) < 0)
        if len(strange):
            value = factor.levels[factor.codes[strange[0]]]
            value = names[int(value)] if names is not None and value in range(len(names)) else value
            hint = lookalike(str(value), [str(v) for v in levels])
            raise InputError(f"{column} is {value!r} in {ROWS[part]} row {strange[0]}, and in no training row{hint}")
    order: Sequence[Level] = range(len(names)) if names is not None else levels
    shown = tuple(names) if names is not None else tuple(str(v) for v in levels)
    return {part: factor.onto(order) for part, factor in parts.items()}, shown


def cells_of(
    columns: Mapping[str, Mapping[str, Factor]], names: Mapping[str, Sequence[str]], missing_group: str = "refuse"
) -> tuple[dict[str, Codes], tuple[str, ...]]:
    """Group numbers of every part, and the cells' names; several columns combine ("Female & Black").

    Cells that no row is in are left out, except those of a single column whose names the source declares.

    Args:
        columns: Values by column and part.
        names: Names of the values of columns that declare them.
        missing_group: What becomes of rows without a value: "refuse", or "own" for a group "missing".

    Raises:
        InputError: If a value is missing and that is refused, a column has more than 64 values, or there are more than 512
            cells.
    """
    shown: list[list[str]] = []
    coded: list[dict[str, Codes]] = []
    for column, parts in columns.items():
        declared = names.get(column)
        parts = parts if declared is not None else alike(parts)
        _warn_apart(column, parts)
        every = {level for factor in parts.values() for level in factor.present()}
        if declared is not None and not all(isinstance(v, int) and 0 <= v < len(declared) for v in every):
            raise InputError(f"sensitive column {column!r} holds a value outside its {len(declared)} declared names")
        levels: Sequence[Level] = (
            range(len(declared)) if declared is not None else Factor(np.arange(len(every)), tuple(every)).present()
        )
        if len(levels) > MAX_GROUPS:
            raise InputError(
                f"sensitive column {column!r} has {len(levels):,} different values; expected at most {MAX_GROUPS}, so bin it"
            )
        labels = list(declared) if declared is not None else [str(v) for v in levels]
        codes = {part: factor.onto(levels) for part, factor in parts.items()}
        own = own_group(codes, labels, missing_group, f"sensitive column {column!r}")
        if own is not None:
            labels.append(own)
            codes = {part: np.where(c < 0, len(levels), c) for part, c in codes.items()}
        shown.append(labels)
        coded.append(codes)
    sizes = [len(labels) for labels in shown]
    flat = {part: np.ravel_multi_index([codes[part] for codes in coded], sizes).astype(np.int64) for part in coded[0]}
    if len(sizes) == 1 and names.get(next(iter(columns))) is not None:
        return flat, tuple(shown[0])
    used = np.unique(np.concatenate(list(flat.values())))
    if len(used) > MAX_CELLS:
        raise InputError(f"sensitive columns {list(columns)} make {len(used)} cells; expected at most {MAX_CELLS}")
    cells = tuple(cell_name([shown[k][i] for k, i in enumerate(np.unravel_index(c, sizes))]) for c in used)
    return {part: np.searchsorted(used, codes).astype(np.int64) for part, codes in flat.items()}, cells


def _warn_apart(column: str, parts: Mapping[str, Factor]) -> None:
    """Warn of rows whose groups are all unknown among the training rows: most often they are coded in another way."""
    known = parts["train"].present() if "train" in parts else ()
    for part, factor in parts.items():
        new = factor.present()
        if known and new and not set(new) & set(known):
            there, here = (few([str(v) for v in values]) for values in (known, new))
            warnings.warn(
                f"sensitive column {column!r} holds {here} in the {ROWS[part]} rows and {there} in the training rows; if these "
                "are the same groups, call them alike",
                stacklevel=4,
            )


def draw(y: Codes, share: float, seed: int, purpose: str) -> Codes:
    """Positions of a stratified draw, ascending: every class gives its share and keeps at least one row.

    Raises:
        InputError: If there are too few rows to draw any.
    """
    generator = Run(seed=seed, device="cpu").generator("data", purpose)
    counts = np.bincount(y)
    quota = share * counts
    take = np.minimum(np.floor(quota).astype(np.int64), np.maximum(counts - 1, 0))
    total = max(1, round(share * len(y)))
    for k in np.argsort(take - quota, kind="stable"):  # largest remainder first
        if take.sum() < total and take[k] < counts[k] - 1:
            take[k] += 1
    if not take.sum():
        raise InputError(f"{len(y)} rows are too few to hold any out for {purpose}; every class needs two rows or more")
    order = torch.randperm(len(y), generator=generator).numpy()
    drawn = [order[y[order] == k][:n] for k, n in enumerate(take)]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def warn_twins(card: Card) -> None:
    """Warn of classes, groups and categories that read alike and are written otherwise: most often they are one."""
    columns = {f"column {column.name!r} holds categories": column.categories for column in card.columns}
    names = {"the data hold classes": card.classes, "the data hold groups": card.groups, **columns}
    hints = {
        hint: where for where, own in reversed(names.items()) if (hint := twins(own))
    }  # of one pair in two places the first
    for hint, where in hints.items():
        warnings.warn(f"{where} that read alike{hint}; each counts as one of its own", stacklevel=4)


Rows = tuple[str, Codes | None]
"""A part of the source and positions in it; None is all of it."""


def arrange(labels: Mapping[str, Codes], test_share: float, val_share: float, seed: int) -> dict[str, Rows]:
    """Which rows make "train", "test" and (if there is one) "val"; what the source lacks is drawn from its training rows."""
    out: dict[str, Rows] = {part: (part, None) for part in labels}
    if "test" not in labels and _few_will_do.get() and np.bincount(labels["train"]).max() < 2:
        return out | {"test": ("train", None)}  # too few to divide
    left: Codes | None = None
    for part, share in (("test", test_share), ("val", val_share)):
        if part in labels or not share:
            continue
        left = np.arange(len(labels["train"])) if left is None else left
        drawn = left[draw(labels["train"][left], share, seed, part)]
        left = np.setdiff1d(left, drawn, assume_unique=True)
        out[part] = ("train", drawn)
    out["train"] = ("train", left)
    return out


@typed("share")
def split_off(split: Split, share: float, *, seed: Seed = 0) -> tuple[Split, Split]:
    """Hold rows of every class out, in proportion: (the rest, the drawn rows), both in their old order.

    Args:
        split: Where from.
        share: Share of the rows to draw, in (0, 1).
        seed: Seed of the draw.

    Raises:
        InputError: If the share is outside (0, 1) or nothing can be drawn.

    Examples:
        >>> import theriac as th
        >>> rest, held = th.data.split_off(th.load("digits").train, 0.1)
        >>> len(rest), len(held)
        (1294, 144)
    """
    from theriac.core import check

    check.between("share", share, 0, 1, open_low=True)
    drawn = torch.from_numpy(draw(split.y.cpu().numpy(), share, seed, "val"))
    keep = torch.ones(len(split), dtype=torch.bool)
    keep[drawn] = False
    return split.where(keep.to(split.device)), split.take(drawn)
