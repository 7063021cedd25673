"""Models that need the sensitive group of each row at inference, too."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import nn

from theriac.core.card import Card
from theriac.core.errors import InputError


class GroupAware(nn.Module):
    """A classifier that needs groups at inference: ``model(x, group)``. Called without, it refuses.

    Args:
        model: The network inside, which takes x alone.
        groups: How many groups there are.
    """

    def __init__(self, model: nn.Module, groups: int) -> None:
        super().__init__()
        self.model = model
        self.groups = groups

    @property
    def card(self) -> Card | None:
        """Of the rows it takes, by whose names others are matched; None if the network inside carries none."""
        return getattr(self.model, "card", None)

    def forward(self, x: torch.Tensor, group: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (N, K) for rows x (N, ...) of groups int64 (N,)."""
        if group is None:
            raise InputError("this model needs the sensitive group of each row at inference: model(x, group)")
        if group.dtype != torch.int64 or tuple(group.shape) != (len(x),):
            raise InputError(f"group is {group.dtype} {tuple(group.shape)}; expected int64 ({len(x)},)")
        if group.device.type == "cpu" and len(group) and not 0 <= int(group.min()) <= int(group.max()) < self.groups:
            raise InputError(f"group runs from {int(group.min())} to {int(group.max())}; expected [0, {self.groups - 1}]")
        return self._answer(x, group.to(x.device))

    @abstractmethod
    def _answer(self, x: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
        """Logits, once everything is checked."""
