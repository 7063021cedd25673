"""Wrap a user's own model once, so that it takes what every method hands in and returns logits."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch.nn import functional as F

from theriac.core import check
from theriac.core.card import Card
from theriac.core.errors import InputError, shortened, unknown
from theriac.core.ranges import typed
from theriac.core.text import shorten
from theriac.models import _hf
from theriac.models._undisturbed import blank, check_logits, seem_shares, try_rows
from theriac.models.editing import refuse_empty
from theriac.models.network import Classifier, Normalize, TablePrep, take_in
from theriac.models.wrapped import innermost

Pick: TypeAlias = str | int | Callable[[Any], torch.Tensor] | None
"""Which part of a network's output is the logits: a name, an index, a function, one of SCALES, or None to search for it."""

OWN = "adapted"  # the architecture that a record names
_CALLABLE = "<function>"
_ORDERS = {"order": ("rgb", "bgr"), "layout": ("nchw", "nhwc")}
SCALES = ("binary", "probabilities", "sigmoids")
"""What ``logits`` takes in place of a name where a network returns no logits."""
_LEAST = 1e-6  # share of which a logarithm is taken at the least, since float16 rounds small ones to 0
_BYTES = 2.0  # a mean above this is one of pixels from 0 to 255


class ImagePrep(nn.Module):
    """Pixels in [0, 1] to what a network expects: gray repeated to its channels, resized, normalized, in its order.

    Args:
        channels: Channels that the network expects.
        size: Height and width that it expects (bilinear, with antialias); None leaves images as they are.
        mean: Normalization; None for none.
        std: Likewise.
        order: "rgb", or "bgr" for a network that takes blue first; mean and std are in the order of the data.
        layout: "nchw", or "nhwc" for a network that takes channels last.
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, int] | None,
        mean: tuple[float, ...] | None,
        std: tuple[float, ...] | None,
        order: str = "rgb",
        layout: str = "nchw",
    ) -> None:
        super().__init__()
        self.channels, self.size, self.order, self.layout = channels, size, order, layout
        self.normalize: Normalize | None = None
        if mean is not None or std is not None:
            mean = (0.0,) * len(std or ()) if mean is None else mean
            std = (1.0,) * len(mean) if std is None else std
            self.normalize = Normalize(mean, std)
            if len(mean) not in (1, channels):
                raise InputError(f"mean has {len(mean)} entries; expected one for each of {channels} channels, or one for all")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] == 1 and self.channels > 1:
            x = x.expand(-1, self.channels, -1, -1)
        if self.size is not None and tuple(x.shape[2:]) != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True, align_corners=False)
        x = x if self.normalize is None else self.normalize(x)
        x = x.flip(1) if self.order == "bgr" else x
        return x.permute(0, 2, 3, 1).contiguous() if self.layout == "nhwc" else x


@dataclass(frozen=True)
class Picker:
    """Selects the logits from a network's output."""

    choice: Pick = None

    def __call__(self, out: Any) -> torch.Tensor:
        """The logits (N, K).

        Raises:
            InputError: If they are not where ``choice`` says, or could not be found.
        """
        choice, logits = self.choice, None
        if isinstance(choice, str) and choice in SCALES and not (isinstance(out, Mapping) and choice in out):
            return _rescaled(Picker()(out), choice)
        if callable(choice):
            logits = choice(out)
        elif isinstance(choice, int) and isinstance(out, torch.Tensor):
            logits = out  # auxiliary heads answer in training only, and in testing the logits come alone
        elif isinstance(choice, int):
            logits = out[choice] if isinstance(out, (tuple, list)) and -len(out) <= choice < len(out) else None
        elif isinstance(out, torch.Tensor):
            logits = out if choice is None else None
        else:
            key = "logits" if choice is None else choice
            logits = out.get(key) if isinstance(out, Mapping) else getattr(out, key, None)
        if not isinstance(logits, torch.Tensor):
            said = "no logits were found there" if choice is None else f"logits={choice!r} leads to no tensor there"
            raise InputError(
                f"the network returns {_outline(out)}, and {said}; logits= takes a name, an index or a function "
                "(--wrap logits=NAME)"
            )
        return logits


