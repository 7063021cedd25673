"""What all attacks share: which rows are poisoned, how rows are stamped, and on which rows success is counted."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch

from theriac.attacks._fitted import cached, key_of
from theriac.core.card import Card
from theriac.core.errors import InputError, shortened
from theriac.core.method import Method
from theriac.core.planted import Planted, Victim, note_if_idle, unchanged
from theriac.core.poisoned import CROSS, POISON, Poisoned, as_clean
from theriac.core.ranges import Fraction, Whole
from theriac.core.run import Run, as_run, own_terms
from theriac.core.split import Split
from theriac.models import Buildable
from theriac.models.network import as_stored
from theriac.training.plain import train
from theriac.training.recipes import Recipe


@dataclass(frozen=True, kw_only=True)
class Attack(Method):
    """Base of all attacks. A subclass says how a row is stamped (:meth:`_stamp`) and, if needed, what is fitted first."""

    kind: ClassVar[str] = "attack"
    controls_training: ClassVar[bool] = False
    clean_label: ClassVar[bool] = False  # poisons rows of the target class and leaves labels alone
    fits: ClassVar[bool] = False  # needs training rows before anything can be stamped
    stamps: ClassVar[Literal["image", "table"]] = "image"  # what kind of rows
    keeps_fit: ClassVar[bool] = False  # what it fits is costly, and kept in the cache folder
    not_fitted: ClassVar[tuple[str, ...]] = ("poison_rate",)  # options that do not change what is fitted
    knob: ClassVar[str] = ""  # the option that sets the trigger's strength; more is stronger, except for a number of levels
    outside: ClassVar[tuple[str, ...]] = ()  # options that name a user's files or data; with one of them the cache is not used
    reads: ClassVar[tuple[str, ...]] = ()  # others, of files that are read once and kept with what is planted

    target: Whole = 0  # BackdoorBench @ f02e353, all attacks
    poison_rate: Fraction = 0.1  # share of all training rows; same source
    mode: Literal["all_to_one", "all_to_all"] = "all_to_one"
    # "others": rows of other classes only (ours), so that the effective rate is ``poison_rate``;
    # "all": target rows too, as BackdoorBench draws them (on 10 balanced classes 9/10 of the rate is effective)
    draw_from: Literal["others", "all"] = "others"

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "train" in vars(cls):  # whatever it makes before the loop, too
            cls.train = own_terms()(cls.train)  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        if isinstance(self.target, str):  # an attack is written before its data, so it knows no names
            place = f"data.card.classes.index({shortened(self.target)})"
            raise InputError(f"target is {shortened(self.target)}; expected the class's number, such as {place}")
        super().__post_init__()
        if self.own_rows and self.draw_from != "others":
            raise InputError(f"draw_from is {self.draw_from!r}; {self.name} determines which classes it draws from")

    # for users

    @final
    def plant(self, split: Split, build: Buildable | None = None, run: Run | None = None) -> Planted:
        """Fit what must be fitted before stamping; for most attacks there is nothing, and this costs nothing.

        Args:
            split: Clean training rows.
            build: The model that a fitted attack may train as a surrogate.
            run: Device, streams.

        Raises:
            InputError: If the target is not a class of the data, or the trigger does not fit the rows.
        """
        split = as_clean(split, "split")
        self._check_card(split.card)
        with own_terms():
            return Planted(self, split.card, dict(self._fitted(split, build, as_run(run))))

    def plant_for(self, split: Split) -> Planted:
        """A Planted for stamping ``split`` when nothing has to be fitted; refused otherwise."""
        if self.must_fit:
            raise InputError(
                f"{self.name} is fitted on training rows; hand in what poison(), plant() or train() returned "
                "instead of the attack"
            )
        return self.plant(split)

    @final
    def poison(self, split: Split, run: Run | None = None, build: Buildable | None = None) -> Poisoned:
        """Poison a copy of ``split``; rows that are not chosen stay bit-identical.

        Deterministic in the run's ``poison`` stream.

        Raises:
            InputError: If the attack controls training (use :meth:`train`), the classes hold too few rows, or the trigger
                changes no row.
        """
        if self.trains:
            raise InputError(f"{self.name} controls training, so it has no poisoned set; use its train(build, split)")
        run = as_run(run)
        split = as_clean(split, "split")
        self._check_card(split.card)
        chosen = self.choose(split, run)  # first, since a rate may be impossible and fitting may take minutes
        cross = self.choose_cross(split, run, chosen)
        planted = self.plant(split, build, run)
        y = split.y.clone()
        kind = torch.zeros(len(split), dtype=torch.uint8, device=split.device)
        if not len(chosen) + len(cross):
            return Poisoned(split, kind, split.y, planted)
        changed = torch.cat([chosen, cross])
        stamped = split.rows(changed[:1]).new_empty((len(changed), *split.card.shape))
        idle = torch.zeros((), dtype=torch.int64, device=split.device)
        for variant, positions, start in (("poison", chosen, 0), ("cross", cross, len(chosen))):
            parts = list(zip(range(start, len(changed), 1024), positions.split(1024), strict=False))
            for at, part in run.each(f"{self.name} stamps", parts):
                if len(part):
                    rows = split.rows(part)
                    new = planted.stamp(rows, split.y[part], split.index[part], "train", variant)
                    stamped[at : at + len(part)] = as_stored(new, rows)  # as bytes, floats in [0, 1] would all be black
                    if variant == "poison":
                        idle = idle + unchanged(rows, stamped[at : at + len(part)]).sum()
        note = note_if_idle(self.name, int(idle), len(chosen), "chosen")
        if note:
            warnings.warn(note, stacklevel=2)
        if not self.keeps_labels:
            y[chosen] = planted.target(split.y[chosen], split.index[chosen])
        kind[chosen] = POISON
        kind[cross] = CROSS
        if len(cross):
            changed, order = changed.sort()
            stamped = stamped[order]
        return Poisoned(split.with_overlay(changed, stamped, y), kind, split.y, planted)

    @own_terms()
    def train(self, build: Buildable, split: Split, run: Run | None = None, recipe: str | Recipe = "short_8") -> Victim:
        """Train a victim: by default, plainly on ``poison(split)``."""
        run = as_run(run)
        poisoned = self.poison(split, run, build)
        return Victim(train(build, poisoned, recipe=recipe, run=run), poisoned.planted)

    def choose(self, split: Split, run: Run) -> torch.Tensor:
        """Positions of the rows to poison, ascending int64 (M,).

        Raises:
            InputError: If fewer rows can be poisoned than the rate asks for, or a rate above 0 comes to no row.
        """
        pool = self._pool_of(split).nonzero().flatten()
        if not len(pool) and self.poison_rate:
            why = f", for none is of class {split.card.classes[self.target]!r}, its target" if self.keeps_labels else ""
            raise InputError(f"none of the {len(split)} rows of split can be poisoned by {self.name}{why}")
        count = self._count(len(split), len(pool))
        if not count and self.poison_rate:
            raise InputError(
                f"poison_rate {self.poison_rate} comes to no row ({len(split)} rows, {len(pool)} can be poisoned); "
                "raise it, or say 0 to poison nothing"
            )
        if count > len(pool):
            raise InputError(
                f"poison_rate {self.poison_rate} asks for {count} of {len(split)} rows; only {len(pool)} can be poisoned"
            )
        drawn = torch.randperm(len(pool), generator=run.generator("poison", "rows"))[:count]
        return pool[drawn].sort().values.to(split.device)

    def choose_cross(self, split: Split, run: Run, chosen: torch.Tensor) -> torch.Tensor:
        """Positions of the rows that get the ``cross`` variant and keep their label, ascending int64 (M,).

        They are drawn among the rows that are not ``chosen``; most attacks have none.

        Raises:
            InputError: If too few rows are left.
        """
        count = self._cross_count(len(split), len(chosen))
        if not count:
            return chosen[:0]
        free = self._cross_pool_of(split)
        free[chosen.cpu()] = False
        pool = free.nonzero().flatten()
        if count > len(pool):
            raise InputError(f"{self.name} asks for {count} cross rows; only {len(pool)} of {len(split)} rows are free")
        drawn = torch.randperm(len(pool), generator=run.generator("poison", "cross"))[:count]
        return pool[drawn].sort().values.to(split.device)

    def kinds(self, split: Split, run: Run) -> torch.Tensor:
        """The kind of each row, uint8 (N,): ``CLEAN``, ``POISON`` or ``CROSS``."""
        kind = torch.zeros(len(split), dtype=torch.uint8, device=split.device)
        chosen = self.choose(split, run)
        kind[chosen] = POISON
        kind[self.choose_cross(split, run, chosen)] = CROSS
        return kind

    @property
    def trains(self) -> bool:
        """Whether this configuration trains the victim itself, so that it has no poisoned set."""
        return self.controls_training

    @property
    def inner(self) -> Attack:
        """The attack that stamps: this one, unless it is wrapped around another."""
        return self

    @property
    def full_title(self) -> str:
        """The name of this configuration in tables and reports."""
        return self.title

    @property
    def must_fit(self) -> bool:
        """Whether this configuration must see training rows before anything can be stamped."""
        return self.fits

    @property
    def by_row(self) -> bool:
        """Whether the wanted label depends on the row number too, and not on the true label alone."""
        return False

    @property
    def untargeted(self) -> bool:
        """Whether any label but the true one is a success."""
        return False

    @property
    def own_rows(self) -> bool:
        """Whether this configuration determines which classes it draws from, so that ``draw_from`` has no effect."""
        return False

    @property
    def keeps_labels(self) -> bool:
        """Whether this configuration poisons rows of the target class and leaves labels alone."""
        return self.clean_label

    # for subclasses

    def _pool(self, y: torch.Tensor) -> torch.Tensor:
        """Bool (N,), new: rows that may be poisoned, by their true labels on the CPU."""
        if self.keeps_labels:
            return y == self.target
        if self.draw_from == "all" or self.mode == "all_to_all":
            return torch.ones(len(y), dtype=torch.bool)
        return y != self.target

    def _pool_of(self, split: Split) -> torch.Tensor:
        """As :meth:`_pool`, for an attack that looks at more than the label."""
        return self._pool(split.y.cpu())

    def _cross_pool_of(self, split: Split) -> torch.Tensor:
        """As :meth:`_cross_pool`, for an attack that looks at more than the label."""
        return self._cross_pool(split.y.cpu())

    def _applies(self, state: Mapping[str, torch.Tensor], card: Card, split: Split) -> torch.Tensor | None:
        """Bool (N,): rows that the attack is for by more than their label, such as their group; None for all."""
        return None

    def _cross_pool(self, y: torch.Tensor) -> torch.Tensor:
        """Bool (N,), new: rows that may become cross rows, if they are not poisoned."""
        return torch.ones(len(y), dtype=torch.bool)

    def _counts(self, y: torch.Tensor) -> torch.Tensor:
        """Bool (B,): rows on which success is counted, if they do not have the attack's label already."""
        return torch.ones_like(y, dtype=torch.bool)

    def _crosses(self, y: torch.Tensor) -> torch.Tensor:
        """Bool (B,): rows that should keep their label under the cross stamp."""
        return torch.ones_like(y, dtype=torch.bool)

    def _count(self, rows: int, pool: int) -> int:
        """How many rows to poison, of ``rows`` in all and ``pool`` that may be."""
        return round(self.poison_rate * rows)

    def _cross_count(self, rows: int, chosen: int) -> int:
        """How many cross rows there are, beside ``chosen`` poisoned ones of ``rows`` in all."""
        return 0

    def _check_card(self, card: Card) -> None:
        if self.target >= card.num_classes:
            raise InputError(f"target is {self.target}; {card.name!r} has classes 0 to {card.num_classes - 1}")
        if card.kind != self.stamps:
            wants, came = ("tables", "holds images") if card.kind == "image" else ("images", "is a table")
            raise InputError(f"{self.name} stamps {wants}; {card.name!r} {came}")

    def _fit(self, split: Split, build: Buildable | None, run: Run) -> Mapping[str, torch.Tensor]:
        """State to keep with the attack: tensors by name."""
        return {}

    def _fitted(self, split: Split, build: Buildable | None, run: Run) -> Mapping[str, torch.Tensor]:
        """What :meth:`_fit` gives, from the cache where the attack keeps it there."""
        if not self.keeps_fit or any(getattr(self, name) for name in self.outside):
            return self._fit(split, build, run)
        options = {k: v for k, v in self.config().items() if k not in self.not_fitted}
        return cached(key_of(self.name, options, split, build, run), run, lambda: self._fit(split, build, run))

    @abstractmethod
    def _stamp(
        self, state: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str
    ) -> torch.Tensor:
        """Rows with the trigger: same shape and dtype, a new tensor."""

    def _stamp_cross(
        self, state: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str
    ) -> torch.Tensor:
        """Rows with what cross rows get: a spoiled or foreign trigger under which the label must stay."""
        raise InputError(f"{self.name} has no cross rows")

    def _target_of(self, y: torch.Tensor, index: torch.Tensor, classes: int) -> torch.Tensor:
        """As :meth:`_target`; an attack with ``by_row`` looks at the row numbers too."""
        return self._target(y, classes)

    def _target(self, y: torch.Tensor, classes: int) -> torch.Tensor:
        return (y + 1) % classes if self.mode == "all_to_all" else torch.full_like(y, self.target)


def kept_picture(file: str, state: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """A user's picture and how opaque it is, as read when the attack was planted; the file is not looked at again."""
    if not {"picture", "opacity"} <= state.keys():
        raise InputError(f"what was planted lacks the picture of file {file!r}; plant the attack again where that file is")
    return state["picture"], state["opacity"]
