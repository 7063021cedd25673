"""Adaptive-Blend: few rows, parts of a faint picture, and covers, so that poisoned rows form no cluster of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from theriac.attacks._cover import CoverAttack
from theriac.core.card import Card
from theriac.core.method import preset, register
from theriac.core.ranges import Count, Fraction, Whole
from theriac.triggers.patterns import noise, picture
from theriac.triggers.pieces import blend_where, shown_pieces, squares


@register
@dataclass(frozen=True, kw_only=True)
class AdaptiveBlend(CoverAttack):
    """Mixes half of a picture's squares faintly into few rows; covers have the same trigger and keep their label.

    Paper: Qi, Xie, Li, Mahloujifar, Mittal, "Revisiting the Assumption of Latent Separability for Backdoor Defenses", ICLR
    2023, https://openreview.net/forum?id=_wSHsgrVali. Defaults from vtu81/backdoor-toolbox @ 9d4d909 (grade A: read in code):
    16 squares of which 8 are left out, for each row anew, alpha 0.15 in training; the whole picture with alpha 0.2 in testing.

    Threat model: the attacker adds rows to the training set; no control of training.

    Deviations: the literature's cartoon is copyrighted, so the picture is drawn from ``seed``; stamped rows are rounded to
    bytes. Covers and poisoned rows spare the target class (``official`` draws both from all rows). A row's squares follow
    from its row number and ``seed``, so that they are the same whenever it is stamped.

    Cost: one pass over the poisoned and cover rows.

    Known limit: at 0.3 % the success depends strongly on the seed; take three or more.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> poisoned = AdaptiveBlend(poison_rate=0.01, cover_rate=0.02).poison(data.train)
        >>> poisoned.kind.bincount().tolist()
        [1395, 14, 29]
    """

    name: ClassVar[str] = "adaptive_blend"
    title: ClassVar[str] = "Adaptive-Blend"
    source: ClassVar[str] = "ICLR 2023, openreview _wSHsgrVali"
    knob: ClassVar[str] = "alpha"

    poison_rate: Fraction = 0.003  # backdoor-toolbox, its documented command
    cover_rate: Fraction = 0.003  # same; its code's own default is 0.01
    alpha: Fraction = 0.15  # in training; same
    test_alpha: Fraction = 0.2  # in testing; same
    pieces: Count = 16  # squares that the picture is cut into; same
    mask_rate: Fraction = 0.5  # share of the squares left out in training; same. In testing none is
    trigger: Literal["picture", "noise"] = "picture"  # ours, as in Blended
    seed: Whole = 0  # of picture and squares, not of the poisoned rows

    @classmethod
    @preset
    def official(cls) -> AdaptiveBlend:
        """As backdoor-toolbox draws its rows: target rows too."""
        return cls(draw_from="all")

    @classmethod
    @preset
    def corrected(cls) -> AdaptiveBlend:
        """Ours, the default: poisoned rows and covers spare the target class."""
        return cls()

    def _check_card(self, card: Card) -> None:
        super()._check_card(card)
        squares(card.size, self.pieces)

    def _stamp(
        self, state: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str
    ) -> torch.Tensor:
        size = (int(x.shape[2]), int(x.shape[3]))
        drawn = (picture if self.trigger == "picture" else noise)(x.shape[1], size, self.seed)
        if phase == "test":
            return blend_where(x, drawn, torch.tensor(self.test_alpha))
        shown = shown_pieces(index, self.pieces, round(self.mask_rate * self.pieces), self.seed).to(x.device)
        return blend_where(x, drawn, self.alpha * shown[:, squares(size, self.pieces).to(x.device)][:, None])
