"""DBA: stamp the excess of each group's larger class, so that what stays clean is balanced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from theriac.core.method import Needs, preset, register
from theriac.core.ranges import NonNegative, Share, Whole
from theriac.core.run import Run, as_run
from theriac.core.split import Split
from theriac.debias._adam import OneStage
from theriac.debias._rates import Prior, dba_rates, effective_priors
from theriac.debias._training import build_with, fit_stamped
from theriac.debias.base import cells, groups_of, stored
from theriac.models import Buildable
from theriac.triggers.bank import ColumnBank, Kind, TriggerBank, image_bank


@register
@dataclass(frozen=True, kw_only=True)
class DBA(OneStage):
    """Pseudo-deletion: a trigger explains away a group's excess rows, and without it the model answers as if they were gone.

    Paper: Wu, He, Zhang, Sang, "Debiasing Backdoor Attack: A Benign Application of Backdoor Attack in Eliminating Data Bias",
    https://arxiv.org/abs/2202.10582. Official code: KirinNg/DBA @ a110a6d (grade A: read in code, with its logs).

    Threat model: not an attack. Controls training; needs the sensitive group of every training row, none at inference. The
    deployed model keeps working triggers, with which anybody can steer it. DwB's student has none.

    Each row of group a and label y gets its group's trigger with chance ``alpha (1 - min_y' n[a, y'] / n[a, y])``, drawn
    once; labels stay. Train, and infer on clean rows. ``prior="marginal"`` (ours) leaves the classes of all rows together
    instead of equal ones. More than two classes are ours too.

    Deviations: augmentation by the data's card, and stamps come after it (the code augments nothing); the last epoch counts
    (the code reports the best on test rows); the double softmax of its image model is not kept. Tables: a column for each
    group, +1 and -1; the returned model feeds zeros for plain rows.

    Cost: as plain training.

    Examples:
        >>> import theriac as th
        >>> rows = th.load("digits").train.sample(200)
        >>> biased = th.Split(rows.x, (rows.y > 4).long(), group=rows.index % 2)
        >>> model = DBA(epochs=1).fit("wrn_16_1", biased)
        >>> print(len(th.fairness(model, biased).cells))
        4
    """

    name: ClassVar[str] = "dba"
    title: ClassVar[str] = "DBA"
    leaves: ClassVar[tuple[str, ...]] = ("dba_assignment.safetensors",)
    source: ClassVar[str] = "arXiv:2202.10582"
    needs: ClassVar[Needs] = Needs(training_control=True, groups=True)

    alpha: NonNegative = 1.0  # paper and code: 1 is the method; the logs sweep 0 to 2
    prior: Prior = "uniform"  # code; "marginal" is ours
    trigger: Kind = "squares"  # code: solid squares
    side: Whole = 0  # pixels; 0 = in proportion to the code's 25 at 218 x 178
    opacity: Share = 1.0  # code: solid

    @classmethod
    @preset
    def official(cls) -> DBA:
        """The released code: alpha 1, every group left with balanced classes (grade A)."""
        return cls()

    @classmethod
    @preset
    def pi(cls) -> DBA:
        """DBA-pi: every group left with the classes of all rows together (ours)."""
        return cls(prior="marginal")

    def bank(self, split: Split) -> TriggerBank:
        """The triggers for rows of this kind, one for each group."""
        groups = cells(split).shape[0]
        if split.is_table:  # code: +1 for group 1, -1 for group 0; more groups: ours
            return ColumnBank(split.card.shape[0], tuple(1.0 if t % 2 == 0 else -1.0 for t in range(groups)))
        return image_bank(split.card, groups, self.trigger, side=self.side, opacity=self.opacity)

    def assign(self, split: Split, run: Run | None = None) -> torch.Tensor:
        """What every training row is stamped with, int64 (N,): drawn once; -1 is no trigger.

        The last group has the first trigger (of two groups: red top left for group 1), as in the released code.
        """
        group, counts = groups_of(split).cpu(), cells(split)
        rate = dba_rates(counts, self.alpha, self.prior)[group, split.y.cpu()]
        draw = as_run(run).generator("poison", "dba")
        hit = torch.rand(len(split), generator=draw, dtype=torch.float64) < rate
        return torch.where(hit, len(counts) - 1 - group, -1)

    def priors(self, counts: torch.Tensor) -> torch.Tensor:
        """Class priors of each group on clean rows, as a Bayes-optimal model applies them, float64 (G, K)."""
        return effective_priors(counts, 1 - dba_rates(counts, self.alpha, self.prior))

    def _fit(self, build: Buildable, split: Split, counts: torch.Tensor, run: Run) -> nn.Module:
        bank, which = self.bank(split), self.assign(split, run)
        rates = dba_rates(counts, self.alpha, self.prior)
        run.event("dba_rates", rates=rates.tolist(), stamped=(which >= 0).sum().item())
        model = build_with(build, split, bank, run)
        model = fit_stamped(model, split, run, self.recipe(len(split)), label="dba", about=self, bank=bank, which=which)
        stored(run, "dba_assignment", which=which, index=split.index)
        return model
