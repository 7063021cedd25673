"""Options that several commands share, and how their text is read. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from theriac.cli._names import offered
from theriac.core.errors import InputError, shortened
from theriac.core.progress import silence
from theriac.core.text import shorten

# defaults, and the only methods that commands name; the second and third repair where the first can't judge
REPAIR, UNJUDGED, UNJUDGED_FEW, UNJUDGED_TABLE = "auto", "antidote", "antidote:matched", "antidote:table"
FEW_A_CLASS = 20  # clean rows of a class, as `theriac repair` takes them without --clean; with fewer every repair costs much
DEBIASING, EXAMPLE_ATTACK = "dwb", "badnets"
_DATA, _METHOD, _RUN = "Data", "Method", "Run"


def names(*topics: str) -> Callable[[str], list[str]]:
    """Completion of a word by the names that ``theriac list`` gives for these topics."""
    return lambda incomplete: offered(topics, incomplete)


DataName = Annotated[
    str,
    typer.Option(
        "--data",
        "-d",
        help="A known name, a folder of images or parquet files, or one file.",
        rich_help_panel=_DATA,
        autocompletion=names("data"),
    ),
]
OptionalData = Annotated[
    str | None,
    typer.Option(
        "--data",
        "-d",
        help="Data to use; left out: what the model was trained on.",
        rich_help_panel=_DATA,
        autocompletion=names("data"),
    ),
]
Size = Annotated[
    int | None, typer.Option("--size", help="Resize images to this side in pixels.", rich_help_panel=_DATA, show_default=False)
]
Label = Annotated[
    str | None, typer.Option("--label", help="Column that holds the label.", rich_help_panel=_DATA, show_default=False)
]
Sensitive = Annotated[
    list[str] | None,
    typer.Option(
        "--sensitive",
        help="Sensitive column; may be given several times. Rows without a value: --data-option missing_group=own.",
        rich_help_panel=_DATA,
        show_default=False,
    ),
]
Positive = Annotated[
    str | None,
    typer.Option(
        "--positive",
        help="Name or number of the class that counts as positive; the second one if left out.",
        rich_help_panel=_DATA,
        show_default=False,
    ),
]
Augment = Annotated[
    list[str] | None,
    typer.Option(
        "--augment",
        help="How training images may be changed: none, or KEY=VALUE, such as flip=true; may be given several times.",
        rich_help_panel=_DATA,
        show_default=False,
    ),
]
DataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data-option",
        help="Another KEY=VALUE of theriac.load, such as val_share=0.1 or test=FILE; may be given several times.",
        rich_help_panel=_DATA,
        show_default=False,
    ),
]
Rows = Annotated[
    int | None,
    typer.Option(
        "--rows",
        help="Use at most this many rows of each part, drawn with every class in proportion.",
        rich_help_panel=_DATA,
        show_default="all",
    ),
]


def _method(topic: str) -> Any:
    help_text = f"NAME or NAME:PRESET; see theriac list {topic}."
    return typer.Option("--method", help=help_text, rich_help_panel=_METHOD, autocompletion=names(topic))


Repair = Annotated[str, _method("repairs")]
Debiasing = Annotated[str, _method("debiasing")]
MethodOption = Annotated[
    list[str] | None, typer.Option("--option", help="KEY=VALUE of the method.", rich_help_panel=_METHOD, show_default=False)
]
Attack = Annotated[
    str,
    typer.Option(
        "--attack",
        "-a",
        help="NAME or NAME:PRESET; see theriac list attacks.",
        rich_help_panel="Attack",
        autocompletion=names("attacks"),
    ),
]
KnownAttack = Annotated[
    str | None,
    typer.Option(
        "--attack",
        "-a",
        help="Attack to measure: NAME[:PRESET], or none. Left out: the one that the run folder knows.",
        rich_help_panel="Attack",
        autocompletion=names("attacks"),
    ),
]
AttackOption = Annotated[
    list[str] | None,
    typer.Option("--attack-option", help="KEY=VALUE of the attack.", rich_help_panel="Attack", show_default=False),
]
PoisonRate = Annotated[
    float | None,
    typer.Option("--poison-rate", help="Share of the training rows to poison.", rich_help_panel="Attack", show_default=False),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        help="Class that the attack wants: its name, or else its number, from 0.",
        rich_help_panel="Attack",
        show_default=False,
    ),
]
Architecture = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Architecture (theriac list models), or your own code: module:Class, file.py:function, timm:NAME. "
        "Left out: preact_resnet18 for images, mlp for tables.",
        rich_help_panel="Model",
        autocompletion=names("models"),
        show_default=False,
    ),
]
Trained = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Architecture (theriac list models). Left out: preact_resnet18 for images, mlp for tables.",
        rich_help_panel="Model",
        autocompletion=names("models"),
        show_default=False,
    ),
]
Width = Annotated[
    int | None, typer.Option("--width", help="Width of the architecture.", rich_help_panel="Model", show_default=False)
]
ModelOption = Annotated[
    list[str] | None,
    typer.Option("--model-option", help="KEY=VALUE of the architecture.", rich_help_panel="Model", show_default=False),
]
WeightsKey = Annotated[
    str | None,
    typer.Option(
        "--weights-key",
        help="Which state dict to take from a file that holds several, such as state_dict_ema.",
        rich_help_panel="Model",
        show_default=False,
    ),
]
TensorsOnly = Annotated[
    bool,
    typer.Option(
        "--tensors-only",
        help="Take only the tensors of a file that holds other objects too; the rest is neither imported nor run.",
        rich_help_panel="Model",
    ),
]
ModelPath = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help="A run folder, a file of weights (then with --data and --model), a .pt2 program, a folder of transformers or "
        "timm, or a checkpoint of BackdoorBench, BackdoorBox or TrojanZoo (then with --data).",
        show_default=False,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="File of weights for your own --model, in place of MODEL.",
        rich_help_panel="Model",
        show_default=False,
    ),
]
Wrap = Annotated[
    list[str] | None,
    typer.Option(
        "--wrap",
        help="KEY=VALUE of how your own network takes pictures, such as mean=[0.5]; theriac check says what fits.",
        rich_help_panel="Model",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.", rich_help_panel=_RUN)]
Precision = Annotated[
    str,
    typer.Option(
        "--precision", help="auto, fp32 or bf16; auto takes that of the model's run, if it has one.", rich_help_panel=_RUN
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of all random streams.", rich_help_panel=_RUN)]
Out = Annotated[
    str | None, typer.Option("--out", "-o", help="Folder of the run.", rich_help_panel=_RUN, show_default="runs/<name>")
]
Force = Annotated[bool, typer.Option("--force", help="Start anew in a folder that holds a run.", rich_help_panel=_RUN)]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress, no notes, no hints; only the result.", rich_help_panel=_RUN)
]
Json = Annotated[bool, typer.Option("--json", help="The result as JSON on standard output.", rich_help_panel=_RUN)]


_state: dict[str, Any] = {"quiet": False, "notes": []}


def begin() -> None:
    """Forget the settings and the warnings of an earlier invocation in this process."""
    _state.update(quiet=False, notes=[])
    silence(False)


def set_quiet(value: bool) -> None:
    """Silence notes and hints of this invocation."""
    _state["quiet"] = value
    silence(value)


def quiet() -> bool:
    """Whether notes and hints are silenced."""
    return bool(_state["quiet"])


def notes() -> list[str]:
    """The library's warnings so far, each once; collected even when quiet, for the record."""
    return list(_state["notes"])


