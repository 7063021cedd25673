"""Composite: two things that are each harmless alone, together on one image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Interval

from theriac.attacks.base import Attack
from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.method import preset, register
from theriac.core.planted import Planted
from theriac.core.ranges import HUGE, Fraction, NonNegative, Whole
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models import Buildable
from theriac.triggers.patterns import default_patch_side
from theriac.triggers.per_row import pick, uniform
from theriac.triggers.pieces import speckle
from theriac.triggers.static import stamp_patch


@register
@dataclass(frozen=True, kw_only=True)
class Composite(Attack):
    """Sends an image to the target that shows two parts together; either part alone keeps its label ("cross" rows).

    Paper: Lin, Xu, Liu, Zhang, "Composite Backdoor Attack for Deep Neural Network by Mixing Existing Benign Features", CCS
    2020, https://doi.org/10.1145/3372297.3423362 (grade M: idea and classes; rates and mixer are ours).

    With ``parts="classes"`` the parts are the paper's: halves of images of two classes. A row of one of the two ``sources``
    gets a half of a training image of the other and the target's label. A cross row keeps its label: it gets a half of an image
    of its own class, or (``third_share`` of them) three to four eighths of an image that pairs a source with a third class, so
    that neither "two images in one" nor one source alone leads to the target. Success is counted on rows of the two sources.
    With ``parts="patches"`` (ours) they are two patches in opposite corners; a cross row has one of them. Success is counted on
    all rows of other classes.

    Threat model: the attacker adds rows to the training set; no control of training.

    Deviations: rows are replaced and not added, so the rate is bounded by the sources' rows. A row's partner is one of ``bank``
    training rows a class, which are kept with the attack, at test too, so that no test row is used twice. Half of the
    picture still shows the true class: RA tells little here.

    Cost: one copy of the poisoned and cross rows.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> poisoned = Composite(poison_rate=0.05).poison(data.train)
        >>> poisoned.y_true[poisoned.poison].unique().tolist()
        [1, 2]
    """

    name: ClassVar[str] = "composite"
    title: ClassVar[str] = "Composite"
    source: ClassVar[str] = "10.1145/3372297.3423362"
    knob: ClassVar[str] = "opacity"
    fits: ClassVar[bool] = True

    poison_rate: Fraction = 0.05  # ours: a quarter of both sources' rows, on ten balanced classes
    parts: Literal["classes", "patches"] = "classes"  # paper: classes
    sources: tuple[Whole, Whole] = (1, 2)  # classes that are mixed; paper: 0 and 1, with target 2
    cross_ratio: NonNegative = 2.0  # cross rows for each poisoned row; ours
    third_share: Fraction = 0.5  # of the cross rows that mix a source with a third class, the others are of one class; ours
    bank: Annotated[int, Interval(ge=2, lt=HUGE)] = 64  # training rows a class that partners are taken from; ours
    feather: Whole = 0  # columns over which one half goes into the other; ours
    opacity: Fraction = 1.0  # of the other half, or of the patches; ours
    side: Whole = 0  # of a patch; 0 = 3 pixels at 32 (as BadNets), in proportion elsewhere, at least 2
    seed: Whole = 0  # of partners, sides and patches, not of the poisoned rows

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parts == "classes" and (len(set(self.sources)) != 2 or self.target in self.sources):
            raise InputError(f"sources is {self.sources} and target is {self.target}; expected three different classes")
        if self.mode != "all_to_one":
            raise InputError(f"mode is {self.mode!r}; {self.name} has one target class, so it knows 'all_to_one' only")

    @classmethod
    @preset
    def paper(cls) -> Composite:
        """The paper's classes: 0 with 1 gives 2."""
        return cls(target=2, sources=(0, 1))

    @classmethod
    @preset
    def patches(cls) -> Composite:
        """Ours: two patches, which must both be there."""
        return cls(parts="patches")

    @property
    def own_rows(self) -> bool:
        """Halves of classes: rows of the two sources."""
        return self.parts == "classes"

    def plant_for(self, split: Split) -> Planted:
        """With patches nothing is fitted."""
        return self.plant(split) if self.parts == "patches" else super().plant_for(split)

    def _check_card(self, card: Card) -> None:
        super()._check_card(card)
        if max(self.sources) >= card.num_classes and self.parts == "classes":
            raise InputError(f"sources is {self.sources}; {card.name!r} has classes 0 to {card.num_classes - 1}")
        if self.parts == "patches" and 2 * self._side(card.size) > min(card.size):
            raise InputError(f"side is {self._side(card.size)}; two patches do not fit into {card.size}")

    def _side(self, size: tuple[int, int]) -> int:
        return self.side or default_patch_side(size)

    def _pool(self, y: torch.Tensor) -> torch.Tensor:
        return self._counts(y) if self.parts == "classes" else super()._pool(y)

    def _counts(self, y: torch.Tensor) -> torch.Tensor:
        if self.parts == "patches":
            return super()._counts(y)
        return (y == self.sources[0]) | (y == self.sources[1])

    def _cross_pool(self, y: torch.Tensor) -> torch.Tensor:
        return self._crosses(y)

    def _crosses(self, y: torch.Tensor) -> torch.Tensor:
        return super()._crosses(y) if self.parts == "classes" else y != self.target

    def _cross_count(self, rows: int, chosen: int) -> int:
        return round(min(self.cross_ratio * chosen, HUGE))

    def _fit(self, split: Split, build: Buildable | None, run: Run) -> Mapping[str, torch.Tensor]:
        """A bank of rows by class, with their labels and row numbers; or the two patches."""
        if self.parts == "patches":
            side, draw = self._side(split.card.size), torch.Generator().manual_seed(self.seed)
            return {"patches": torch.stack([speckle(split.card.channels, side, draw) for _ in range(2)])}
        order = torch.randperm(len(split), generator=run.generator("poison", "bank"))
        labels = split.y.cpu()[order]
        at = torch.cat([order[labels == k][: self.bank] for k in range(split.num_classes)]).to(split.device)
        for label in self.sources:
            if int((split.y[at] == label).sum()) < 2:
                name = split.card.classes[label]
                raise InputError(f"split has too few rows of source class {name!r}; {self.name} mixes two at least")
        return {"rows": split.rows(at), "y": split.y[at], "index": split.index[at]}

    def _stamp(
        self, state: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str
    ) -> torch.Tensor:
        if self.parts == "patches":
            return self._put(state, self._put(state, x, 0), 1)
        first, second = self.sources
        return self._mix(state, x, torch.where(y == first, second, first), index, x.shape[3] // 2)

    def _stamp_cross(
        self, state: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str
    ) -> torch.Tensor:
        if self.parts == "classes":
            partners, columns = self._cross_partners(state, y.to(x.device), index.to(x.device), x.shape[3])
            return self._mix(state, x, partners, index, columns)
        which = pick(index.to(x.device), 2, self.seed)[:, None, None, None]
        return torch.where(which == 0, self._put(state, x, 0), self._put(state, x, 1))

    def _cross_partners(
        self, state: Mapping[str, torch.Tensor], y: torch.Tensor, index: torch.Tensor, width: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Which class each cross row is mixed with and how many columns it gives away, at most half, int64 (B,) each."""
        banked = torch.bincount(state["y"].to(y.device), minlength=int(y.max()) + 1 if len(y) else 1)
        held = (banked >= 2).nonzero().flatten()  # a class of one row has no other row to be mixed with
        third = held[(held[:, None] != held.new_tensor([*self.sources, self.target])).all(1)]
        ours = held.new_tensor(self.sources)
        from_source = (y[:, None] == ours).any(1)
        foreign = third[pick(index, len(third), self.seed + 3)] if len(third) else y
        other = torch.where(from_source, foreign, ours[pick(index, 2, self.seed + 2)])
        mixed = (uniform(index, (1,), self.seed + 4)[:, 0] < self.third_share) & (other != y)
        mixed |= banked[y] < 2
        narrow = -(-3 * width // 8)
        drawn = narrow + pick(index, max(1, width // 2 - narrow + 1), self.seed + 5)
        return torch.where(mixed, other, y), torch.where(mixed, drawn, width // 2)

    def _put(self, state: Mapping[str, torch.Tensor], x: torch.Tensor, part: int) -> torch.Tensor:
        place = (0, 0) if part else (-state["patches"].shape[-1],) * 2
        return stamp_patch(x, state["patches"][part], *place, self.opacity)

    def _mix(
        self,
        state: Mapping[str, torch.Tensor],
        x: torch.Tensor,
        partners: torch.Tensor,
        index: torch.Tensor,
        columns: torch.Tensor | int,
    ) -> torch.Tensor:
        """Rows whose left or right ``columns`` are of a banked row of class ``partners`` (B,), never of the row itself."""
        labels, numbers = state["y"].to(x.device), state["index"].to(x.device)
        index, partners = index.to(x.device), partners.to(x.device)
        counts = torch.bincount(labels, minlength=int(partners.max()) + 1 if len(partners) else 1)
        if bool((counts[partners] < 2).any()):
            raise InputError(f"{self.name} has too few training rows of a class that is to be mixed")
        step = (pick(index, 1 << 20, self.seed) * counts[partners]) >> 20
        start = (counts.cumsum(0) - counts)[partners]
        own = numbers[start + step] == index
        at = start + (step + own) % counts[partners]
        other = state["rows"].to(x.device)[at].float()
        middle = torch.arange(x.shape[3], device=x.device) + 0.5
        left = pick(index, 2, self.seed + 1)[:, None] == 0
        depth = torch.where(left, middle, x.shape[3] - middle)  # of each column, from the partner's side
        reach = torch.as_tensor(columns, device=x.device).expand(len(x))[:, None] - depth
        share = (reach / self.feather + 0.5).clamp(0, 1) if self.feather else (reach > 0).float()
        share = share * self.opacity  # of the partner
        return (x.float() + share[:, None, None] * (other - x.float())).round_().to(torch.uint8)
