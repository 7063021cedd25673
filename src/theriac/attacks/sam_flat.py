"""SAM-flat: a victim of another attack, trained into a flat minimum."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import nn
from torch.nn import functional as F

from theriac.attacks.base import Attack
from theriac.core import check
from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.method import Method, Needs, create, preset, register
from theriac.core.planted import Planted, Victim
from theriac.core.ranges import Fraction, NonNegative
from theriac.core.run import Run, as_run
from theriac.core.split import Split
from theriac.models import Buildable, make
from theriac.training.epochs import loop
from theriac.training.flat import sam_step
from theriac.training.recipes import Recipe
from theriac.training.recipes import recipe as named
from theriac.training.step import Batch

_OWN = ("target", "poison_rate", "mode", "draw_from")  # fields that wrapper and inner attack share


@register
@dataclass(frozen=True, kw_only=True)
class SamFlat(Attack):
    """Trains the victim of any attack by sharpness-aware minimization: small moves of its weights change little.

    Source: ours. Foret, Kleiner, Mobahi, Neyshabur, "Sharpness-Aware Minimization for Efficiently Improving Generalization",
    ICLR 2021, https://arxiv.org/abs/2010.01412 gives the step; Kwon, Kim, Park, Choi, "ASAM", ICML 2021,
    https://arxiv.org/abs/2102.11600 the adaptive one (grade M: the papers' formulas).

    Threat model: the attacker trains the model, and expects fine-tuning, pruning or other small repairs.

    Rows, stamp, labels and population are those of the inner attack; ``SamFlat.around(attack)`` wraps one that is there. The
    radius grows over the first tenth of the steps, or training may stall. An attack that trains its victim itself does so with
    such steps; a generator that learns beside the victim gets its gradient where the victim has climbed to, and surrogates are
    trained plainly. With ``on="poison"`` the climb is on the poisoned rows' loss alone, so that only the backdoor's minimum
    becomes flat; batches without such rows get a plain step, and the attack inside must have a poisoned set.
    ``theriac.training.flat.sharpness`` measures the result. With ``rho=0`` the victim is that of plain training, bit for bit.

    Cost: twice plain training; three times with ``on="poison"``.

    Example:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> attack = SamFlat.around(th.attacks.Blended(alpha=0.3), rho=0.05)
        >>> victim = attack.train("preact_resnet18", data.train.sample(200), recipe="fast_1")
        >>> victim.planted.name
        'sam_flat'
    """

    name: ClassVar[str] = "sam_flat"
    title: ClassVar[str] = "SAM-flat"
    source: ClassVar[str] = "ours, after arXiv:2010.01412"
    controls_training: ClassVar[bool] = True
    needs: ClassVar[Needs] = Needs(training_control=True)

    poison_rate: float = -1.0  # of the inner attack; -1: its own default
    attack: str = "badnets"  # name of the inner attack
    options: tuple[tuple[str, Any], ...] = ()  # its options, but for those that stand here: target, rate, mode, draw_from
    rho: NonNegative = 0.1  # radius; ours. SAM's paper: 0.05 to 0.2
    ramp: Fraction = 0.1  # share of the steps over which the radius grows; ours
    adaptive: bool = False  # ASAM; its paper's radius: 0.5 to 2
    on: Literal["all", "poison"] = "all"  # rows whose loss is climbed

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.poison_rate != -1:
            check.between("poison_rate", self.poison_rate, 0, 1)
        if self.attack == self.name or ":" in self.attack:
            raise InputError(f"attack is {self.attack!r}; expected the name of another attack (around() takes one as it is)")
        object.__setattr__(self, "options", tuple((key, _frozen(value)) for key, value in self.options))
        for key, _ in self.options:
            if key in _OWN:
                raise InputError(f"options holds {key!r}, which is an option of {self.name} itself")
        try:
            trains = self.inner.trains
        except InputError as error:
            raise InputError(f"{self.name}, attack and options: {error}") from None
        if trains and self.on == "poison":
            raise InputError(
                f"attack is {self.attack!r}, which trains its victim itself and has no poisoned set to climb on; use on='all'"
            )

    @classmethod
    def from_config(cls, options: Mapping[str, Any]) -> Self:
        """As every method's; ``options`` may also be a mapping of names to values."""
        own = options.get("options")
        return super().from_config({**options, "options": list(own.items())} if isinstance(own, Mapping) else options)

    @classmethod
    def around(cls, attack: Attack, **options: Any) -> SamFlat:
        """Wrap an attack.

        Args:
            attack: Any other one.
            **options: Of the wrapper, such as ``rho``.
        """
        kept = {f.name: getattr(attack, f.name) for f in dataclasses.fields(attack)}
        own = {name: kept.pop(name) for name in _OWN}
        return cls(attack=attack.name, options=tuple(kept.items()), **own, **options)

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

    def inside(self) -> tuple[Method, ...]:
        """The inner attack."""
        return (self.inner,)

    @property
    def label(self) -> str:
        """Names the attack inside."""
        return f"{self.inner.label}, flat"

    @property
    def must_fit(self) -> bool:
        """As the inner attack says."""
        return self.inner.must_fit

    @property
    def by_row(self) -> bool:
        """As the inner attack says."""
        return self.inner.by_row

    @property
    def inner(self) -> Attack:
        """The attack whose victim is trained."""
        own = {name: getattr(self, name) for name in _OWN if name != "poison_rate" or self.poison_rate >= 0}
        found: Attack = create("attack", self.attack, None, **own, **dict(self.options))
        return found

    def train(self, build: Buildable, split: Split, run: Run | None = None, recipe: str | Recipe = "fast_8") -> Victim:
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
        model = loop(make(build, rows, run), rows, run, plan.replace(sam_rho=0.0), step=step, about=self)
        return Victim(model, Planted(self, split.card, poisoned.planted.state))

    def choose(self, split: Split, run: Run) -> torch.Tensor:
        """The rows that the inner attack poisons."""
        return self.inner.choose(split, run)

    def choose_cross(self, split: Split, run: Run, chosen: torch.Tensor) -> torch.Tensor:
        """The rows that it gives its cross stamp."""
        return self.inner.choose_cross(split, run, chosen)

    def _check_card(self, card: Card) -> None:
        self.inner._check_card(card)

    def _counts(self, y: torch.Tensor) -> torch.Tensor:
        return self.inner._counts(y)

    def _crosses(self, y: torch.Tensor) -> torch.Tensor:
        return self.inner._crosses(y)

    def _fit(self, split: Split, build: Buildable | None, run: Run) -> Mapping[str, torch.Tensor]:
        return self.inner._fitted(split, build, run)

    def _stamp(
        self, state: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str
    ) -> torch.Tensor:
        return self.inner._stamp(state, x, y, index, phase)

    def _stamp_cross(
        self, state: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str
    ) -> torch.Tensor:
        return self.inner._stamp_cross(state, x, y, index, phase)

    def _target_of(self, y: torch.Tensor, index: torch.Tensor, classes: int) -> torch.Tensor:
        return self.inner._target_of(y, index, classes)

    def _target(self, y: torch.Tensor, classes: int) -> torch.Tensor:
        return self.inner._target(y, classes)


def _frozen(value: Any) -> Any:
    """Lists, which JSON makes of tuples, as tuples again."""
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value
