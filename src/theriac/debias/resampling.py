"""Resampling: leave rows out, repeat or weigh them, so that cells of group and label are balanced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from theriac.core.method import Needs, preset, register
from theriac.core.run import Run, as_run
from theriac.core.split import Split
from theriac.debias._adam import OneStage
from theriac.debias._training import build_with, fit_stamped
from theriac.debias.base import cell_numbers, cells, groups_of, stored
from theriac.models import Buildable


@register
@dataclass(frozen=True, kw_only=True)
class Resampling(OneStage):
    """Balance the cells of group and label before plain training: the simplest baselines, and hard ones to beat.

    Source: common practice (grade R: recalled). ``within_groups`` is the true peer of DBA, which imitates it by triggers.

    Threat model: controls training; needs the sensitive group of every training row, none at inference.

    Cost: as plain training of as many rows as are left; "over" repeats rows up to the largest cell.

    Examples:
        >>> import theriac as th
        >>> rows = th.load("digits").train.sample(200)
        >>> biased = th.Split(rows.x, (rows.y > 4).long(), group=rows.index % 2)
        >>> model = Resampling(epochs=1).fit("wrn_16_1", biased)
        >>> print(len(th.fairness(model, biased).cells))
        4
    """

    name: ClassVar[str] = "resampling"
    title: ClassVar[str] = "Resampling"
    leaves: ClassVar[tuple[str, ...]] = ("resampling_rows.safetensors",)
    source: ClassVar[str] = "common practice"
    needs: ClassVar[Needs] = Needs(training_control=True, groups=True)

    how: Literal["under", "over", "within_groups", "weights"] = "under"  # see the presets

    @classmethod
    @preset
    def under(cls) -> Resampling:
        """Rows of larger cells are left out until all cells are as small as the smallest."""
        return cls()

    @classmethod
    @preset
    def over(cls) -> Resampling:
        """Rows of smaller cells are repeated until all cells are as large as the largest."""
        return cls(how="over")

    @classmethod
    @preset
    def within_groups(cls) -> Resampling:
        """In each group, rows of larger classes are left out: groups keep different sizes."""
        return cls(how="within_groups")

    @classmethod
    @preset
    def weights(cls) -> Resampling:
        """All rows, with weights in proportion to 1 / rows of their cell, of mean 1."""
        return cls(how="weights")

    def rows(self, split: Split, run: Run | None = None) -> torch.Tensor:
        """Positions of the rows to train on, int64 ascending; drawn once."""
        if self.how == "weights":
            return torch.arange(len(split))
        counts = cells(split)
        amounts = {
            "under": counts.min().expand_as(counts),
            "over": counts.max().expand_as(counts),
            "within_groups": counts.min(1, keepdim=True).values.expand_as(counts),
        }[self.how]
        cell = cell_numbers(split).cpu()
        order = torch.randperm(len(split), generator=as_run(run).generator("poison", "resampling"))
        parts = []
        for c, amount in enumerate(amounts.flatten().tolist()):
            mine = order[cell[order] == c]
            parts.append(mine.repeat(-(-amount // len(mine)))[:amount])
        return torch.cat(parts).sort().values

    def _fit(self, build: Buildable, split: Split, counts: torch.Tensor, run: Run) -> nn.Module:
        at = self.rows(split, run)
        weight = None
        if self.how == "weights":
            share = len(split) / (counts.numel() * counts.double())
            weight = share.to(split.device)[groups_of(split), split.y]
        chosen = split if self.how == "weights" else split.take(at)
        run.event("resampled", how=self.how, rows=len(chosen), of=len(split))
        model = build_with(build, split, None, run)  # its input preparation is fitted on all rows
        recipe = self.recipe(len(chosen))
        model = fit_stamped(model, chosen, run, recipe, label="resampling", about=self, weight=weight)
        stored(run, "resampling_rows", rows=at)
        return model
