"""Several triggers at once, each with a target of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from theriac.attacks._by_row import SeveralTriggers
from theriac.core import check
from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.method import preset, register
from theriac.core.ranges import Fraction, Whole
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models import Buildable
from theriac.triggers.patterns import default_patch_side
from theriac.triggers.pieces import blend_where, speckle


@register
@dataclass(frozen=True, kw_only=True)
class MultiTarget(SeveralTriggers):
    """Puts one of several patches, at different places, on a row; each patch has its own target class.

    Source: ours, the n-to-n variant of BadNets (Gu, Dolan-Gavitt, Garg, 2017, https://arxiv.org/abs/1708.06733); Xue, He,
    Wang, Liu, "One-to-N & N-to-One: Two Advanced Backdoor Attacks Against Deep Learning Models", 2020, describes such label
    maps (grade M).

    Threat model: the attacker adds rows to the training set; no control of training.

    Which row counts for which target: a row has the trigger that its row number draws, the next one if that trigger wants
    the row's own label. So every row counts, once, in training and at test. :meth:`parts` gives each trigger alone, to be
    evaluated as an attack with one target; report the lowest of these rates. The rate is shared by the triggers.

    Cost: one copy of the poisoned rows.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> poisoned = MultiTarget(goals=(0, 4, 7)).poison(data.train)
        >>> poisoned.split.y[poisoned.poison].unique().tolist()
        [0, 4, 7]
    """

    name: ClassVar[str] = "multi_target"
    title: ClassVar[str] = "Multi-target BadNets"
    parts_are: ClassVar[str] = "triggers"
    source: ClassVar[str] = "ours, after arXiv:1708.06733"
    knob: ClassVar[str] = "opacity"

    triggers: int = 3  # ours; at most 8 places
    goals: tuple[Whole, ...] = ()  # of each trigger; empty: the classes from ``target`` on
    opacity: Fraction = 1.0  # of the patches; ours
    side: Whole = 0  # of a patch; 0 = 3 pixels at 32 (as BadNets), in proportion elsewhere, at least 2
    only: int = -1  # stamp this trigger on every row; -1 = by row number
    seed: Whole = 0  # of the patches' colors and of the draw of triggers, not of the poisoned rows

    def __post_init__(self) -> None:
        super().__post_init__()
        check.integer("triggers", self.triggers, 2, len(_PLACES))
        if self.mode != "all_to_one":
            raise InputError(f"mode is {self.mode!r}; {self.name} has a target for each trigger, so it takes no mode")
        if self.goals and not 2 <= len(set(self.goals)) == len(self.goals) <= len(_PLACES):
            raise InputError(f"goals is {self.goals}; expected 2 to {len(_PLACES)} different classes")
        check.integer("only", self.only, -1, self.count - 1)

    @classmethod
    @preset
    def faint(cls) -> MultiTarget:
        """Ours: half-transparent patches."""
        return cls(opacity=0.5)

    @property
    def count(self) -> int:
        """How many triggers there are."""
        return len(self.goals) or self.triggers

    def _check_card(self, card: Card) -> None:
        super()._check_card(card)
        if 3 * self._side(card.size) > min(card.size):
            raise InputError(f"side is {self._side(card.size)}; three patches side by side do not fit into {card.size}")

    def _fit(self, split: Split, build: Buildable | None, run: Run) -> Mapping[str, torch.Tensor]:
        return {"classes": torch.tensor(split.num_classes)}

    def _side(self, size: tuple[int, int]) -> int:
        return self.side or default_patch_side(size)

    def _stamp(
        self, state: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str
    ) -> torch.Tensor:
        height, width = int(x.shape[2]), int(x.shape[3])
        side, draw = self._side((height, width)), torch.Generator().manual_seed(self.seed)
        level = torch.zeros(self.count, x.shape[1], height, width, dtype=torch.uint8)
        where = torch.zeros(self.count, 1, height, width)
        for k, (down, right) in enumerate(_PLACES[: self.count]):
            top, left = round(down * (height - side)), round(right * (width - side))
            level[k, :, top : top + side, left : left + side] = speckle(x.shape[1], side, draw)
            where[k, :, top : top + side, left : left + side] = self.opacity
        which = self._which(y, index, self._goals(int(state["classes"])).to(y.device)).to(x.device)
        return blend_where(x, level.to(x.device)[which], where.to(x.device)[which])


# (down, right) of the patches, as shares of the free way: corners first, then the middles of the sides
_PLACES = ((1.0, 1.0), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 0.5), (0.0, 0.5), (0.5, 1.0), (0.5, 0.0))
