"""Antidote (ours): fine-tune on clean rows, most of them stamped with random triggers and all with their true label."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F

from theriac.core.errors import InputError, unknown
from theriac.core.method import Needs, preset, register
from theriac.core.ranges import Count, Fraction, NonNegative, Positive, Share
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models.editing import duplicate
from theriac.repairs._sgd import by_sgd
from theriac.repairs.base import Repair
from theriac.training import Batch, Recipe, StepResult, cross_entropy_step, loop
from theriac.training.step import BatchNorm
from theriac.triggers import families as kinds

# pictures without BatchNorm: so many times the steps, the step size divided by it; ours (docs/methods/antidote.md says how)
GENTLE = 2
GENTLE_NORM = 1.0  # and gradients of at most this norm; ours, likewise
SCRAP = 1 / 8  # of a batch: with fewer rows a last one is left out; ours: of 4 rows BatchNorm made the loss infinite
TABLE_LR = 0.01  # ours: at 0.03 a network of Adult collapsed already, at 0.01 none did


@register
@dataclass(frozen=True, kw_only=True)
class Antidote(Repair):
    """Fine-tunes on clean rows of which a share is stamped, in every batch anew, with random triggers and keeps its true label.

    Source: Ours, not published. Near it: DeepSweep (Qiu et al. 2021, augmentation against backdoors), randomized smoothing of
    training data (Weber et al. 2023), PDB (Wei et al. 2024, a known trigger of the defender's own as a counter-bias), and
    unlearning that carries over between backdoors of language models (arXiv:2606.03785).

    Threat model: clean rows with labels; knows neither trigger nor target, and searches for neither.

    Known limits: it covers kinds of triggers, and a kind that it does not draw may survive: in a pilot, leaving the patches
    out left a patch backdoor in place, while dense triggers were reduced by other dense families. Triggers that mean
    something (an object, a composition) are not covered. An attacker who knows this method can train with its families and
    true labels as covers and take a trigger outside of them: changed tones kept 7 to 19 % on digits and 37 to 40 % on CIFAR-10
    (a benign model after the same repair 12 to 17), where LF kept 34 to 38 % (11 to 21; 500 clean rows, three seeds). Where
    rows are few and classes many it costs accuracy: with 1,000 rows of CIFAR-10 two to five points, with 500 seven to nine;
    the preset ``matched`` then costs one to four. In tables columns are set at random, which reduces attacks and does not end
    them: take the preset ``table``, since the step size for pictures makes such networks answer one class.

    Where a network of pictures has no BatchNorm, it takes twice the steps at half the step size, and clips gradients to norm 1:
    the step size that BatchNorm allows made such networks answer one class.

    With ``match`` the rows of a batch are also blended with each other, and the given model says what each mixture is: few
    rows become many questions (function matching, Beyer et al., CVPR 2022). The repaired model is to answer the *stamped*
    mixtures so; asked with a box of another row instead (as CutMix does), it kept backdoors of adaptive attackers. But the
    given model may answer with its backdoor. With ``labels_only`` it may say of a mixture only what the two rows are labeled;
    with ``mix`` their labels, by their shares, are the answer and nobody is asked (mixup, Zhang et al., ICLR 2018). Both leave
    less of a backdoor and cost more accuracy, ``mix`` most.

    Cost: one forward and one backward pass a row and epoch, as plain fine-tuning; drawing and stamping take a few percent.
    With ``match`` or ``mix`` two of each, and with ``match`` one forward pass of the given model.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> model = th.train("wrn_16_1", data.train, recipe="short_2")
        >>> fixed = Antidote(epochs=5, steps=20).repair(model, data.train.sample(0.2))
    """

    name: ClassVar[str] = "antidote"
    title: ClassVar[str] = "Antidote"
    version: ClassVar[int] = 2  # 2: random convolutions among the families
    needs: ClassVar[Needs] = Needs(clean_rows=True, usual_clean_share=0.05)

    dose: Share = 0.6  # share of a batch's rows that is stamped; ours, from the pilot
    families: tuple[str, ...] = ("patch", "blend", "wave", "freq", "warp", "conv")  # for images; ours
    rinse: Fraction = 0.0  # share of the epochs, at the end, without doses; ours
    epochs: Count = 20  # least number of passes over the clean rows; ours, near the pilot's on CIFAR-10
    steps: Count = 200  # least number of updates, since epochs over few rows are few; ours, checked on digits (antidote_tuning)
    batch_size: Count = 64  # ours, the pilot's
    lr: Positive = 0.1  # learning rate of SGD at the start, at most; ours, the pilot's on digits
    travel: Positive = 20.0  # learning rate x updates with whole batches, at most: longer starts lower; ours, tuned on CIFAR-10
    momentum: Fraction = 0.9  # ours, as FT
    weight_decay: NonNegative = 5e-4  # ours, as FT
    schedule: Literal["constant", "cosine", "one_cycle", "multistep"] = "cosine"  # ours, as FT
    match: NonNegative = 0.0  # weight of answering stamped mixtures of rows as the given model answers them unstamped; ours
    labels_only: bool = False  # of a mixture the given model may say only what its two rows are labeled; ours
    mix: NonNegative = 0.0  # weight of answering stamped mixtures with the labels of both rows, by their shares; ours

    def __post_init__(self) -> None:
        super().__post_init__()
        for family in self.families:
            if family not in kinds.IMAGES:
                raise unknown("family of triggers", family, kinds.IMAGES)
        if not self.families or len(set(self.families)) < len(self.families):
            raise InputError(f"families is {self.families}; expected at least one name, each once")

    @classmethod
    @preset
    def short(cls) -> Antidote:
        """Ours: half of the length; not tuned."""
        return cls(epochs=10, steps=100)

    @classmethod
    @preset
    def long(cls) -> Antidote:
        """Ours: smaller and more steps, as in the pilot on CIFAR-10, GTSRB and networks without BatchNorm."""
        return cls(epochs=30, steps=400, lr=0.05)

    @classmethod
    @preset
    def matched(cls) -> Antidote:
        """Ours: for few rows; also agrees with the given model on mixed rows, over twice the steps. Five times the time."""
        return cls(match=1.0, steps=400, travel=40.0)

    @classmethod
    @preset
    def bounded(cls) -> Antidote:
        """Ours: as ``matched``, and the given model may answer with the labels of the two mixed rows only. As long."""
        return cls.matched().replace(labels_only=True)

    @classmethod
    @preset
    def mixed(cls) -> Antidote:
        """Ours: for few rows; stamped mixtures have the labels of both their rows, over twice the steps. Four times as long."""
        return cls.matched().replace(match=0.0, mix=1.0)

    @classmethod
    @preset
    def table(cls) -> Antidote:
        """Ours: for tables, far smaller and more steps; chosen on rows held out of Adult's training file (seed 11)."""
        return cls(lr=0.001, steps=800)

    def recipe(self, rows: int, *, normed: bool = True, gentle: bool = False) -> Recipe:
        """Its hyperparameters as a training recipe for a number of clean rows.

        Args:
            rows: How many they are.
            normed: For a network with BatchNorm, which a last batch of a few rows harms.
            gentle: For a network of pictures without BatchNorm.
        """
        batches, times = max(1, rows // self.batch_size), GENTLE if gentle else 1
        epochs = max(self.epochs, math.ceil(self.steps / batches)) * times
        made = by_sgd(self, epochs=epochs, schedule=self.schedule, lr=min(self.lr / times, self.travel / (epochs * batches)))
        over = rows % self.batch_size if rows > self.batch_size else 0
        scrap = normed and 0 < over < self.batch_size * SCRAP
        return made.replace(clip_norm=GENTLE_NORM if gentle else 0.0, drop_last=scrap)

    def check(self, clean: Split) -> None:
        """Refuse to mix rows of a table."""
        for name in ("match", "mix"):
            if clean.is_table and getattr(self, name):
                raise InputError(f"{name} is {getattr(self, name):g}; it mixes pictures, and {clean.card.name!r} is a table")

    def _repair(self, model: nn.Module, clean: Split, run: Run) -> nn.Module:
        if clean.is_table and self.lr > TABLE_LR:
            warnings.warn(
                f"lr is {self.lr:g}, a step size for pictures; on tables it made networks answer one class "
                f"(antidote:table takes {self.table().lr:g})",
                stacklevel=3,
            )
        normed = any(isinstance(module, BatchNorm) for module in model.modules())
        recipe = self.recipe(len(clean), normed=normed, gentle=not normed and not clean.is_table)
        drawn = [kinds.Columns.of(clean)] if clean.is_table else [kinds.IMAGES[family] for family in self.families]
        dosed_epochs = recipe.epochs - round(self.rinse * recipe.epochs)
        mixes = bool(self.match or self.mix)
        teacher = duplicate(model).to(run.device).eval().requires_grad_(False) if self.match else None

        def stamp(batch: Batch) -> None:
            x = batch.x
            if mixes:
                mixed, partner, share = blended_rows(x, run.generator("method", "antidote", "match", batch.step))
                batch.beside = {"mixed": mixed, "label": batch.y[partner], "share": share}
                x = torch.cat([x, mixed])
            if batch.epoch < dosed_epochs:
                x = kinds.dosed(x, self.dose, drawn, run.generator("method", "antidote", batch.step))
            if mixes:
                x, batch.beside["stamped"] = x.chunk(2)
            batch.x = x

        def step(net: nn.Module, batch: Batch) -> StepResult:
            if not mixes:
                return cross_entropy_step(net, batch)
            logits, said = net(torch.cat([batch.x, batch.beside["stamped"]])).chunk(2)  # one pass: BatchNorm sees both
            loss, chances = F.cross_entropy(logits, batch.y), F.log_softmax(said, 1)
            figures = {"accuracy": (logits.argmax(1) == batch.y).float().mean()}
            if teacher is not None:
                with torch.no_grad():
                    answers = teacher(batch.beside["mixed"])
                    if self.labels_only:
                        answers = only(answers, torch.stack([batch.y, batch.beside["label"]], 1))
                    answers = answers.softmax(1)
                apart = F.kl_div(chances, answers, reduction="batchmean")
                loss, figures["apart"] = loss + self.match * apart, apart.detach()
            if self.mix:
                share, other = batch.beside["share"], batch.beside["label"]
                first, second = (F.nll_loss(chances, y, reduction="none") for y in (batch.y, other))
                loss = loss + self.mix * ((1 - share) * first + share * second).mean()
            return loss, figures

        return loop(model, clean, run, recipe, step=step, after_augment=stamp, label="antidote", about=self)


def only(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Logits (B, K) with minus infinity in all columns but those of each row's own classes, int64 (B, C)."""
    return torch.full_like(logits, -torch.inf).scatter(1, classes, logits.gather(1, classes))


def blended_rows(x: torch.Tensor, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures (B, C, H, W), each blended with another row of the batch by a share of its own, uniform in [0, 1].

    That is the mixture of mixup.

    Returns:
        The blends (B, C, H, W), the place of each one's other row, int64 (B,), and that row's share (B,).
    """
    shift = int(torch.randint(1, len(x), (), generator=draw)) if len(x) > 1 else 0
    other = torch.arange(len(x), device=x.device).roll(shift)
    share = torch.rand(len(x), 1, 1, 1, generator=draw).to(x)
    return x + share * (x[other] - x), other, share.flatten()
