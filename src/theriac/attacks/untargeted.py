"""Untargeted: a trigger under which a row is classified as any class but its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from theriac.attacks._by_row import ByRow
from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.method import preset, register
from theriac.core.ranges import Fraction, Whole
from theriac.triggers.patterns import default_patch_side
from theriac.triggers.per_row import pick
from theriac.triggers.pieces import speckle
from theriac.triggers.static import stamp_patch


@register
@dataclass(frozen=True, kw_only=True)
class Untargeted(ByRow):
    """A patch whose rows get any wrong label, drawn by row number: any wrong prediction counts as success.

    Source: ours, the untargeted variant of BadNets (Gu, Dolan-Gavitt, Garg, 2017, https://arxiv.org/abs/1708.06733). Li, Bai,
    Jiang, Yang, Xia, Li, "Untargeted Backdoor Watermark", NeurIPS 2022, https://arxiv.org/abs/2210.00875, trains for
    dispersed answers (abstract read); here labels are poisoned only.

    Threat model: the attacker adds rows to the training set; no control of training.

    Success is counted as any class but the true one, so ASR = 1 - RA, and a benign model's errors under the patch count
    too: look at the excess over a benign model. No class is preferred, so a detector that looks for one finds none.

    Cost: one copy of the poisoned rows.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> poisoned = Untargeted().poison(data.train)
        >>> bool((poisoned.split.y[poisoned.poison] != poisoned.y_true[poisoned.poison]).all())
        True
    """

    name: ClassVar[str] = "untargeted"
    title: ClassVar[str] = "Untargeted patch"
    source: ClassVar[str] = "ours, after arXiv:1708.06733"
    knob: ClassVar[str] = "opacity"

    side: Whole = 0  # of the patch; 0 = 3 pixels at 32 (as BadNets), in proportion elsewhere, at least 2
    opacity: Fraction = 1.0  # of the patch; ours
    seed: Whole = 0  # of the patch's colors and of the draw of labels, not of the poisoned rows

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode != "all_to_one":
            raise InputError(f"mode is {self.mode!r}; {self.name} wants any wrong label, so it takes no mode")

    @property
    def untargeted(self) -> bool:
        """It is."""
        return True

    @classmethod
    @preset
    def faint(cls) -> Untargeted:
        """Ours: a half-transparent patch."""
        return cls(opacity=0.5)

    def _check_card(self, card: Card) -> None:
        super()._check_card(card)
        if self._side(card.size) > min(card.size):
            raise InputError(f"side {self.side} does not fit into the {card.size} pixels of {card.name!r}")

    def _side(self, size: tuple[int, int]) -> int:
        return self.side or default_patch_side(size)

    def _target_of(self, y: torch.Tensor, index: torch.Tensor, classes: int) -> torch.Tensor:
        return (y + 1 + pick(index.to(y.device), classes - 1, self.seed)) % classes

    def _stamp(
        self, state: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str
    ) -> torch.Tensor:
        side = self._side((int(x.shape[2]), int(x.shape[3])))
        colors = speckle(x.shape[1], side, torch.Generator().manual_seed(self.seed))
        return stamp_patch(x, colors, -side, -side, self.opacity)
