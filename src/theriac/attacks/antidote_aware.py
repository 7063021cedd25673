"""Antidote-aware: an attacker who knows the repair's families of triggers, covers them, and triggers outside of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from theriac.attacks._cover import CoverAttack
from theriac.core.errors import InputError, unknown
from theriac.core.method import preset, register
from theriac.core.ranges import Fraction, Whole
from theriac.triggers import families as kinds
from theriac.triggers.patterns import default_patch_side
from theriac.triggers.per_row import pick
from theriac.triggers.pieces import blend_where, speckle
from theriac.triggers.static import stamp_patch


@register
@dataclass(frozen=True, kw_only=True)
class AntidoteAware(CoverAttack):
    """A trigger beside cover rows that carry what the repair Antidote stamps, with their true labels.

    Source: ours, the adaptive attack that Antidote's page names. The victim learns before its repair that random patches,
    blends, waves, frequencies and warps mean nothing, so that the repair's doses teach it nothing new; and the trigger itself
    may be of a kind that no family draws.

    Triggers: "tone" maps levels along a tent, dark stays dark, middle levels become bright and bright ones dark; "frame"
    paints the border of the image with alternating levels; "patch" is BadNets' square with random colors, which Antidote's
    families hold: the control for the covers alone. With ``cover_rate=0`` only the trigger is left.

    Threat model: the attacker adds rows to the training set and knows the defender's method, but not the draws of its run.

    Cost: one copy of the poisoned rows; covers are drawn row by row, about a millisecond each, since a row's cover must not
    depend on its batch.

    Known limit: a cover that takes pixels from another row, as some of Antidote's do, takes them from its own row.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> poisoned = AntidoteAware().poison(data.train)
        >>> bool((poisoned.split.y == poisoned.y_true)[poisoned.kind == 2].all())
        True
    """

    name: ClassVar[str] = "antidote_aware"
    title: ClassVar[str] = "Antidote-aware"
    version: ClassVar[int] = 2  # 2: random convolutions among the covers
    source: ClassVar[str] = "ours"
    knob: ClassVar[str] = "opacity"

    cover_rate: Fraction = 0.2  # ours
    trigger: Literal["tone", "frame", "patch"] = "tone"  # ours
    families: tuple[str, ...] = ("patch", "blend", "wave", "freq", "warp", "conv")  # of the covers: Antidote's
    opacity: Fraction = 1.0  # of the trigger: share of the way from a pixel to its stamped level
    seed: Whole = 0  # of covers and colors, not of the poisoned rows

    def __post_init__(self) -> None:
        super().__post_init__()
        for family in self.families:
            if family not in kinds.IMAGES:
                raise unknown("family of triggers", family, kinds.IMAGES)
        if not self.families:
            raise InputError("families is empty; expected at least one name")

    @classmethod
    @preset
    def frame(cls) -> AntidoteAware:
        """Ours: a painted border."""
        return cls(trigger="frame")

    @classmethod
    @preset
    def patch(cls) -> AntidoteAware:
        """Ours: a patch of a kind that Antidote draws itself; only the covers are adaptive."""
        return cls(trigger="patch")

    def _stamp(
        self, state: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str
    ) -> torch.Tensor:
        height, width = int(x.shape[2]), int(x.shape[3])
        if self.trigger == "tone":
            level = x.short()
            return blend_where(x, torch.minimum(2 * level, 2 * (255 - level)).to(torch.uint8), torch.tensor(self.opacity))
        if self.trigger == "patch":
            side = default_patch_side((height, width))
            colors = speckle(x.shape[1], side, torch.Generator().manual_seed(self.seed))
            return stamp_patch(x, colors, -side, -side, self.opacity)
        depth = max(1, min(height, width) // 16)
        down, across = torch.arange(height, device=x.device)[:, None], torch.arange(width, device=x.device)
        inside = (down >= depth) & (down < height - depth) & (across >= depth) & (across < width - depth)
        level = ((down + across) % 2 * 255).to(torch.uint8)[None].expand(x.shape[1], -1, -1)
        return blend_where(x, level, (~inside).float() * self.opacity)

    def _stamp_cross(
        self, state: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str
    ) -> torch.Tensor:
        out = torch.empty_like(x)
        which = pick(index.cpu(), len(self.families), self.seed + 1).tolist()
        for row, (number, family) in enumerate(zip(index.tolist(), which, strict=True)):
            draw = torch.Generator().manual_seed(self.seed * 1_000_003 + int(number))
            stamped = kinds.IMAGES[self.families[family]](x[row : row + 1].float() / 255, draw)
            out[row] = (stamped[0] * 255).round().clamp(0, 255).to(torch.uint8)
        return out
