"""A user's own network, from the class or function that the user names; options and weights beside it.

The code that is run is the one whose name the user typed. Weights are read as every file from outside is: nothing that they
name is imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from theriac.core.card import Card
from theriac.core.errors import InputError, shortened, unknown
from theriac.core.files import shown
from theriac.core.own_code import failing, load_module
from theriac.core.paths import as_path
from theriac.core.ranges import typed
from theriac.models import folders
from theriac.models.adapter import adapt, named_by_data
from theriac.models.checkpoints import open_checkpoint
from theriac.models.editing import refuse_empty
from theriac.models.network import Classifier
from theriac.models.programs import open_program
from theriac.models.weights import load_weights

TIMM = "timm"
_FORM = "expected module:Class, or path/to/file.py:function"
WRAPPING = ("mean", "std", "size", "channels", "logits", "classes", "order", "layout")
"""Options of :func:`adapt` that are plain data, such as a command line can give."""


def is_own(text: str) -> bool:
    """Whether a text names a class or function of a user's own, as :func:`factory` takes it."""
    head, colon, name = str(text).rpartition(":")
    named = bool(colon and head) and all(part.isidentifier() for part in name.split("."))
    return named or str(text).startswith(f"{TIMM}:")


@typed("text")
def factory(text: str) -> Callable[..., Any]:
    """What ``module:Class`` or ``path/to/file.py:function`` names. This runs the code of that module or file.

    Args:
        text: A module as Python finds it (the current folder last), or a file of Python code, whose folder is looked into for
            what it imports; then a colon and the name of a class or function, which may be dotted.

    Raises:
        InputError: If the text is of another form, there is no such module, file or name, or importing it fails.
    """
    if not isinstance(text, str) or not is_own(text):
        raise InputError(f"model is {shortened(text)}; {_FORM}")
    where, _, name = text.rpartition(":")
    module = load_module(where, text, "model", _FORM)
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            raise unknown(f"class or function in {shown(where)}", name, _offered(module))
        value = getattr(value, part)
    if not callable(value):
        raise InputError(f"{shown(text)} is a {type(value).__name__}; expected a class or function that makes the network")
    made: Callable[..., Any] = value
    return made