def _rescaled(out: torch.Tensor, scale: str) -> torch.Tensor:
    """Logits of two classes or more from outputs of another scale; one column, or none, is the second class's."""
    z = out.unsqueeze(1) if out.dim() == 1 else out
    if scale == "binary":
        return torch.cat([torch.zeros_like(z), z], 1)
    if scale == "sigmoids":
        return z.float().logit(_LEAST)
    shares = torch.cat([1 - z, z], 1) if z.shape[1] == 1 else z
    return shares.float().clamp_min(_LEAST).log()


class Adapted(Classifier):
    """A user's own network, in ``net``, behind the interface of every model here. Made by :func:`adapt`."""

    def __init__(self, net: nn.Module, prepare: nn.Module, card: Card, spec: dict[str, Any], picker: Picker) -> None:
        super().__init__(net, prepare, card, spec)
        self.picker = picker

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        take_in(x)
        x = self.prepare(x)
        like = next(self.net.parameters(), None)
        if like is not None and like.is_floating_point():
            x = x.to(like.dtype)  # a network in half precision takes half-precision pixels
        logits = self.picker(self.net(x))
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


@typed("model", "mean", "std", "size", "classes", "prepare", "logits")
def adapt(
    model: nn.Module,
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    size: int | tuple[int, int] | None = None,
    logits: Pick = None,
    card: Card | None = None,
    classes: int | Sequence[str] | None = None,
    channels: int | None = None,
    prepare: TablePrep | None = None,
    order: Literal["rgb", "bgr"] = "rgb",
    layout: Literal["nchw", "nhwc"] = "nchw",
) -> Adapted:
    """Wrap any module, or a ``transformers`` image classifier, so that it takes float pixels in [0, 1] and returns logits.

    Args:
        model: The network. It is held, not copied; methods that change models work on copies of the whole wrapper, so what
            they return has the same class inside.
        mean: Normalization that the network expects, in [0, 1] units: one number a channel, or one for all. None: none (for
            a ``transformers`` model, hand in its image processor's ``image_mean`` and ``image_std``).
        std: Likewise.
        size: Height and width that the network expects; images of other sizes are resized inside (bilinear, antialias).
            Left out: images keep their size, or get ``config.image_size`` of a ``transformers`` model.
        logits: Where the logits are in what the network returns: an attribute's or key's name, an index, or a function.
            Left out: the tensor it returns, or its ``logits``. Of a network that returns something else: "probabilities"
            (behind a softmax; of two classes also the second one's alone), "sigmoids" (one for each class), or "binary" (the
            second one's logit alone).
        card: The data it is for (``data.card``): shape, class names, augmentation. Recommended.
        classes: Without a card: how many classes there are, or their names.
        channels: Channels that the network expects: the card's, the configuration's, or 3. Gray images are repeated to them.
        prepare: For tables: what turns a raw row into the network's input (``TablePrep.fit(split)``); raw rows if left out.
        order: Channels that the network expects: "rgb" as pictures are stored here, or "bgr". ``mean`` and ``std`` stay in the
            order of the data.
        layout: "nchw", or "nhwc" for a network that takes channels last.

    Returns:
        The wrapper, with the network as ``.net``, in the same mode and on the same device.

    Raises:
        InputError: If the arguments contradict each other, or two rows of zeros do not come out as two rows of logits.

    Examples:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> model = adapt(net, mean=0.5, std=0.5, classes=10, channels=1, size=8)
        >>> tuple(model(torch.rand(4, 1, 8, 8)).shape), model.net is net
        ((4, 10), True)
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; expected an nn.Module")
    if isinstance(model, Classifier):
        raise InputError("model is wrapped already; hand in its .net to wrap it another way")
    refuse_empty(model)
    if not (logits is None or isinstance(logits, str) or callable(logits) or type(logits) is int):
        raise InputError(f"logits is {logits!r}; expected a name, an index or a function")
    for name, value in (("mean", mean), ("std", std)):
        if isinstance(value, (bool, bytes)):
            raise InputError(f"{name} is {value!r}; expected a number, or one for each channel")
    config = model.config if _hf.is_transformers(model) else None
    names = _class_names(classes, card, config)
    prep: nn.Module
    if card is not None and card.kind == "table":
        if (mean, std, size, channels) != (None,) * 4 or (order, layout) != ("rgb", "nchw"):
            raise InputError(f"{card.name!r} is a table; mean, std, size and channels are for images (see prepare)")
        if not (prepare is None or isinstance(prepare, TablePrep)):
            raise InputError(f"prepare is a {type(prepare).__name__}; expected a TablePrep (put anything else into the model)")
        prep = nn.Identity() if prepare is None else prepare
        options: dict[str, Any] = {"prepare": "none" if prepare is None else "table"}
    else:
        if prepare is not None:
            raise InputError("prepare is for tables; images take mean, std and size")
        fit = _pair(size if size is not None else getattr(config, "image_size", None))
        usual = getattr(config, "num_channels", None) or (card.channels if card is not None else 3)
        channel_count = usual if channels is None else channels
        check.integer("channels", channel_count, 1, 4096)
        if order == "bgr" and channel_count < 3:
            raise InputError(f"order is 'bgr', and the network takes {channel_count} channels; leave it out")
        means, stds = _numbers("mean", mean), _numbers("std", std)
        _refuse_twice(model, means, stds)
        prep = ImagePrep(channel_count, fit, means, stds, order, layout)
        if card is None:
            card = Card(classes=names or ("0", "1"), size=fit or (0, 0), channels=channel_count)
        options = {"mean": means, "std": stds, "size": fit, "channels": channel_count}
        options |= {key: value for key, value in (("order", order), ("layout", layout)) if value not in ("rgb", "nchw")}
    options["logits"] = _CALLABLE if callable(logits) else logits
    options["network"] = _origin(model)
    options["transformers"] = _hf.describe(model)
    like = next(model.parameters(), None)
    prep = prep if like is None else prep.to(like.device)
    wrapped = Adapted(model, prep, card, {"architecture": OWN, "options": options}, Picker(logits))
    wrapped.training = model.training
    if all(card.shape):
        outputs = try_rows(wrapped, blank(wrapped, card.shape, 2))
        _refuse_other_head(model, outputs, names, card)
        if not names and outputs.dim() == 2:
            names = tuple(str(k) for k in range(outputs.shape[1]))
        check_logits(wrapped, outputs, 2, len(names))
        if seem_shares(outputs):
            warnings.warn(
                "the network seems to return probabilities, not logits; take them before the softmax, or pass "
                "logits='probabilities' (--wrap logits=probabilities)",
                stacklevel=2,
            )
    if not names:
        raise InputError("the number of classes is unknown; give card= (data.card), or classes=")
    wrapped.card = card.replace(classes=names)
    return wrapped


def _origin(model: nn.Module) -> str:
    """Where a network's class is defined; of a network of timm what :func:`theriac.models.make_own` takes, ``timm:NAME``."""
    about = getattr(model, "pretrained_cfg", None)
    name = about.get("architecture") if isinstance(about, Mapping) else None
    if type(model).__module__.partition(".")[0] == "timm" and isinstance(name, str) and name.isidentifier():
        return f"timm:{name}"
    return f"{type(model).__module__}.{type(model).__qualname__}"


