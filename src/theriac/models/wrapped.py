"""Modules that a method puts around or into a network, built again from the record of a saved model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from theriac.core import check
from theriac.core.errors import InputError, unknown
from theriac.models.network import Classifier

COUNTERSIGNED, POLARIZED = "countersigned", "polarized"  # architectures that a record names
WRAPPED = (COUNTERSIGNED, POLARIZED)
DEEPEST = 4  # how many of them may be nested
_SIDE = 8192  # pixels
_VALUE = 1e6


class Patch(nn.Module):
    """Overwrites a square in the upper left corner of pictures (N, C, H, W).

    Args:
        side: Height and width in pixels.
        value: Of every pixel; one outside of [0, 1] occurs in no picture.
    """

    def __init__(self, side: int, value: float) -> None:
        super().__init__()
        self.side, self.value = side, value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[..., : self.side, : self.side] = self.value
        return x


class Shift(nn.Module):
    """Moves logits (N, K) back by some classes: what was the logit of class k + ``by`` becomes that of class k, modulo K.

    Args:
        by: Number of classes.
    """

    def __init__(self, by: int) -> None:
        super().__init__()
        self.by = by

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.roll(-self.by, 1)


class Polarizer(nn.Sequential):
    """A layer that is linear in channels alone and a BatchNorm, which together change nothing at first.

    Args:
        channels: Of what passes.
        maps: Whether maps (N, C, H, W) pass, or else vectors (N, C).
    """

    def __init__(self, channels: int, maps: bool = True) -> None:
        layer = nn.Conv2d(channels, channels, 1, bias=False) if maps else nn.Linear(channels, channels, bias=False)
        norm = nn.BatchNorm2d(channels) if maps else nn.BatchNorm1d(channels)
        super().__init__(layer, norm)
        with torch.no_grad():
            norm.weight.fill_((1 + norm.eps) ** 0.5)
            layer.weight.copy_(torch.eye(channels, device=layer.weight.device).view(layer.weight.shape))


class Polarized(nn.Sequential):
    """A polarizer and the layer behind it, which answers for itself where a network asks for its weight or its sizes."""

    def __getattr__(self, name: str) -> Any:
        """Of the two, or else of the layer."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            layer = self.__dict__.get("_modules", {}).get("1")
            if layer is None:  # while it is being made
                raise
            return getattr(layer, name)


def countersign(model: nn.Module, side: int, value: float, by: int) -> nn.Module:
    """A model behind a patch on every picture, whose logits are moved back by some classes.

    Args:
        model: Pictures to logits. A wrapped one comes back as one that can be saved.
        side: Of the patch, in pixels.
        value: Of its pixels.
        by: How many classes the logits are moved back.
    """
    if not isinstance(model, Classifier):
        return nn.Sequential(Patch(side, value), model, Shift(by))
    options = {"inside": model.spec, "side": side, "value": value, "by": by}
    net = nn.Sequential(model, Shift(by))
    return Classifier(net, Patch(side, value), model.card, {"architecture": COUNTERSIGNED, "options": options})


def polarize(model: nn.Module, layer: str, channels: int, maps: bool = True) -> Polarizer:
    """Put a :class:`Polarizer` before one layer of a model, in place.

    Args:
        model: Any module.
        layer: Dotted name of the layer.
        channels: Of what enters it.
        maps: Whether maps (N, C, H, W) enter it, or else vectors (N, C).

    Returns:
        The new module.

    Raises:
        InputError: If there is no such layer.
    """
    known = dict(model.named_modules())
    if not layer or layer not in known:
        raise unknown("layer", layer, [name for name in known if name])
    parent, _, name = layer.rpartition(".")
    original = known[layer]
    with torch.random.fork_rng(devices=[]):  # the initial draws are overwritten below
        added = Polarizer(channels, maps)
    like = next((p for p in original.parameters() if p.is_floating_point()), None)
    if like is not None:
        added.to(like.device, like.dtype)
    setattr(known[parent], name, Polarized(added, original).train(original.training))
    if isinstance(model, Classifier):
        model.spec = {
            "architecture": POLARIZED,
            "options": {"inside": model.spec, "layer": layer, "channels": channels, "maps": maps},
        }
    return added


def around(spec: Mapping[str, Any]) -> str:
    """What lies around or in the network of a record, in words; empty for a network as it was built.

    Args:
        spec: What a record has under ``model``.
    """
    parts = []
    for _ in range(DEEPEST):
        options = spec.get("options")
        if spec.get("architecture") not in WRAPPED or not isinstance(options, Mapping):
            break
        if spec["architecture"] == COUNTERSIGNED:
            side = options.get("side")
            parts.append(f"stamps a {side} x {side} patch on every picture and moves the classes back by {options.get('by')}")
        else:
            parts.append(f"passes a learned layer of {options.get('channels')} channels before {options.get('layer')}")
        inside = options.get("inside")
        spec = inside if isinstance(inside, Mapping) else {}
    return "; ".join(parts)


def innermost(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record of the network itself, without what was put around or into it.

    Args:
        spec: What a record has under ``model``.
    """
    for _ in range(DEEPEST):
        options = spec.get("options")
        inside = options.get("inside") if isinstance(options, Mapping) else None
        if spec.get("architecture") not in WRAPPED or not isinstance(inside, Mapping):
            break
        spec = inside
    return spec


def rewrap(spec: Mapping[str, Any], build: Callable[[Mapping[str, Any]], Classifier], depth: int = 0) -> Classifier:
    """A wrapped model from its record; its weights are loaded later.

    Args:
        spec: What the record has under ``model``.
        build: Makes the network inside from its own record.
        depth: How many wrappers lie around it already.

    Raises:
        InputError: If the record is not one of ours.
    """
    name, options = spec.get("architecture"), spec.get("options")
    if name not in WRAPPED:
        return build(spec)
    expected = {"inside", "side", "value", "by"} if name == COUNTERSIGNED else {"inside", "layer", "channels", "maps"}
    inside = options.get("inside") if isinstance(options, Mapping) else None
    if not isinstance(options, Mapping) or set(options) != expected or not isinstance(inside, Mapping) or depth >= DEEPEST:
        raise InputError(f"the record's options of a {name} model are not those that Theriac writes")
    model = rewrap(inside, build, depth + 1)
    if name == COUNTERSIGNED:
        check.integer("side", options["side"], 1, _SIDE)
        check.integer("by", options["by"], 1, model.card.num_classes - 1)
        value = options["value"]
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) <= _VALUE:
            raise InputError(f"value in the record is {str(value)[:80]!r}; expected a number")
        made = countersign(model, options["side"], float(value), options["by"])
        assert isinstance(made, Classifier)  # as what is inside
        return made
    check.integer("channels", options["channels"], 1, 1 << 16)
    if not isinstance(options["maps"], bool):
        raise InputError(f"maps in the record is {str(options['maps'])[:80]!r}; expected true or false")
    polarize(model, str(options["layer"])[:200], options["channels"], options["maps"])
    return model
