"""Numbers that others published, from the one file that holds them: ``reported.yaml`` beside this module."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from theriac.bench._yaml import read
from theriac.core.errors import InputError, unknown
from theriac.core.method import KINDS, Method, methods
from theriac.models import architectures

FILE = Path(__file__).with_name("reported.yaml")
Grade = Literal["A", "B", "C"]
GRADES: dict[Grade, str] = {
    "A": "the table or file itself was read",
    "B": "an abstract, a README or comments in released code",
    "C": "a third party's note",
}
HIGH = ("acc", "bacc")  # better when higher
LOW = ("asr", "dp_gap", "opportunity_gap", "odds_gap")
NUMBERS = ("asr", "acc", "bacc", "dp_gap", "opportunity_gap", "odds_gap")  # in the order of tables

_Percent = Annotated[float, Field(ge=0, le=100)]
_Number = Literal["acc", "bacc", "asr", "dp_gap", "opportunity_gap", "odds_gap"]
_Figures = dict[_Number, _Percent]
_Text = Annotated[str, Field(max_length=200)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Source(_Strict):
    title: Annotated[str, Field(min_length=1, max_length=200)]
    link: Annotated[str, Field(pattern=r"^(https://\S+)?$")]
    grade: Grade


class Setting(_Strict):
    """The setting of a published number; what a source leaves open is None.

    Args:
        data: Name of the data.
        train_rows: How many training rows they have.
        model: Name of the architecture.
        width: Its width.
        recipe: Training recipe, by the name that it has here.
        poison_rate: Share of poisoned rows.
        clean: Clean rows of a repair, as a share of the training rows.
        group: Sensitive column.
    """

    data: _Text
    train_rows: Annotated[int, Field(ge=1)] | None = None
    model: _Text | None = None
    width: Annotated[int, Field(ge=1)] | None = None
    recipe: _Text | None = None
    poison_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    clean: Annotated[float, Field(gt=0, le=1)] | None = None
    group: _Text | None = None


class _Result(_Strict):
    method: str
    source: str
    setting: str
    options: dict[str, float | str | bool] = {}
    note: _Text = ""
    attacks: dict[str, Annotated[_Figures, Field(min_length=1)]] = {}
    figures: _Figures = {}
    over: Annotated[int, Field(ge=2)] | None = None
    mean: _Figures = {}
    worst: _Figures = {}


class _File(_Strict):
    sources: dict[str, _Source]
    settings: dict[str, Setting]
    results: list[_Result]


@dataclass(frozen=True, kw_only=True)
class Reported:
    """What one source says about one method in one setting. Numbers are shares.

    Args:
        method: Name of the method.
        source: Title of the source.
        link: Its address; empty if there is none.
        grade: How well it was checked, a key of ``GRADES``.
        setting: The setting of the numbers.
        options: Options of the method that have to be the same in a comparison.
        attacks: Numbers by attack; those of a method that meets no attack stand under an empty name. Empty if the source's
            single values are not known here.
        over: How many attacks its mean is over, where single values are not known.
        mean: Means in that case.
        worst: Worst values in that case.
        note: What a reader should know.
    """

    method: str
    source: str
    link: str
    grade: Grade
    setting: Setting
    options: Mapping[str, Any]
    attacks: Mapping[str, Mapping[str, float]]
    over: int
    mean: Mapping[str, float]
    worst: Mapping[str, float]
    note: str = ""


def read_reported(path: str | Path = FILE) -> tuple[Reported, ...]:
    """Read and check a file of published numbers.

    Args:
        path: A file like ``reported.yaml``.

    Raises:
        InputError: Naming the line and what does not fit: an unknown method, option, attack, source or setting, a number
            outside of 0 to 100, a method that one source has twice in one setting.

    Examples:
        >>> sorted({entry.method for entry in read_reported() if entry.grade == "A"})
        ['abl', 'anp', 'clp', 'filtering', 'fp', 'ft', 'ft_sam', 'ibau', 'nad']
    """
    marked = read(Path(path))
    try:
        file = _File.model_validate(marked.data)
    except ValidationError as error:
        first = error.errors()[0]
        where = tuple(part for part in first["loc"] if part != "[key]")
        raise InputError(f"{marked.place(where)}: {first['msg']}") from None
    known: set[tuple[Any, ...]] = set()
    made = []
    for i, result in enumerate(file.results):
        with marked.at("results", i):
            made.append(_checked(result, file))
            key = (result.method, result.source, result.setting, repr(sorted(result.options.items())))
            if key in known:
                raise InputError(f"{result.method} has a second entry of {result.source} in this setting")
            known.add(key)
    return tuple(made)


def _checked(result: _Result, file: _File) -> Reported:
    cls = method_called(result.method)
    known = [name for kind in KINDS if kind != "attack" for name in methods(kind)]
    fields = [] if cls is None else list(inspect.signature(cls).parameters)
    for what, name, names in (
        ("method", result.method, known),
        ("source", result.source, list(file.sources)),
        ("setting", result.setting, list(file.settings)),
        *((f"option of {result.method}", option, fields) for option in result.options),
        *((f"attack of {result.method}", attack, list(methods("attack"))) for attack in result.attacks),
    ):
        if name not in names:
            raise unknown(what, name, names)
    setting = file.settings[result.setting]
    if setting.model is not None and setting.model not in architectures():
        raise unknown("model", setting.model, architectures())
    ways = [bool(result.attacks), bool(result.figures), bool(result.mean)]
    if sum(ways) != 1 or (result.over is None) == bool(result.mean) or (result.worst and not result.mean):
        raise InputError(f"{result.method} needs exactly one of attacks, figures, and mean with over")
    source = file.sources[result.source]
    attacks = {"": result.figures} if result.figures else result.attacks
    return Reported(
        method=result.method,
        source=source.title,
        link=source.link,
        grade=source.grade,
        setting=setting,
        options=result.options,
        attacks={name: _shares(figures) for name, figures in attacks.items()},
        over=result.over or 0,
        mean=_shares(result.mean),
        worst=_shares(result.worst),
        note=result.note,
    )


def _shares(figures: Mapping[Any, float]) -> dict[str, float]:
    return {name: value / 100 for name, value in figures.items()}


def method_called(name: str) -> type[Method] | None:
    """The class of a defense or detector by its name; None if there is none."""
    return next((methods(kind)[name] for kind in KINDS if kind != "attack" and name in methods(kind)), None)
