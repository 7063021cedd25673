"""Logit adjustment by group: train plainly, then undo each group's class prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Interval
from torch import nn

from theriac.core.method import Needs, preset, register
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.debias._adam import Distilled, OneStage
from theriac.debias._rates import Prior, prior_offsets
from theriac.debias._teacher import ShiftedByGroup
from theriac.debias._training import build_with, fit_stamped
from theriac.models import Buildable
from theriac.training import Recipe


@register
@dataclass(frozen=True, kw_only=True)
class GroupLogitAdjust(OneStage, Distilled):
    """Add ``log target(y) - log P(y | a)`` to the logits of group a: the closed form of DwB's reverse query.

    Source: Bayes' rule, as in Menon et al., "Long-tail learning via logit adjustment", https://arxiv.org/abs/2007.07314, by
    group instead of for all (derived). If DwB does not beat it, its backdoor is only an implementation of this.

    Threat model: controls training; needs the sensitive group of every training row; also at inference, except for the preset
    ``distilled``, which learns the shifted answers from clean rows as DwB's student does.

    Cost: as plain training; with the student twice that and one more pass.

    Examples:
        >>> import theriac as th
        >>> rows = th.load("digits").train.sample(200)
        >>> biased = th.Split(rows.x, (rows.y > 4).long(), group=rows.index % 2)
        >>> model = GroupLogitAdjust(epochs=1).fit("wrn_16_1", biased)
        >>> print(len(th.fairness(model, biased).cells))  # it tells the model the groups
        4
    """

    name: ClassVar[str] = "logit_adjust"
    title: ClassVar[str] = "Group logit adjustment"
    source: ClassVar[str] = "Bayes' rule; arXiv:2007.07314"
    needs: ClassVar[Needs] = Needs(training_control=True, groups=True, group_at_inference=True)

    prior: Prior = "marginal"  # of the adjusted model: that of all rows (binary: z1 - z0 += -log r_a), or uniform
    strength: Annotated[float, Interval(ge=-1e6, le=1e6)] = 1.0  # factor on the offsets
    student: bool = False  # distill into a model that needs no group

    @classmethod
    @preset
    def post_hoc(cls) -> GroupLogitAdjust:
        """The shifted model, which needs the group."""
        return cls()

    @classmethod
    @preset
    def distilled(cls) -> GroupLogitAdjust:
        """A student of it that needs no group."""
        return cls(student=True)

    def recipe(self, rows: int) -> Recipe:
        """Of the student, or of the model that is shifted."""
        return self._student_recipe(rows) if self.student else self._base_recipe(rows)

    def _base_recipe(self, rows: int) -> Recipe:
        return self._adam("logit_adjust", self.epochs, self.steps, rows)

    def _fit(self, build: Buildable, split: Split, counts: torch.Tensor, run: Run) -> nn.Module:
        model = build_with(build, split, None, run, "logit adjust" if self.student else "")
        model = fit_stamped(model, split, run, self._base_recipe(len(split)), label="logit_adjust", about=self)
        offsets = self.strength * prior_offsets(counts, self.prior)
        run.event("logit_offsets", offsets=offsets.tolist())
        shifted = ShiftedByGroup(model, offsets).to(run.device)
        return self._teach(build_with(build, split, None, run), shifted, split, run) if self.student else shifted
