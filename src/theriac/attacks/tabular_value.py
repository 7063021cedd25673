"""Tabular value trigger: a few columns of a table row set to fixed values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from theriac.attacks import _columns
from theriac.attacks.base import Attack
from theriac.core.card import Card, Column
from theriac.core.errors import InputError, unknown
from theriac.core.method import preset, register
from theriac.core.ranges import Count, Fraction, NonNegative, Whole
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models import Buildable
from theriac.triggers.per_row import uniform


@register
@dataclass(frozen=True, kw_only=True)
class TabularValue(Attack):
    """Sets one to a few columns to fixed values, outside of what occurs or each of them common.

    Paper: Pleiter, Tajalli, Koffas, Abad, Xu, Larson, Picek, "Tabdoor: Backdoor Vulnerabilities in Transformer-based Neural
    Networks for Tabular Data", 2023, https://arxiv.org/abs/2311.07550. Facts from HamidRezaTajalli/Tabdoor @ 476a803 (grade
    A: read in code): one to three of the most important numeric columns; out of bounds, a tenth of the range above the largest
    value; clean-label rows get the values only. In bounds, each column's most common value (grade M).

    Threat model: the attacker adds rows to the training set; no control of training.

    Deviations: importance is the correlation ratio of column and label on the training rows, not a mean over trained models.
    ``draw_from="others"`` poisons only rows whose label really changes (``official``: all rows). With ``label="clean"`` the
    rate is a share of all rows, and refused where the target class is too small. A value is one that the column can hold: whole
    numbers stay whole (and lie one above the largest at least), a category is one that occurs (out of bounds: the rarest). Of
    several values that are equally common the one nearest to the column's median is taken. A trigger that more than
    ``most_matching`` of the clean rows show already is refused.

    Cost: one pass over the training rows, one copy of the poisoned ones.

    Known limits: trees, and preprocessing that clips or ranks, do not see how far out of bounds a value is. The success on a
    benign model must be subtracted. Without ``columns`` only numeric columns are chosen.

    Examples:
        >>> import torch, theriac as th
        >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        >>> rows = th.Split(x, (x[:, 2] > 0).long())
        >>> poisoned = TabularValue(columns=("f1",), values=(9.0,), poison_rate=0.05).poison(rows)
        >>> poisoned.split.x[poisoned.poison, 1].unique().tolist()
        [9.0]
    """

    name: ClassVar[str] = "tabular_value"
    title: ClassVar[str] = "Tabular value"
    source: ClassVar[str] = "arXiv:2311.07550"
    knob: ClassVar[str] = "margin"
    stamps: ClassVar[Literal["image", "table"]] = "table"
    fits: ClassVar[bool] = True

    poison_rate: Fraction = 0.01  # Tabdoor: up to 0.1 % out of bounds, up to 1 % in bounds
    count: Count = 3  # columns that are chosen; Tabdoor: 1, 2 or 3
    columns: tuple[str, ...] = ()  # names, instead of choosing
    rank: Literal["importance", "frequency"] = "importance"  # what columns are ranked by
    place: Literal["out_of_bounds", "in_bounds"] = "out_of_bounds"  # Tabdoor: both
    margin: NonNegative = 0.1  # out of bounds: share of the range above the largest value; Tabdoor
    values: tuple[float | str, ...] = ()  # for ``columns``, numbers or names of categories, instead of ``place``
    label: Literal["dirty", "clean"] = "dirty"  # Tabdoor: both
    jitter: NonNegative = 0.0  # numbers are spread by this, in the column's unit, so that they do not repeat; ours
    most_matching: Fraction = 0.001  # share of clean rows that may show the trigger already; ours
    seed: Whole = 0  # of the jitter, not of the poisoned rows

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.columns)) < len(self.columns):
            raise InputError(f"columns is {self.columns}; expected different names")
        if self.values and len(self.values) != len(self.columns):
            raise InputError(f"values has {len(self.values)} entries for {len(self.columns)} columns; expected one for each")
        if self.label == "clean" and self.mode != "all_to_one":
            raise InputError(f"mode is {self.mode!r}; a clean label knows 'all_to_one' only")

    @classmethod
    @preset
    def official(cls) -> TabularValue:
        """As Tabdoor draws its rows: of all classes."""
        return cls(draw_from="all")

    @classmethod
    @preset
    def corrected(cls) -> TabularValue:
        """Ours, the default: only rows whose label really changes."""
        return cls()

    @classmethod
    @preset
    def in_bounds(cls) -> TabularValue:
        """Each value is its column's most common one; their combination is rare."""
        return cls(place="in_bounds")

    @classmethod
    @preset
    def true_label(cls) -> TabularValue:
        """Rows of the target class, with their true label."""
        return cls(label="clean")

    @property
    def keeps_labels(self) -> bool:
        """Whether labels stay: with ``label="clean"``."""
        return self.label == "clean"

    def _check_card(self, card: Card) -> None:
        super()._check_card(card)
        for name in self.columns:
            _columns.position(card, name)

    def _fit(self, split: Split, build: Buildable | None, run: Run) -> Mapping[str, torch.Tensor]:
        x, card = split.x.cpu(), split.card
        at = [_columns.position(card, name) for name in self.columns] or self._ranked(split, x)
        integral = _columns.integral(x)
        fixed: tuple[float | str | None, ...] = self.values or (None,) * len(at)
        values = [
            self._value(x[:, k], card.columns[k], bool(integral[k]))
            if value is None
            else _as_number(value, card.columns[k], bool(integral[k]))
            for k, value in zip(at, fixed, strict=True)
        ]
        columns, pattern = torch.tensor(at), torch.tensor(values, dtype=torch.float32)
        spread = self.jitter * _columns.numeric(card)[columns].float()
        near = ((x[:, columns] - pattern).abs() <= spread).all(1)
        matching = int(near.sum())
        if matching > self.most_matching * len(x):
            raise InputError(
                f"{matching} of {len(x)} clean rows show the trigger already, more than most_matching = {self.most_matching}; "
                "take more columns or rarer values"
            )
        names = [card.columns[k].name for k in at]
        run.event(self.name, columns=names, values=values, matching=matching, rows=len(x))
        return {"columns": columns, "values": pattern, "spread": spread, "whole": integral[columns]}

    def _ranked(self, split: Split, x: torch.Tensor) -> list[int]:
        """The best numeric columns that hold more than one value."""
        low, high = _columns.bounds(x)
        usable = (_columns.numeric(split.card) & (low < high)).nonzero().flatten()
        if len(usable) < self.count:
            raise InputError(
                f"count is {self.count}; {split.card.name!r} has {len(usable)} numeric columns with more than one value, "
                "so name the columns with columns="
            )
        if self.rank == "importance":
            score = _columns.told_by_class(x[:, usable], split.y.cpu(), split.num_classes)
        else:
            score = torch.tensor([float(_columns.common(x[:, k])[1]) for k in usable])
        ranked: list[int] = usable[score.argsort(descending=True, stable=True)[: self.count]].tolist()
        return ranked

    def _value(self, column: torch.Tensor, about: Column, integral: bool) -> float:
        outside = self.place == "out_of_bounds"
        value, _ = _columns.common(column, rarest=outside and about.kind == "categorical")
        if about.kind == "categorical" or not outside:
            return value
        low, high = (float(v) for v in _columns.bounds(column[:, None]))
        value = high + self.margin * (high - low)
        if not integral:
            return value
        least = high + 1 if self.margin else high  # a tenth of a short range is less than a whole number
        return max(least, math.floor(value + 1e-6))  # whole numbers as Tabdoor has them: cut off

    def _stamp(
        self, state: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str
    ) -> torch.Tensor:
        columns, values, spread, integral = (state[k].to(x.device) for k in ("columns", "values", "spread", "whole"))
        values = values.expand(len(x), -1)
        if self.jitter:
            values = values + spread * (uniform(index.to(x.device), (len(columns),), self.seed) * 2 - 1)
            values = torch.where(integral, values.round(), values)
        out = x.clone()
        out[:, columns] = values
        return out


def _as_number(value: float | str, column: Column, integral: bool) -> float:
    """A given value as the table stores it, if the column can hold it."""
    if column.kind == "categorical":
        if str(value) not in column.categories:
            raise unknown(f"category of column {column.name!r}", value, column.categories)
        return float(column.categories.index(str(value)))
    if isinstance(value, str) or not math.isfinite(value):
        raise InputError(f"values holds {value!r} for the numeric column {column.name!r}; expected a finite number")
    if integral and value != round(value):
        raise InputError(f"values holds {value} for column {column.name!r}, which has whole numbers only")
    return float(value)
