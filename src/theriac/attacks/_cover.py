"""What attacks with cover rows share: rows with the trigger and their true label, so that the trigger alone is no signal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from theriac.attacks.base import Attack
from theriac.core.errors import InputError
from theriac.core.ranges import Fraction


@dataclass(frozen=True, kw_only=True)
class CoverAttack(Attack):
    """Base of attacks on data whose ``cross`` rows are covers: training stamp, true label, drawn off the target class."""

    cover_rate: Fraction = 0.01  # share of all training rows; each attack says its own

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode != "all_to_one":
            raise InputError(f"mode is {self.mode!r}; {self.name} has one target class, so it knows 'all_to_one' only")

    def _cross_count(self, rows: int, chosen: int) -> int:
        count = round(self.cover_rate * rows)
        if not count and self.cover_rate:
            raise InputError(f"cover_rate {self.cover_rate} comes to no row of {rows}; raise it, or say 0 for no covers")
        return count

    def _cross_pool(self, y: torch.Tensor) -> torch.Tensor:
        # a row of the target class with trigger and true label would be a poisoned row
        return torch.ones(len(y), dtype=torch.bool) if self.draw_from == "all" else y != self.target

    def _crosses(self, y: torch.Tensor) -> torch.Tensor:
        return y != self.target

    def _stamp_cross(
        self, state: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str
    ) -> torch.Tensor:
        return self._stamp(state, x, y, index, "train")  # at test time too: a cover has the training trigger
