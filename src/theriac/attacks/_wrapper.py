"""What attacks share that train the victim of another attack in their own way: rows, stamp and labels are the other's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch

from theriac.attacks.base import Attack
from theriac.core import check
from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.method import Method, Needs, create
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models import Buildable

_OWN = ("target", "poison_rate", "mode", "draw_from")  # fields that wrapper and inner attack share


@dataclass(frozen=True, kw_only=True)
class Wrapper(Attack):
    """Base of attacks around another attack."""

    controls_training: ClassVar[bool] = True
    needs: ClassVar[Needs] = Needs(training_control=True)
    suffix: ClassVar[str] = ""  # what tables append to the name of the attack inside

    poison_rate: float = -1.0  # of the inner attack; -1: its own default
    attack: str = "badnets"  # name of the inner attack
    options: tuple[tuple[str, Any], ...] = ()  # its options, except those of the wrapper: target, rate, mode, draw_from

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
        if trains:
            self._refuse_training()

    def _refuse_training(self) -> None:
        """Refuse an inner attack that trains its victim itself, if this wrapper can't wrap one."""

    @classmethod
    def from_config(cls, options: Mapping[str, Any]) -> Self:
        """As every method's; ``options`` may also be a mapping of names to values."""
        own = options.get("options")
        return super().from_config({**options, "options": list(own.items())} if isinstance(own, Mapping) else options)

    @classmethod
    def around(cls, attack: Attack, **options: Any) -> Self:
        """Wrap an attack.

        Args:
            attack: Any other one.
            **options: Of the wrapper, such as ``rho``.
        """
        fields = {f.name: getattr(attack, f.name) for f in dataclasses.fields(attack)}
        own = {name: fields.pop(name) for name in _OWN}
        return cls(attack=attack.name, options=tuple(fields.items()), **own, **options)

    def inside(self) -> tuple[Method, ...]:
        """The inner attack."""
        return (self.inner,)

    @property
    def full_title(self) -> str:
        """Names the attack inside."""
        return f"{self.inner.full_title}, {self.suffix}"

    @property
    def must_fit(self) -> bool:
        """As the inner attack says."""
        return self.inner.must_fit

    @property
    def by_row(self) -> bool:
        """As the inner attack says."""
        return self.inner.by_row

    @property
    def untargeted(self) -> bool:
        """As the inner attack says."""
        return self.inner.untargeted

    @property
    def keeps_labels(self) -> bool:
        """As the inner attack says."""
        return self.inner.keeps_labels

    @property
    def inner(self) -> Attack:
        """The attack whose victim is trained."""
        own = {name: getattr(self, name) for name in _OWN if name != "poison_rate" or self.poison_rate >= 0}
        made: Attack = create("attack", self.attack, None, **own, **dict(self.options))
        return made

    def choose(self, split: Split, run: Run) -> torch.Tensor:
        """The rows that the inner attack poisons."""
        return self.inner.choose(split, run)

    def choose_cross(self, split: Split, run: Run, chosen: torch.Tensor) -> torch.Tensor:
        """The rows that it gives its cross stamp."""
        return self.inner.choose_cross(split, run, chosen)

    def _check_card(self, card: Card) -> None:
        self.inner._check_card(card)

    def _applies(self, state: Mapping[str, torch.Tensor], card: Card, split: Split) -> torch.Tensor | None:
        return self.inner._applies(state, card, split)

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
    """Lists as tuples, which JSON has turned into lists."""
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value
