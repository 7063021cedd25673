"""Types that carry their range, and the one check that reads them, for fields (``lr: Positive = 0.1``) and arguments."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Interval
from typing_extensions import TypedDict

from theriac.core.errors import InputError, shortened, unknown

if TYPE_CHECKING:  # pydantic is loaded by the first check, not by the import of a method
    from pydantic_core import SchemaValidator, ValidationError

P = ParamSpec("P")
R = TypeVar("R")

Positive = Annotated[float, Interval(gt=0)]
NonNegative = Annotated[float, Interval(ge=0)]
Share = Annotated[float, Interval(gt=0, le=1)]  # of something that can't be empty
Fraction = Annotated[float, Interval(ge=0, le=1)]
Level = Annotated[float, Interval(ge=0, le=255)]  # gray levels
HUGE = 2**63  # the first whole number that torch can't take
Count = Annotated[int, Interval(ge=1, lt=HUGE)]
Whole = Annotated[int, Interval(ge=0, lt=HUGE)]
Width = Annotated[int, Interval(ge=1, le=4096)]  # channels; more fit into no memory
Seed = Whole


@dataclasses.dataclass(frozen=True)
class Renamed:
    """Beside an annotation: names of before, which are taken for those of today.

    Args:
        former: Names of today by those of before.
    """

    former: Mapping[str, str]

    def __get_pydantic_core_schema__(self, hint: Any, handler: Callable[[Any], Any]) -> Any:
        """How pydantic is told of it."""
        from pydantic_core.core_schema import no_info_before_validator_function as before

        return before(lambda name: self.former.get(name, name) if isinstance(name, str) else name, handler(hint))


def check_fields(record: Any) -> None:
    """Check every field of a dataclass against its annotation, and make lists that stand for tuples into tuples.

    Numbers are finite, a whole number may stand for a float, ``True`` is no number, and a text is none either.

    Raises:
        InputError: Naming the first field at fault, what came and what is expected.
    """
    validator, hints = _validator(record.__class__)
    came = {name: getattr(record, name) for name in hints}
    for name, value in _checked(validator, hints, came).items():
        if value is not came[name]:
            object.__setattr__(record, name, value)  # 1 for 1.0, and a tuple for a list: equal options are the same options


def typed(*own: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function of the public interface check its arguments against their annotations before it does any work.

    Args:
        *own: Arguments that the function checks itself, with better words.

    Raises:
        InputError: Naming the first argument at fault, what came and what is expected (from the decorated function).
    """

    def wrap(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            signature, validator, hints = _arguments(function, own)
            try:
                bound = signature.bind(*args, **kwargs).arguments
            except TypeError:  # too many or unknown arguments: Python says so itself
                return function(*args, **kwargs)
            came = {name: value for name, value in bound.items() if name in hints}
            _checked(validator, hints, came)
            scalars = {name: _plain(value) for name, value in bound.items() if type(value).__module__ == "numpy"}
            if scalars:  # numbers of NumPy go on as Python's
                call = signature.bind(*args, **kwargs)
                call.arguments.update(scalars)
                return function(*call.args, **call.kwargs)
            return function(*args, **kwargs)

        return checked

    return wrap


def _checked(validator: SchemaValidator, hints: Mapping[str, Any], came: Mapping[str, Any]) -> dict[str, Any]:
    """The values as the annotations have them, or the first fault."""
    from pydantic_core import ValidationError

    try:
        values: dict[str, Any] = validator.validate_python({name: _plain(value) for name, value in came.items()})
    except ValidationError as error:
        raise refusal(error, hints, came) from None
    return values


@functools.cache
def _arguments(function: Callable[..., Any], own: tuple[str, ...]) -> tuple[inspect.Signature, SchemaValidator, dict[str, Any]]:
    signature, hints = inspect.signature(function), {}
    for name, parameter in signature.parameters.items():
        single = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if single and name not in own and parameter.annotation is not parameter.empty:
            hint = parameter.annotation
            try:
                hints[name] = eval(hint, function.__globals__) if isinstance(hint, str) else hint
            except NameError:  # imported for type checkers only
                continue
    return signature, _fields(hints), hints


def refusal(error: ValidationError, hints: Mapping[str, Any], values: Mapping[str, Any], before: str = "") -> InputError:
    """An InputError for the first fault that pydantic reports: the argument, what came, what was expected.

    Args:
        error: What pydantic raised.
        hints: Annotations of the fields, by name.
        values: The values that came, by name.
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
    came = first["input"] if inside and not _is_union(hint) else values.get(name, first["input"])
    for part in inside:
        if _is_union(hint):
            break
        name = f"{name}.{part}"
        hint = _item(hint, part)
    choices = _choices(hint)
    if choices and not before and (isinstance(came, str) or choices == get_args(hint)):
        return unknown(name, came, map(str, choices))
    expected = _expected(hint)
    if not isinstance(came, int) or came < HUGE:
        expected = expected.replace(f" and below {HUGE}", "")
    if isinstance(came, float) and not math.isfinite(came):
        expected = expected.replace("a number", "a finite number")
    return InputError(f"{before}{name} is {shortened(came)}; expected {expected or first['msg']}")


def hints_of(cls: Any) -> dict[str, Any]:
    """Annotations of a dataclass's fields, ranges included.

    Raises:
        InputError: If one of them is not there when the program runs.
    """
    try:
        hints = get_type_hints(cls, include_extras=True)
    except NameError as error:
        raise InputError(
            f"the options of {cls.__name__} can't be checked: {error} where their types are read (imported under TYPE_CHECKING "
            "alone, or misspelt?)"
        ) from None
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


@functools.cache
def _validator(cls: type[Any]) -> tuple[SchemaValidator, dict[str, Any]]:
    hints = hints_of(cls)
    return _fields(hints), hints


def _fields(hints: Mapping[str, Any]) -> SchemaValidator:
    from pydantic import ConfigDict, TypeAdapter

    fields = TypedDict("fields", {name: _as_it_is(hint) for name, hint in hints.items()}, total=False)  # type: ignore[misc]  # of names known at run time
    config = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    fields.__pydantic_config__ = config  # type: ignore[attr-defined]
    return TypeAdapter(fields).validator  # type: ignore[return-value]


def _as_it_is(hint: Any) -> Any:
    """The annotation with dataclasses taken as they are: they have checked themselves."""
    from pydantic import InstanceOf

    if _is_union(hint):
        return Union[tuple(_as_it_is(part) for part in get_args(hint))]  # noqa: UP007  # of parts known at run time
    own = isinstance(hint, type) and dataclasses.is_dataclass(hint)
    return Annotated[hint, InstanceOf()] if own else hint  # type: ignore[type-arg]


def _plain(value: Any) -> Any:
    """A list as a tuple, and a number of NumPy as Python's."""
    if isinstance(value, list):
        return tuple(_plain(item) for item in value)
    return value.item() if type(value).__module__ == "numpy" and hasattr(value, "item") and not value.shape else value


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
        bounds = {
            key: getattr(m, key) for m in metadata for key in ("gt", "ge", "lt", "le") if getattr(m, key, None) is not None
        }
    if _is_union(hint):
        return " or ".join(dict.fromkeys(words for part in get_args(hint) if (words := _expected(part))))
    if hint in (int, float):
        return _number(hint, bounds)
    if get_origin(hint) in (Mapping, dict):
        return "a mapping of names to values"
    if get_origin(hint) is Callable:
        return "a function"
    if get_origin(hint) is Sequence:
        return _list((*get_args(hint), Ellipsis))
    if get_origin(hint) is tuple:
        return _list(get_args(hint))
    if get_origin(hint) is Literal:
        return " or ".join(repr(name) for name in get_args(hint))
    known = {str: "text", bool: "true or false", type(None): "None", Path: "a path"}
    if hint in known:
        return known[hint]
    name = getattr(hint, "__name__", "")
    return f"{'an' if name[:1] in 'AEIOU' else 'a'} {name}" if name else ""


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
