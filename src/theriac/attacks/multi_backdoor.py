"""Several backdoors at once: other attacks, each with a target of its own, in one victim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from theriac.attacks._by_row import SeveralTriggers
from theriac.attacks.base import Attack
from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.method import Method, create, preset, register
from theriac.core.ranges import Fraction, Whole
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models import Buildable
from theriac.triggers.pieces import blend_where


@register
@dataclass(frozen=True, kw_only=True)
class MultiBackdoor(SeveralTriggers):
    """Plants the triggers of several other attacks, each for its own class; a poisoned row carries one of them.

    Source: ours, for the setting of training sets that more than one attacker has poisoned (arXiv:2411.11200 names it; BaDLoss,
    ICLR 2025, measures defenses in it; of both, what was read is a summary).

    Threat model: attackers add rows to the training set; no control of training.

    Which row counts for which attack: a row has the trigger that its row number draws, the next one if that attack wants the
    row's own label. So every row counts once, in training and at test. :meth:`parts` gives each attack alone; report the lowest
    of these rates. The rate is shared. Attacks that control training, leave labels alone, have more than one target or
    stamp tables are refused.

    Cost: one copy of the poisoned rows, and what each attack fits.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> poisoned = MultiBackdoor(attacks=("badnets", "blended"), goals=(3, 5)).poison(data.train)
        >>> poisoned.split.y[poisoned.poison].unique().tolist()
        [3, 5]
    """

    name: ClassVar[str] = "multi_backdoor"
    title: ClassVar[str] = "Several backdoors"
    parts_are: ClassVar[str] = "attacks"
    source: ClassVar[str] = "ours"
    knob: ClassVar[str] = "opacity"

    attacks: tuple[str, ...] = ("badnets", "blended", "ftrojan")  # names of registered attacks, with their defaults; ours
    goals: tuple[Whole, ...] = ()  # of each attack; empty: the classes from ``target`` on
    opacity: Fraction = 1.0  # share of the way from the row to its stamped version; ours
    only: int = -1  # stamp this attack on every row; -1 = by row number
    seed: Whole = 0  # of the draw of attacks, not of the poisoned rows

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= len(set(self.attacks)) == len(self.attacks):
            raise InputError(f"attacks is {self.attacks}; expected at least two different names")
        if self.mode != "all_to_one":
            raise InputError(f"mode is {self.mode!r}; {self.name} has a target for each attack, so it takes no mode")
        if self.goals and (len(self.goals) != len(self.attacks) or len(set(self.goals)) < len(self.goals)):
            raise InputError(f"goals is {self.goals}; expected {len(self.attacks)} different classes, one an attack")
        if not -1 <= self.only < len(self.attacks):
            raise InputError(f"only is {self.only}; expected -1, or the place of an attack in {self.attacks}")
        for part in self.members(0):
            unfit = part.trains or part.keeps_labels or part.untargeted or part.by_row or part.own_rows
            if unfit or part.stamps != "image":
                raise InputError(
                    f"attacks holds {part.name!r}; expected attacks on the rows of pictures that relabel rows of any class to "
                    "one target"
                )

    @classmethod
    @preset
    def pair(cls) -> MultiBackdoor:
        """Ours: a patch and a picture blended in."""
        return cls(attacks=("badnets", "blended"))

    @property
    def count(self) -> int:
        """How many attacks there are."""
        return len(self.attacks)

    @property
    def must_fit(self) -> bool:
        """As any of the attacks says."""
        return any(part.must_fit for part in self.members(0))

    def inside(self) -> tuple[Method, ...]:
        """The attacks."""
        return tuple(self.members(0))

    def members(self, classes: int) -> list[Attack]:
        """The attacks, each with its target; with 0 classes, where no data are known yet, all with target 0."""
        goals = self._goals(classes).tolist() if classes else [0] * len(self.attacks)
        made: list[Any] = []
        for name, goal in zip(self.attacks, goals, strict=True):
            if name == self.name or ":" in name:
                raise InputError(f"attacks holds {name!r}; expected names of other attacks")
            made.append(create("attack", name, None, target=goal))
        return made

    def _check_card(self, card: Card) -> None:
        super()._check_card(card)
        for part in self.members(card.num_classes):
            part._check_card(card)

    def _fit(self, split: Split, build: Buildable | None, run: Run) -> Mapping[str, torch.Tensor]:
        state = {"classes": torch.tensor(split.num_classes)}
        for k, part in enumerate(self.members(split.num_classes)):
            state.update({f"{k}.{name}": value for name, value in part._fitted(split, build, run).items()})
        return state

    def _stamp(
        self, state: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str
    ) -> torch.Tensor:
        classes = int(state["classes"])
        which = self._which(y, index, self._goals(classes).to(y.device)).to(x.device)
        out = x.clone()
        for k, part in enumerate(self.members(classes)):
            at = (which == k).nonzero().flatten()
            if len(at):
                own = {name.removeprefix(f"{k}."): value for name, value in state.items() if name.startswith(f"{k}.")}
                there = at.to(y.device)
                stamped = part._stamp(own, x[at], y[there], index[at.to(index.device)], phase)
                out[at] = blend_where(x[at], stamped, torch.tensor(self.opacity))
        return out
