"""Build a model by name, sized to the data, with its input preparation inside."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from torch import nn

from theriac.core import check
from theriac.core.card import Card
from theriac.core.errors import InputError, shortened, unknown
from theriac.core.method import NAME, load_own, not_known
from theriac.core.names import class_numbers
from theriac.core.own_code import failing
from theriac.core.ranges import check_fields, typed
from theriac.core.run import Run, as_run
from theriac.core.split import Split, with_moments
from theriac.models._undisturbed import blank, check_logits, try_rows
from theriac.models.editing import duplicate, refuse_empty
from theriac.models.mlp import TableMLP
from theriac.models.network import Classifier, Normalize, TablePrep
from theriac.models.preact_resnet import PreActResNet18
from theriac.models.resnet import ResNet18
from theriac.models.state import warn_unsavable
from theriac.models.vgg import VGG19BN
from theriac.models.vit import ViT
from theriac.models.wrn import WideResNet

Maker = Callable[..., nn.Module]


# What stands behind a type is what `theriac list NAME` says about the option.
_Width = Annotated[int | None, "channels of the first stage; left out: 64 for sides of 24 pixels or more, 16 below"]


def _preact(
    card: Card,
    width: _Width = None,
    final_norm: Annotated[bool, "BatchNorm and ReLU before the pooling, which the original network lacks"] = False,
) -> nn.Module:
    """Pre-activation ResNet-18 for small images."""
    # 64 is the literature's width at 32 pixels; on 8 x 8 digits a quarter of it already reaches the ceiling
    width = (64 if min(card.size) >= 24 else 16) if width is None else width
    return PreActResNet18(card.num_classes, card.channels, width, final_norm)


def _resnet(card: Card, width: _Width = None) -> nn.Module:
    """ResNet-18 for small images."""
    width = (64 if min(card.size) >= 24 else 16) if width is None else width
    return ResNet18(card.num_classes, card.channels, width)


def _wrn(
    card: Card,
    depth: Annotated[int, "layers: 6 n + 4, such as 10, 16, 28 or 40"] = 16,
    widen: Annotated[int, "stages have 16, 32 and 64 times this many channels"] = 1,
) -> nn.Module:
    """Wide residual network for small images."""
    return WideResNet(card.num_classes, card.channels, depth, widen)


def _vgg(card: Card, width: _Width = None) -> nn.Module:
    """VGG-19 with BatchNorm for small images."""
    width = (64 if min(card.size) >= 24 else 16) if width is None else width
    return VGG19BN(card.num_classes, card.channels, card.size, width)


def _vit(
    card: Card,
    patch: Annotated[
        int, "side of the square patches in pixels, which divides both sides of the image; 0: by the image's size"
    ] = 0,
    dim: Annotated[int | None, "length of a token; left out: 192 for sides of 24 pixels or more, 64 below"] = None,
    depth: Annotated[int, "blocks"] = 6,
    heads: Annotated[int | None, "attention heads, which must divide dim; left out: 3, 4, 2 or 1, the first that does"] = None,
    mlp_ratio: Annotated[int, "width of a block's hidden layer, in units of dim"] = 4,
) -> nn.Module:
    """Small vision transformer."""
    dim = (192 if min(card.size) >= 24 else 64) if dim is None else dim
    check.integer("dim", dim, 1, 4096)
    heads = next(h for h in (3, 4, 2, 1) if dim % h == 0) if heads is None else heads
    return ViT(card.num_classes, card.channels, card.size, patch, dim, depth, heads, mlp_ratio)


def _mlp(
    card: Card,
    width_in: int,
    hidden: Annotated[Sequence[int], "widths of the hidden layers"] = (128, 256, 512),
    dropout: Annotated[float, "share of hidden values dropped in training"] = 0.0,
) -> nn.Module:
    """Multilayer perceptron for tables."""
    return TableMLP(card.num_classes, width_in, hidden, dropout)


# name -> maker of (card, **options); for tables of (card, width_in, **options). Its keyword arguments are the options.
_OURS: dict[str, dict[str, Maker]] = {
    "image": {
        "preact_resnet18": _preact,
        "resnet18": _resnet,
        "wrn_16_1": _wrn,
        "vgg19_bn": _vgg,
        "vit_small": _vit,
    },
    "table": {"mlp": _mlp},
}
_OWN: dict[str, dict[str, Maker]] = {"image": {}, "table": {}}  # those that users registered
_FIXED = {"image": ("card",), "table": ("card", "width_in")}  # what the data decide


def register_architecture(rows: Literal["image", "table"] = "image") -> Callable[[Maker], Maker]:
    """Function decorator: make a network of your own known by the function's name, as ours are.

    The function gets the data's :class:`theriac.core.card.Card` (``num_classes``, ``channels``, ``size``), for tables the
    number of prepared columns, too, and then its options, each with a default. It returns a network that gives logits,
    (rows, classes), for rows that are normalized already: (rows, channels, height, width), or (rows, columns).

    Args:
        rows: What it is for.

    Raises:
        InputError: If the function has no such parameters, an option has no default, or another function has the name.

    Examples:
        >>> register_architecture("pictures")  # the how-to own-method.md has one that works
        Traceback (most recent call last):
        theriac.core.errors.InputError: rows is 'pictures'; expected 'image' or 'table'
    """
    if not isinstance(rows, str) or rows not in _OWN:
        raise InputError(f"rows is {shortened(rows)}; expected {' or '.join(map(repr, _OWN))}")

    def known(maker: Maker) -> Maker:
        name = getattr(maker, "__name__", "")
        if not inspect.isfunction(maker) or not NAME.fullmatch(name):
            raise InputError(
                f"what is registered is {shortened(maker)}; expected a function named in small letters, digits and underscores"
            )
        first, parameters = _FIXED[rows], list(inspect.signature(maker).parameters.values())
        if tuple(p.name for p in parameters[: len(first)]) != first:
            came = ", ".join(p.name for p in parameters) or "nothing"
            raise InputError(f"architecture {name} takes {came}; for {rows} rows it takes {', '.join(first)} and then options")
        for option in parameters[len(first) :]:
            if option.default is option.empty:
                raise InputError(f"option {option.name} of architecture {name} has no default; every option has one")
        other = _maker(name)[1]
        if other is not None and (other.__module__, other.__qualname__) != (maker.__module__, maker.__qualname__):
            raise InputError(f"architecture {name!r} is registered already, by {other.__module__}")
        for makers in _OWN.values():  # the same function again is a module that was reloaded
            makers.pop(name, None)
        _OWN[rows][name] = maker
        return maker

    return known


def _maker(name: str) -> tuple[str, Maker | None]:
    """What rows an architecture is for, and the function that makes it; None if there is none of this name."""
    for group in (_OURS, _OWN):
        for rows, makers in group.items():
            if name in makers:
                return rows, makers[name]
    return "", None


def _find(name: str) -> tuple[str, Maker]:
    """As :func:`_maker`, with those that the environment names.

    Raises:
        InputError: If there is none; names the nearest.
    """
    rows, maker = _maker(name.lower())
    if maker is None:
        load_own()
        rows, maker = _maker(name.lower())
    if maker is None:
        raise not_known("architecture", name, architectures())
    return rows, maker


def architectures() -> tuple[str, ...]:
    """Names that :func:`build` knows."""
    load_own()
    return tuple(sorted(name for group in (_OURS, _OWN) for makers in group.values() for name in makers))


def source_of(name: str) -> str | None:
    """The beginning of a hash of the file in which a registered architecture stands; None for one of ours.

    Sweeps know finished work by it: a change in that file, also beside the function, makes a network another one.
    """
    if any(name.lower() in makers for makers in _OURS.values()):
        return None
    _, maker = _find(name)
    try:
        code = Path(inspect.getsourcefile(maker) or "").read_bytes()
    except (OSError, TypeError):  # typed into a session
        code = maker.__code__.co_code
    return hashlib.sha256(code).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What there is to know about an architecture before it is built.

    Args:
        name: As :func:`build` takes it.
        what: What it is, in a few words.
        rows: "image" or "table": what it is for.
        options: For each option its name, type, default and meaning, as text.
    """

    name: str
    what: str
    rows: str
    options: tuple[dict[str, str], ...]


