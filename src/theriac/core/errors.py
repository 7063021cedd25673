"""Errors that a person can act on: one sentence that names the argument, what came and what was expected."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class TheriacError(Exception):
    """Base of every error that Theriac raises on purpose."""


class InputError(TheriacError, ValueError):
    """The caller handed in something unusable; the command line ends with exit code 2."""


class UnsafeFileError(InputError):
    """A file from outside would run code if it were opened; it was not opened."""


class UneditableError(InputError):
    """A layer or a model whose weights can't be written so that the function follows; the message names the layer."""


class UnfairPairingError(InputError):
    """A method was offered something that its threat model does not allow, or lacks something that it needs."""


class ClassWarning(UserWarning):
    """Some classes have few clean rows or none, or are recognized less often after a repair."""


_SHOWN = 80  # characters of a value that a message shows


def shortened(value: object) -> str:
    """A value that was not expected, for a message: as written if it is plain, cut if that is long, else its type."""
    if value is not None and not isinstance(value, (bool, int, float, str, bytes, list, tuple, dict)):
        return f"a {type(value).__name__}"
    if isinstance(value, (list, tuple, dict)) and len(value) > _SHOWN:
        return f"a {type(value).__name__} of {len(value):,} items"
    try:
        shown = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or a list that holds itself
        return f"a {type(value).__name__} that is too long to show"
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."


def unknown(what: str, name: object, choices: Iterable[str]) -> InputError:
    """An error for an unknown name that suggests the nearest known ones.

    Args:
        what: What kind of thing was asked for, such as "attack".
        name: What came.
        choices: The known names.

    Returns:
        The error, ready to be raised.
    """
    known, came = sorted(choices), _cut(name) if isinstance(name, str) else shortened(name)
    small = [k.lower() for k in known]  # compared without regard to capitals, and named as they are
    close = difflib.get_close_matches(came.lower(), small, n=3, cutoff=0.5)
    near = [k for low in dict.fromkeys(close) for k in known if k.lower() == low][:3]
    hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"known: {', '.join(known) or 'none'}"
    return InputError(f"unknown {what} {came!r}; {hint}")


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


class BusyError(InputError):
    """Another process owns the folder; it can be tried again later."""


class StoppedError(TheriacError):
    """The run was stopped by hand; its folder can go on."""


class NothingToDoError(TheriacError):
    """What was asked for is there already, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"nothing to do: {folder} holds this very run, complete (--force does it again)")
        self.folder = folder
