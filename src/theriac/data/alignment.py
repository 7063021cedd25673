"""Rows of one source in the terms of another: classes, groups, columns and categories go by name, never by position alone."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from theriac.core.card import Card, Column
from theriac.core.errors import InputError
from theriac.core.names import class_numbers, few, places
from theriac.core.planted import planted_on
from theriac.core.ranges import typed
from theriac.core.split import Split
from theriac.core.text import lookalike


@typed()
def align(split: Split, card: Card, whose: str = "the model") -> Split:
    """The same rows, with labels, groups, columns and categories numbered as on ``card``.

    Names are compared letter by letter, or as numbers where all names of both are whole numbers ("01" is "1"). Rows of some of
    the card's classes are enough. A source that only numbers its classes (0, 1, ...) is taken by position where there are as
    many, with a warning; so is a Split that was made without any card, where nobody has named a class. Groups are renumbered
    where the card knows all of them, and else left as they are. Values that a categorical column of the card does not know
    become missing, with a warning.

    Args:
        split: Rows of a source of its own.
        card: Of the model, or of the data, that they are for.
        whose: What the card belongs to, for messages.

    Returns:
        The split itself where nothing differs.

    Raises:
        InputError: If kind or shape differ, or a class or column has no namesake.
    """
    own = split.card
    if own.kind != card.kind or (own.kind == "image" and own.shape != card.shape):
        raise InputError(f"{whose} takes {card.kind} rows of {card.shape}; {own.name!r} has {own.kind} rows of {own.shape}")
    labels = class_numbers(own, card, whose)
    x = _columns(split, card, whose) if own.kind == "table" else None
    groups = _groups(own, card)
    if x is None and labels is None and groups is None and own.classes == card.classes:
        return split
    y = split.y if labels is None else torch.tensor(labels, device=split.device)[split.y]
    group = split.group
    if groups is not None and group is not None:
        group = torch.tensor(groups, device=split.device)[group]
    new = own.replace(classes=card.classes, columns=card.columns, groups=own.groups if groups is None else card.groups)
    if x is not None:
        return Split(x, y, group=group, index=split.index, card=new)
    return split.replace(y=y, group=group, card=new)


def align_to(split: Split, model: Any) -> Split:
    """The same rows in the terms of the model's card; the split itself if the model carries none.

    Args:
        split: Rows that a model is to be trained, repaired or judged on.
        model: Anything; a card is looked for at ``model.card``, then, of a Victim, at ``model.model.card``. What a module wraps
            may take other rows than the module itself, so its card is not looked at.

    Raises:
        InputError: As :func:`align`.
    """
    card = getattr(model, "card", None)
    if not isinstance(card, Card) and not isinstance(model, nn.Module):
        card = getattr(getattr(model, "model", None), "card", None)
    return align(split, card, "the model") if isinstance(card, Card) else split


def aligned(split: Split, model: Any, attack: Any) -> tuple[Split, Any]:
    """The rows in the model's terms, and the trigger ready to stamp them; None for no attack.

    What an attack says by position, as the number of its target, is meant as the rows number it that came, and the columns that
    a function of the user's own knows are theirs. What was planted already knows classes and columns by name.

    Args:
        split: Rows that a model is to be judged on.
        model: As for :func:`align_to`.
        attack: As for :func:`theriac.core.planted.planted_on`.

    Raises:
        InputError: As :func:`align` and :func:`theriac.core.planted.planted_on`.
    """
    here = align_to(split, model)
    if here is not split and hasattr(getattr(attack, "planted", attack), "plant_for") and not isinstance(attack, type):
        attack = planted_on(attack, split)
    return here, planted_on(attack, here)


def _groups(own: Card, card: Card) -> list[int] | None:
    """For each of the source's groups its number on the card; None if they are the same, or not all known there."""
    if own.groups == card.groups or not own.groups:
        return None
    numbers = places(own.groups, card.groups)
    return None if min(numbers) < 0 else numbers


def _columns(split: Split, card: Card, whose: str) -> torch.Tensor | None:
    """The rows with the card's columns in its order and codes, (N, F); None if nothing differs."""
    own = split.card.columns
    same = [(c.name, c.kind, c.categories) for c in own] == [(c.name, c.kind, c.categories) for c in card.columns]
    if same:
        return None
    at = {column.name: k for k, column in enumerate(own)}
    names = [column.name for column in card.columns]
    missing = [name for name in names if name not in at]
    extra = [name for name in at if name not in names]
    if missing or extra:
        lack = f"lacks the column {missing[0]!r}" if missing else f"has a column {extra[0]!r} more"
        hint = lookalike(missing[0], at) if missing else lookalike(extra[0], names)
        raise InputError(f"{split.card.name!r} {lack}{hint}; {whose} takes {few(names)}")
    x = split.x[:, [at[column.name] for column in card.columns]]
    for k, column in enumerate(card.columns):
        before = own[at[column.name]]
        if before.kind != column.kind:
            raise InputError(f"column {column.name!r} of {split.card.name!r} is {before.kind}; {whose} has it {column.kind}")
        if before.categories != column.categories:
            x[:, k] = _codes(x[:, k], before, column, whose)
    return x


def _codes(values: torch.Tensor, before: Column, column: Column, whose: str) -> torch.Tensor:
    place = places(before.categories, column.categories)
    table = torch.tensor([float("nan") if k < 0 else float(k) for k in place], device=values.device)
    there = ~values.isnan()
    out = values.clone()
    out[there] = table[values[there].long()]
    lost = out.isnan() & there
    if bool(lost.any()):
        new = before.categories[int(values[lost][0])]
        hint = lookalike(new, column.categories)
        warnings.warn(
            f"column {column.name!r} has {int(lost.sum())} values that {whose} does not know, such as {new!r}{hint}; "
            "they are taken as missing",
            stacklevel=5,
        )
    return out