def architecture(name: str) -> Architecture:
    """Describe an architecture and its options.

    Raises:
        InputError: On an unknown one; names the nearest.

    Examples:
        >>> [option["name"] for option in architecture("wrn_16_1").options]
        ['depth', 'widen']
    """
    rows, maker = _find(name)
    try:
        options = list(inspect.signature(maker, eval_str=True).parameters.values())[len(_FIXED[rows]) :]
    except NameError:  # a registered one, with a type that only a type checker imports
        options = list(inspect.signature(maker).parameters.values())[len(_FIXED[rows]) :]
    what = inspect.cleandoc(maker.__doc__ or "").partition("\n\n")[0].replace("\n", " ").rstrip(".")
    return Architecture(name=name.lower(), what=what, rows=rows, options=tuple(map(_described, options)))


def _described(option: inspect.Parameter) -> dict[str, str]:
    kind, meaning = get_args(option.annotation) if get_origin(option.annotation) is Annotated else (option.annotation, "")
    kind = "" if kind is option.empty else kind
    text = kind.__name__ if isinstance(kind, type) else str(kind).replace("collections.abc.", "")
    default = "left out" if option.default is None else str(option.default)
    return {"name": option.name, "type": text.replace(" | None", ""), "default": default, "meaning": meaning}


def make_net(name: str, card: Card, options: Mapping[str, Any], width_in: int = 0) -> nn.Module:
    """The bare network for a card, before any preparation (used to load saved models).

    Raises:
        InputError: On an unknown architecture or option, or one that does not fit the data.
    """
    if not isinstance(name, str):
        raise InputError(f"the architecture is {shortened(name)}; expected a name, such as {architectures()[0]!r}")
    key, (rows, maker) = name.lower(), _find(name)
    if rows != card.kind:
        raise InputError(f"architecture {name!r} is for {rows} data; {card.name!r} holds {card.kind} rows")
    known = list(inspect.signature(maker).parameters)[len(_FIXED[rows]) :]
    for option in options:
        if option not in known:
            raise unknown(f"option of {name}", option, known)
    if card.kind == "image" and (min(card.size) < 1 or card.channels < 1):
        raise InputError(f"the card of {card.name!r} gives images of shape {card.shape}; expected sides and channels above 0")
    sized = (card, width_in) if card.kind == "table" else (card,)
    what = f"architecture {name!r} can't be built with {shortened(dict(options))}"
    with contextlib.nullcontext() if key in _OURS[rows] else failing(what):  # a stranger's record may say what does not suit it
        net = maker(*sized, **options)
    if not isinstance(net, nn.Module):
        raise InputError(f"architecture {name!r} made a {type(net).__name__}; expected an nn.Module")
    return net


