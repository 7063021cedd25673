"""Turn what was typed into objects: data, methods, models. Everything is checked before a run folder is touched."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from theriac.attacks import Attack
from theriac.cli import _options as opt
from theriac.cli._records import section
from theriac.core.card import Augment, Card, validated
from theriac.core.errors import InputError, unknown
from theriac.core.files import place
from theriac.core.method import create
from theriac.core.run import Run
from theriac.core.split import Data, Split
from theriac.data import align, load
from theriac.models import Builder
from theriac.training._parallel import world

if TYPE_CHECKING:
    from theriac.training_defenses import TrainingDefense


@dataclass(frozen=True)
class Source:
    """Where data come from, as plain data that a later command can load again."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)  # keywords of theriac.load
    augment: dict[str, Any] | None = None  # the policy that was asked for; None: the data set's own

    @classmethod
    def of(
        cls,
        name: str,
        size: int | None = None,
        label: str | None = None,
        sensitive: Sequence[str] | None = None,
        augment: Sequence[str] | None = None,
        more: Sequence[str] | None = None,
    ) -> Source:
        """From the command's options. Paths are kept absolute, so that they are found again from another folder."""
        options = opt.merged(opt.pairs(more, "--data-option"), size=size, label=label, sensitive=list(sensitive or ()) or None)
        if isinstance(options.get("test"), str):
            options["test"] = _absolute(options["test"])
        return cls(_absolute(name), options, _policy(augment))

    @classmethod
    def recorded(cls, record: Mapping[str, Any]) -> Source | None:
        """What a run folder says that its data were; None if it does not say."""
        told = section(section(record, "data"), "source")
        return validated(cls, told, "data source of run.json") if told else None

    def load(self) -> Data:
        """Load it.

        Raises:
            InputError: If it can't be found or is damaged.
        """
        for key in self.options:
            if key not in _LOADS:
                raise unknown("data option", key, _LOADS)
        policy = None if self.augment is None else validated(Augment, self.augment, "--augment")
        return load(self.name, augment=policy, **self.options)


# keywords of theriac.load that can be typed; the augmentation policy has an option of its own
_LOADS = tuple(k for k in inspect.signature(load).parameters if k not in ("source", "name_or_path", "augment"))


def _absolute(name: str) -> str:
    path = place(name)
    return str(path.resolve()) if name != "digits" and path.exists() else name  # digits is embedded, whatever lies around


def _policy(given: Sequence[str] | None) -> dict[str, Any] | None:
    if not given:
        return None
    options = {} if list(given) == ["none"] else opt.pairs(given, "--augment")
    return dataclasses.asdict(validated(Augment, options, "--augment"))


def with_augment(data: Data, policy: Augment) -> Data:
    """The same rows under another augmentation policy."""

    def change(split: Split) -> Split:
        return split.replace(card=split.card.replace(augment=policy))

    return Data(change(data.train), change(data.test), None if data.val is None else change(data.val))


def describe(data: Data, source: Source) -> dict[str, Any]:
    """What a record says about its data."""
    rows = {"train": len(data.train), "test": len(data.test)} | ({} if data.val is None else {"val": len(data.val)})
    return {"name": data.card.name, "source": dataclasses.asdict(source), "rows": rows, "hash": data_hash(data)}


def data_hash(data: Data) -> str:
    """One hash for the rows and labels of training and test."""
    parts = [data.card.content_hash or data.train.content_hash(), data.test.content_hash(), len(data.train)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


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
    text: str, options: Sequence[str] | None, poison_rate: float | None = None, target: int | None = None
) -> Attack | None:
    """The attack that was asked for; None for "none".

    Raises:
        InputError: On an unknown name, preset or option, or options without an attack.
    """
    given = opt.merged(opt.pairs(options, "--attack-option"), poison_rate=poison_rate, target=target)
    if text.lower() == "none":
        if given:
            raise InputError(f"{next(iter(given))} is given without an attack; add --attack NAME")
        return None
    found: Attack = method("attack", text, given)
    return found


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
    if where == "train":
        pool = data.train
    elif where == "val":
        if data.val is None:
            raise InputError(
                f"--clean-from is 'val'; {data.card.name!r} has no such rows (--data-option val_share=0.1 cuts some)"
            )
        pool = data.val
    else:
        same = ("size", "channels") if data.card.kind == "image" else ("label", "sensitive", "categorical", "drop")
        alike = {key: source.options[key] for key in same if key in source.options}
        if data.card.kind == "image":
            alike["size"] = list(data.card.size)
        pool = Source(_absolute(where), alike).load().train
        pool = align(pool, data.card, "the model's data (--clean-from)").replace(card=data.card)
    if isinstance(amount, int) and amount > len(pool):
        raise InputError(f"--clean asks for {amount} rows; there are {len(pool)}")
    return pool.sample(amount, seed=run.stream_seed("data", "clean"))
