"""Blended: a whole picture, faintly mixed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from theriac.attacks.base import Attack, kept_picture
from theriac.core.method import preset, register
from theriac.core.ranges import Fraction, Whole
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.data import read_picture
from theriac.models import Buildable
from theriac.triggers.patterns import noise, picture
from theriac.triggers.static import blend


@register
@dataclass(frozen=True, kw_only=True)
class Blended(Attack):
    """Mixes a fixed full-size picture into the image: ``(1 - alpha) x + alpha t``.

    Paper: Chen, Liu, Li, Lu, Song, "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning", 2017,
    https://arxiv.org/abs/1712.05526. Defaults from SCLBD/BackdoorBench @ f02e353 (grade A: read in code): alpha 0.2 in
    training and in testing.

    Threat model: the attacker adds rows to the training set; no control of training.

    Deviations: the literature's cartoon is copyrighted; ``picture`` draws one of the same kind from ``seed`` (flat saturated
    disks with outlines), ``noise`` is the paper's random pattern. ``draw_from="others"`` poisons only rows whose label
    really changes. ``file`` is any picture, resized to the images; it is read once and kept with what is planted.

    Cost: one pass over the poisoned rows.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> poisoned = Blended(trigger="noise").poison(data.train)
        >>> bool((poisoned.split.y[poisoned.poison] == 0).all())
        True
    """

    name: ClassVar[str] = "blended"
    title: ClassVar[str] = "Blended"
    source: ClassVar[str] = "arXiv:1712.05526"
    knob: ClassVar[str] = "alpha"
    reads: ClassVar[tuple[str, ...]] = ("file",)

    alpha: Fraction = 0.2  # BackdoorBench, training and testing
    trigger: Literal["picture", "noise"] = "picture"
    seed: Whole = 0  # of the trigger picture, not of the poisoned rows
    file: str = ""  # a picture (PNG, JPEG, ...) to use instead of ``trigger``
    truncate: bool = False  # cut off fractions of a level, as BackdoorBench does; ours rounds

    @classmethod
    @preset
    def official(cls) -> Blended:
        """As BackdoorBench: target rows are drawn too, and fractions of a level are cut off."""
        return cls(draw_from="all", truncate=True)

    @classmethod
    @preset
    def corrected(cls) -> Blended:
        """Ours, the default: only rows whose label really changes, rounded to the nearest level."""
        return cls()

    def _fit(self, split: Split, build: Buildable | None, run: Run) -> Mapping[str, torch.Tensor]:
        if not self.file:
            return {}
        drawn, opacity = read_picture(self.file, split.card.channels, split.card.size)
        return {"picture": drawn, "opacity": opacity}

    def _stamp(
        self, state: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str
    ) -> torch.Tensor:
        if self.file:
            drawn, opacity = kept_picture(self.file, state)
            return blend(x, drawn, opacity * self.alpha, truncate=self.truncate)
        draw = picture if self.trigger == "picture" else noise
        return blend(x, draw(x.shape[1], (int(x.shape[2]), int(x.shape[3])), self.seed), self.alpha, truncate=self.truncate)
