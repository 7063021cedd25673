"""Rows of one source in the terms of another: classes, columns and categories matched by name, never by position alone."""

from __future__ import annotations

import warnings

import torch

from theriac.core.card import Card, Column
from theriac.core.errors import InputError
from theriac.core.ranges import typed
from theriac.core.split import Split


@typed()
def align(split: Split, card: Card, whose: str) -> Split:
    """The same rows, with labels, columns and categories as ``card`` counts them.

    A source that only numbers its classes (0, 1, ...) is taken by position where there are as many. Values that a
    categorical column of the card does not know become missing, with a warning.

    Args:
        split: Rows of a source of its own.
        card: Of the model, or of the data, that they are for.
        whose: Of what the card is, for messages.

    Returns:
        The split itself where nothing differs.

    Raises:
        InputError: If kind or shape differ, or a class or column has no namesake.
    """
    own = split.card
    if own.kind != card.kind or (own.kind == "image" and own.shape != card.shape):
        raise InputError(f"{whose} takes {card.kind} rows of {card.shape}; {own.name!r} has {own.kind} rows of {own.shape}")
    labels = _labels(own, card, whose)
    y = split.y if labels is None else torch.tensor(labels, device=split.device)[split.y]
    x = _columns(split, card, whose) if own.kind == "table" else None
    if x is None and labels is None and own.classes == card.classes:
        return split
    new = own.replace(classes=card.classes, columns=card.columns)
    if x is not None:
        return Split(x, y, group=split.group, index=split.index, card=new)
    return split.replace(y=y, card=new)


def _labels(own: Card, card: Card, whose: str) -> list[int] | None:
    """For each of the source's classes its number on the card; None if they are the same."""
    if own.classes == card.classes:
        return None
    numbered = any(classes == tuple(map(str, range(len(classes)))) for classes in (own.classes, card.classes))
    if numbered and own.num_classes == card.num_classes:
        return None
    if own.num_classes > card.num_classes or numbered:
        raise InputError(f"{whose} has {card.num_classes} classes; {own.name!r} has {own.num_classes}")
    missing = [name for name in own.classes if name not in card.classes]
    if missing:
        raise InputError(f"{own.name!r} has the class {missing[0]!r}, which {whose} does not know; it has {_few(card.classes)}")
    return [card.classes.index(name) for name in own.classes]


def _columns(split: Split, card: Card, whose: str) -> torch.Tensor | None:
    """The rows with the card's columns in its order and codes, (N, F); None if nothing differs."""
    own = split.card.columns
    same = [(c.name, c.kind, c.categories) for c in own] == [(c.name, c.kind, c.categories) for c in card.columns]
    if same:
        return None
    at = {column.name: k for k, column in enumerate(own)}
    missing = [column.name for column in card.columns if column.name not in at]
    extra = [column.name for column in own if column.name not in {c.name for c in card.columns}]
    if missing or extra:
        told = f"lacks the column {missing[0]!r}" if missing else f"has a column {extra[0]!r} more"
        raise InputError(f"{split.card.name!r} {told}; {whose} takes {_few([c.name for c in card.columns])}")
    x = split.x[:, [at[column.name] for column in card.columns]]
    for k, column in enumerate(card.columns):
        before = own[at[column.name]]
        if before.kind != column.kind:
            raise InputError(f"column {column.name!r} of {split.card.name!r} is {before.kind}; {whose} has it {column.kind}")
        if before.categories != column.categories:
            x[:, k] = _codes(x[:, k], before, column, whose)
    return x


def _codes(values: torch.Tensor, before: Column, column: Column, whose: str) -> torch.Tensor:
    known = {name: float(code) for code, name in enumerate(column.categories)}
    table = torch.tensor([known.get(name, float("nan")) for name in before.categories], device=values.device)
    there = ~values.isnan()
    out = values.clone()
    out[there] = table[values[there].long()]
    lost = int((out.isnan() & there).sum())
    if lost:
        new = next(name for name in before.categories if name not in known)
        warnings.warn(
            f"column {column.name!r} has {lost} values that {whose} does not know, such as {new!r}; they are taken as missing",
            stacklevel=5,
        )
    return out


def _few(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
