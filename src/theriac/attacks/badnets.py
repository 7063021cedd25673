"""BadNets: a small patch in a corner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from theriac.attacks.base import Attack, kept_picture
from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.method import preset, register
from theriac.core.ranges import Fraction, Whole
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.data import read_picture
from theriac.models import Buildable
from theriac.triggers.patterns import default_patch_side, patch
from theriac.triggers.static import stamp_patch


@register
@dataclass(frozen=True, kw_only=True)
class BadNets(Attack):
    """Overwrites a small square with a fixed pattern, or a patch with a picture of yours.

    Paper: Gu, Dolan-Gavitt, Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain", 2017,
    https://arxiv.org/abs/1708.06733. Defaults from the benchmark SCLBD/BackdoorBench @ f02e353 (grade A: read in code):
    white 3 x 3 square at rows and columns 29 to 31 of a 32 x 32 image.

    Threat model: the attacker adds rows to the training set; no control of training.

    Deviations: the patch is drawn at the resolution at hand instead of being resized as a picture; ``draw_from="others"``
    poisons only rows whose label really changes. ``file`` is any picture, at its own size or resized to ``side``; where it is
    transparent, the image shows. It is read once and kept with what is planted.

    Cost: one copy of the poisoned rows.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> poisoned = BadNets(target=0, poison_rate=0.1).poison(data.train)
        >>> int(poisoned.poison.sum()) == round(0.1 * len(data.train))
        True
    """

    name: ClassVar[str] = "badnets"
    title: ClassVar[str] = "BadNets"
    source: ClassVar[str] = "arXiv:1708.06733"
    knob: ClassVar[str] = "opacity"
    reads: ClassVar[tuple[str, ...]] = ("file",)

    pattern: Literal["white", "checker"] = "white"  # BackdoorBench: white; the paper also shows a checker of pixels
    side: Whole = 0  # pixels; 0 = 3 at 32 pixels, in proportion elsewhere, at least 2
    margin: Whole = 0  # pixels between patch and the lower right corner; BackdoorBench: 0
    opacity: Fraction = 1.0  # of the patch; BackdoorBench: 1
    file: str = ""  # a picture (PNG, JPEG, ...) to use instead of ``pattern``

    @classmethod
    @preset
    def official(cls) -> BadNets:
        """As BackdoorBench draws its rows: target rows too."""
        return cls(draw_from="all")

    @classmethod
    @preset
    def corrected(cls) -> BadNets:
        """Ours, the default: only rows whose label really changes."""
        return cls()

    def _check_card(self, card: Card) -> None:
        super()._check_card(card)
        side = 0 if self.file else self.side or default_patch_side(card.size)  # the size of a picture is known once it is read
        if side + self.margin > min(card.size):
            room = " x ".join(map(str, card.size))
            raise InputError(f"side {side} and margin {self.margin} do not fit into the {room} pixels of {card.name!r}")

    def _fit(self, split: Split, build: Buildable | None, run: Run) -> Mapping[str, torch.Tensor]:
        if not self.file:
            return {}
        size = (self.side, self.side) if self.side else None
        drawn, opacity = read_picture(self.file, split.card.channels, size)
        if any(drawn.shape[k + 1] + self.margin > split.card.size[k] for k in (0, 1)):
            came, room = " x ".join(map(str, drawn.shape[1:])), " x ".join(map(str, split.card.size))
            raise InputError(f"file {self.file} has {came} pixels, which with margin {self.margin} do not fit {room}; set side")
        return {"picture": drawn, "opacity": opacity * self.opacity}

    def _stamp(
        self, state: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str
    ) -> torch.Tensor:
        height, width = int(x.shape[2]), int(x.shape[3])
        drawn: torch.Tensor
        opacity: float | torch.Tensor
        if self.file:
            drawn, opacity = kept_picture(self.file, state)
        else:
            drawn = patch(self.pattern, x.shape[1], self.side or default_patch_side((height, width)))
            opacity = self.opacity
        top, left = height - drawn.shape[1] - self.margin, width - drawn.shape[2] - self.margin
        return stamp_patch(x, drawn, top, left, opacity)
