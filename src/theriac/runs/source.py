"""Where rows come from: data that can be loaded again, and clean rows drawn from them."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from theriac.core import check
from theriac.core.card import Augment, Card, validated
from theriac.core.errors import InputError, unknown
from theriac.core.paths import as_path
from theriac.core.ranges import Seed, check_fields
from theriac.core.run import Run
from theriac.core.split import Data, Split
from theriac.data import DISTURBANCES, SHIFTS, align, disturbed, load, shifted, split_off
from theriac.data.loading import TABLES
from theriac.repairs.base import FEW
from theriac.runs.folder import section


@dataclass(frozen=True)
class Source:
    """Where data come from, as plain data that a later command can load again."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)  # keywords of theriac.load
    augment: dict[str, Any] | None = None  # the policy that was asked for; None: the data set's own
    rows: int | None = None  # most rows of each part
    test_rows: int | None = None  # most rows of the test part, in place of `rows`: a test takes as long as its rows are many
    classes: int | None = None  # only the first so many classes
    disturbed: dict[str, Any] | None = None  # keywords of theriac.data.disturbed, for the training rows

    @classmethod
    def of(cls, name: str, options: Mapping[str, Any] | None = None, **more: Any) -> Source:
        """The same with absolute paths, so that the data are found again from another folder.

        Args:
            name: A known name, or the path of a folder or file.
            options: Keywords of ``theriac.load``.
            **more: ``augment``, ``rows``, ``test_rows``, ``classes`` and ``disturbed``.

        Raises:
            InputError: On a number of rows or classes, an augmentation policy or a disturbance that can't be.
        """
        options = dict(options or {})
        if isinstance(options.get("test"), str):
            options["test"] = absolute(options["test"])
        if more.get("augment") is not None:
            more["augment"] = dataclasses.asdict(validated(Augment, more["augment"], "--augment"))
        if more.get("rows") is not None:
            check.integer("rows", more["rows"], 1)
        if more.get("test_rows") is not None:
            check.integer("test_rows", more["test_rows"], 1)
        if more.get("classes") is not None:
            check.integer("classes", more["classes"], 2)
        if more.get("disturbed") is not None:
            more["disturbed"] = dataclasses.asdict(validated(_Disturbed, more["disturbed"], "disturbed"))
        return cls(absolute(name), options, **more)

    @classmethod
    def recorded(cls, record: Mapping[str, Any]) -> Source | None:
        """The source in a run folder's record; None if the record has none."""
        source = section(section(record, "data"), "source")
        return validated(cls, source, "data source of run.json") if source else None

    def facts(self) -> dict[str, Any]:
        """What decides the rows, as plain data; of what is done to them only what is."""
        more = {name: getattr(self, name) for name in ("test_rows", "classes", "disturbed")}
        plain = {"name": self.name, "options": self.options, "rows": self.rows}
        return plain | {name: value for name, value in more.items() if value is not None}

    @property
    def known(self) -> bool:
        """Whether rows for training and test are those of a published set, taken by its name, and not from any file."""
        return not Path(self.name).is_absolute() and "test" not in self.options

    def load(self) -> Data:
        """Load it.

        Raises:
            InputError: If it can't be found or is damaged.
        """
        for key in self.options:
            if key not in _LOADS:
                raise unknown("data option", key, _LOADS)
        policy = None if self.augment is None else validated(Augment, self.augment, "--augment")
        data = load(self.name, augment=policy, **self.options)
        seed, count = self.options.get("seed", 0), self.classes
        if count is not None:
            check.integer("classes", count, 2, data.card.num_classes)
            card = data.card.replace(classes=data.card.classes[:count], content_hash="")
            data = _each(data, lambda split: split.where(split.y < count).replace(card=card))
        if self.rows is not None or self.test_rows is not None:
            cut = _each(data, lambda split: at_most(split, self.rows, seed))
            data = cut if self.test_rows is None else dataclasses.replace(cut, test=at_most(data.test, self.test_rows, seed))
            if seed:  # other rows of the same number, so another hash
                unhashed = data.card.replace(content_hash="")
                data = _each(data, lambda split: split.replace(card=unhashed))
        if self.disturbed is not None:
            data = dataclasses.replace(data, train=disturbed(data.train, **self.disturbed))
        return data


def at_most(split: Split, rows: int | None, seed: int) -> Split:
    """So many rows at most, with every class in proportion; says which classes that leaves without a row."""
    if rows is None or len(split) <= rows:
        return split
    few = split_off(split, rows / len(split), seed=seed)[1]
    lost = ((split.count() > 0) & (few.count() == 0)).nonzero().flatten().tolist()
    if lost:
        named = ", ".join(repr(split.card.classes[k][:40]) for k in lost[:5]) + (", ..." if len(lost) > 5 else "")
        warnings.warn(
            f"{rows:,} of {len(split):,} rows leave none of {len(lost)} classes ({named}), which have few; take more rows",
            stacklevel=4,
        )
    return few


@dataclass(frozen=True, kw_only=True)
class _Disturbed:
    kind: str
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.kind not in DISTURBANCES:
            raise unknown("disturbance", self.kind, DISTURBANCES)


SHARE = 0.05  # of clean rows; BackdoorBench's


