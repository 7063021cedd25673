"""Reweighing: weigh rows so that group and label become independent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from theriac.core import check
from theriac.core.method import Needs, preset, register
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.debias._rates import reweighing
from theriac.debias._training import adam, build_with, fit_stamped
from theriac.debias.base import Debiasing, groups_of
from theriac.models import Buildable
from theriac.training import Recipe


@register
@dataclass(frozen=True, kw_only=True)
class Reweighing(Debiasing):
    """Weight ``P(a) P(y) / P(a, y)`` for the loss of each row: what DwB's exact rates amount to for a perfect learner.

    Paper: Kamiran, Calders, "Data preprocessing techniques for classification without discrimination", KAIS 33, 2012
    (grade B: the formula from summaries). A baseline that DwB must be compared with.

    Threat model: controls training; needs the sensitive group of every training row, none at inference.

    Deviations: the weights go into a network's loss; their mean is 1.

    Cost: as plain training.

    Example:
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

    epochs: int = 10  # as DBA, for comparison
    steps: int = 0  # ours, for small sets: optimizer steps, rounded up to whole passes; 0 = epochs
    batch_size: int = 256  # as DBA
    lr: float = 1e-3  # as DBA
    augment: Literal["card", "none"] = "card"  # ours

    def __post_init__(self) -> None:
        super().__post_init__()
        check.positive("lr", self.lr)
        for name, low in (("epochs", 1), ("batch_size", 1), ("steps", 0)):
            check.whole(name, getattr(self, name), low)

    @classmethod
    @preset
    def official(cls) -> Reweighing:
        """The published weights."""
        return cls()

    def weights(self, split: Split, counts: torch.Tensor) -> torch.Tensor:
        """Weight of each row, float64 (N,), from the rows of each cell (G, K)."""
        return reweighing(counts).to(split.device)[groups_of(split), split.y]

    def recipe(self, rows: int) -> Recipe:
        """Adam at a constant rate."""
        return adam(
            "reweighing",
            epochs=self.epochs,
            steps=self.steps,
            rows=rows,
            batch_size=self.batch_size,
            lr=self.lr,
            augment=self.augment,
        )

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
