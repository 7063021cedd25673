"""The memory format of a network's convolutions, chosen here and nowhere else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import cast

import torch
from torch import nn

from theriac.core.run import Run

NARROW = 8  # channels; see `choose`
_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def choose(model: nn.Module, device: torch.device) -> tuple[torch.memory_format, str]:
    """The memory format in which ``model`` runs best and safely on ``device``, and why, as one short sentence.

    ``channels_last`` is the faster one for convolutions. It is not taken on a CPU where a convolution has fewer than 8
    channels: torch 2.13 on processors without AVX-512 corrupts its heap there when such a layer runs forward and backward.
    The channels of the picture itself do not count.
    """
    layers = [m for m in model.modules() if isinstance(m, _CONVOLUTIONS)]
    if not layers:
        return torch.contiguous_format, "contiguous: no convolution"
    if any(p.dim() == 5 for p in model.parameters()):
        return torch.contiguous_format, "contiguous: torch has no channels_last for weights of five dimensions here"
    if device.type == "cpu":
        narrowest = min([m.out_channels for m in layers] + [m.in_channels for m in layers[1:]])
        if narrowest < NARROW:
            return (
                torch.contiguous_format,
                f"contiguous: {narrowest} channels of a convolution are unsafe in channels_last on a CPU",
            )
    return torch.channels_last, "channels_last: faster for convolutions"


def arrange(model: nn.Module, run: Run) -> nn.Module:
    """Put the weights of ``model`` into the memory format of :func:`choose`, in place; the run keeps the reason.

    The format of the weights decides how a convolution runs, so inputs need no conversion.
    """
    layout, run.layout_reason = choose(model, run.device)
    return cast(nn.Module, model.to(memory_format=layout))  # type: ignore[call-overload]


@contextlib.contextmanager
def arranged(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The weights of convolutions in the memory format of :func:`choose` inside the block; afterward the tensors that came.

    A model that was loaded from a file then computes as the one that was saved. It takes the memory of these weights once more.
    """
    layout, came = choose(model, device)[0], []
    if layout == torch.channels_last:
        for layer in model.modules():
            weight = layer._parameters.get("weight") if isinstance(layer, _CONVOLUTIONS) else None
            if type(weight) is nn.Parameter and weight.dim() == 4 and not weight.is_inference():
                came.append((weight, weight.data))
    try:
        for weight, data in came:
            weight.data = data.contiguous(memory_format=layout)
        yield
    finally:
        for weight, data in came:
            weight.data = data
