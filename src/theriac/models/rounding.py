"""Weights rewritten by output channel: where they lie, and rounded to few levels, as a quantized model holds them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from theriac.core.errors import InputError
from theriac.models.editing import PROJECTIONS, Weight, duplicate, editable

_Convolution = nn.modules.conv._ConvNd


def steps_of(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """The distance between levels for each output channel (O, 1, ...): the largest weight is the last level."""
    scale: torch.Tensor = weight.flatten(1).abs().amax(1).clamp_min(1e-12) / (2 ** (bits - 1) - 1)
    steps: torch.Tensor = scale.view(-1, *[1] * (weight.dim() - 1))
    return steps


def round_weight(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """A weight (O, ...) at the nearest of ``2^bits - 1`` symmetric levels, by output channel."""
    scale = steps_of(weight, bits)
    return (weight / scale).round() * scale


def weights_of(model: nn.Module, *, only_convolutions: bool = False) -> list[Weight]:
    """The weights of all linear layers, convolutions (transposed ones too) and projections of attention, each checked.

    Args:
        model: Stays as it is.
        only_convolutions: Leave linear layers and attention out.

    Raises:
        InputError: If there is none.
        UneditableError: If one can't be written; names its layer.
    """
    names: list[tuple[str, str]] = []
    for name, module in model.named_modules():
        if isinstance(module, _Convolution) or (isinstance(module, nn.Linear) and not only_convolutions):
            names.append((name, "weight"))
        elif isinstance(module, nn.MultiheadAttention) and not only_convolutions:
            names += [(name, tensor) for tensor in PROJECTIONS if getattr(module, tensor) is not None]
    if not names:
        kinds = "convolution" if only_convolutions else "linear layer, convolution or attention"
        raise InputError(f"{type(model).__name__} has no {kinds}, whose weights could be changed")
    return [editable(model, name, tensor) for name, tensor in names]


def by_channel(weight: Weight) -> torch.Tensor:
    """A weight's values with its output channels first, (O, ...), detached."""
    value, layer = weight.value.detach(), weight.layer
    if isinstance(layer, _Convolution) and layer.transposed:  # (inputs, outputs of a group, ...)
        return _exchanged(value, layer.groups)
    return value


def as_held(weight: Weight, channels: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`by_channel`: values (O, ...) as the layer holds them."""
    layer = weight.layer
    if isinstance(layer, _Convolution) and layer.transposed:
        return _exchanged(channels, layer.groups)
    return channels


def _exchanged(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """(groups x A, B, ...) to (groups x B, A, ...), which is its own inverse."""
    return weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)


def rewritten(
    model: nn.Module, change: Callable[[torch.Tensor], torch.Tensor], *, only_convolutions: bool = False
) -> nn.Module:
    """A copy in eval mode with the weights of :func:`weights_of` changed, each write verified.

    Args:
        model: Stays as it is.
        change: From a weight with its output channels first, (O, ...), to a new one.
        only_convolutions: Leave linear layers and attention as they are.
    """
    copy = duplicate(model)
    for weight in weights_of(copy, only_convolutions=only_convolutions):
        weight.write(as_held(weight, change(by_channel(weight))))
    return copy.eval()


def quantized(model: nn.Module, bits: int = 8) -> nn.Module:
    """A copy whose linear layers, convolutions and attention hold rounded weights, each write verified, in eval mode.

    Simulated: activations, biases and BatchNorm stay in floating point, so this is the error of the weights alone.

    Args:
        model: Stays as it is.
        bits: Of a weight, at least 2.
    """
    if bits < 2:
        raise InputError(f"bits is {bits}; expected at least 2")
    return rewritten(model, lambda weight: round_weight(weight, bits))