def normalization(card: Card) -> Normalize:
    """The card's mean and deviation as a layer.

    Raises:
        InputError: If the card has not one of each for every channel (or one for all).
    """
    if len(card.mean) not in (1, card.channels):
        raise InputError(f"the card of {card.name!r} has {len(card.mean)} means for {card.channels} channels")
    return Normalize(card.mean, card.std)


@typed("name")
def build(name: str, split: Split, run: Run | None = None, **options: Any) -> Classifier:
    """Build a fresh model for a split.

    Args:
        name: "preact_resnet18", "resnet18", "wrn_16_1", "vgg19_bn", "vit_small" (images) or "mlp" (tables);
            :func:`architectures` lists them.
        split: Training rows. Images give size and normalization through the card; for tables the preparation is fitted here.
        run: Device and ``init`` stream.
        **options: The architecture's own, such as ``width=16``.

    Returns:
        Pixels in [0, 1] (N, C, H, W), or raw table rows (N, F), to logits (N, K).

    Raises:
        InputError: On an unknown architecture or option, or images that it does not fit.
    """
    run = as_run(run)
    card = with_moments(split).card
    prepare: nn.Module = TablePrep.fit(split) if split.is_table else normalization(card)
    with run.init_scope():
        net = make_net(name, card, options, getattr(prepare, "width", 0))
    return Classifier(net, prepare, card, {"architecture": name.lower(), "options": dict(options)}).to(run.device)


@dataclass(frozen=True)
class Builder:
    """A name with options, to be built when the data are known: ``Builder("preact_resnet18", {"width": 16})``."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, split: Split, run: Run | None = None) -> Classifier:
        return build(self.name, split, run, **self.options)


Buildable = str | Builder | nn.Module | Callable[[Split, Run], nn.Module]
"""What a verb accepts as ``build``: a name, a Builder, a module (copied), or a function of (split, run)."""


def _refuse_call(what: Any) -> None:
    """Refuse a class or a function of other arguments where one of (split, run) is expected."""
    try:
        signature = inspect.signature(what)
    except (TypeError, ValueError):  # a built-in one, of which nothing is known
        return
    try:
        signature.bind(None, None)
    except TypeError:
        name = getattr(what, "__name__", type(what).__name__)
        if isinstance(what, type):
            message = f"build is the class {name}; expected a network such as {name}(), a name, or a function of (split, run)"
            raise InputError(message) from None
        raise InputError(f"build is a function {name}{signature}; expected one of (split, run), a network or a name") from None


@typed("what")
def make(what: Buildable, split: Split, run: Run, *, by_name: bool = True) -> nn.Module:
    """A fresh model from anything buildable, on the run's device, its output size checked against the classes.

    Args:
        what: A name, a Builder, a module or a function.
        split: Training rows.
        run: Device and streams.
        by_name: Whether the model's card counts afterward; a surrogate is only asked by number.

    Raises:
        InputError: If it can't be built, does not give one logit a class for rows of this split, or numbers its classes in
            another order than they do.
    """
    if isinstance(what, str):
        return build(what, split, run)
    if isinstance(what, nn.Module):
        refuse_empty(what)
        warn_unsavable(what)
        model = duplicate(what, "build", split.card.shape).to(run.device)
    elif callable(what):
        _refuse_call(what)
        with run.init_scope():
            model = what(split, run)
        if not isinstance(model, nn.Module):
            raise InputError(f"build returned a {type(model).__name__}; expected an nn.Module")
        model = model.to(run.device)
    else:
        raise InputError(f"build is a {type(what).__name__}; expected a name, a Builder, a module or a function")
    # two rows of zeros cost little, and a training run with wrong outputs would end in a confusing error or a wrong model
    with run.init_scope():  # lazy layers draw their weights in their first pass
        check_logits(model, try_rows(model, blank(model, split.card.shape, 2)), 2, split.num_classes)
    card = getattr(model, "card", None)
    numbers = class_numbers(split.card, card, "the model") if by_name and isinstance(card, Card) else None
    if numbers is not None and numbers != list(range(len(numbers))):
        raise InputError(
            f"the model numbers its classes in another order than {split.card.name!r}, and this training goes by number; "
            "theriac.data.align(rows, model.card) brings the rows into its order (an attack's target is numbered so then)"
        )
    return model
