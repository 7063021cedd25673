"""The card: what a data set is, carried along with every split and saved with every model."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Interval

from theriac.core.errors import InputError, unknown
from theriac.core.ranges import Whole, check_fields, hints_of, refusal
from theriac.core.text import is_utf8

STRICT = {"extra": "forbid"}
"""Unknown keys are refused at every level when a record is read back."""
MAX_ROW = 3 << 22  # values of one picture, as of one of 2048 x 2048 pixels in color


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How training images of a data set may be changed without changing what they show.

    It belongs to the data and not to the method: digits and traffic signs are never flipped.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    crop_pad: Whole = 0  # pixels of padding before a random crop back to size; 0 = no crop
    pad_mode: Literal["zero", "reflect"] = "zero"
    flip: bool = False  # horizontal, with probability 1/2
    cutout: Whole = 0  # side of a square set to zero; 0 = none
    rotation: Annotated[float, Interval(ge=0, le=180)] = 0.0  # largest angle in degrees, drawn uniformly from both sides
    randaugment: Whole = 0  # operations of RandAugment on each picture, before all else; 0 = none
    magnitude: Annotated[float, Interval(ge=0, le=30)] = 9.0  # of these operations

    def __post_init__(self) -> None:
        check_fields(self)

    def fits(self, size: tuple[int, int]) -> None:
        """Refuse padding or a hole that would leave nothing of pictures of ``size``, (height, width) in pixels.

        Raises:
            InputError: If ``crop_pad`` is not below the shorter side, or ``cutout`` above it.
        """
        side = min(size)
        for name, value, most in (("crop_pad", self.crop_pad, side - 1), ("cutout", self.cutout, side)):
            if value > most:
                raise InputError(f"{name} is {value}; pictures of {size[0]} x {size[1]} pixels take at most {most}")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table: numbers, or codes into ``categories`` (code k means ``categories[k]``)."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    name: str
    kind: Literal["numeric", "categorical"] = "numeric"
    categories: tuple[str, ...] = ()
    unit: str = ""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a data set is. Everything here is plain data and survives a JSON round trip."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    name: str = "unnamed"
    kind: Literal["image", "table"] = "image"
    classes: tuple[str, ...]
    groups: tuple[str, ...] = ()  # names of the sensitive cells, by group id
    size: tuple[Whole, Whole] = (0, 0)  # height and width in pixels (images)
    channels: Whole = 0
    columns: tuple[Column, ...] = ()  # (tables)
    mean: tuple[float, ...] = ()  # per channel, of the training pixels in [0, 1]
    std: tuple[float, ...] = ()
    augment: Augment = field(default_factory=Augment)
    source: str = ""
    license: str = ""
    content_hash: str = ""  # sha256 of rows and labels of the training split

    def __post_init__(self) -> None:
        check_fields(self)
        self._check_text()
        if self.kind == "image" and math.prod((self.channels, *self.size)) > MAX_ROW:
            raise InputError(f"size is {tuple(self.size)} with {self.channels} channels; a row may have {MAX_ROW:,} values")
        if self.kind == "image" and min(self.size) > 0:
            self.augment.fits(self.size)

    def _check_text(self) -> None:
        """Refuse half characters, which no record can hold: a model with them could be written and not be read again."""
        texts = [("name", self.name), ("source", self.source)]
        texts += [(name, word) for name in ("classes", "groups") for word in getattr(self, name)]
        texts += [("columns", word) for column in self.columns for word in (column.name, *column.categories)]
        for name, word in texts:
            if not is_utf8(word):
                raise InputError(f"{name} holds {ascii(word)[:80]}, in which a character is not whole; rename it")

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row: (C, H, W) for images, (F,) for tables."""
        return (self.channels, *self.size) if self.kind == "image" else (len(self.columns),)

    def replace(self, **changes: Any) -> Card:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Card:
        """The inverse of :meth:`to_dict`; unknown or ill-typed fields are refused.

        Raises:
            InputError: If a field is unknown, missing or of the wrong type.
        """
        card: Card = validated(cls, data, "card")
        return card


@functools.cache  # made anew, it cost 13 ms each time
def _adapter(cls: type[Any]) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def validated(cls: type[Any], data: Mapping[str, Any], what: str) -> Any:
    """Build a dataclass from plain data, refusing unknown keys and wrong types at every level.

    Args:
        cls: A dataclass.
        data: Plain data, as JSON or YAML gives it.
        what: How to call the thing in an error message.

    Raises:
        InputError: Naming the first field at fault.
    """
    from pydantic import ValidationError  # not needed to import a method

    if not isinstance(data, Mapping):
        raise InputError(f"{what} is a {type(data).__name__}; expected a mapping of field names to values")
    names = {f.name for f in dataclasses.fields(cls) if f.init}
    for key in data:
        if key not in names:
            raise unknown(f"option of {what}", key, names)
    try:
        # as JSON, so that being strict ("0.2" is no number) still takes a list for a tuple
        adapter = _adapter(cls)  # type: ignore[arg-type]  # mypy takes type[Any] for unhashable
        return adapter.validate_json(json.dumps(dict(data)), strict=True)
    except TypeError as error:
        raise InputError(f"{what} holds something that is no plain data: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "unexpected_keyword_argument":
            raise InputError(f"unknown option {'.'.join(map(str, first['loc'])) or what!r} of {what}") from None
        raise refusal(error, hints_of(cls), data, f"{what}: ") from None
