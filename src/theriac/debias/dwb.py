"""DwB: plant an artificial bias, query its opposite, and distill the answers into a student that never sees a trigger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Interval
from torch import nn

from theriac.core.errors import InputError
from theriac.core.method import Needs, preset, register
from theriac.core.ranges import Count, Share, Whole
from theriac.core.run import Run, as_run
from theriac.core.split import Split
from theriac.debias._adam import Distilled
from theriac.debias._rates import Rule, effective_priors, tar
from theriac.debias._select import Selector, choice, cut_validation
from theriac.debias._teacher import AskedTeacher, Query, query_map
from theriac.debias._training import build_with, fit_stamped
from theriac.debias.base import cells, stored
from theriac.metrics.by_group import fairness
from theriac.models import Buildable
from theriac.models.editing import duplicate
from theriac.training import Recipe
from theriac.triggers.bank import ColumnBank, Kind, TriggerBank, image_bank

MOST = 1e6  # largest strength


@register
@dataclass(frozen=True, kw_only=True)
class DwB(Distilled):
    """Debias with backdoor (or BaDe): a teacher whose planted bias cancels the real one, distilled into a clean student.

    Paper: Wu, He, Yu, Sang, "Backdoor for Debias: Mitigating Model Bias with Backdoor Attack-based Artificial Bias",
    https://arxiv.org/abs/2303.01504. Official code: KirinNg/DwB @ d773de8 (grade A: read in code). The paper's tables were not
    read (docs/methods/dwb.md).

    Threat model: not an attack. Controls training; needs the sensitive group of every training row, and none at inference
    (except the preset ``teacher``). What is deployed is the student: it sees clean rows only, so no trigger is planted in it.

    1. Every row gets exactly one trigger, drawn from its **label** only, with the rates of :func:`tar`; labels stay. 2. The
    teacher learns that artificial bias beside the real one. 3. Reverse query: rows of each group are stamped with the trigger
    that pulls the other way. 4. A fresh student on clean rows learns ``soft`` parts of these answers and ``hard`` of labels.

    Deviations: BatchNorm trains (it never did in the released code); one optimizer for each network; rows are stamped after
    augmentation, and the same view goes to teacher and student; the last epoch counts (the released code picks on test rows).
    Tables: one column for each trigger; the student is built without them. ``teacher_start`` and ``strengths`` are ours, for
    pictures whose trigger is much easier than the task: a short teacher then learns nothing else.

    Cost: teacher 3 passes a row and epoch (forward 1, backward 2); student 4, or 3 without augmentation, where the teacher
    answers once. At 5 and 10 epochs 1.5 to 1.9 times plain training of 10 epochs. Below 7,500 rows there are more passes. The
    preset ``pictures`` trains plainly first, as long as the student.

    Examples:
        >>> import theriac as th
        >>> rows = th.load("digits").train.sample(200)
        >>> biased = th.Split(rows.x, (rows.y > 4).long(), group=rows.index % 2)
        >>> model = DwB(teacher_epochs=1, student_epochs=1, min_steps=0).fit("wrn_16_1", biased)
        >>> print(len(th.fairness(model, biased).cells))
        4
    """

    name: ClassVar[str] = "dwb"
    title: ClassVar[str] = "DwB"
    leaves: ClassVar[tuple[str, ...]] = ("dwb_assignment.safetensors",)
    source: ClassVar[str] = "arXiv:2303.01504"
    needs: ClassVar[Needs] = Needs(training_control=True, groups=True)

    rule: Rule = "exact"  # the code's inactive rule, solved (a grid there); "closed" is its active one; "multi" is ours
    min_steps: Whole = 300  # ours, for small sets: optimizer steps of the student at least, of the teacher half as many
    strength: Annotated[float, Interval(ge=-MOST, le=MOST)] = 1.0  # ours: k in m + k (TAR - m); the code is k = 1
    stamping: Literal["exclusive", "doubled"] = "exclusive"  # "doubled": T2 on every row and T1 on some, as the code does
    query: Query = "reverse"  # code; "aligned" amplifies the bias, "none" leaves it: for study only
    trigger: Kind = "squares"  # code: active; mosaics and sinusoids are there too
    side: Whole = 0  # pixels; 0 = in proportion to the code's 25 at 218 x 178
    opacity: Share = 1.0  # code: solid
    student_columns: Literal["none", "zeroed"] = "none"  # tables (reconstruction); zeroed ones keep random weights
    teacher_epochs: Count = 5  # code
    teacher_steps: Whole = 0  # ours, for small sets: optimizer steps, rounded up; 0 = teacher_epochs and min_steps
    select: Literal["last", "validation"] = "last"  # code: best epoch on test rows, which we never do
    val_share: Annotated[float, Interval(gt=0, le=0.9)] = 0.1  # ours: of each cell, held out for select and strengths
    teacher_start: Literal["fresh", "plain"] = "fresh"  # code; "plain" (ours): it learns the task first, without triggers
    strengths: tuple[float, ...] = ()  # ours: all are tried, validation rows choose; on tinted digits no better than 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stamping == "doubled" and self.rule == "multi":
            raise InputError("stamping 'doubled' is for two groups (rule 'closed' or 'exact')")
        if any(not abs(k) <= MOST for k in self.strengths) or len(set(self.strengths)) < len(self.strengths):
            raise InputError(f"strengths is {self.strengths}; expected different numbers of at most {MOST:.0e}")

    @classmethod
    @preset
    def official(cls) -> DwB:
        """What the released code intends: closed rates, one trigger a row, student 0.9 / 0.1, epochs alone (grade A)."""
        return cls(rule="closed", min_steps=0)

    @classmethod
    @preset
    def closed(cls) -> DwB:
        """Another name of ``official``."""
        return cls.official()

    @classmethod
    @preset
    def exact(cls) -> DwB:
        """The default: rates that make both groups' priors those of all rows (grade A and derived), and a floor of steps."""
        return cls()

    @classmethod
    @preset
    def as_released(cls) -> DwB:
        """The released code as it runs: T2 on every row, T1 added with TAR(y) (grade A)."""
        return cls.official().replace(stamping="doubled")

    @classmethod
    @preset
    def multi(cls) -> DwB:
        """Any number of groups and classes: a trigger for each group, and rows without (ours)."""
        return cls(rule="multi")

    @classmethod
    @preset
    def teacher(cls) -> DwB:
        """The teacher of ``official``: it needs the group at inference, and keeps working triggers (grade A)."""
        return cls.official().replace(student=False)

    @classmethod
    @preset
    def pictures(cls) -> DwB:
        """Ours: the teacher learns the task before any trigger, since a picture's trigger can be much easier than the task."""
        return cls(teacher_start="plain")

    def bank(self, split: Split) -> TriggerBank:
        """The triggers for rows of this kind, one for each group."""
        groups = cells(split).shape[0]
        if split.is_table:
            return ColumnBank(split.card.shape[0], (1.0,) * groups)
        return image_bank(split.card, groups, self.trigger, side=self.side, opacity=self.opacity)

    def rates(self, counts: torch.Tensor) -> torch.Tensor:
        """Chance of each trigger given the label, float64 (K, T), from the rows of each cell (G, K)."""
        return tar(counts, self.rule, self.strength)

    def assign(self, split: Split, run: Run | None = None) -> torch.Tensor:
        """What every training row is stamped with, int64 (N, S): drawn once, from labels only; -1 is no trigger.

        S is 1, or 2 with "doubled": T2, then T1 or nothing.
        """
        draw = as_run(run).generator("poison", "dwb")
        level = torch.rand(len(split), generator=draw, dtype=torch.float64)
        edges = self.rates(cells(split)).cumsum(1)[split.y.cpu()]
        drawn = (level[:, None] >= edges).sum(1)
        # rounding must not make a row without a trigger where the rule knows none
        drawn = torch.where(drawn == edges.shape[1], -1, drawn) if self.rule == "multi" else drawn.clamp(max=1)
        if self.stamping == "exclusive":
            return drawn[:, None]
        return torch.stack([torch.ones_like(drawn), torch.where(drawn == 0, 0, -1)], 1)

    def stamps(self, groups: int) -> torch.Tensor:
        """What rows of each group are stamped with when the teacher is asked, int64 (G, 1)."""
        return query_map(self.query, groups)[:, None]

    def priors(self, counts: torch.Tensor) -> torch.Tensor:
        """Class priors of each group under the query, as a Bayes-optimal teacher applies them, float64 (G, K)."""
        rates, at = self.rates(counts), query_map(self.query, len(counts))
        rates = torch.cat([rates, (1 - rates.sum(1, keepdim=True)).clamp_min(0)], 1)  # the last column is "none"
        return effective_priors(counts, rates.T[at])

    def _refuse(self, counts: torch.Tensor) -> None:
        for strength in self.strengths or (self.strength,):
            tar(counts, self.rule, strength)
        query_map(self.query, len(counts))

    def recipe(self, rows: int) -> Recipe:
        """Of the student, or of the teacher where that is deployed."""
        return self._student_recipe(rows) if self.student else self._teacher_recipe(rows)

    def _teacher_recipe(self, rows: int) -> Recipe:
        return self._adam("dwb_teacher", self.teacher_epochs, self.teacher_steps, rows, teacher=True)

    def _fit(self, build: Buildable, split: Split, counts: torch.Tensor, run: Run) -> nn.Module:
        bank = self.bank(split)
        held = None
        if self.select == "validation" or self.strengths:
            split, held = cut_validation(split, self.val_share, run)
        start = build_with(build, split, bank, run, "dwb teacher")
        if self.teacher_start == "plain":
            recipe = self._student_recipe(len(split)).replace(name="dwb_plain")
            start = fit_stamped(start, split, run, recipe, label="dwb_plain", about=self)
        judges = held if self.select == "validation" else None
        if held is None or not self.strengths:
            stored(run, "dwb_assignment", which=self.assign(split, run), index=split.index)
            return self._made(build, start, bank, split, judges, run)
        made, scores = [], []
        for strength in self.strengths:
            method = self.replace(strength=strength, strengths=())
            made.append(method._made(build, duplicate(start), bank, split, judges, run, f"_{strength:g}"))
            figures = fairness(made[-1], held, run=run)
            assert figures.odds_gap is not None  # every cell has validation rows
            scores.append((figures.odds_gap, figures.bacc))
        chosen = choice(scores)
        run.event("dwb_strength", chosen=self.strengths[chosen], strengths=list(self.strengths), scores=scores)
        which = self.replace(strength=self.strengths[chosen]).assign(split, run)
        stored(run, "dwb_assignment", which=which, index=split.index)
        return made[chosen]

    def _made(
        self,
        build: Buildable,
        start: nn.Module,
        bank: TriggerBank,
        split: Split,
        held: Split | None,
        run: Run,
        mark: str = "",
    ) -> nn.Module:
        """The model of one strength: a teacher that begins as ``start``, and its student if there is to be one.

        Args:
            build: Of the student.
            start: The teacher's network, changed in place.
            bank: The triggers.
            split: Training rows.
            held: Validation rows that pick epochs, if any.
            run: Device, precision, streams, folder.
            mark: Ends the names of events and checkpoints, where there are several.
        """
        counts = cells(split)
        stamps, rates = self.stamps(len(counts)).to(run.device), self.rates(counts)
        which = self.assign(split, run)
        run.event("dwb_rates", rule=self.rule, rates=rates.tolist(), stamped=(which >= 0).sum().item())

        def logits_of(model: nn.Module) -> AskedTeacher:
            return AskedTeacher(model, bank, stamps)

        teacher = fit_stamped(
            start,
            split,
            run,
            self._teacher_recipe(len(split)),
            label=f"dwb_teacher{mark}",
            about=self,
            bank=bank,
            which=which,
            selector=None if held is None else Selector(held, logits_of, run),
        )
        logits = logits_of(teacher).to(run.device)
        if not self.student:
            return logits
        columns = bank if self.student_columns == "zeroed" else None
        selector = None if held is None else Selector(held, lambda model: model, run)
        return self._teach(build_with(build, split, columns, run), logits, split, run, mark, selector=selector)