@typed("text", "options", "classes")
def make_own(text: str, options: Mapping[str, Any] | None = None, *, classes: int | None = None) -> nn.Module:
    """A fresh network from a user's own class or function; its random numbers do not depend on what ran before.

    Args:
        text: As :func:`factory` takes it, or ``timm:NAME`` for a network of that package, without pretrained weights.
        options: Keywords for the class or function.
        classes: Number of classes of a network of timm, where ``options`` name no ``num_classes``.

    Raises:
        InputError: If it can't be found, refuses the options, raises, or makes something else than a module with numbers.
    """
    options = dict(options or {})
    if classes is not None and str(text).startswith(f"{TIMM}:"):
        options.setdefault("num_classes", classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make = _timm(text) if str(text).startswith(f"{TIMM}:") else factory(text)
        made: Any = make
        if isinstance(make, nn.Module):  # a finished network, which is callable too
            if options:
                raise InputError(
                    f"{shown(text)} is a finished network and takes no options; got {', '.join(map(str, options))}"
                )
        else:
            _refuse_options(make, options, text)
            with failing(f"{shown(text)} could not be made"):
                made = make(**options)
    if not isinstance(made, nn.Module):
        parts = [v for v in made if isinstance(v, nn.Module)] if isinstance(made, (tuple, list)) else []
        hint = "; return the network alone" if parts else ""
        raise InputError(f"{shown(text)} returned {_kind(made)}; expected an nn.Module{hint}")
    with failing(f"{shown(text)} made a network that can't be used"):
        refuse_empty(made)
    return made


@typed("text", "options", "card", "weights", "wrapping")
def open_own(
    text: str,
    *,
    card: Card,
    weights: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    wrapping: Mapping[str, Any] | None = None,
    key: str | None = None,
    tensors_only: bool = False,
) -> Classifier:
    """A user's own network with its weights, wrapped for the data.

    Args:
        text: ``module:Class``, ``path/to/file.py:function``, or ``timm:NAME``.
        card: The data it is for.
        weights: File of weights, read without running anything in it; None takes the network as it is made.
        options: Keywords for the class or function.
        wrapping: Options of :func:`adapt`: mean, std, size, channels, logits, classes, order, layout. None: pixels in [0, 1]
            as they are (``theriac.check_wrapping`` says which options fit).
        key: Which state dict of the file, where it holds several.
        tensors_only: Leave out other objects of the file.

    Returns:
        The wrapped network, in eval mode.

    Raises:
        InputError: If a part is missing or does not fit; names the first keys at fault.

    Examples:
        >>> from theriac.core.card import Card
        >>> card = Card(classes=("a", "b", "c"), size=(1, 1), channels=3)
        >>> tuple(open_own("torch.nn:Flatten", card=card)(torch.rand(4, 3, 1, 1)).shape)
        (4, 3)
    """
    wrapping = checked_wrapping(wrapping)
    net = make_own(text, options, classes=card.num_classes)
    if weights is not None:
        load_weights(net, weights, key=key, tensors_only=tensors_only)
    if isinstance(net, Classifier):
        if wrapping:
            raise InputError(f"{shown(text)} returns a wrapped network; leave out {', '.join(wrapping)}")
        return net.eval()
    return adapt(net.eval(), card=card, **wrapping).eval()


@typed("path", "card", "wrapping")
def open_found(
    path: str | Path, *, card: Card, wrapping: Mapping[str, Any] | None = None, tensors_only: bool = False
) -> Classifier | None:
    """A model from a file or folder that names the network it holds; None if it names none.

    Args:
        path: A program of ``torch.export`` (``.pt2``; it can be measured and scanned, and not repaired), a folder with
            ``config.json`` and weights as ``transformers`` and ``timm`` save them, or a checkpoint in the layout of
            BackdoorBench, BackdoorBox or TrojanZoo (:mod:`theriac.models.checkpoints`).
        card: The data it is for.
        wrapping: Options of :func:`adapt`, for programs and folders; they override what a folder says.
        tensors_only: Leave out other objects of a checkpoint.

    Returns:
        The wrapped network, in eval mode.

    Raises:
        UnsafeFileError: If opening it could run code.
        InputError: If it is damaged or does not fit the data.
    """
    where, options = as_path("path", path), checked_wrapping(wrapping)
    if where.is_dir():
        source = folders.open_folder(where, card)
        if source is None:
            return None
        if source.labels and "classes" not in options:
            options["classes"] = named_by_data(source.labels, card)
        return adapt(source.net, card=card, **(source.wrapping | options)).eval()
    if where.suffix == ".pt2":
        return adapt(open_program(where), card=card, **options).eval()
    if where.suffix == ".safetensors":
        return None
    normalized: dict[str, Any] = {k: options.pop(k) for k in ("mean", "std") if k in options}
    normalized = {k: v if isinstance(v, tuple) else (v,) for k, v in normalized.items()}
    model = open_checkpoint(where, card=card, normalized=normalized, tensors_only=tensors_only)
    if model is not None and options:
        raise InputError(f"{shown(where)} brings its own wrapping except mean and std; leave out {', '.join(options)}")
    return model


def checked_wrapping(wrapping: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options of :func:`adapt` that were given as plain data.

    Raises:
        InputError: On an unknown one.
    """
    options = dict(wrapping or {})
    for name in options:
        if name not in WRAPPING:
            raise unknown("option of the wrapping", str(name), WRAPPING)
    if isinstance(options.get("classes"), (list, tuple)):
        options["classes"] = [str(name) for name in options["classes"]]  # a command line reads digits as numbers
    return {k: tuple(v) if isinstance(v, list) and k != "classes" else v for k, v in options.items()}


def _refuse_options(make: Callable[..., Any], options: Mapping[str, Any], text: str) -> None:
    try:
        parameters = inspect.signature(make).parameters
    except (TypeError, ValueError):  # written in C
        return
    named = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for option in options:
            if option not in named:
                raise unknown(f"option of {shown(text)}", str(option), named)
    lacking = [n for n, p in named.items() if p.default is p.empty and n not in options]
    if lacking:
        raise InputError(f"{shown(text)} needs {', '.join(lacking)}; give it as an option (--model-option {lacking[0]}=VALUE)")


def _offered(module: ModuleType) -> list[str]:
    """The names that a message suggests from a module: its networks, or else all its own classes and functions."""
    own = {n: v for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__}
    networks = [n for n, v in own.items() if isinstance(v, type) and issubclass(v, nn.Module)]
    return networks or [n for n in own if not n.startswith("_")]


def _timm(text: str) -> Callable[..., Any]:
    name = text.removeprefix(f"{TIMM}:")
    try:
        import timm
    except ImportError:
        raise InputError(f"{shown(text)} needs the timm package: pip install 'theriac[timm]'") from None
    if name not in timm.list_models():
        raise unknown("network of timm", name, timm.list_models())

    def make(**options: Any) -> Any:
        if set(options) & {"pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"}:
            raise InputError("no weights are fetched here; give a file of them with weights (--weights)")
        return timm.create_model(name, pretrained=False, **options)

    return make


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
