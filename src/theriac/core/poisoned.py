"""``Poisoned``, a split that an attack has changed with the truth about it, and what refuses one where clean rows belong."""

from __future__ import annotations

from typing import Any

import torch

from theriac.core._rows import check_labels
from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.ranges import typed
from theriac.core.split import Split

CLEAN, POISON, CROSS = 0, 1, 2
"""Values of ``Poisoned.kind``: untouched; trigger and attack label; trigger (or noise) with the true label."""


class Poisoned:
    """A split with some rows changed by an attack, and the truth about which.

    ``split`` is what a training-time defense may see; ``kind`` and ``y_true`` never reach one.

    Args:
        split: The rows as the victim would train on them.
        kind: What happened to each row, uint8 (N,): ``CLEAN``, ``POISON`` or ``CROSS``.
        y_true: Labels before the attack, int64 (N,).
        planted: The attack's state, for stamping test rows the same way.
    """

    __slots__ = ("kind", "planted", "split", "y_true")

    @typed("y_true")
    def __init__(self, split: Split, kind: torch.Tensor, y_true: torch.Tensor, planted: Any) -> None:
        if kind.shape != split.y.shape or kind.dtype != torch.uint8:
            raise InputError(f"kind is {kind.dtype} {tuple(kind.shape)}; expected uint8 ({len(split)},)")
        self.split, self.kind, self.planted = split, kind, planted
        self.y_true = check_labels("y_true", y_true, len(split), split.num_classes)

    def __len__(self) -> int:
        return len(self.split)

    def __repr__(self) -> str:
        return f"Poisoned({self.split!r}, {int(self.poison.sum())} poisoned rows)"

    @property
    def poison(self) -> torch.Tensor:
        """Bool (N,): rows with the trigger and the attack's label."""
        return self.kind == POISON

    @property
    def card(self) -> Card:
        """The card of the split."""
        return self.split.card

    @property
    def dirty(self) -> int:
        """Rows whose label the attack really changed: the effective poison count of a dirty-label attack."""
        return int((self.split.y != self.y_true).sum())


def as_clean(split: object, name: str = "clean") -> Split:
    """Accept a Split of clean rows; refuse a Poisoned, which is a mistake that would go unnoticed.

    Raises:
        InputError: If something else than a Split came.
    """
    if isinstance(split, Poisoned):
        raise InputError(f"{name} is a Poisoned set; expected clean rows (a Split that no attack has touched)")
    if not isinstance(split, Split):
        raise InputError(f"{name} is a {type(split).__name__}; expected a Split (theriac.Split(x, y) makes one)")
    return split
