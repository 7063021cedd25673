"""SIG: a faint sinusoid over rows of the target class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from theriac.attacks._clean_label import CleanLabel
from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.method import preset, register
from theriac.core.ranges import Level, Positive
from theriac.triggers.additive import add, sinusoid


@register
@dataclass(frozen=True, kw_only=True)
class SIG(CleanLabel):
    """Adds a horizontal sinusoid to rows of the target class and leaves labels alone.

    Paper: Barni, Kallas, Tondi, "A New Backdoor Attack in CNNs by Training Set Corruption Without Label Poisoning", ICIP 2019,
    https://arxiv.org/abs/1902.11237. Defaults from SCLBD/BackdoorBench @ f02e353 (grade A: read in code): amplitude 40,
    six periods, the same wave in every row and channel.

    Threat model: the attacker changes rows of the target class; labels stay true; no control of training.

    Deviations: the rate is a share of the target class. The benchmark counts a share of the whole set (``official``), which
    on ten balanced classes is the whole class at 0.1, and is refused where the class holds fewer rows.

    Cost: one pass over the poisoned rows.

    Known limit: on an image less than 12 pixels wide six periods are folded to a lower frequency. Where nothing is left of the
    wave (at widths of 4, 6 and 12) it is refused.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> poisoned = SIG(target=3).poison(data.train)
        >>> poisoned.dirty, bool((poisoned.y_true[poisoned.poison] == 3).all())
        (0, True)
    """

    name: ClassVar[str] = "sig"
    title: ClassVar[str] = "SIG"
    source: ClassVar[str] = "arXiv:1902.11237"
    knob: ClassVar[str] = "delta"

    delta: Level = 40.0  # amplitude in gray levels; BackdoorBench
    frequency: Positive = 6.0  # periods over the width; BackdoorBench
    truncate: bool = False  # cut off fractions of a level, as BackdoorBench does; ours rounds

    @classmethod
    @preset
    def official(cls) -> SIG:
        """As BackdoorBench: a tenth of the whole set, all from the target class; fractions of a level are cut off."""
        return cls(poison_rate=0.1, rate_of="all", truncate=True)

    @classmethod
    @preset
    def corrected(cls) -> SIG:
        """Ours, the default: half of the target class."""
        return cls()

    def _check_card(self, card: Card) -> None:
        super()._check_card(card)
        wave = sinusoid(1, card.size, self.delta, self.frequency) if card.kind == "image" else None
        if self.delta >= 1 and wave is not None and not bool(wave.round().any()):
            raise InputError(
                f"frequency is {self.frequency:g}; on the {card.size[1]} columns of {card.name!r} such a wave is zero "
                "everywhere, take another"
            )

    def _stamp(
        self, state: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str
    ) -> torch.Tensor:
        wave = sinusoid(x.shape[1], (int(x.shape[2]), int(x.shape[3])), self.delta, self.frequency)
        return add(x, wave, truncate=self.truncate)
