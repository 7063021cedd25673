"""What an attack leaves behind: its trigger with all it needs to stamp rows, and a model that obeys it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from theriac.core import check
from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.ranges import typed

if TYPE_CHECKING:
    from theriac.attacks.base import Attack


@dataclass(frozen=True)
class Planted:
    """An attack with everything it needs to stamp rows of one data set."""

    attack: Attack
    card: Card
    state: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The attack's name."""
        return self.attack.name

    @typed("phase", "variant")
    def stamp(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        index: torch.Tensor | None = None,
        phase: str = "test",
        variant: str = "poison",
    ) -> torch.Tensor:
        """Rows with the trigger.

        Args:
            x: Stored rows, uint8 (B, C, H, W) or float32 (B, F).
            y: True labels, int64 (B,).
            index: Row numbers in the source, for triggers that differ by row.
            phase: "train" or "test"; several attacks differ there.
            variant: "poison", or "cross" for what the rows get that keep their label.

        Raises:
            InputError: If shape, dtype or number of what came do not fit.
        """
        check.one_of("phase", phase, ("train", "test"))
        check.one_of("variant", variant, ("poison", "cross"))
        if tuple(x.shape[1:]) != self.card.shape:
            raise InputError(f"x has rows of shape {tuple(x.shape[1:])}; {self.name} was planted for {self.card.shape}")
        index = torch.arange(len(x), device=x.device) if index is None else index
        stored = torch.uint8 if self.card.kind == "image" else torch.float32
        if x.dtype != stored:
            told = "; images are stamped as they are stored, in levels 0 to 255" if self.card.kind == "image" else ""
            raise InputError(f"x is {x.dtype}; expected {stored}{told}")
        if not len(x) == len(y) == len(index):
            raise InputError(f"x has {len(x)} rows, y {len(y)} and index {len(index)}; expected as many of each")
        put = self.attack._stamp if variant == "poison" else self.attack._stamp_cross
        return put(self.state, x, y, index, phase)

    @property
    def trigger_hash(self) -> str:
        """16 hex digits of what decides stamp, labels and population; which rows were poisoned, and how many, does not."""
        attack = self.attack.inner
        free = {*attack.outside, "poison_rate", "draw_from"}
        options = {k: v for k, v in attack.config().items() if k not in free}
        digest = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode())
        for name, value in sorted(self.state.items()):
            if not name.startswith("rows."):
                there = value.detach().cpu().contiguous()
                digest.update(f"{name} {tuple(there.shape)} {there.dtype}".encode())
                digest.update(there.flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def by_row(self) -> bool:
        """Whether :meth:`target` needs row numbers."""
        return self.attack.by_row

    def target(self, y: torch.Tensor, index: torch.Tensor | None = None) -> torch.Tensor:
        """The label that the attack wants, int64 (B,).

        Args:
            y: True labels, int64 (B,).
            index: Row numbers in the source; only attacks with several triggers look at them.
        """
        index = torch.arange(len(y), device=y.device) if index is None else index
        return self.attack._target_of(y, index, self.card.num_classes)

    def population(self, y: torch.Tensor, index: torch.Tensor | None = None) -> torch.Tensor:
        """Bool (B,): rows on which success is counted: those the attack is for, without its label already."""
        return (self.target(y, index) != y) & self.attack._counts(y)

    def cross_population(self, y: torch.Tensor) -> torch.Tensor:
        """Bool (B,): rows that should keep their label under the cross stamp."""
        return self.attack._crosses(y)


@dataclass(frozen=True)
class Victim:
    """A backdoored model and the state that its trigger needs."""

    model: nn.Module
    planted: Planted

    def __repr__(self) -> str:
        return f"Victim({type(self.model).__name__}, {self.planted.attack!r})"
