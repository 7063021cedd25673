"""Narcissus: noise that moves rows deeper into the target class, on a handful of its rows; stronger at test time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from theriac.attacks._clean_label import CleanLabel
from theriac.attacks._surrogate import FitError, fit_surrogate, part_of
from theriac.core import check
from theriac.core.errors import InputError
from theriac.core.method import preset, register
from theriac.core.ranges import Count, Fraction, Level, NonNegative, Positive, Whole
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.data import load
from theriac.models import Buildable, to_input
from theriac.training import optimizers
from theriac.training.flat import without_statistics
from theriac.triggers.additive import add


@register
@dataclass(frozen=True, kw_only=True)
class Narcissus(CleanLabel):
    """Adds bounded noise, optimized to make rows of the target class look more so; test rows get a multiple of it.

    Paper: Zeng, Pan, Just, Lyu, Qiu, Jia, "Narcissus: A Practical Clean-Label Backdoor Attack with Limited Information", CCS
    2023, https://arxiv.org/abs/2204.05255. Defaults from reds-lab/Narcissus @ d1d1cfa (grade A: read in code): radius 16
    levels, RAdam at 0.01, three times the noise in testing, half a percent of the target class.

    Threat model: the attacker changes few rows of the target class; labels stay true. Besides those rows it knows public data
    of other classes (``ood``), or, in the default, the training rows.

    Deviations: without ``ood`` the surrogate is trained on at most ``surrogate_rows`` training rows of all classes, which is
    more than the paper's attacker knows; with it, on those data and the target class's rows as one class more. It is frozen in
    eval mode while the noise is fitted (the code and ``official`` leave it in train mode), without augmentation, and the code's
    warm-up on target rows alone is left out, since the surrogate knows them. ``steps`` are steps of ``batch`` rows, also in
    ``official``, where the code makes up to 1,000 passes over all target rows (39,000 such steps on CIFAR-10). Noise is rounded
    to levels.

    Cost: a surrogate, then ``steps`` forward and backward passes of ``batch`` target rows.

    Known limit: the noise fools benign models too; report the excess over a benign model's rate, and both radii.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> attack = Narcissus(poison_rate=0.1, surrogate_rows=200, surrogate_recipe="short_1", steps=10, batch=16)
        >>> poisoned = attack.poison(data.train)
        >>> poisoned.dirty, bool((poisoned.y_true[poisoned.poison] == 0).all())
        (0, True)
    """

    name: ClassVar[str] = "narcissus"
    title: ClassVar[str] = "Narcissus"
    source: ClassVar[str] = "arXiv:2204.05255"
    knob: ClassVar[str] = "eps"
    fits: ClassVar[bool] = True
    keeps_fit: ClassVar[bool] = True
    outside: ClassVar[tuple[str, ...]] = ("ood",)

    poison_rate: Fraction = 0.005  # share of the target class; its README: 0.05 % of all rows of CIFAR-10
    eps: Level = 16.0  # radius of the noise, in levels; code
    scale_test: NonNegative = 3.0  # multiple of the noise on test rows; code
    steps: Count = 300  # ours. Code: up to 1000 passes over the target rows
    batch: Count = 128  # ours
    lr: Positive = 0.01  # of RAdam, on pixels in [0, 1]; code
    fit_rows: Whole = 1000  # target rows that the noise is fitted on, at most; ours. 0 = all, as the code
    ood: str = ""  # data of other classes for the surrogate: what theriac.load takes. Code: Tiny-ImageNet
    batch_statistics: bool = False  # the surrogate normalizes by the batch, of one class, while the noise is fitted; code: True
    surrogate_rows: Whole = 5000  # ours; 0 = all
    surrogate_recipe: str = "short_8"  # ours; code: 200 epochs

    @classmethod
    @preset
    def official(cls) -> Narcissus:
        """The released code's target, all target rows, a long surrogate in train mode; name the public data with ``ood``."""
        return cls(target=2, steps=1000, fit_rows=0, batch_statistics=True, surrogate_rows=0, surrogate_recipe="paper_200")

    @classmethod
    @preset
    def corrected(cls) -> Narcissus:
        """Ours, the default: the surrogate in eval mode, and a fit that a small machine can make."""
        return cls()

    @classmethod
    @preset
    def short(cls) -> Narcissus:
        """For trying out: a small surrogate and few steps."""
        return cls(surrogate_rows=1000, surrogate_recipe="short_4", steps=50)

    def _fit(self, split: Split, build: Buildable | None, run: Run) -> Mapping[str, torch.Tensor]:
        mine = split.y == self.target
        if not bool(mine.any()):
            name = split.card.classes[self.target]
            raise InputError(f"split holds no row of class {name!r}, its target; {self.name} fits its noise on such rows")
        own = split.where(mine)
        known, label = (split, self.target) if not self.ood else self._with_public(own)
        size, plan = self.surrogate_rows, self.surrogate_recipe
        model = fit_surrogate(known, build, run, name=self.name, rows=size, recipe=plan)
        x = to_input(part_of(own, self.fit_rows, run, "narcissus-fit").x.to(run.device))
        noise = self._optimize(model, x, label, run)
        levels = (noise * 255).round().to(torch.int16).cpu()
        if not bool(levels.any()):
            raise FitError(f"{self.name}: after {self.steps} steps the noise rounds to nothing; take more, or a higher lr")
        with torch.inference_mode():
            far = (x[:512] + levels.to(x.device) / 255).clamp(0, 1)
            sure = float(model(far).softmax(1)[:, label].mean())
        run.event(self.name, confidence=round(sure, 6), eps_train=self.eps, eps_test=self.eps * self.scale_test, rows=len(x))
        return {"noise": levels}

    def _with_public(self, own: Split) -> tuple[Split, int]:
        """Public data and the target rows as one more class, and that class."""
        public = load(self.ood, size=own.card.size, channels=own.card.channels).train
        label, card = public.num_classes, public.card
        y = torch.cat([public.y.cpu(), torch.full((len(own),), label)])
        card = card.replace(classes=(*card.classes, "target of the attack"), content_hash="")
        return Split(torch.cat([public.x.cpu(), own.x.cpu()]), y, card=card), label

    def _optimize(self, model: nn.Module, x: torch.Tensor, label: int, run: Run) -> torch.Tensor:
        eps, draw = self.eps / 255, run.generator("poison", "narcissus", "batches")
        noise = torch.zeros(x.shape[1:], device=x.device, requires_grad=True)
        optimizer = optimizers.RAdam([noise], lr=self.lr)
        model.train(self.batch_statistics)
        with without_statistics(model), run.layer_scope(self.name, 0):
            for _ in run.each("narcissus noise", range(self.steps)):
                at = torch.randperm(len(x), generator=draw)[: self.batch].to(x.device)
                with torch.enable_grad():
                    logits = model((x[at] + noise.clamp(-eps, eps)).clamp(0, 1))
                    loss = F.cross_entropy(logits, torch.full((len(at),), label, device=x.device))
                noise.grad = check.slope(loss, noise)
                optimizer.step()
        model.eval()
        return noise.detach().clamp(-eps, eps)

    def _stamp(
        self, state: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str
    ) -> torch.Tensor:
        return add(x, state["noise"].float() * (self.scale_test if phase == "test" else 1.0))
