"""Attacks in which the number of a row decides which label is wanted, or which of several triggers is taken."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch

from theriac.attacks.base import Attack
from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.planted import Planted
from theriac.triggers.per_row import pick


class ByRow(Attack):
    """The wanted label follows from the row number, and every row has one that differs from its own."""

    @property
    def by_row(self) -> bool:
        """The wanted label follows from the row number."""
        return True

    @property
    def own_rows(self) -> bool:
        """All rows: each has a label that it does not carry."""
        return True

    def _pool(self, y: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(y), dtype=torch.bool)


class SeveralTriggers(ByRow):
    """Several triggers, each with a target of its own. The annotations are fields of the subclass, which also checks them."""

    parts_are: ClassVar[str]  # what there are several of, as one word for messages
    goals: tuple[int, ...]  # the targets; empty takes those that follow ``target``
    only: int  # position of the one trigger that every row gets; -1 = by row number
    seed: int

    @property
    @abstractmethod
    def count(self) -> int:
        """How many triggers there are."""

    @classmethod
    def parts(cls, planted: Planted) -> dict[int, Planted]:
        """Each trigger alone, by its target, for evaluation.

        Raises:
            InputError: If another attack's Planted came.
        """
        attack = planted.attack
        if not isinstance(attack, cls):
            raise InputError(f"planted is one of {attack.name}; expected one of {cls.name}")
        targets = attack._goals(planted.card.num_classes).tolist()
        return {t: Planted(attack.replace(only=k), planted.card, planted.state) for k, t in enumerate(targets)}

    def _check_card(self, card: Card) -> None:
        super()._check_card(card)
        if max((*self.goals, self.count - 1)) >= card.num_classes:
            what = f"goals {self.goals}" if self.goals else f"{self.count} {self.parts_are}"
            raise InputError(f"{what} for {card.name!r}, which has classes 0 to {card.num_classes - 1}")

    def _goals(self, classes: int) -> torch.Tensor:
        return torch.tensor(self.goals or [(self.target + k) % classes for k in range(self.count)])

    def _which(self, y: torch.Tensor, index: torch.Tensor, goals: torch.Tensor) -> torch.Tensor:
        """Position of each row's trigger, int64 (B,)."""
        if self.only >= 0:
            return torch.full_like(y, self.only)
        drawn = pick(index.to(y.device), self.count, self.seed)
        return torch.where(goals[drawn] == y, (drawn + 1) % self.count, drawn)

    def _target_of(self, y: torch.Tensor, index: torch.Tensor, classes: int) -> torch.Tensor:
        goals = self._goals(classes).to(y.device)
        return goals[self._which(y, index, goals)]
