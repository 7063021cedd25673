"""Grond: a universal perturbation as the trigger, and weights kept inconspicuous while they are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from theriac.attacks._clean_label import CleanLabel
from theriac.attacks._surrogate import fit_surrogate
from theriac.core import check
from theriac.core.errors import InputError
from theriac.core.method import Needs, preset, register
from theriac.core.planted import Planted, Victim
from theriac.core.poisoned import as_clean
from theriac.core.ranges import Count, Fraction, Level, NonNegative, Whole, typed
from theriac.core.run import Run, as_run
from theriac.core.split import Split
from theriac.data.alignment import align_to
from theriac.models import Buildable, make, to_input
from theriac.models.lipschitz import channel_constants, conv_norm_pairs
from theriac.training.epochs import loop
from theriac.training.recipes import Recipe
from theriac.training.recipes import recipe as named
from theriac.triggers.additive import add


@register
@dataclass(frozen=True, kw_only=True)
class Grond(CleanLabel):
    """Adds a universal perturbation to rows of the target class; after each epoch, channels that stand out are leveled.

    Paper: Xu, Liu, Koffas, Picek, "Towards Backdoor Stealthiness in Model Parameter Space", CCS 2025,
    https://arxiv.org/abs/2501.05928. Facts from xiaoyunxxy/parameter_backdoor @ c52b0f7 (grade A: read in code): 500 sign
    steps of a fifth of the radius 8 on batches of 256 rows of all classes; half of the target class; after each epoch,
    channels whose Lipschitz bound lies 3 deviations above the layer's mean get the layer's mean scale and shift.

    Threat model: the attacker trains and ships the model. With ``abi=False`` the attacker changes rows only.

    Deviations: training ends with a leveling, and the last iterate is kept (the released code saves a model before it levels).
    Convolution and BatchNorm are paired by watching the tensors, so that pre-activation networks, half of whose BatchNorms
    follow a sum, work: those are left alone. The stamp is clipped and rounded in testing as in training. The surrogate is
    trained on at most ``surrogate_rows`` rows. The rows are drawn from the ``poison`` stream and stored.

    Cost: a surrogate, ``steps`` passes of ``batch`` rows; one singular value decomposition a layer and epoch.

    Known limit: the perturbation fools benign models too; report the excess over a benign model's rate.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> attack = Grond(surrogate_rows=200, surrogate_recipe="short_1", steps=5)
        >>> victim = attack.train("wrn_16_1", data.train.sample(200), recipe="short_1")
        >>> int(victim.planted.state["noise"].abs().max())
        8
    """

    name: ClassVar[str] = "grond"
    title: ClassVar[str] = "Grond"
    source: ClassVar[str] = "arXiv:2501.05928"
    knob: ClassVar[str] = "eps"
    controls_training: ClassVar[bool] = True
    fits: ClassVar[bool] = True
    keeps_fit: ClassVar[bool] = True
    not_fitted: ClassVar[tuple[str, ...]] = ("poison_rate", "u", "abi")
    needs: ClassVar[Needs] = Needs(training_control=True)

    poison_rate: Fraction = 0.5  # share of the target class; the code's default (its documented command: 0.1)
    eps: Level = 8.0  # radius of the trigger, in levels; code
    steps: Count = 500  # code
    batch: Count = 256  # code
    u: NonNegative = 3.0  # deviations above the layer's mean from which a channel is leveled; code
    abi: bool = True  # level channels after each epoch; code
    surrogate_rows: Whole = 5000  # ours; 0 = all, as the code
    surrogate_recipe: str = "short_8"  # ours

    @classmethod
    @preset
    def official(cls) -> Grond:
        """The released code's target and surrogate."""
        return cls(target=2, surrogate_rows=0, surrogate_recipe="paper_100")

    @classmethod
    @preset
    def corrected(cls) -> Grond:
        """Ours, the default: target 0, and a surrogate that a small machine can train."""
        return cls()

    @classmethod
    @preset
    def short(cls) -> Grond:
        """For trying out: a small surrogate and few steps."""
        return cls(surrogate_rows=1000, surrogate_recipe="short_4", steps=50)

    @property
    def trains(self) -> bool:
        """Without leveling it is an attack on data."""
        return self.abi

    def train(self, build: Buildable, split: Split, run: Run | None = None, recipe: str | Recipe = "short_8") -> Victim:
        """Train a victim on the poisoned rows, leveling channels after each epoch.

        Raises:
            InputError: If no BatchNorm of the victim follows a convolution.
        """
        if not self.abi:
            return super().train(build, split, run, recipe)
        run = as_run(run)
        self._check_card(as_clean(split, "split").card)
        model = make(build, align_to(split, build), run)
        pairs = conv_norm_pairs(model, split.card.shape)
        if not pairs:
            raise InputError(
                "no BatchNorm of the model follows a convolution, so no channel can be leveled (abi=False trains it)"
            )

        poisoned = self.replace(abi=False).poison(split, run, build)
        rows = align_to(poisoned.split, build)

        def level(_: int) -> dict[str, float]:
            return {"leveled": float(suppress_lipschitz_channels(pairs, self.u))}

        loop(model, rows, run, named(recipe), after_epoch=level, about=self)
        tensors = {"rows.kind": poisoned.kind.cpu(), "rows.index": rows.index.cpu()}
        return Victim(model, Planted(self, split.card, {**poisoned.planted.state, **tensors}))

    def _fit(self, split: Split, build: Buildable | None, run: Run) -> Mapping[str, torch.Tensor]:
        size, plan = self.surrogate_rows, self.surrogate_recipe
        model = fit_surrogate(split, build, run, name=self.name, rows=size, recipe=plan)
        noise = torch.zeros(split.card.shape, device=run.device)
        here, eps = split.to(run.device), self.eps / 255
        for number in run.each("grond noise", range(self.steps)):
            draw = run.generator("poison", self.name, number)
            at = torch.randperm(len(split), generator=draw)[: self.batch].to(run.device)
            x = to_input(here.rows(at))
            noise.requires_grad_(True)
            with torch.enable_grad():
                loss = F.cross_entropy(model((x + noise).clamp(0, 1)), torch.full((len(x),), self.target, device=run.device))
            slope = check.slope(loss, noise)
            noise = (noise.detach() - eps / 5 * slope.sign()).clamp(-eps, eps)
        run.event(self.name, loss=round(float(loss.detach()), 6), steps=self.steps, eps=self.eps)
        return {"noise": (noise * 255).round().to(torch.int16).cpu()}

    def _stamp(
        self, state: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str
    ) -> torch.Tensor:
        return add(x, state["noise"])


@typed("u")  # infinity levels nothing
def suppress_lipschitz_channels(pairs: Sequence[tuple[nn.Conv2d, nn.BatchNorm2d]], u: float = 3.0) -> int:
    """Level channels that stand out, in place; for the ``after_epoch`` of any training.

    Args:
        pairs: What ``theriac.models.lipschitz.conv_norm_pairs(model, shape)`` gave.
        u: A channel stands out whose bound is more than ``u`` standard deviations above its layer's mean.

    Returns:
        How many channels got their layer's mean scale and shift.
    """
    leveled = 0
    with torch.no_grad():
        for conv, norm in pairs:
            if norm.weight is None or norm.num_features < 2:
                continue
            bound = channel_constants(conv, norm)
            high = bound > bound.mean() + u * bound.std()
            for values in (norm.weight, norm.bias):
                values[high] = values.mean()
            leveled += int(high.sum())
    return leveled