@dataclass(frozen=True, kw_only=True)
class Clean:
    """Clean rows that a repair is given.

    Args:
        amount: A number of rows, or a share of the pool; None takes :data:`SHARE` of it, or 20 rows for each class
            where that is more, and all of a smaller pool (half of it where it is the model's own rows).
        source: The pool: "train", "val", or the name or path of other data, of which the training rows are taken, or all rows
            where they have no test part of their own.
        stratified: Take the same number of rows of every class, as near as it can be.
        seed: Seed of the draw; None takes the job's, so that other seeds draw other rows.
        shift: What makes them unlike the model's data, as :func:`theriac.data.shifted` says; empty: nothing.
    """

    amount: int | float | None = SHARE
    source: str = "train"
    stratified: bool = False
    seed: Seed | None = None
    shift: str = ""

    def __post_init__(self) -> None:
        number = self.amount is None or (type(self.amount) is int and self.amount >= 1)
        share = isinstance(self.amount, float) and 0 < self.amount <= 1
        if not number and not share:
            raise InputError(f"amount is {self.amount!r}; expected a number of rows, or a share in (0, 1]")
        check_fields(self)
        if self.shift and self.shift not in SHIFTS:
            raise unknown("shift", self.shift, SHIFTS)


# keywords of theriac.load that can be typed; the augmentation policy has an option of its own
_LOADS = tuple(k for k in inspect.signature(load).parameters if k not in ("source", "name_or_path", "augment"))


def refuse_table(where: str, card: Card, option: str, whose: str = "") -> None:
    """Refuse a table that is named beside pictures, before it is read as pictures.

    Raises:
        InputError: If it is one.
    """
    if card.kind == "image" and as_path(option, where).suffix.lower() in TABLES:
        raise InputError(f"{option} is {where!r}, a table; {whose or f'the model of {card.name!r} takes pictures'}")


def absolute(name: str) -> str:
    """A path made absolute; names of known sets stay as they are."""
    path = as_path("--data", name)
    return str(path.resolve()) if name != "digits" and path.exists() else name  # digits is no path


def with_augment(data: Data, policy: Augment) -> Data:
    """The same rows under another augmentation policy."""
    return _each(data, lambda split: split.replace(card=split.card.replace(augment=policy)))


def _each(data: Data, change: Callable[[Split], Split]) -> Data:
    val = None if data.val is None else change(data.val)
    return dataclasses.replace(data, train=change(data.train), test=change(data.test), val=val)


def alike(where: str, card: Card, source: Source, option: str) -> Source:
    """Other data, to be read as the model's are: label, columns, size.

    Args:
        where: Their name or path.
        card: Of the model's data.
        source: Of the model's data.
        option: By which they were named, for messages.

    Raises:
        InputError: If they are a table and the model takes pictures.
    """
    refuse_table(where, card, option)
    table = ("label", "sensitive", "categorical", "drop", "missing", "missing_group")
    same = ("size", "channels", "white") if card.kind == "image" else table
    options = {key: source.options[key] for key in same if key in source.options}
    if card.kind == "image":
        options["size"] = list(card.size)
    return Source(absolute(where), options)


def clean_rows(data: Data, source: Source, clean: Clean, run: Run) -> Split:
    """Clean rows for a repair, drawn from the run's ``data`` stream.

    Args:
        data: The model's data.
        source: Where they come from; other data are read in the same way (label, columns, size).
        clean: The pool, and how many of it.
        run: Gives the draw.

    Raises:
        InputError: If there are none, too few, or they are of another kind.
    """
    where, amount = clean.source, clean.amount
    pool = _pool(data, source, where, "the repair learns from poison")
    if isinstance(amount, int) and amount > len(pool):
        raise InputError(f"--clean asks for {amount} rows; there are {len(pool)}")
    if amount is None:
        most = len(pool) // 2 if where == "train" else len(pool)
        amount = max(1, round(SHARE * len(pool)), min(FEW * data.card.num_classes, most))
    seed = run.stream_seed("data", "clean") if clean.seed is None else clean.seed
    drawn = pool.sample(amount, seed=seed, stratified=clean.stratified)
    return shifted(drawn, clean.shift, seed=seed) if clean.shift else drawn


def for_audit(data: Data, source: Source, where: str) -> Data:
    """The data of a model for an audit, with clean rows for training: it fine-tunes and distills on them.

    Args:
        data: The model's data.
        source: Where they come from; other data are read in the same way.
        where: "train", "val", or the name or path of other data.

    Raises:
        InputError: If there are none, or they are of another kind.
    """
    harm = "fine-tuning teaches the backdoor, and the audit finds what it taught itself"
    return dataclasses.replace(data, train=_pool(data, source, where, harm))


def _pool(data: Data, source: Source, where: str, harm: str) -> Split:
    """Rows that count as clean; a warning says what harm is done where they may not be."""
    if where in ("train", "val") and not source.known:
        warnings.warn(
            f"the clean rows are drawn from {data.card.name!r}, whose origin is unknown: if its rows are poisoned, {harm} "
            "(--clean-from takes rows that you trust)",
            stacklevel=3,
        )
    if where == "train":
        pool = data.train
    elif where == "val":
        if data.val is None:
            raise InputError(
                f"--clean-from is 'val'; {data.card.name!r} has no such rows (--data-option val_share=0.1 cuts some)"
            )
        pool = data.val
    else:
        other = alike(where, data.card, source, "--clean-from")
        loaded = other.load()
        pool = loaded.train if other.name == source.name else loaded.joined()  # of the model's own data some are for the test
        pool = align(pool, data.card, "the model's data (--clean-from)").replace(card=data.card)
    return pool
