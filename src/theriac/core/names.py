"""Names of classes, groups, columns and categories: which of one source are which of another."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.text import lookalike, repeated


def class_numbers(own: Card, card: Card, whose: str) -> list[int] | None:
    """For each class of ``own`` its number on ``card``, as ``theriac.data.align`` matches them; None if they are the same.

    Raises:
        InputError: If one has no namesake, or two have one name.
    """
    if own.classes == card.classes:
        return None
    for who, names in ((repr(own.name), own.classes), (whose, card.classes)):
        if (twice := repeated(names)) is not None:
            raise InputError(f"{who} has two classes that are called {twice!r}, which can't be told apart by name; rename one")
    numbers = places(own.classes, card.classes)
    if min(numbers) >= 0:
        return numbers
    if _is_bare(own) and own.num_classes <= card.num_classes:
        return list(range(own.num_classes))
    numbered = _is_numbered(own.classes) or _is_numbered(card.classes)
    if numbered and own.num_classes == card.num_classes and max(numbers) < 0:  # one name in common says that names count
        first = 0
        warnings.warn(
            f"the classes of {own.name!r} and of {whose} do not match by name, so they are taken by position: "
            f"{own.classes[first]!r} of the rows for {card.classes[first]!r} and so on; if that is wrong, name them alike",
            stacklevel=4,
        )
        return list(range(own.num_classes))
    if numbered or own.num_classes > card.num_classes:
        partly = "" if own.num_classes != card.num_classes else "; only some match by name, so name them alike"
        raise InputError(
            f"{whose} has {card.num_classes} classes; {own.name!r} has {own.num_classes} "
            f"({few(own.classes)}; {whose} knows {few(card.classes)}){partly}"
        )
    new = own.classes[numbers.index(-1)]
    hint = lookalike(new, card.classes)
    raise InputError(f"{own.name!r} has the class {new!r}, which {whose} does not know{hint}; it has {few(card.classes)}")


def places(names: Sequence[str], known: Sequence[str]) -> list[int]:
    """For each name its position among ``known``, or -1; names are compared as text, or by value if all are whole numbers."""
    key = _key(names, known)
    place = {key(name): k for k, name in enumerate(known)}
    return [place.get(key(name), -1) for name in names]


def class_place(text: str, card: Card) -> int:
    """The number of a class on a card, by its name, or else by a whole number.

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
            f"{card.name!r} ({shown}), or a number from 0 to {card.num_classes - 1}"
        )
    return place


def ranked(names: Sequence[str]) -> list[int]:
    """The positions of names in ascending order: whole numbers by value if all are, else text."""
    return sorted(range(len(names)), key=lambda k: (_key(names, ())(names[k]), names[k]))


def _key(names: Sequence[str], known: Sequence[str]) -> Callable[[str], Any]:
    """How names are compared; as text again where one side writes a number in two ways."""
    numeric = all(n.isascii() and n.removeprefix("-").isdigit() and len(n) < 20 for n in (*names, *known))
    if numeric and all(len({int(n) for n in side}) == len(side) for side in (names, known)):
        return int
    return _text


def _text(name: str) -> Hashable:
    return name


def _is_numbered(names: Sequence[str]) -> bool:
    """Whether the names are nothing but the positions."""
    return list(names) == [str(k) for k in range(len(names))]


def _is_bare(card: Card) -> bool:
    """Whether the card was made from tensors that came without one, so that nobody has named the classes."""
    return card.name == "unnamed" and not card.source and _is_numbered(card.classes)


def few(names: Sequence[str]) -> str:
    """The first eight names, for a message."""
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
