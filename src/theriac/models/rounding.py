"""Weights rounded to few levels, as a quantized model holds them."""

from __future__ import annotations

import torch
from torch import nn

from theriac.core.errors import InputError
from theriac.models.editing import duplicate, editable


def steps_of(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """The distance between levels for each output channel (O, 1, ...): the largest weight is the last level."""
    scale: torch.Tensor = weight.flatten(1).abs().amax(1).clamp_min(1e-12) / (2 ** (bits - 1) - 1)
    steps: torch.Tensor = scale.view(-1, *[1] * (weight.dim() - 1))
    return steps


def round_weight(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """A weight (O, ...) at the nearest of ``2^bits - 1`` symmetric levels, by output channel."""
    scale = steps_of(weight, bits)
    return (weight / scale).round() * scale


def layers_to_round(model: nn.Module) -> list[str]:
    """Names of the linear layers and convolutions.

    Raises:
        InputError: If there is none.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    if not names:
        raise InputError(f"{type(model).__name__} has no Linear or Conv2d layer; nothing could be rounded")
    return names


def quantized(model: nn.Module, bits: int = 8) -> nn.Module:
    """A copy whose linear layers and convolutions hold rounded weights, each write verified, in eval mode.

    Simulated: activations, biases and BatchNorm stay in floating point, so this is the error of the weights alone.

    Args:
        model: Stays as it is.
        bits: Of a weight, at least 2.
    """
    if bits < 2:
        raise InputError(f"bits is {bits}; expected at least 2")
    copy = duplicate(model)
    for name in layers_to_round(copy):
        weight = editable(copy, name)
        weight.write(round_weight(weight.value.detach(), bits))
    return copy.eval()
