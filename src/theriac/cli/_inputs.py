"""Turn what was typed into objects: data, methods, models. Everything is checked before a run folder is touched."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from theriac.attacks import Attack
from theriac.cli import _options as opt
from theriac.cli._records import section
from theriac.core import check
from theriac.core.card import Augment, Card, validated
from theriac.core.errors import InputError, unknown
from theriac.core.method import create
from theriac.core.names import places
from theriac.core.paths import as_path
from theriac.core.run import Run
from theriac.core.split import Data, Split
from theriac.core.text import lookalike
from theriac.data import align, load, split_off
from theriac.models import Builder
from theriac.report import recording
from theriac.training._parallel import world

if TYPE_CHECKING:
    from theriac.training_defenses import TrainingDefense


@dataclass(frozen=True)
class Source:
    """Where data come from, as plain data that a later command can load again."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)  # keywords of theriac.load
    augment: dict[str, Any] | None = None  # the policy that was asked for; None: the data set's own
    rows: int | None = None  # at most so many of each part

    @classmethod
    def of(
        cls,
        name: str,
        size: int | None = None,
        label: str | None = None,
        sensitive: Sequence[str] | None = None,
        augment: Sequence[str] | None = None,
        more: Sequence[str] | None = None,
        rows: int | None = None,
    ) -> Source:
        """From the command's options. Paths are kept absolute, so that they are found again from another folder."""
        if rows is not None:
            check.whole("--rows", rows, 1)
        options = opt.merged(opt.pairs(more, "--data-option"), size=size, label=label, sensitive=list(sensitive or ()) or None)
        if isinstance(options.get("test"), str):
            options["test"] = _absolute(options["test"])
        return cls(_absolute(name), options, _policy(augment), rows)

    @classmethod
    def recorded(cls, record: Mapping[str, Any]) -> Source | None:
        """What a run folder says that its data were; None if it does not say."""
        told = section(section(record, "data"), "source")
        return validated(cls, told, "data source of run.json") if told else None

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
        most, seed = self.rows, self.options.get("seed", 0)
        if most is None:
            return data
        return _each(data, lambda split: split if len(split) <= most else split_off(split, most / len(split), seed=seed)[1])


# keywords of theriac.load that can be typed; the augmentation policy has an option of its own
_LOADS = tuple(k for k in inspect.signature(load).parameters if k not in ("source", "name_or_path", "augment"))


def _absolute(name: str) -> str:
    path = as_path("--data", name)
    return str(path.resolve()) if name != "digits" and path.exists() else name  # digits is embedded, whatever lies around


def _policy(given: Sequence[str] | None) -> dict[str, Any] | None:
    if not given:
        return None
    options = {} if list(given) == ["none"] else opt.pairs(given, "--augment")
    return dataclasses.asdict(validated(Augment, options, "--augment"))


def with_augment(data: Data, policy: Augment) -> Data:
    """The same rows under another augmentation policy."""
    return _each(data, lambda split: split.replace(card=split.card.replace(augment=policy)))


def _each(data: Data, change: Callable[[Split], Split]) -> Data:
    val = None if data.val is None else change(data.val)
    return dataclasses.replace(data, train=change(data.train), test=change(data.test), val=val)


def describe(data: Data, source: Source) -> dict[str, Any]:
    """What a record says about its data."""
    return recording.describe(data, dataclasses.asdict(source), known=source.known)


def method(kind: str, text: str, options: Mapping[str, Any]) -> Any:
    """A method by "name" or "name:preset", with options that differ from the preset.

    Raises:
        InputError: On an unknown name, preset or option, or a value of the wrong type.
    """
    for key in ("kind", "name", "preset"):  # keywords of create()
        if key in options:
            hint = f"; write {text.partition(':')[0]}:{options[key]}" if key == "preset" else ""
            raise InputError(f"{key!r} is not an option of {text.partition(':')[0]}{hint}")
    return create(kind, text, **options)


