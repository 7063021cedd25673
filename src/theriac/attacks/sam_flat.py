"""SAM-flat: a victim of another attack, trained into a flat minimum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F

from theriac.attacks._wrapper import Wrapper
from theriac.core.errors import InputError
from theriac.core.method import preset, register
from theriac.core.planted import Planted, Victim
from theriac.core.ranges import Fraction, NonNegative
from theriac.core.run import Run, as_run
from theriac.core.split import Split
from theriac.data.alignment import align_to
from theriac.models import Buildable, make
from theriac.training.epochs import loop
from theriac.training.flat import sam_step
from theriac.training.recipes import Recipe
from theriac.training.recipes import recipe as named
from theriac.training.step import Batch


@register
@dataclass(frozen=True, kw_only=True)
class SamFlat(Wrapper):
    """Trains the victim of any attack by sharpness-aware minimization: small moves of its weights change little.

    Source: ours. Foret, Kleiner, Mobahi, Neyshabur, "Sharpness-Aware Minimization for Efficiently Improving Generalization",
    ICLR 2021, https://arxiv.org/abs/2010.01412 gives the step; Kwon, Kim, Park, Choi, "ASAM", ICML 2021,
    https://arxiv.org/abs/2102.11600 the adaptive one (grade M: the papers' formulas).

    Threat model: the attacker trains the model, and expects fine-tuning, pruning or other small repairs.

    Rows, stamp, labels and population are those of the inner attack; ``SamFlat.around(attack)`` wraps an attack object. The
    radius grows over the first tenth of the steps, or training may stall. An attack that trains its victim itself does so with
    such steps; a generator that learns beside the victim gets its gradient at the victim's climbed weights, and surrogates are
    trained plainly. With ``on="poison"`` the climb is on the poisoned rows' loss alone, so that only the backdoor's minimum
    becomes flat; batches without such rows get a plain step, and the attack inside must have a poisoned set.
    ``theriac.training.flat.sharpness`` measures the result. With ``rho=0`` the victim is that of plain training, bit for bit.

    Cost: twice plain training; three times with ``on="poison"``.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> attack = SamFlat.around(th.attacks.Blended(alpha=0.3), rho=0.05)
        >>> victim = attack.train("wrn_16_1", data.train.sample(200), recipe="short_1")
        >>> victim.planted.name
        'sam_flat'
    """

    name: ClassVar[str] = "sam_flat"
    title: ClassVar[str] = "SAM-flat"
    source: ClassVar[str] = "ours, after arXiv:2010.01412"
    suffix: ClassVar[str] = "flat"

    rho: NonNegative = 0.1  # radius; ours. SAM's paper: 0.05 to 0.2
    ramp: Fraction = 0.1  # share of the steps over which the radius grows; ours
    adaptive: bool = False  # ASAM; its paper's radius: 0.5 to 2
    on: Literal["all", "poison"] = "all"  # rows whose loss is climbed

    def _refuse_training(self) -> None:
        if self.on == "poison":
            raise InputError(
                f"attack is {self.attack!r}, which trains its victim itself and has no poisoned set to climb on; use on='all'"
            )

    @classmethod
    @preset
    def strong(cls) -> SamFlat:
        """A large radius."""
        return cls(rho=1.0)

    @classmethod
    @preset
    def asam(cls) -> SamFlat:
        """The adaptive norm."""
        return cls(adaptive=True, rho=1.0)

    def train(self, build: Buildable, split: Split, run: Run | None = None, recipe: str | Recipe = "short_8") -> Victim:
        """Train the inner attack's victim."""
        run, plan = as_run(run), named(recipe)
        flat = plan.replace(sam_rho=self.rho, sam_ramp=self.ramp, sam_adaptive=self.adaptive)
        if self.on == "all":
            victim = self.inner.train(build, split, run, flat)
            return Victim(victim.model, Planted(self, split.card, victim.planted.state))
        poisoned = self.inner.poison(split, run, build)
        rows, kind = poisoned.split, poisoned.poison.to(run.device)
        per_epoch = max(1, len(rows) // min(plan.batch_size, len(rows)))

        def poison_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
            there = kind[batch.position].float()
            each = F.cross_entropy(model(batch.x), batch.y, reduction="none")
            return (each * there).sum() / there.sum().clamp_min(1)

        step = sam_step(lambda number: flat.rho_at(number, per_epoch), ascent=poison_loss, adaptive=self.adaptive)
        rows = align_to(rows, build)
        model = loop(make(build, rows, run), rows, run, plan.replace(sam_rho=0.0), step=step, about=self)
        return Victim(model, Planted(self, split.card, poisoned.planted.state))
