"""Turn what was typed into a job: data, methods, models. Everything is checked before a run folder is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from theriac.attacks import Attack
from theriac.cli import _options as opt
from theriac.core import check
from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.method import create
from theriac.core.names import class_place
from theriac.runs import Request, Source
from theriac.training._parallel import world

if TYPE_CHECKING:
    from theriac.training_defenses import TrainingDefense

PLACES = 16  # classes that an attack is tried to be aimed at while its target is not known; more than its sources
Typed = Mapping[str, Any]
"""What was typed for a command: its parameters by name. A command lacks those that it has no option for."""


def source(typed: Typed) -> Source:
    """The source of the data that the command names."""
    return request(typed).source(str(typed["data"]))


def request(typed: Typed, *, measured: bool = False) -> Request:
    """What was typed about data and architecture; ``measured``: the data are for measuring alone."""
    get = typed.get
    rows = get("rows")
    if rows is not None:
        check.integer("--rows", rows, 1)
    return Request(
        data=get("data"),
        options=opt.merged(
            opt.pairs(get("data_option"), "--data-option"),
            size=get("size"),
            label=get("label"),
            sensitive=list(get("sensitive") or ()) or None,
        ),
        augment=_policy(get("augment")),
        rows=rows,
        model=get("model"),
        model_options=opt.merged(opt.pairs(get("model_option")), width=get("width")),
        weights_key=get("weights_key"),
        tensors_only=bool(get("tensors_only")),
        weights=get("weights"),
        wrapping=opt.pairs(get("wrap"), "--wrap"),
        measured=measured,
    )


def _policy(typed: Sequence[str] | None) -> dict[str, Any] | None:
    if not typed:
        return None
    if "none" in typed and len(typed) > 1:
        raise InputError("--augment none stands for no changes at all; leave it out, or the other --augment options")
    return {} if list(typed) == ["none"] else opt.pairs(typed, "--augment")


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


def attack(typed: Typed, card: Card | None = None) -> Attack | None:
    """The attack that was named; None for "none", or where the folder's own is meant.

    Args:
        typed: ``attack`` (NAME or NAME:PRESET), ``attack_option``, ``poison_rate`` and ``target``, the name of a class or else
            its place.
        card: Of the data, which knows the names; without it all but the target is looked at.

    Raises:
        InputError: On an unknown name, preset or option, a target that is no class, or options without an attack.
    """
    text = "none" if typed["attack"] is None else typed["attack"]
    options = opt.merged(
        opt.pairs(typed["attack_option"], "--attack-option"), poison_rate=typed.get("poison_rate"), target=typed["target"]
    )
    if text.lower() == "none":
        if options:
            raise InputError(f"{next(iter(options))} is given without an attack; add --attack NAME")
        return None
    target = options.pop("target", None)
    if target is not None and card is None:
        return _aimed_anywhere(text, options)
    if target is not None and card is not None:
        options["target"] = class_place(str(target), card)
    made: Attack = method("attack", text, options)
    return made


def _aimed_anywhere(text: str, options: Mapping[str, Any]) -> Attack:
    """The attack aimed at the first class that it may be aimed at: some are its sources, and no target is known yet."""
    refused: list[InputError] = []
    for target in range(PLACES):
        try:
            made: Attack = method("attack", text, {**options, "target": target})
        except InputError as error:
            refused.append(error)
        else:
            return made
    raise refused[0]


def training_defense(typed: Typed, beside: Attack | None) -> TrainingDefense | None:
    """The training-time defense that was named; None for "none".

    Raises:
        InputError: On an unknown name, preset or option, options without a defense, or a defense together with an option that
            excludes it.
    """
    text, recipe = typed["defense"], typed["recipe"]
    options = opt.pairs(typed["defense_option"], "--defense-option")
    if text.lower() == "none":
        if options:
            raise InputError(f"{next(iter(options))} is given without a defense; add --defense NAME")
        return None
    made: TrainingDefense = method("training", text, options)
    if recipe is not None:
        raise InputError(
            f"--recipe {recipe} is given with --defense; {made.name} brings its own recipe, which --defense-option changes"
        )
    if beside is not None and beside.trains:
        raise InputError(f"--attack {beside.name} controls training itself, so no --defense can train in its place")
    if world()[0] > 1:
        raise InputError(f"--defense {made.name} runs in one process; leave torchrun out")
    return made
