"""Texts from outside, made fit to be shown."""

from __future__ import annotations

import unicodedata

_HARMFUL = {"Cc", "Cf", "Cs", "Co", "Cn"}  # control, invisible (such as direction overrides), surrogates, private, unassigned
_KEPT = {"\n", "\t", "\u200c", "\u200d"}  # the joiners belong to several scripts


def clean(text: str) -> str:
    """Replace what could hide, reorder or control text (terminal escapes, direction overrides) by a visible mark."""
    if text.isascii() and text.isprintable():
        return text
    return "".join("\ufffd" if unicodedata.category(c) in _HARMFUL and c not in _KEPT else c for c in text)


def line(text: str) -> str:
    """The same on one line."""
    return " ".join(clean(text).split())


def shorten(text: str, letters: int = 300) -> str:
    """The same on one line, with its middle left out where it is long."""
    short = line(text)
    half = letters // 2
    return short if len(short) <= letters else f"{short[:half]}...{short[-half:]}"


def seconds(value: float | None) -> str:
    """A duration as people say it."""
    if value is None:
        return "–"
    if value < 60:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
