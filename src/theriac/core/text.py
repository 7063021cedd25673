"""Texts from outside, made fit to be shown."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from typing import Any, TypeVar

T = TypeVar("T")

LONG = 4000  # characters of the longest text that a record holds
_HARMFUL = {"Cc", "Cf", "Cs", "Co", "Cn"}  # control, invisible (such as direction overrides), surrogates, private, unassigned
_HARMLESS = {"\n", "\t", "\u200c", "\u200d"}  # the joiners belong to several scripts
HALVES = re.compile(r"\\u[dD][89a-fA-F]")  # of a character, as JSON in ASCII writes them, alone or in pairs


def clean(text: str) -> str:
    """Replace what could hide, reorder or control text (terminal escapes, direction overrides) by a visible mark."""
    if text.isascii() and text.isprintable():
        return text
    return "".join("\ufffd" if unicodedata.category(c) in _HARMFUL and c not in _HARMLESS else c for c in text)


def line(text: str) -> str:
    """The same on one line."""
    return " ".join(clean(text).split())


def shorten(text: str, letters: int = 300) -> str:
    """The same on one line, with its middle left out where it is long."""
    short = line(text)
    half = letters // 2
    return short if len(short) <= letters else f"{short[:half]}...{short[-half:]}"


def in_markdown(text: str) -> str:
    """The same on one line, as it is, whatever Markdown or HTML it holds."""
    escaped = line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|~" else c for c in escaped)


def lookalike(name: str, others: Iterable[str]) -> str:
    """A hint for a message: which other name reads like ``name`` and is written otherwise; empty if none does.

    Names are compared letter by letter everywhere, so that "é" as one code point and as two are two names.
    """
    for other in others:
        if other == name or _folded(other) != _folded(name):
            continue
        if unicodedata.normalize("NFKC", other) == unicodedata.normalize("NFKC", name):
            return f"; {name!r} ({_points(name, other)}) and {other!r} ({_points(other, name)}) differ only in Unicode form"
        return f"; {name!r} and {other!r} differ only in {_difference(name, other)}"
    return ""


def _difference(name: str, other: str) -> str:
    """In what two names differ that read alike, but for their Unicode form."""
    first, second = (unicodedata.normalize("NFKC", text) for text in (name, other))
    if first.split() == second.split():
        return "spaces"
    return "upper and lower case" + ("" if first.casefold() == second.casefold() else " and in spaces")


def twins(names: Iterable[str]) -> str:
    """A hint for a message: the first two of many names that are one or read alike, and how many more; empty if no two do."""
    before: dict[str, str] = {}
    hints = []
    for name in names:
        first = before.get(_folded(name))
        before.setdefault(_folded(name), name)
        if first is not None:
            hints.append(f"; {name!r} stands there twice" if first == name else lookalike(first, [name]))
    more = f" (and {len(hints) - 1} more)" if len(hints) > 1 else ""
    return f"{hints[0]}{more}" if hints else ""


def repeated(names: Iterable[T]) -> T | None:
    """The first of the names that stands there twice; None if none does."""
    before: set[T] = set()
    for name in names:
        if name in before:
            return name
        before.add(name)
    return None


def is_utf8(text: str) -> bool:
    """Whether all characters of a text are whole ones, which UTF-8 can hold: a file name may have others."""
    return text.isascii() or as_utf8(text) == text


def as_utf8(text: str) -> str:
    """The text with a question mark for each character that is none, as a record can hold it."""
    return text.encode("utf-8", "replace").decode("utf-8")


def json_text(value: Any, *, indent: int | None = None, allow_nan: bool = True) -> str:
    """JSON of plain data in ASCII, whose texts are made UTF-8: what half a character is written to can't be read again."""
    text = json.dumps(value, indent=indent, allow_nan=allow_nan)
    if HALVES.search(text):
        text = json.dumps(json.loads(as_utf8(json.dumps(value, ensure_ascii=False))), indent=indent)
    return text


def _folded(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).split())


def _points(name: str, other: str) -> str:
    """Up to four code points from where two texts part."""
    at = next((i for i, (a, b) in enumerate(zip(name, other, strict=False)) if a != b), min(len(name), len(other)))
    shown = " ".join(f"U+{ord(c):04X}" for c in name[at : at + 4])
    return f"{shown or 'nothing'} at letter {at + 1}"


def seconds(value: float | None) -> str:
    """A duration in words, such as "2 min 5 s"."""
    if value is None:
        return "–"
    if value < 60:
        return f"{value:.1f} s"
    rounded = round(value)
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60} min"