def how_to_name(network: str) -> str:
    """What ``--model`` takes for a network that a record names so."""
    if network.startswith("timm."):  # a record of before the name was kept
        return "timm:NAME, its name there"
    return network if network.startswith("timm:") else f"file.py:{network.rpartition('.')[2]}"


def foreign(spec: Mapping[str, Any]) -> str:
    """The user's own class that a saved model needs to be built again; empty if its record is enough.

    Args:
        spec: What a record has under ``model``.
    """
    spec = innermost(spec)
    options = spec.get("options")
    if spec.get("architecture") != OWN or not isinstance(options, Mapping):
        return ""
    alone = options.get("transformers") is not None and options.get("logits") != _CALLABLE
    return "" if alone else str(options.get("network", "module"))[:120]


def rebuild(options: Any, card: Card, into: nn.Module | None, tensors: int) -> Adapted:
    """An adapted model from its record, with weights still to be loaded.

    Args:
        options: What :func:`adapt` recorded.
        card: The data it is for.
        into: A fresh network of the user's class, or a wrapper of it whose ``logits`` function is kept.
        tensors: How many tensors its file has, to bound what is built.

    Raises:
        InputError: If the record is not one of ours, or a network or a function has to be handed in.
    """
    table = {"prepare"} if card.kind == "table" else {"mean", "std", "size", "channels"}
    expected = {"logits", "network", "transformers", *table}
    if not isinstance(options, Mapping) or set(options) - set(_ORDERS if card.kind == "image" else ()) != expected:
        raise InputError("the record's options of an adapted model are not those that Theriac writes")
    choice = options["logits"]
    network = str(options["network"])[:120]
    if choice == _CALLABLE:
        if not isinstance(into, Adapted):
            raise InputError(f"its logits are taken by a function; wrap a fresh {network} again and hand it in as into=")
        choice = into.picker.choice
    elif not (choice is None or isinstance(choice, str) or type(choice) is int):
        raise InputError(f"logits in the record is {str(choice)[:80]!r}; expected a name, an index or nothing")
    if into is None:
        if options["transformers"] is None:
            raise InputError(f"this is an adapted {network}; hand in a fresh one of that class: load_model(folder, into=...)")
        net = _hf.build(options["transformers"], tensors)
    else:
        net = into.net if isinstance(into, Adapted) else into
    prep: nn.Module
    if card.kind == "table":
        if options["prepare"] not in ("none", "table"):
            raise unknown("preparation", options["prepare"], ("none", "table"))
        prep = nn.Identity() if options["prepare"] == "none" else TablePrep(card.columns)
    else:
        check.integer("channels", options["channels"], 1, 4096)
        prep = ImagePrep(
            options["channels"],
            _pair(options["size"]),
            _numbers("mean", options["mean"]),
            _numbers("std", options["std"]),
            **{key: _choice(key, options[key]) for key in _ORDERS if key in options},
        )
    return Adapted(net, prep, card, {"architecture": OWN, "options": dict(options)}, Picker(choice))


