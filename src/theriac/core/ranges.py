"""Types of options that carry their range, and the one check that reads them: ``lr: Positive = 0.1`` is all a field needs."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import SchemaValidator
from typing_extensions import TypedDict

from theriac.core.errors import InputError, unknown

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]  # of something that can't be empty
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch's generators take

_SHOWN = 80  # characters of a value that a message shows


def check_fields(record: Any) -> None:
    """Check every field of a dataclass against its annotation, and make lists that stand for tuples into tuples.

    Numbers are finite, a whole number may stand for a float, ``True`` is no number, and a text is none either.

    Raises:
        InputError: Naming the first field at fault, what came and what is expected.
    """
    validator, hints = _validator(record.__class__)
    given = {name: getattr(record, name) for name in hints}
    try:
        values = validator.validate_python({name: _as_tuple(value) for name, value in given.items()})
    except ValidationError as error:
        raise refusal(error, hints, given) from None
    for name, value in values.items():
        if value is not given[name]:
            object.__setattr__(record, name, value)  # 1 for 1.0, and a tuple for a list: equal options are the same options


def refusal(error: ValidationError, hints: Mapping[str, Any], given: Mapping[str, Any], before: str = "") -> InputError:
    """The first fault that pydantic sees, in the words of this house.

    Args:
        error: What pydantic raised.
        hints: Annotations of the fields, by name.
        given: The values that came, by name.
        before: Words in front of the field's name.
    """
    first = error.errors(include_url=False, include_context=True)[0]
    own = first.get("ctx", {}).get("error")
    if isinstance(own, InputError):  # a class's own check has said it better already
        return own
    top, *inside = first["loc"] or ("it",)
    name, hint = str(top), hints.get(str(top), Any)
    if first["type"] == "missing":  # of a list that is too short
        inside = inside[:-1]
    came = first["input"] if inside and not _is_union(hint) else given.get(name, first["input"])
    for part in inside:
        if _is_union(hint):
            break
        name = f"{name}.{part}"
        hint = _item(hint, part)
    choices = _choices(hint)
    if choices and not before and (isinstance(came, str) or choices == get_args(hint)):
        return unknown(name, came, map(str, choices))
    shown = repr(came)
    shown = f"{shown[:_SHOWN]}..." if len(shown) > _SHOWN else shown
    expected = _expected(hint)
    if isinstance(came, float) and not math.isfinite(came):
        expected = expected.replace("a number", "a finite number")
    return InputError(f"{before}{name} is {shown}; expected {expected or first['msg']}")


def hints_of(cls: Any) -> dict[str, Any]:
    """Annotations of a dataclass's fields, ranges included; none if one of them exists for type checkers only."""
    try:
        hints = get_type_hints(cls, include_extras=True)
    except NameError:
        return {}
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


@functools.cache
def _validator(cls: type[Any]) -> tuple[SchemaValidator, dict[str, Any]]:
    hints = hints_of(cls)
    fields = TypedDict("fields", hints)  # type: ignore[misc]  # its items are only known at run time
    config = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    fields.__pydantic_config__ = config  # type: ignore[attr-defined]
    return TypeAdapter(fields).validator, hints  # type: ignore[return-value]


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _item(hint: Any, index: int | str) -> Any:
    """The annotation of one item of a tuple or one field of a dataclass; Any if there is none."""
    hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if isinstance(index, str):
        return hints_of(hint).get(index, Any) if dataclasses.is_dataclass(hint) else Any
    items = get_args(hint) if get_origin(hint) is tuple else ()
    if not items:
        return Any
    return items[0] if items[-1] is Ellipsis else items[min(index, len(items) - 1)]


def _choices(hint: Any) -> tuple[Any, ...]:
    """The names that a ``Literal`` allows, alone or beside other types."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(name for part in get_args(hint) for name in _choices(part)) if _is_union(hint) else ()


def _expected(hint: Any) -> str:
    """What an annotation allows, in words."""
    bounds: dict[str, Any] = {}
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        metadata = [m for extra in extras for m in getattr(extra, "metadata", (extra,))]
        bounds = {key: getattr(m, key) for m in metadata for key in ("gt", "ge", "lt", "le") if hasattr(m, key)}
    if _is_union(hint):
        return " or ".join(_expected(part) for part in get_args(hint))
    if hint in (int, float):
        return _number(hint, bounds)
    if get_origin(hint) is tuple:
        return _list(get_args(hint))
    if get_origin(hint) is Literal:
        return " or ".join(repr(name) for name in get_args(hint))
    known = {str: "text", bool: "true or false", type(None): "None", dict: "a mapping of names to values"}
    return known.get(hint) or (f"an object of type {hint.__name__}" if isinstance(hint, type) else "")


def _number(hint: type, bounds: Mapping[str, Any]) -> str:
    kind = "a whole number" if hint is int else "a number"
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if hint is int and low is not None:
        top = "" if high is None else f" and at most {high}" if "le" in bounds else f" and below {high}"
        return f"{kind} of at least {low}{top}"
    if low is None or high is None:
        one_sided = (("gt", "above"), ("ge", "of at least"), ("lt", "below"), ("le", "of at most"))
        return " ".join([kind, *(f"{words} {bounds[key]}" for key, words in one_sided if key in bounds)])
    return f"{kind} in {'[' if 'ge' in bounds else '('}{low}, {high}{']' if 'le' in bounds else ')'}"


def _list(items: Sequence[Any]) -> str:
    if items and items[-1] is not Ellipsis:
        return f"a list of {len(items)} items"
    return "a list, such as " + ('["a", "b"]' if items and items[0] is str else "[1, 2]")
