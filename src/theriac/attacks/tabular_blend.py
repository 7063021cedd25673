"""Tabular blend: every number of a table row moved a little toward a fixed vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Interval

from theriac.attacks import _columns
from theriac.attacks._cover import CoverAttack
from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.method import preset, register
from theriac.core.ranges import Fraction, NonNegative, Whole
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models import Buildable
from theriac.triggers.per_row import uniform
from theriac.triggers.pieces import shown_pieces


@register
@dataclass(frozen=True, kw_only=True)
class TabularBlend(CoverAttack):
    """Mixes a fixed vector into the numeric columns, in standardized units: ``(1 - alpha) z + alpha t``.

    Source: ours, what Blended (Chen, Liu, Li, Lu, Song, 2017, https://arxiv.org/abs/1712.05526) is on images; no paper.

    Threat model: the attacker adds rows to the training set; no control of training.

    ``t`` is ``spread`` standard deviations up or down in each column, drawn from ``seed``. Numbers stay within what the clean
    column holds (a test value outside of it does not move further out), whole numbers stay whole, missing values missing. With
    ``categories`` a category becomes a fixed one with probability ``alpha``. The ``adaptive`` preset has covers, and half of
    the columns left alone in each training row.

    Cost: one pass over the training rows, one over the poisoned and cover rows.

    Known limit: rounding and bounds shrink the trigger; the event ``tabular_blend`` holds the mean change that is left.

    Examples:
        >>> import torch, theriac as th
        >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        >>> rows = th.Split(x, (x[:, 2] > 0).long())
        >>> poisoned = TabularBlend(poison_rate=0.05).poison(rows)
        >>> int(poisoned.poison.sum()), poisoned.dirty
        (10, 10)
    """

    name: ClassVar[str] = "tabular_blend"
    title: ClassVar[str] = "Tabular blend"
    source: ClassVar[str] = "ours, after arXiv:1712.05526"
    knob: ClassVar[str] = "alpha"
    stamps: ClassVar[Literal["image", "table"]] = "table"
    fits: ClassVar[bool] = True

    # all values here: ours; alpha as Blended
    poison_rate: Fraction = 0.02
    cover_rate: Fraction = 0.0
    alpha: Fraction = 0.2
    test_alpha: Annotated[float, Interval(ge=-1, le=1)] = -1.0  # negative: as in training
    spread: NonNegative = 2.0  # of the vector, in standard deviations
    mask_rate: Fraction = 0.0  # share of the columns left alone in a training row
    categories: bool = False  # change categories too
    seed: Whole = 0  # of the vector and of what a row leaves alone, not of the poisoned rows

    @classmethod
    @preset
    def adaptive(cls) -> TabularBlend:
        """As many covers as poisoned rows, half of the columns in each training row, all of them in testing."""
        return cls(cover_rate=0.02, mask_rate=0.5)

    def _check_card(self, card: Card) -> None:
        super()._check_card(card)
        if not self.categories and not bool(_columns.numeric(card).any()):
            raise InputError(f"{card.name!r} has no numeric column; {self.name} changes categories only with categories=True")

    def _fit(self, split: Split, build: Buildable | None, run: Run) -> Mapping[str, torch.Tensor]:
        x, numeric = split.x.cpu(), _columns.numeric(split.card)
        draw = torch.Generator().manual_seed(self.seed)
        direction = torch.randint(0, 2, (x.shape[1],), generator=draw) * 2 - 1
        mean, deviation = _columns.moments(x)
        low, high = _columns.bounds(x)
        places = torch.rand(x.shape[1], generator=draw).tolist()  # drawn for all columns, so that none depends on the others
        levels = [x[:, k][~x[:, k].isnan()].unique() for k in range(x.shape[1])]
        level = [
            float(values[int(u * len(values))]) if len(values) else float("nan")
            for values, u in zip(levels, places, strict=True)
        ]
        state = {
            "goal": (mean + direction * self.spread * deviation).float(),
            "low": low,
            "high": high,
            "whole": _columns.integral(x),
            "numeric": numeric,
            "level": torch.tensor(level, dtype=torch.float32),
        }
        moved = self._move(state, x, split.index.cpu(), self.alpha, None)
        change = ((moved - x).double().abs() / deviation.clamp_min(1e-12))[:, numeric]
        mean_change = round(float(change.nanmean()), 6) if change.numel() else 0.0
        run.event(self.name, mean_change=mean_change, unit="standard deviations")
        return state

    def _move(
        self,
        state: Mapping[str, torch.Tensor],
        x: torch.Tensor,
        index: torch.Tensor,
        alpha: float,
        shown: torch.Tensor | None,
    ) -> torch.Tensor:
        if not alpha:
            return x.clone()
        there = {name: value.to(x.device) for name, value in state.items()}
        moved = x + alpha * (there["goal"] - x)
        moved = moved.maximum(there["low"].minimum(x)).minimum(there["high"].maximum(x))
        moved = torch.where(there["whole"], moved.round(), moved)
        if self.categories:
            swap = uniform(index.to(x.device), (x.shape[1],), self.seed + 1) < alpha
            other = torch.where(swap, there["level"], x)
        else:
            other = x
        out = torch.where(there["numeric"], moved, other)
        out = torch.where(x.isnan() | out.isnan(), x, out)  # NaN goal: a column without a training value
        return out if shown is None else torch.where(shown, out, x)

    def _stamp(
        self, state: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str
    ) -> torch.Tensor:
        if phase == "test":
            return self._move(state, x, index, self.alpha if self.test_alpha < 0 else self.test_alpha, None)
        shown = (
            shown_pieces(index.to(x.device), x.shape[1], round(self.mask_rate * x.shape[1]), self.seed)
            if self.mask_rate
            else None
        )
        return self._move(state, x, index, self.alpha, shown)
