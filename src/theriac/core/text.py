"""Texts from outside, made fit to be shown."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

LONG = 4000  # characters of the longest text that a record holds
_HARMFUL = {"Cc", "Cf", "Cs", "Co", "Cn"}  # control, invisible (such as direction overrides), surrogates, private, unassigned
_HARMLESS = {"\n", "\t", "\u200c", "\u200d"}  # the joiners belong to several scripts


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
        words = [unicodedata.normalize("NFKC", text).split() for text in (name, other)]
        how = "spaces" if words[0] == words[1] else "upper and lower case"
        return f"; {name!r} and {other!r} differ only in {how}"
    return ""


def twins(names: Iterable[str]) -> str:
    """A hint for a message: the first two of many names that read alike; empty if no two do."""
    before: dict[str, str] = {}
    for name in names:
        if hint := lookalike(before.setdefault(_folded(name), name), [name]):
            return hint
    return ""


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
