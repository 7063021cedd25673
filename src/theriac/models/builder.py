"""Build a model by name, sized to the data, with its input preparation inside."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, get_args, get_origin

from torch import nn

from theriac.core import check
from theriac.core.card import Card
from theriac.core.errors import InputError, shortened, unknown
from theriac.core.names import class_numbers
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
_IMAGE: dict[str, Maker] = {
    "preact_resnet18": _preact,
    "resnet18": _resnet,
    "wrn_16_1": _wrn,
    "vgg19_bn": _vgg,
    "vit_small": _vit,
}
_TABLE: dict[str, Maker] = {"mlp": _mlp}
_FIXED = ("card", "width_in")  # what the data decide


def architectures() -> tuple[str, ...]:
    """Names that :func:`build` knows."""
    return tuple(sorted({*_IMAGE, *_TABLE}))


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
    key = name.lower()
    maker = {**_IMAGE, **_TABLE}.get(key)
    if maker is None:
        raise unknown("architecture", name, architectures())
    options = [_described(p) for p in inspect.signature(maker, eval_str=True).parameters.values() if p.name not in _FIXED]
    what = inspect.cleandoc(maker.__doc__ or "").rstrip(".")
    return Architecture(name=key, what=what, rows="image" if key in _IMAGE else "table", options=tuple(options))


def _described(option: inspect.Parameter) -> dict[str, str]:
    kind, meaning = get_args(option.annotation) if get_origin(option.annotation) is Annotated else (option.annotation, "")
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
    key = name.lower()
    if key not in _IMAGE and key not in _TABLE:
        raise unknown("architecture", name, architectures())
    makers, other = (_IMAGE, "table") if card.kind == "image" else (_TABLE, "image")
    if key not in makers:
        raise InputError(f"architecture {name!r} is for {other} data; {card.name!r} holds {card.kind} rows")
    known = [p for p in inspect.signature(makers[key]).parameters if p not in _FIXED]
    for option in options:
        if option not in known:
            raise unknown(f"option of {name}", option, known)
    if card.kind == "image" and (min(card.size) < 1 or card.channels < 1):
        raise InputError(f"the card of {card.name!r} gives images of shape {card.shape}; expected sides and channels above 0")
    return makers[key](card, width_in, **options) if card.kind == "table" else makers[key](card, **options)


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
