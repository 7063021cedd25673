"""What an attack leaves behind: its trigger with all it needs to stamp rows, and a model that obeys it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from theriac.core import check
from theriac.core.card import Card, Column
from theriac.core.errors import InputError
from theriac.core.names import class_numbers
from theriac.core.ranges import typed
from theriac.core.run import usual_dtype
from theriac.core.split import Split

State = Mapping[str, torch.Tensor]
SLACK = 1e-3  # of floats that stand for pixels, beyond 0 and 1
FEW = 0.1  # ours: of more rows that a trigger leaves as they are than this share, a word is said


def unchanged(rows: torch.Tensor, stamped: torch.Tensor) -> torch.Tensor:
    """Which rows the trigger left as they were, bool (B,)."""
    if stamped.dtype != rows.dtype and rows.dtype == torch.uint8:  # inputs in [0, 1], finer than a level
        rows = rows.to(stamped.dtype) / 255
    return ((rows == stamped) | (rows.isnan() & stamped.isnan())).flatten(1).all(1)


def note_if_idle(name: str, idle: int, rows: int, which: str) -> str:
    """What is to be said of rows that a trigger left as they were: nothing of a few.

    Args:
        name: The attack's.
        idle: How many they are.
        rows: Of how many.
        which: What these are, in a word.

    Raises:
        InputError: If it changed none of them: what a model learns from such rows, or answers to them, is no backdoor.
    """
    if rows and idle == rows:
        raise InputError(
            f"the trigger of {name} changes none of the {rows:,} {which} rows: it has no strength, they look like it already, "
            "or a stamp of your own writes into the rows that it is given (x = x.clone() at its start)"
        )
    if idle <= FEW * rows:
        return ""
    return (
        f"the trigger of {name} leaves {idle:,} of the {rows:,} {which} rows as they were: they look like it, or it passes them"
    )


@dataclass(frozen=True, eq=False)
class Planted:
    """An attack with everything it needs to stamp rows of one data set. Two are equal if they stamp alike."""

    attack: Any  # a theriac.attacks.Attack; this floor does not import that one
    card: Card
    state: State = field(default_factory=dict)
    # row numbers on which success is counted, of an attack that is for some groups only; None: the label alone decides
    only: torch.Tensor | None = field(default=None, compare=False)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Planted) or type(self) is not type(other):
            return NotImplemented
        compared = [field.name for field in dataclasses.fields(self) if field.compare and field.name != "state"]
        return (
            all(getattr(self, name) == getattr(other, name) for name in compared)
            and self.state.keys() == other.state.keys()
            and all(torch.equal(value.cpu(), other.state[name].cpu()) for name, value in self.state.items())
        )

    def __hash__(self) -> int:
        return hash((type(self), self.name, self.card.shape, self.card.classes))

    @property
    def name(self) -> str:
        """The attack's name."""
        return str(self.attack.name)

    @typed("phase", "variant")
    def stamp(
        self, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor | None = None, phase: str = "test", variant: str = "poison"
    ) -> torch.Tensor:
        """Rows with the trigger.

        Args:
            x: Stored rows, uint8 (B, C, H, W) or float32 (B, F).
            y: True labels, int64 (B,).
            index: Row numbers in the source, for triggers that differ by row.
            phase: "train" or "test"; several attacks differ there.
            variant: "poison", or "cross" for the stamp on rows that keep their label.

        Raises:
            InputError: If the shape, dtype or number of the rows does not fit.
        """
        check.one_of("phase", phase, ("train", "test"))
        check.one_of("variant", variant, ("poison", "cross"))
        if tuple(x.shape[1:]) != self.card.shape:
            raise InputError(f"x has rows of shape {tuple(x.shape[1:])}; {self.name} was planted for {self.card.shape}")
        index = torch.arange(len(x), device=x.device) if index is None else index
        stored = torch.uint8 if self.card.kind == "image" else torch.float32
        if x.dtype != stored:
            note = "; images are stamped as they are stored, in levels 0 to 255" if self.card.kind == "image" else ""
            raise InputError(f"x is {x.dtype}; expected {stored}{note}")
        if not len(x) == len(y) == len(index):
            raise InputError(f"x has {len(x)} rows, y {len(y)} and index {len(index)}; expected as many of each")
        put = self.attack._stamp if variant == "poison" else self.attack._stamp_cross
        with usual_dtype():
            rows: torch.Tensor = put(self.state, x, y, index, phase)
        if not isinstance(rows, torch.Tensor) or rows.shape != x.shape:
            came = f"rows {tuple(rows.shape)}" if isinstance(rows, torch.Tensor) else f"a {type(rows).__name__}"
            raise InputError(f"the stamp of {self.name} returned {came}; expected {tuple(x.shape)}, as it was given")
        self._check_stamped(rows, stored)
        return rows

    def _check_stamped(self, rows: torch.Tensor, stored: torch.dtype) -> None:
        """Refuse what would be read as other pixels than were meant; attacks finer than a level give inputs in [0, 1]."""
        if rows.dtype == stored:
            return
        if stored == torch.float32 or not rows.is_floating_point():
            unit = "" if stored == torch.float32 else ", or floats in [0, 1]"
            raise InputError(f"the stamp of {self.name} returned {rows.dtype}; expected {stored}, as it was given{unit}")
        if not bool(((rows > -SLACK) & (rows < 1 + SLACK)).all()):
            raise InputError(
                f"the stamp of {self.name} returned {rows.dtype} from {float(rows.min()):.4g} to {float(rows.max()):.4g}; "
                f"expected {stored}, as it was given, or floats in [0, 1]"
            )

    def onto(self, card: Card) -> Planted:
        """The same trigger for rows whose classes or columns are in another order, and labels as ``card`` numbers them.

        Args:
            card: Of the rows to stamp.

        Raises:
            InputError: If the rows are of another kind, have other columns, or classes that the attack was not planted for.
        """
        if card.classes == self.card.classes and card.columns == self.card.columns:
            return self
        if card.kind != self.card.kind:
            raise InputError(f"{self.name} was planted for {self.card.kind} rows; {card.name!r} has {card.kind} rows")
        columns = column_places(self.card, card, self.name)
        there = class_numbers(card, self.card, f"what {self.name} was planted for")
        if there is None or there == list(range(self.card.num_classes)):
            same = tuple(range(self.card.num_classes))
            return _Renumbered(self.attack, self.card, self.state, outside=same, columns=columns) if columns else self
        if card.num_classes != self.card.num_classes:
            raise InputError(
                f"{self.name} was planted for {self.card.num_classes} classes; {card.name!r} has {card.num_classes} of them"
            )
        return _Renumbered(self.attack, self.card, self.state, outside=tuple(there), columns=columns)

    def within(self, split: Split) -> Planted:
        """The same for the rows of ``split``, of which the attack may be for some only.

        Raises:
            InputError: If the attack asks for groups that the rows do not have, or rows that it is for share their number with
                others.
        """
        mask = self.attack._applies(self.state, self.card, split)
        if mask is None:
            return self
        only, others = split.index[mask], split.index[~mask]
        shared = only[torch.isin(only, others)]  # a row that is there twice, with one group, does no harm
        if len(shared):
            raise InputError(
                f"split has {len(shared):,} rows that {self.name} is for and that share their number with others (the first: "
                f"{int(shared[0])}); it knows rows by their numbers, so give each its own: index=torch.arange(len(y))"
            )
        return dataclasses.replace(self, only=only)

    @property
    def trigger_hash(self) -> str:
        """16 hex digits of what decides stamp, labels and population; which rows were poisoned, and how many, does not."""
        attack = self.attack.inner
        free = {*attack.outside, "poison_rate", "draw_from"}
        options = {k: v for k, v in attack.config().items() if k not in free}
        digest = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode())
        for name, value in sorted(self.state.items()):
            if not name.startswith("rows."):
                there = value.detach().cpu().contiguous()
                digest.update(f"{name} {tuple(there.shape)} {there.dtype}".encode())
                digest.update(there.flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def by_row(self) -> bool:
        """Whether :meth:`target` needs row numbers."""
        return bool(self.attack.by_row) or self.only is not None

    @property
    def untargeted(self) -> bool:
        """Whether any label but the true one is a success."""
        return bool(self.attack.untargeted)

    @typed()
    def target(self, y: torch.Tensor, index: torch.Tensor | None = None) -> torch.Tensor:
        """The label that the attack wants, int64 (B,).

        Args:
            y: True labels, int64 (B,).
            index: Row numbers in the source; only attacks with several triggers look at them.
        """
        index = torch.arange(len(y), device=y.device) if index is None else index
        labels: torch.Tensor = self.attack._target_of(y, index, self.card.num_classes)
        return labels

    @typed()
    def population(self, y: torch.Tensor, index: torch.Tensor | None = None) -> torch.Tensor:
        """Bool (B,): rows on which success is counted: those that the attack is for and that do not have its label already."""
        counted: torch.Tensor = (self.target(y, index) != y) & self.attack._counts(y)
        return counted if self.only is None else counted & self._among(y, index)

    @typed()
    def cross_population(self, y: torch.Tensor, index: torch.Tensor | None = None) -> torch.Tensor:
        """Bool (B,): rows that should keep their label under the cross stamp."""
        crosses: torch.Tensor = self.attack._crosses(y)
        return crosses if self.only is None else crosses & ~self._among(y, index)

    def _among(self, y: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
        """Bool (B,): rows of the groups that the attack is for."""
        if index is None:
            raise InputError(f"index is missing; {self.name} is for the rows of some groups, which are known by their numbers")
        assert self.only is not None
        return torch.isin(index, self.only.to(index.device)).to(y.device)


@dataclass(frozen=True, eq=False)
class _Renumbered(Planted):
    """A Planted for rows in another order: their class k is its ``outside[k]``, and its column k their ``columns[k]``."""

    outside: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()  # empty: they are in its order

    def stamp(
        self, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor | None = None, phase: str = "test", variant: str = "poison"
    ) -> torch.Tensor:
        put = super().stamp
        return in_order(x, self.columns, lambda rows: put(rows, self._inside(y), index, phase, variant))

    def onto(self, card: Card) -> Planted:
        return Planted(self.attack, self.card, self.state).onto(card)

    @typed()
    def target(self, y: torch.Tensor, index: torch.Tensor | None = None) -> torch.Tensor:
        inside = torch.tensor(self.outside, device=y.device)
        return inside.argsort()[super().target(inside[y], index)]

    @typed()
    def population(self, y: torch.Tensor, index: torch.Tensor | None = None) -> torch.Tensor:
        counted: torch.Tensor = (self.target(y, index) != y) & self.attack._counts(self._inside(y))
        return counted if self.only is None else counted & self._among(y, index)

    @typed()
    def cross_population(self, y: torch.Tensor, index: torch.Tensor | None = None) -> torch.Tensor:
        return super().cross_population(self._inside(y), index)

    def _inside(self, y: torch.Tensor) -> torch.Tensor:
        return torch.tensor(self.outside, device=y.device)[y]


def column_places(own: Card, other: Card, name: str) -> tuple[int, ...]:
    """For each column of one card its place on the other, by name; empty where they are in one order.

    Raises:
        InputError: If the columns are not the same.
    """
    mine, theirs = [_meaning(c) for c in own.columns], [_meaning(c) for c in other.columns]
    if sorted(mine) != sorted(theirs):
        raise InputError(
            f"{name} was planted for rows with other columns, or other categories in them, than {other.name!r} has; "
            "theriac.data.align(rows, planted.card) brings rows of the same columns into its terms"
        )
    return () if mine == theirs else tuple(theirs.index(column) for column in mine)


def in_order(x: torch.Tensor, columns: Sequence[int], stamp: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Table rows after a stamp that knows their columns in another order: its column k is their ``columns[k]``."""
    if not columns:
        return stamp(x)
    out = x.clone()
    out[:, list(columns)] = stamp(x[:, list(columns)])
    return out


def _meaning(column: Column) -> tuple[str, str, tuple[str, ...]]:
    return column.name, column.kind, column.categories


@dataclass(frozen=True)
class Victim:
    """A backdoored model and the state that its trigger needs."""

    model: nn.Module
    planted: Planted

    def __repr__(self) -> str:
        return f"Victim({type(self.model).__name__}, {self.planted.attack!r})"


def planted_on(attack: Any, split: Split) -> Any:
    """The trigger, ready to stamp these rows; it takes and returns labels as ``split`` numbers them. None gives None.

    Args:
        attack: An attack with nothing to fit, a Planted, a Victim, a Poisoned, or what ``theriac.trigger`` made.
        split: The rows.

    Raises:
        InputError: If something else came, the attack has to be fitted on training rows first, or it was planted for rows of
            other classes or columns.
    """
    if attack is None:
        return None
    planted = getattr(attack, "planted", attack)
    if hasattr(planted, "onto"):
        planted = planted.onto(split.card)
        return planted.within(split) if hasattr(planted, "within") else planted
    if hasattr(planted, "stamp"):
        return planted
    if isinstance(attack, type) or not hasattr(planted, "plant_for"):
        came = f"the class {attack.__name__}" if isinstance(attack, type) else f"a {type(attack).__name__}"
        raise InputError(f"attack is {came}; expected an attack such as BadNets(), a Planted, a Victim, a Poisoned, a trigger")
    made = planted.plant_for(split)
    return made.within(split) if hasattr(made, "within") else made
