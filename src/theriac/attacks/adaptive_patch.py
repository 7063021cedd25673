"""Adaptive-Patch: each poisoned row has one of four faint marks, a test row two of them in full."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from theriac.attacks._cover import CoverAttack
from theriac.core import check
from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.method import preset, register
from theriac.core.ranges import Fraction, Whole
from theriac.triggers.per_row import pick
from theriac.triggers.pieces import blend_where, marks

_MARKS = 4


@register
@dataclass(frozen=True, kw_only=True)
class AdaptivePatch(CoverAttack):
    """Puts one of four half-transparent marks on each of few rows; covers have one too and keep their label.

    Paper: Qi, Xie, Li, Mahloujifar, Mittal, "Revisiting the Assumption of Latent Separability for Backdoor Defenses", ICLR
    2023, https://openreview.net/forum?id=_wSHsgrVali. Defaults from vtu81/backdoor-toolbox @ 9d4d909 (grade A: read in code):
    opacities 0.5, 0.2, 0.5, 0.3 in training, one mark a row; two marks of opacity 1 in testing; twice as many covers.

    Threat model: the attacker adds rows to the training set; no control of training.

    Deviations: the marks are our own, drawn for the resolution. Which mark a row gets follows from its row number, instead
    of from its place in the sorted list, where mark and class go together; so the quarters are equal on average only. Rows
    and covers spare the target class (``official`` draws both from all rows).

    Cost: one pass over the poisoned and cover rows.

    Known limit: at 0.3 % the success depends strongly on the seed; take three or more.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> poisoned = AdaptivePatch(poison_rate=0.01, cover_rate=0.02).poison(data.train)
        >>> poisoned.kind.bincount().tolist()
        [1395, 14, 29]
    """

    name: ClassVar[str] = "adaptive_patch"
    title: ClassVar[str] = "Adaptive-Patch"
    source: ClassVar[str] = "ICLR 2023, openreview _wSHsgrVali"
    knob: ClassVar[str] = "opacities"

    poison_rate: Fraction = 0.003  # backdoor-toolbox, its documented command
    cover_rate: Fraction = 0.006  # same
    opacities: tuple[Fraction, ...] = (0.5, 0.2, 0.5, 0.3)  # of the four marks in training; same
    test_marks: tuple[int, ...] = (0, 2)  # in testing, applied in this order; same kind: a corner mark and the third
    test_opacities: tuple[Fraction, ...] = (1.0, 1.0)  # same
    seed: Whole = 0  # of the marks' colors, not of the poisoned rows

    def __post_init__(self) -> None:
        super().__post_init__()
        for mark in self.test_marks:
            check.integer("test_marks", mark, 0, _MARKS - 1)
        if len(self.opacities) != _MARKS:
            raise InputError(f"opacities has {len(self.opacities)} entries; expected one for each of the {_MARKS} marks")
        if not self.test_marks or len(self.test_marks) != len(self.test_opacities):
            raise InputError(
                f"test_marks has {len(self.test_marks)} entries and test_opacities {len(self.test_opacities)}; "
                "expected the same number of both, at least one"
            )

    @classmethod
    @preset
    def official(cls) -> AdaptivePatch:
        """As backdoor-toolbox draws its rows: target rows too."""
        return cls(draw_from="all")

    @classmethod
    @preset
    def corrected(cls) -> AdaptivePatch:
        """Ours, the default: poisoned rows and covers spare the target class."""
        return cls()

    @classmethod
    @preset
    def strong(cls) -> AdaptivePatch:
        """More rows, as an example of THUYimingLi/BackdoorBox @ af3afd1 has it: 1 % and 2 % covers."""
        return cls(poison_rate=0.01, cover_rate=0.02)

    def _check_card(self, card: Card) -> None:
        super()._check_card(card)
        marks(card.channels, card.size, self.seed)

    def _stamp(
        self, state: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str
    ) -> torch.Tensor:
        level, where = (t.to(x.device) for t in marks(x.shape[1], (int(x.shape[2]), int(x.shape[3])), self.seed))
        if phase == "test":
            for mark, opacity in zip(self.test_marks, self.test_opacities, strict=True):
                x = blend_where(x, level[mark], opacity * where[mark])
            return x
        which = pick(index.to(x.device), _MARKS, self.seed)
        share = torch.tensor(self.opacities, device=x.device)[which]
        return blend_where(x, level[which], share[:, None, None, None] * where[which][:, None])
