"""The card: what a data set is, carried along with every split and saved with every model."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from theriac.core import check
from theriac.core.errors import InputError, unknown

STRICT = ConfigDict(extra="forbid")
"""Unknown keys are refused at every level when a record is read back."""
MAX_ROW = 3 << 22  # values of one picture, as of one of 2048 x 2048 pixels in color


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How training images of a data set may be changed without changing what they show.

    It belongs to the data and not to the method: digits and traffic signs are never flipped.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    crop_pad: int = 0  # pixels of padding before a random crop back to size; 0 = no crop
    pad_mode: Literal["zero", "reflect"] = "zero"
    flip: bool = False  # horizontal, with probability 1/2
    cutout: int = 0  # side of a square set to zero; 0 = none
    rotation: float = 0.0  # largest angle in degrees, drawn uniformly from both sides

    def __post_init__(self) -> None:
        check.choices(self)
        check.whole("crop_pad", self.crop_pad, 0)
        check.whole("cutout", self.cutout, 0)
        check.between("rotation", self.rotation, 0, 180)


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table: numbers, or codes into ``categories`` (code k means ``categories[k]``)."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str
    kind: Literal["numeric", "categorical"] = "numeric"
    categories: tuple[str, ...] = ()
    unit: str = ""

    def __post_init__(self) -> None:
        check.choices(self)


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a data set is. Everything here is plain data and survives a JSON round trip."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str = "unnamed"
    kind: Literal["image", "table"] = "image"
    classes: tuple[str, ...]
    groups: tuple[str, ...] = ()  # names of the sensitive cells, by group id
    size: tuple[int, int] = (0, 0)  # height and width in pixels (images)
    channels: int = 0
    columns: tuple[Column, ...] = ()  # (tables)
    mean: tuple[float, ...] = ()  # per channel, of the training pixels in [0, 1]
    std: tuple[float, ...] = ()
    augment: Augment = field(default_factory=Augment)
    source: str = ""
    license: str = ""
    content_hash: str = ""  # sha256 of rows and labels of the training split

    def __post_init__(self) -> None:
        check.choices(self)
        if self.kind == "image" and math.prod((self.channels, *self.size)) > MAX_ROW:
            raise InputError(f"size is {tuple(self.size)} with {self.channels} channels; a row may have {MAX_ROW:,} values")

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
        found: Card = validated(cls, data, "card")
        return found


_EXPECTED = {  # where pydantic's words are not a user's
    "tuple_type": "expected a list, such as [1, 2]",
    "list_type": "expected a list, such as [1, 2]",
    "dict_type": "expected a mapping of names to values",
    "int_type": "expected a whole number",
    "float_type": "expected a number",
    "bool_type": "expected true or false",
    "string_type": "expected text",
}


def validated(cls: type[Any], data: Mapping[str, Any], what: str) -> Any:
    """Build a dataclass from plain data, refusing unknown keys and wrong types at every level.

    Args:
        cls: A dataclass.
        data: Plain data, as JSON or YAML gives it.
        what: How to call the thing in an error message.

    Raises:
        InputError: Naming the first field at fault.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"{what} is a {type(data).__name__}; expected a mapping of field names to values")
    names = {f.name for f in dataclasses.fields(cls) if f.init}
    for key in data:
        if key not in names:
            raise unknown(f"option of {what}", key, names)
    try:
        # as JSON, so that being strict ("0.2" is no number) still takes a list for a tuple
        return TypeAdapter(cls).validate_json(json.dumps(dict(data)), strict=True)
    except TypeError as error:
        raise InputError(f"{what} holds something that is no plain data: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        own = first.get("ctx", {}).get("error")
        if isinstance(own, InputError):  # the class's own check has said it better already
            raise own from None
        where = ".".join(str(p) for p in first["loc"]) or what
        if first["type"] == "unexpected_keyword_argument":
            raise InputError(f"unknown option {where!r} of {what}") from None
        came = repr(first.get("input"))
        expected = _EXPECTED.get(first["type"], first["msg"])
        raise InputError(f"{what}: {where} is {came[:80]}{'...' * (len(came) > 80)}; {expected}") from None
