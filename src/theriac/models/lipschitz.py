"""How much each channel of a convolution with its BatchNorm can stretch its input."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from theriac.models._undisturbed import blank, try_rows


def conv_norm_pairs(model: nn.Module, shape: tuple[int, ...]) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Each convolution whose output goes straight into a BatchNorm, with that BatchNorm, in the order they run.

    Found by watching one forward pass, not by the order of the modules: in a pre-activation network the next module is
    another branch's. A BatchNorm of a sum has no single convolution and is left out.

    Args:
        model: Any module; modes, statistics and random streams stay as they were.
        shape: Of one input row.
    """
    made: list[tuple[torch.Tensor, nn.Conv2d]] = []
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def came_out(module: nn.Module, args: Any, out: torch.Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            made.append((out, module))  # held, so that its identity can't be given to another tensor

    def goes_in(module: nn.Module, args: Any) -> None:
        for tensor, conv in made:
            if isinstance(module, nn.BatchNorm2d) and args and args[0] is tensor:
                pairs.append((conv, module))

    hooks = [m.register_forward_hook(came_out) for m in model.modules() if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(goes_in) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    try:
        try_rows(model, blank(model, shape, 1))
    finally:
        for hook in hooks:
            hook.remove()
    return pairs


def channel_constants(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> torch.Tensor:
    """Upper bound of each output channel's Lipschitz constant, float32 (C,).

    ``sigma_max(reshape(W_k, [C_in, h w])) |gamma_k| / sqrt(var_k + eps)``, as in Zheng et al., "Data-free Backdoor Removal
    based on Channel Lipschitzness", ECCV 2022.
    """
    weight = conv.weight.detach().float()
    gamma = torch.ones_like(weight[:, 0, 0, 0]) if norm.weight is None else norm.weight.detach().float()
    variance = torch.ones_like(gamma) if norm.running_var is None else norm.running_var.float()
    sigma: torch.Tensor = torch.linalg.matrix_norm(weight.flatten(2), ord=2)
    return sigma * gamma.abs() / (variance + norm.eps).sqrt()
