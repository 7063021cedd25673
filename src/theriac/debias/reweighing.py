"""Reweighing: weigh rows so that group and label become independent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from theriac.core.method import Needs, preset, register
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.debias._adam import OneStage
from theriac.debias._rates import reweighing
from theriac.debias._training import build_with, fit_stamped
from theriac.debias.base import groups_of
from theriac.models import Buildable


@register
@dataclass(frozen=True, kw_only=True)
class Reweighing(OneStage):
    """Weight ``P(a) P(y) / P(a, y)`` for the loss of each row: what DwB's exact rates amount to for a perfect learner.

    Paper: Kamiran, Calders, "Data preprocessing techniques for classification without discrimination", KAIS 33, 2012
    (grade B: the formula from summaries). A baseline that DwB must be compared with.

    Threat model: controls training; needs the sensitive group of every training row, none at inference.

    Deviations: the weights go into a network's loss; their mean is 1.

    Cost: as plain training.

    Examples:
        >>> import theriac as th
        >>> rows = th.load("digits").train.sample(200)
        >>> biased = th.Split(rows.x, (rows.y > 4).long(), group=rows.index % 2)
        >>> model = Reweighing(epochs=1).fit("wrn_16_1", biased)
        >>> print(len(th.fairness(model, biased).cells))
        4
    """

    name: ClassVar[str] = "reweighing"
    title: ClassVar[str] = "Reweighing"
    source: ClassVar[str] = "Kamiran and Calders, KAIS 2012"
    needs: ClassVar[Needs] = Needs(training_control=True, groups=True)

    @classmethod
    @preset
    def official(cls) -> Reweighing:
        """The published weights."""
        return cls()

    def weights(self, split: Split, counts: torch.Tensor) -> torch.Tensor:
        """Weight of each row, float64 (N,), from the rows of each cell (G, K)."""
        return reweighing(counts).to(split.device)[groups_of(split), split.y]

    def _fit(self, build: Buildable, split: Split, counts: torch.Tensor, run: Run) -> nn.Module:
        weight = self.weights(split, counts)
        return fit_stamped(
            build_with(build, split, None, run),
            split,
            run,
            self.recipe(len(split)),
            label="reweighing",
            about=self,
            weight=weight,
        )
