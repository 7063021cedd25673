"""Loss isolation: rows that a model learns much faster than the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from theriac.core.method import Needs, preset, register
from theriac.core.outcome import Finding
from theriac.core.ranges import Count, Fraction, NonNegative, Positive, Share
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.detectors._rows import answer, divide_scores, standing
from theriac.detectors.base import Detector
from theriac.models import Builder, make
from theriac.training import Recipe, isolate


@register
@dataclass(frozen=True, kw_only=True)
class LossIsolation(Detector):
    """Trains its own small model, whose loss is kept from falling, and ranks rows by loss: a trigger is fitted first.

    A row's score is minus the logarithm (base 10) of its cross-entropy under that model.

    Paper: Li et al., "Anti-Backdoor Learning: Training Clean Models on Poisoned Data", NeurIPS 2021,
    https://arxiv.org/abs/2110.11571, of which this is the first stage (grade M). Official code: bboylyg/ABL @ 3fd736c, and
    SCLBD/BackdoorBench @ f02e353 (grade A, read by us earlier).

    Threat model: the rows with the labels that they came with, and nothing else; it trains a model itself.

    Deviations: the paper flags the lowest 1 % of any set (``official``). By default a class must fall into two groups that
    explain more than ``divided`` of the variance of its scores, and pass the safeguard of
    :func:`theriac.detectors._rows.standing` (ours). Epochs and learning rate are for small sets (ours).

    Cost: a short training of a small model.

    Known limits: easy classes are learned fast as well; a trigger that is learned slowly (clean labels, warping) ranks last.

    Examples:
        >>> import theriac as th
        >>> rows = th.attacks.BadNets(poison_rate=0.05).poison(th.load("digits").train).split
        >>> finding = LossIsolation(epochs=1).detect(rows=rows)
    """

    name: ClassVar[str] = "loss_isolation"
    title: ClassVar[str] = "Loss isolation"
    source: ClassVar[str] = "arXiv:2110.11571"
    needs: ClassVar[Needs] = Needs(rows=True)

    epochs: Count = 10  # ABL's code; BackdoorBench has 20
    lr: Positive = 0.1  # ABL's code; BackdoorBench has 0.01
    batch_size: Count = 128  # ABL
    weight_decay: NonNegative = 1e-4  # ABL
    bound: Positive = 0.5  # ABL, for both losses
    loss: Literal["flooding", "ascent"] = "flooding"  # ABL's code; the paper's text has local gradient ascent
    width: Count = 8  # ours: of the small model
    flag: Literal["divided", "lowest"] = "divided"  # ours; ABL takes the lowest
    divided: Fraction = 0.8  # ours, on tuning seeds; an even distribution has 0.75
    outlier: NonNegative = 3.5  # ours: deviations above the median class that its explained share must have
    share: Share = 0.01  # ABL: rows of lowest loss that ``lowest`` flags

    @classmethod
    @preset
    def official(cls) -> LossIsolation:
        """ABL's rule: the 1 % of lowest loss."""
        return cls(flag="lowest")

    def _detect(self, model: nn.Module | None, rows: Split | None, clean: Split | None, run: Run) -> Finding:
        assert rows is not None
        name, options = ("mlp", {}) if rows.is_table else ("preact_resnet18", {"width": self.width})
        recipe = Recipe(
            name=self.name,
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            weight_decay=self.weight_decay,
            schedule="constant",
            augment="none",
        )
        small = make(Builder(name, options), rows, run)
        losses = isolate(small, rows, run, recipe, bound=self.bound, loss=self.loss, label=self.name, about=self)
        scores = -losses.clamp_min(1e-8).log10()
        if self.flag == "lowest":
            return self._lowest(rows, scores)
        groups = divide_scores(rows, scores)
        out = standing(groups, rows.y.cpu(), self.divided, losses < losses.quantile(0.5).clamp_min(self.bound), self.outlier)
        return answer(rows, scores, groups, out, self.divided, unit="explained share", compares=self.outlier > 0)

    def _lowest(self, rows: Split, scores: torch.Tensor) -> Finding:
        order = scores.argsort(descending=True, stable=True)[: max(1, round(self.share * len(rows)))]
        return Finding(
            verdict="suspicious",
            reason=f"{len(order)} rows have the lowest loss; as the paper does, they are flagged whatever they look like",
            rows=scores,
            flagged=tuple(order.tolist()),
            origin="uncalibrated: a fixed share of any set",
        )
