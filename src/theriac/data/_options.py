"""What a caller of ``load`` may ask for, checked once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from theriac.core import check
from theriac.core.card import Augment
from theriac.core.errors import InputError, shortened


@dataclass(frozen=True, kw_only=True)
class Options:
    """The keywords of :func:`theriac.load`, in one form each."""

    test: Any = None
    label: str | None = None
    sensitive: tuple[str, ...] = ()
    missing_group: str = "refuse"
    size: tuple[int, int] | None = None
    channels: int | None = None
    augment: Augment | None = None
    categorical: tuple[str, ...] = ()
    drop: tuple[str, ...] | None = None
    val_share: float = 0.0
    test_share: float = 0.2
    seed: int = 0
    memory_budget: int = 4 << 30
    white: float | None = None
    missing: tuple[str, ...] = ()
    name: str | None = None

    @classmethod
    def of(cls, **options: Any) -> Options:
        """Check and tidy the keywords as they came.

        Raises:
            InputError: Naming the keyword at fault.
        """
        options["size"] = _size(options["size"])
        options["missing"] = _names("missing", options.get("missing"), "a text or several different ones") or ()
        for field in ("sensitive", "categorical", "drop"):
            options[field] = _names(field, options[field])
        options["sensitive"] = options["sensitive"] or ()
        options["categorical"] = options["categorical"] or ()
        if options["label"] is not None and (not isinstance(options["label"], str) or not options["label"]):
            raise InputError(f"label is {shortened(options['label'])}; expected the name of a column")
        if options["channels"] not in (None, 1, 3):
            raise InputError(f"channels is {options['channels']!r}; expected 1 (gray) or 3 (color)")
        if options["augment"] is not None and not isinstance(options["augment"], Augment):
            raise InputError(f"augment is a {type(options['augment']).__name__}; expected a theriac.Augment")
        for field in ("val_share", "test_share"):
            check.between(field, options[field], 0, 0.9, open_low=field == "test_share")
        check.one_of("missing_group", options.setdefault("missing_group", "refuse"), ("refuse", "own"))
        check.integer("seed", options["seed"], 0)
        check.integer("memory_budget", options["memory_budget"], 1)
        if options.get("white") is not None:
            check.positive("white", options["white"])
        name = options.get("name")
        if name is not None and (not isinstance(name, str) or not name):
            raise InputError(f"name is {name!r}; expected some text")
        return cls(**options)

    def but(self, **changes: Any) -> Options:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def refuse(self, what: str, *fields: str) -> None:
        """Refuse keywords that have no meaning for a kind of source.

        Raises:
            InputError: If one of them was given.
        """
        for field in fields:
            if getattr(self, field):
                raise InputError(f"{field} was given, but {what}")


def _names(
    field: str, value: str | Sequence[str] | None, expected: str = "a column name or several different ones"
) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, (str, Sequence)):
        raise InputError(f"{field} is {value!r}; expected {expected}")
    names = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(n, str) for n in names) or len(set(names)) < len(names):
        raise InputError(f"{field} is {value!r}; expected {expected}")
    return names


def _size(value: int | Sequence[int] | None) -> tuple[int, int] | None:
    if value is None:
        return None
    sides = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, Sequence) else ()
    if len(sides) != 2:
        raise InputError(f"size is {value!r}; expected a side in pixels, or (height, width)")
    for side in sides:
        check.integer("size", side, 1, 4096)
    return sides
