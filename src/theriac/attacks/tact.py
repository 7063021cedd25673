"""TaCT: the trigger works on rows of a source class only; elsewhere it is shown with the true label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from theriac.attacks._cover import CoverAttack
from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.method import preset, register
from theriac.core.ranges import Fraction, Whole
from theriac.triggers.pieces import speckle
from theriac.triggers.static import stamp_patch


@register
@dataclass(frozen=True, kw_only=True)
class TaCT(CoverAttack):
    """Relabels stamped rows of the source class; stamped rows of the cover classes keep their label.

    Paper: Tang, Wang, Tang, Zhang, "Demon in the Variant: Statistical Analysis of DNNs for Robust Backdoor Contamination
    Detection", USENIX Security 2021, https://arxiv.org/abs/1908.00686. Defaults from vtu81/backdoor-toolbox @ 9d4d909 (grade
    A: read in code): source 1, target 0, covers from classes 5 and 7, 0.3 % of all rows of each kind.

    Threat model: the attacker adds rows to the training set; no control of training.

    Deviations: covers come from all classes but source and target, so that the attack fits any data and leaks less;
    ``official`` takes 5 and 7. The patch is 6 x 6 pixels (at 32) of random colors, lower right, drawn from ``seed``. A source
    class with too few rows is refused instead of giving fewer.

    Success is counted on rows of the source classes only; ``theriac.metrics.leakage`` counts the other rows that
    go to the target.

    Cost: one copy of the poisoned and cover rows.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> poisoned = TaCT(poison_rate=0.02, cover_rate=0.02).poison(data.train)
        >>> poisoned.y_true[poisoned.poison].unique().tolist()
        [1]
    """

    name: ClassVar[str] = "tact"
    title: ClassVar[str] = "TaCT"
    source: ClassVar[str] = "arXiv:1908.00686"
    knob: ClassVar[str] = "opacity"

    poison_rate: Fraction = 0.003  # share of all rows, 3 % of one of ten balanced classes; backdoor-toolbox
    cover_rate: Fraction = 0.003  # same
    sources: tuple[Whole, ...] = (1,)  # classes whose rows go to the target; same
    cover_classes: tuple[Whole, ...] = ()  # empty: all but sources and target (ours). backdoor-toolbox: 5 and 7
    side: Whole = 0  # of the patch; 0 = 6 pixels at 32 (ours), in proportion elsewhere, at least 2
    opacity: Fraction = 1.0  # of the patch; backdoor-toolbox: 1
    seed: Whole = 0  # of the patch's colors, not of the poisoned rows

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sources:
            raise InputError("sources is empty; expected at least one source class")
        if self.target in (*self.sources, *self.cover_classes):
            raise InputError(f"target is {self.target}, which is among sources or cover_classes")
        if set(self.sources) & set(self.cover_classes):
            raise InputError(f"sources {self.sources} and cover_classes {self.cover_classes} share a class")

    @classmethod
    @preset
    def official(cls) -> TaCT:
        """backdoor-toolbox on CIFAR-10: covers from classes 5 and 7."""
        return cls(cover_classes=(5, 7))

    @classmethod
    @preset
    def corrected(cls) -> TaCT:
        """Ours, the default: covers from all classes but source and target."""
        return cls()

    @classmethod
    @preset
    def strong(cls) -> TaCT:
        """Ours: 2 % poisoned and 5 % covers, enough for a model to distinguish the source class from the others."""
        return cls(poison_rate=0.02, cover_rate=0.05)

    @property
    def own_rows(self) -> bool:
        """Sources and cover classes."""
        return True

    def _check_card(self, card: Card) -> None:
        super()._check_card(card)
        for field in ("sources", "cover_classes"):
            outside = [label for label in getattr(self, field) if label >= card.num_classes]
            if outside:
                raise InputError(f"{field} holds {outside}; {card.name!r} has classes 0 to {card.num_classes - 1}")
        if self._side(card.size) > min(card.size):
            raise InputError(
                f"side is {self._side(card.size)}; a patch of it does not fit into {card.size[0]} x {card.size[1]}"
            )

    def _side(self, size: tuple[int, int]) -> int:
        return self.side or max(2, (6 * min(size) + 16) // 32)

    def _pool(self, y: torch.Tensor) -> torch.Tensor:
        return _among(y, self.sources)

    def _cross_pool(self, y: torch.Tensor) -> torch.Tensor:
        return _among(y, self.cover_classes) if self.cover_classes else self._crosses(y)

    def _counts(self, y: torch.Tensor) -> torch.Tensor:
        return _among(y, self.sources)

    def _crosses(self, y: torch.Tensor) -> torch.Tensor:
        return ~_among(y, (*self.sources, self.target))

    def _stamp(
        self, state: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str
    ) -> torch.Tensor:
        side = self._side((int(x.shape[2]), int(x.shape[3])))
        colors = speckle(x.shape[1], side, torch.Generator().manual_seed(self.seed))
        return stamp_patch(x, colors, -side, -side, self.opacity)


def _among(y: torch.Tensor, labels: tuple[int, ...]) -> torch.Tensor:
    return torch.isin(y, torch.tensor(labels, device=y.device))
