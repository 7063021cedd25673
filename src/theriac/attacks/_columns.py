"""What attacks on tables read off clean training rows: whole-number columns, common values, what tells the classes apart."""

from __future__ import annotations

import torch

from theriac.core.card import Card
from theriac.core.errors import InputError, unknown


def position(card: Card, name: str) -> int:
    """The position of a column.

    Raises:
        InputError: If there is none of that name.
    """
    names = [column.name for column in card.columns]
    if name not in names:
        raise unknown(f"column of {card.name}", name, names)
    return names.index(name)


def numeric(card: Card) -> torch.Tensor:
    """Which columns hold numbers, bool (F,)."""
    return torch.tensor([column.kind == "numeric" for column in card.columns])


def integral(x: torch.Tensor) -> torch.Tensor:
    """Which columns of (N, F) hold whole numbers only, missing values aside; bool (F,)."""
    return ((x == x.round()) | x.isnan()).all(0)


def bounds(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest value of each column of (N, F), missing values aside; NaN where all are missing."""
    missing = x.isnan()
    low = x.masked_fill(missing, float("inf")).amin(0)
    high = x.masked_fill(missing, -float("inf")).amax(0)
    empty = missing.all(0)
    return low.masked_fill(empty, float("nan")), high.masked_fill(empty, float("nan"))


def moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (over N) of each column of (N, F), missing values aside; float64 (F,), NaN where all are."""
    wide = x.double()
    mean = wide.nanmean(0)
    return mean, (wide - mean).square().nanmean(0).sqrt()


def common(column: torch.Tensor, *, rarest: bool = False) -> tuple[float, int]:
    """The most common (or rarest) value of a column (N,) and its count; of several, the one nearest to the median.

    Raises:
        InputError: If all values are missing.
    """
    there = column[~column.isnan()]
    values, counts = there.unique(return_counts=True)
    if not len(values):
        raise InputError("a column that the trigger needs has missing values only")
    best = (counts == (counts.min() if rarest else counts.max())).nonzero().flatten()
    at = best[(values[best].double() - there.median().double()).abs().argmin()]
    return float(values[at]), int(counts[at])


def told_by_class(x: torch.Tensor, y: torch.Tensor, classes: int) -> torch.Tensor:
    """Correlation ratio of each column of (N, F) with the label: between-class over total sum of squares, float64 (F,).

    Missing values are replaced by the mean, so they add nothing; a constant column gives 0.
    """
    mean, _ = moments(x)
    centered = (x.double() - mean).nan_to_num(0.0)
    sums = centered.new_zeros(classes, x.shape[1]).index_add_(0, y, centered)
    counts = torch.bincount(y, minlength=classes).clamp_min(1).to(sums)
    total = centered.square().sum(0)
    return torch.where(total > 0, (sums.square() / counts[:, None]).sum(0) / total.clamp_min(1e-300), 0.0)