def attack(
    text: str,
    options: Sequence[str] | None,
    poison_rate: float | None = None,
    target: str | None = None,
    card: Card | None = None,
) -> Attack | None:
    """The attack that was asked for; None for "none".

    Args:
        text: NAME or NAME:PRESET.
        options: KEY=VALUE of the attack.
        poison_rate: As typed, if it was.
        target: Name of a class, or else its place, if it was typed.
        card: Of the data, which knows the names; without it all but the target is looked at.

    Raises:
        InputError: On an unknown name, preset or option, a target that is no class, or options without an attack.
    """
    given = opt.merged(opt.pairs(options, "--attack-option"), poison_rate=poison_rate, target=target)
    if text.lower() == "none":
        if given:
            raise InputError(f"{next(iter(given))} is given without an attack; add --attack NAME")
        return None
    if "target" in given:
        wanted = given.pop("target")
        if card is not None:
            given["target"] = class_place(str(wanted), card)
    found: Attack = method("attack", text, given)
    return found


def class_place(text: str, card: Card) -> int:
    """The place of a class among those of a card, by its name, or else by a whole number.

    Raises:
        InputError: If it is neither.
    """
    place, number = places((text,), card.classes)[0], text.isascii() and text.removeprefix("-").isdigit()
    if place < 0 and number and 0 <= float(text) < card.num_classes:
        place = int(text)
    if place < 0:
        shown = ", ".join(card.classes[:8]) + (", ..." if card.num_classes > 8 else "")
        raise InputError(
            f"--target is {text[:80] if number else repr(text[:80])}{lookalike(text, card.classes)}; expected a class of "
            f"{card.name!r} ({shown}), or a place from 0 to {card.num_classes - 1}"
        )
    return place


def training_defense(
    text: str, options: Sequence[str] | None, chosen: Attack | None, recipe: str | None
) -> TrainingDefense | None:
    """The training-time defense that was asked for; None for "none".

    Raises:
        InputError: On an unknown name, preset or option, options without a defense, or beside what can't go with it.
    """
    given = opt.pairs(options, "--defense-option")
    if text.lower() == "none":
        if given:
            raise InputError(f"{next(iter(given))} is given without a defense; add --defense NAME")
        return None
    found: TrainingDefense = method("training", text, given)
    if recipe is not None:
        raise InputError(f"--recipe {recipe} is given with --defense; {found.name} trains by its own, so say --defense-option")
    if chosen is not None and chosen.trains:
        raise InputError(f"--attack {chosen.name} controls training itself, so no --defense can train in its place")
    if world()[0] > 1:
        raise InputError(f"--defense {found.name} runs in one process; leave torchrun out")
    return found


def builder(name: str | None, width: int | None, options: Sequence[str] | None, card: Card, run: Run, train: Split) -> Builder:
    """A builder that is known to work for these data.

    Raises:
        InputError: On an unknown architecture or option.
    """
    name = name or ("mlp" if card.kind == "table" else "preact_resnet18")
    found = Builder(name.lower(), opt.merged(opt.pairs(options), width=width))
    try:
        found(train, run)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"--model {name} can't be built with {dict(found.options)}: {str(error).splitlines()[0]}") from None
    return found


def alike(where: str, card: Card, source: Source) -> Source:
    """Other data, to be read as the model's are: label, columns, size.

    Args:
        where: Their name or path.
        card: Of the model's data.
        source: Of the model's data.
    """
    table = ("label", "sensitive", "categorical", "drop", "missing", "missing_group")
    same = ("size", "channels", "white") if card.kind == "image" else table
    options = {key: source.options[key] for key in same if key in source.options}
    if card.kind == "image":
        options["size"] = list(card.size)
    return Source(_absolute(where), options)


def clean_rows(data: Data, source: Source, where: str, amount: int | float, run: Run) -> Split:
    """Clean rows for a repair, drawn from the run's ``data`` stream.

    Args:
        data: The model's data.
        source: Where they come from; other data are read in the same way (label, columns, size).
        where: "train", "val", or the name or path of other data, whose training rows are taken.
        amount: A number of rows, or a share of them.
        run: Gives the draw.

    Raises:
        InputError: If there are none, too few, or they are of another kind.
    """
    if where in ("train", "val") and not source.known:
        warnings.warn(
            f"the clean rows are drawn from {data.card.name!r}, whose past is unknown here: if its rows are poisoned, the "
            "repair learns from poison (--clean-from takes rows that you trust)",
            stacklevel=2,
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
        pool = alike(where, data.card, source).load().train
        pool = align(pool, data.card, "the model's data (--clean-from)").replace(card=data.card)
    if isinstance(amount, int) and amount > len(pool):
        raise InputError(f"--clean asks for {amount} rows; there are {len(pool)}")
    return pool.sample(amount, seed=run.stream_seed("data", "clean"))