def _class_names(classes: int | Sequence[str] | None, card: Card | None, config: Any) -> tuple[str, ...]:
    """Names of the classes, from the arguments, the card or the configuration; empty if none of them has any."""
    names: tuple[str, ...] = ()
    if classes is not None:
        if isinstance(classes, int):
            check.integer("classes", classes, 2, 1 << 20)
            names = tuple(str(k) for k in range(classes))
        elif (
            isinstance(classes, str)
            or not isinstance(classes, Sequence)
            or len(classes) < 2
            or not all(isinstance(c, str) for c in classes)
        ):
            raise InputError(f"classes is {shortened(classes)}; expected a number of at least 2, or as many names")
        else:
            names = tuple(classes)
    if card is not None:
        if names and len(names) != card.num_classes and not set(card.classes) < set(names):  # rows of some classes are enough
            raise InputError(f"classes gives {len(names)} classes; the card of {card.name!r} has {card.num_classes}")
        return names or named_by_data(_labels(config), card)
    return names or _labels(config)


def _labels(config: Any) -> tuple[str, ...]:
    labels = getattr(config, "id2label", None) or {}
    return tuple(str(labels[k]) for k in sorted(labels))


def _first(names: Sequence[str]) -> str:
    return ", ".join(shorten(name, 40) for name in names[:4])


def named_by_data(names: Sequence[str], card: Card) -> tuple[str, ...]:
    """The card's classes in the order in which a network's configuration names its outputs, if it names them at all.

    Where one of the two has only numbers (``LABEL_3`` is one), number k stands for the other's k-th class; where the names
    differ in capitals, spaces and dashes only, they are the same. Either is said in a warning.

    Raises:
        InputError: If it has as many names, and others.
    """
    if len(names) != card.num_classes:
        return card.classes  # a head of another width is refused later, with a better message
    if set(names) == set(card.classes):
        return tuple(names)
    theirs, ours = _numbered(names), _numbered(card.classes)
    spelled = {_spelling(name): name for name in card.classes}
    if all(name == f"LABEL_{k}" for k, name in enumerate(names)):  # what transformers writes where nobody named them
        order, how = card.classes, "does not name its classes"
    elif theirs is not None:
        order = tuple(card.classes[k] for k in theirs) if ours is None else tuple(card.classes[ours.index(k)] for k in theirs)
        how = "numbers its classes and does not name them"
    elif ours is not None:
        order, how = (
            tuple(card.classes[ours.index(k)] for k in range(len(names))),
            "names its classes, and the data number theirs",
        )
    elif len(spelled) == len(names) and set(map(_spelling, names)) == set(spelled):
        order, how = tuple(spelled[_spelling(name)] for name in names), "spells its classes in another way"
    else:
        raise InputError(
            f"the network's configuration names its classes {_first(names)}, the card of {card.name!r} "
            f"{_first(card.classes)}; give classes=, the card's names in the order of the network's outputs"
        )
    if theirs is not None and theirs == ours:
        return order
    pairs = ", ".join(f"{shorten(name, 40)} is {shorten(cls, 40)}" for name, cls in list(zip(names, order, strict=True))[:3])
    warnings.warn(
        f"the network's configuration {how}: it is assumed that {pairs}, and so on (classes= says otherwise)", stacklevel=4
    )
    return order