def note(text: str) -> bool:
    """Collect a warning, and say whether it is new."""
    new = text not in _state["notes"]
    if new:
        _state["notes"].append(text)
    return new


def pairs(texts: Sequence[str] | None, option: str = "--option") -> dict[str, Any]:
    """Read ``KEY=VALUE`` texts.

    Values are read as YAML scalars or flow lists (``8``, ``1e-3``, ``true``, ``[layer4, linear]``); the method checks types.

    Raises:
        InputError: On a missing ``=``, a key given twice, or a number that is not finite.
    """
    options: dict[str, Any] = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise InputError(f"{option} is {shortened(text)}; expected KEY=VALUE, such as epochs=20")
        if key in options:
            raise InputError(f"{option} gives {shortened(key)} twice")
        options[key] = _value(option, key, value.strip())
    return options


def _value(option: str, key: str, text: str) -> Any:
    import yaml

    value: Any = None
    for number in (int, float):  # YAML 1.1 takes 1e-3 for a text
        with contextlib.suppress(ValueError):
            value = number(text)
            break
    else:
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InputError(f"{option} {shorten(key)} is {shortened(text)}, which is not a plain value") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{option} {shorten(key)} is {text[:80]}; expected a finite number")
    return value


def rows_or_share(text: str, option: str = "--clean") -> int | float:
    """A whole number of rows ("500") or a share of them ("0.05").

    Raises:
        InputError: If it is neither.
    """
    wrong = InputError(
        f"{option} is {shortened(text)}; expected a share in (0, 1], such as 0.05, or a whole number of rows, such as 500"
    )
    try:
        value: int | float = int(text)
    except ValueError:
        try:
            value = float(text)
        except ValueError:
            raise wrong from None
    if not (value >= 1 if isinstance(value, int) else 0 < value <= 1):
        raise wrong
    return value


def merged(options: dict[str, Any], **shortcuts: Any) -> dict[str, Any]:
    """Options with the shortcuts that were given; a contradiction is refused.

    Raises:
        InputError: If an option comes twice.
    """
    for key, value in shortcuts.items():
        if value is None:
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"--{key.replace('_', '-')} is {value}; expected a finite number")
        if key in options:
            raise InputError(f"{key} is given twice, as --{key.replace('_', '-')} and as KEY=VALUE")
        options[key] = value
    return options
