"""Masks on BatchNorm channels: kept in [0, 1] while they are learned, then turned into pruning. What ANP and RNP share."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models.outputs import run_over
from theriac.training import Recipe, optimizers

Masks = dict[str, torch.Tensor]  # by the name of the BatchNorm
THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(19))  # official code of ANP: 0 to 0.9


def choose(model: nn.Module, masks: Masks, held: Split, drop: float, run: Run) -> tuple[float | None, dict[str, Any]]:
    """The largest threshold that costs at most ``drop`` of accuracy on held-out rows, None if there is none; with counts."""
    trial = copy.deepcopy(model)
    right = [int((run_over(trial, held, run=run).argmax(1) == held.y.cpu()).sum())]
    best: float | None = None
    for threshold in THRESHOLDS:
        prune(trial, masks, threshold)
        right.append(int((run_over(trial, held, run=run).argmax(1) == held.y.cpu()).sum()))
        if right[0] - right[-1] <= drop * len(held):
            best = threshold
    return best, {"held_out_rows": len(held), "right_before": right[0], "right_by_threshold": right[1:]}


def projected(masks: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """SGD that keeps what it steps on in [0, 1]."""
    stepper = optimizers.SGD(masks, lr=recipe.lr, momentum=recipe.momentum)

    def clamp(*_: object) -> None:
        for mask in masks:
            mask.detach().clamp_(0, 1)

    stepper.register_step_post_hook(clamp)
    return stepper


@torch.no_grad()
def prune(model: nn.Module, masks: Masks, threshold: float) -> dict[str, list[int]]:
    """Set the scale of each BatchNorm channel to zero whose mask is at most ``threshold``; the channels by layer."""
    pruned = {}
    for name, mask in masks.items():
        low = mask <= threshold
        model.get_submodule(name).weight[low] = 0.0  # type: ignore[operator]
        if bool(low.any()):
            pruned[name] = low.nonzero().flatten().tolist()
    return pruned
