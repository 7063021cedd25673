"""The interface of every model in Theriac: raw inputs in, logits out, and the data's card beside the network."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from theriac.core.card import Card, Column
from theriac.core.errors import InputError
from theriac.core.ranges import typed
from theriac.core.split import Split


class Normalize(nn.Module):
    """Per-channel normalization of pixels in [0, 1]: (N, C, H, W) to (N, C, H, W).

    Args:
        mean: One number a channel, or a single one for all.
        std: Likewise, above 0.

    Raises:
        InputError: If they differ in length, or are not finite.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        numbers = all(math.isfinite(v) for v in (*mean, *std))
        if not mean or len(mean) != len(std) or not numbers or min(std) <= 0:
            raise InputError(f"mean is {mean} and std {std}; expected one finite number a channel in each, std above 0")
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std


class TablePrep(nn.Module):
    """What a network needs from a raw table row, fitted on training rows and saved with the model.

    Numeric columns: missing values become the training mean, then standardization. Categorical columns: one-hot; a missing
    value or a code never seen gives all zeros. (N, F) to (N, ``width``), the numeric columns first.

    Args:
        columns: Of the raw table.
        mean: Of each numeric column; zeros if left out.
        std: Likewise; ones if left out.

    Raises:
        InputError: If there is no column, or the columns leave nothing to learn from.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, columns: tuple[Column, ...], mean: torch.Tensor | None = None, std: torch.Tensor | None = None):
        super().__init__()
        self.numeric = [i for i, c in enumerate(columns) if c.kind == "numeric"]
        self.categorical = [(i, len(c.categories)) for i, c in enumerate(columns) if c.kind == "categorical"]
        self.register_buffer("mean", torch.zeros(len(self.numeric)) if mean is None else mean)
        self.register_buffer("std", torch.ones(len(self.numeric)) if std is None else std)
        self.width = len(self.numeric) + sum(size for _, size in self.categorical)
        if not self.width:
            raise InputError(f"the table has {len(columns)} columns, none numeric and none with categories")

    @classmethod
    def fit(cls, split: Split) -> TablePrep:
        """Means and standard deviations of the numeric columns, missing values left out."""
        prep = cls(split.card.columns)
        x = split.x[:, prep.numeric].double().cpu()
        mean = x.nanmean(0).nan_to_num(0.0)
        std = ((x - mean) ** 2).nanmean(0).sqrt().nan_to_num(1.0).float()
        varies = x.nan_to_num(-torch.inf).amax(0) > x.nan_to_num(torch.inf).amin(0)  # whatever the unit
        return cls(split.card.columns, mean.float(), torch.where(varies & (std > 0), std, 1.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = []
        if self.numeric:
            values = x[:, self.numeric]
            parts.append((torch.where(values.isnan(), self.mean, values) - self.mean) / self.std)
        for column, size in self.categorical:
            parts.append((x[:, column, None] == torch.arange(size, device=x.device)).to(x.dtype))
        return torch.cat(parts, 1)


class Classifier(nn.Module):
    """A network with its own input preparation: raw inputs in, logits out.

    Args:
        net: Maps prepared inputs to logits (N, K).
        prepare: Maps float pixels in [0, 1] (N, C, H, W), or raw table rows (N, F), to what ``net`` expects.
        card: The data it is for.
        spec: How to build it again: {"architecture": name, "options": {...}}; stored with the weights.
    """

    def __init__(self, net: nn.Module, prepare: nn.Module, card: Card, spec: dict[str, Any]) -> None:
        super().__init__()
        self.prepare = prepare
        self.net = net
        self.card = card
        self.spec = copy.deepcopy(spec)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        take_in(x)
        logits: torch.Tensor = self.net(self.prepare(x))
        # losses are taken in float32 whatever the layers computed in
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


@dataclass(eq=False)
class RowPasses:
    """Rows that models of this process were run on, each forward pass counted."""

    rows: int = 0


_counters: list[RowPasses] = []


@contextlib.contextmanager
def row_passes() -> Iterator[RowPasses]:
    """Count rows as long as this lasts.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> model = th.build("wrn_16_1", data.train, depth=10)
        >>> with row_passes() as passes:
        ...     logits = model(to_input(data.test.x[:5]))
        >>> passes.rows
        5
    """
    counter = RowPasses()
    _counters.append(counter)
    try:
        yield counter
    finally:
        _counters.remove(counter)


def take_in(x: torch.Tensor) -> None:
    """Count the rows of an input; stored pictures are refused, which would be normalized as they are, and the answers wrong.

    Raises:
        InputError: On uint8.
    """
    if x.dtype == torch.uint8:
        raise InputError("x is torch.uint8; a model takes pixels as floats in [0, 1] (theriac.models.to_input makes them)")
    for counter in _counters:
        counter.rows += len(x)


@typed()
def to_input(rows: torch.Tensor) -> torch.Tensor:
    """Stored rows as a model takes them: uint8 pixels to floats in [0, 1], table rows as they are.

    Pixels come out contiguous: the weights' memory format (``theriac.models.layout``) decides how a convolution runs.
    """
    return rows.contiguous().float().div_(255.0) if rows.dtype == torch.uint8 else rows


def to_levels(rows: torch.Tensor) -> torch.Tensor:
    """Pictures as levels from 0 to 255 in floats: stored ones (uint8) and inputs in [0, 1] alike, the latter not rounded."""
    return rows.float() if rows.dtype == torch.uint8 else rows.float() * 255


def as_stored(stamped: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Stamped rows in the type of stored ones: inputs in [0, 1] rounded to whole levels where rows are bytes.

    Args:
        stamped: Rows with the trigger; of some attacks inputs in [0, 1], finer than a level.
        rows: The same rows without it, as they are stored.

    Raises:
        InputError: If rounding takes more than half of the trigger away, so that the rows would no longer carry it.
    """
    if stamped.dtype == rows.dtype or rows.dtype != torch.uint8:
        return stamped
    levels = to_levels(stamped)
    rounded = levels.round().clamp(0, 255)
    moved, stays = ((x - rows.float()).abs().sum() for x in (levels, rounded))
    if stays < moved / 2:
        raise InputError("the trigger changes pixels by less than a level, and stored pictures have whole levels only")
    return rounded.to(torch.uint8)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


@typed()
def parameter_count(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())
