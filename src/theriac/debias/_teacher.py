"""Models that need the group: a teacher that is queried with a trigger, and logits shifted by a prior."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.ranges import typed
from theriac.models import GroupAware
from theriac.triggers.bank import TriggerBank

Query = Literal["reverse", "aligned", "none"]


@typed()
def query_map(query: Query, groups: int) -> torch.Tensor:
    """The trigger with which each group is queried, int64 (G,); -1 for none. "reverse" is the one that cancels the bias.

    Raises:
        InputError: On "aligned" with more than two groups, where no single trigger is the opposite one.
    """
    if query == "none":
        return torch.full((groups,), -1)
    if query == "aligned":
        if groups != 2:
            raise InputError(f"query 'aligned' is for two groups; there are {groups}")
        return torch.tensor([1, 0])
    return torch.arange(groups)


class AskedTeacher(GroupAware):
    """A network with planted triggers, queried on each row with the trigger of its group.

    Args:
        model: The network.
        bank: The triggers.
        stamps: What is put on rows of each group, int64 (G,) or (G, S).
    """

    stamps: torch.Tensor

    def __init__(self, model: nn.Module, bank: TriggerBank, stamps: torch.Tensor) -> None:
        super().__init__(model, len(stamps))
        self.bank = bank
        self.register_buffer("stamps", stamps)

    @property
    def card(self) -> Card | None:
        """Of the rows it takes."""
        return self.bank.narrowed(super().card)

    def _answer(self, x: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(self.bank.apply(x, self.stamps[group]))
        return logits


class ShiftedByGroup(GroupAware):
    """A network whose logits are shifted by a constant for each group and class.

    Args:
        model: The network.
        offsets: Added to the logits, float (G, K).
    """

    offsets: torch.Tensor

    def __init__(self, model: nn.Module, offsets: torch.Tensor) -> None:
        super().__init__(model, len(offsets))
        self.register_buffer("offsets", offsets.float())

    def _answer(self, x: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(x)
        return logits + self.offsets[group].to(logits.dtype)