def _numbered(names: Sequence[str]) -> list[int] | None:
    """The numbers 0 to K - 1 that K names are, ``LABEL_3`` being 3; None if they are anything else."""
    bare = [name.removeprefix("LABEL_") for name in names]
    if sorted(bare) != sorted(map(str, range(len(bare)))):
        return None
    return [int(name) for name in bare]


def _spelling(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _choice(name: str, value: Any) -> str:
    check.one_of(name, value, _ORDERS[name])
    return str(value)


def _refuse_twice(model: nn.Module, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> None:
    """Refuse a normalization beside one that the network has inside, and one in units of 0 to 255."""
    if mean is None and std is None:
        return
    for name, module in model.named_modules():
        held = [getattr(module, key, None) for key in ("mean", "std")]
        scaled = mean is None or not any(mean)  # only to another range, such as 0 to 255
        if (
            "normal" in type(module).__name__.lower()
            and not scaled
            and all(isinstance(v, (torch.Tensor, tuple, list, float)) for v in held)
        ):
            where = f"its layer {name!r} ({type(module).__name__})" if name else "itself"
            raise InputError(f"mean and std are given, and the network normalizes in {where} already; leave out mean and std")
    if mean is not None and max(map(abs, mean)) > _BYTES and min(std or (1.0,)) >= 1:
        deviation = [round(v / 255, 6) for v in (std or (1.0,))]
        cure = f"mean={[round(v / 255, 6) for v in mean]} and std={deviation}"
        raise InputError(f"mean is {mean}, in units of 0 to 255; pixels come in [0, 1]: divide both by 255, {cure}")


def _refuse_other_head(model: nn.Module, logits: Any, names: tuple[str, ...], card: Card) -> None:
    """Refuse a head of another width than there are classes, with what to do about it."""
    heads = [m.out_features for m in model.modules() if isinstance(m, nn.Linear)]
    if not names or not isinstance(logits, torch.Tensor) or logits.dim() != 2 or logits.shape[1] == len(names):
        return
    if check.one_logit(tuple(logits.shape)[1:], len(names)):
        return  # a head of its own kind, told with its cure where logits are checked
    if heads and logits.shape[1] == heads[-1] and logits.is_floating_point() and len(logits) == 2:
        raise InputError(
            f"{type(model).__name__} returns {logits.dtype} {tuple(logits.shape)} for 2 rows; the data have "
            f"{len(names)} classes ({card.name!r}): take data of its {logits.shape[1]} classes, or build the network "
            f"with {len(names)}"
        )


def _numbers(name: str, value: float | Sequence[float] | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    value = value.tolist() if hasattr(value, "tolist") else value  # arrays and tensors
    try:
        numbers = tuple(float(v) for v in (value if isinstance(value, Sequence) else [value]))
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or isinstance(value, str):
        raise InputError(f"{name} is {str(value)[:80]!r}; expected a number, or one for each channel")
    return numbers


def _pair(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, (tuple, list)) else ()
    if len(pair) != 2:
        raise InputError(f"size is {str(size)[:80]!r}; expected a number of pixels, or height and width")
    for side in pair:
        check.integer("size", side, 1, 8192)
    return pair[0], pair[1]


def _outline(out: Any) -> str:
    """What came out of a network, in few words."""
    if isinstance(out, torch.Tensor):
        return f"one tensor {tuple(out.shape)}"
    if isinstance(out, Mapping):
        return f"a {type(out).__name__} with {', '.join(map(str, list(out)[:5]))}"
    if isinstance(out, (tuple, list)):
        parts = [str(tuple(v.shape)) if isinstance(v, torch.Tensor) else type(v).__name__ for v in out[:5]]
        return f"a {type(out).__name__} of {', '.join(parts)}"
    return f"a {type(out).__name__}"
