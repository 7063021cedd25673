"""Masks on BatchNorm channels: held in [0, 1] while they are learned, then turned into pruning. What ANP and RNP share."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from theriac.core.errors import InputError
from theriac.core.outcome import Outcome
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models._undisturbed import class_name
from theriac.models.outputs import run_over
from theriac.training import Recipe, optimizers
from theriac.training.step import BatchNorm

Masks = dict[str, torch.Tensor]  # by the name of the BatchNorm
THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(19))  # official code of ANP: 0 to 0.9


WITHOUT_NORM = "Antidote, FT, FT-SAM, D3 and Fine-Pruning need none"


def scaled_norms(model: nn.Module, title: str) -> dict[str, BatchNorm]:
    """The BatchNorm layers that have scales of their own, by name.

    Raises:
        InputError: If there is none.
    """
    norms = {n: m for n, m in model.named_modules() if isinstance(m, BatchNorm) and isinstance(m.weight, nn.Parameter)}
    if not norms:
        raise InputError(
            f"{class_name(model)} has no BatchNorm with scales of its own; {title} prunes by masks on them ({WITHOUT_NORM})"
        )
    return norms


def pruned_by(
    model: nn.Module,
    masks: Masks,
    threshold: float | None,
    held: Split | None,
    drop: float,
    run: Run,
    *,
    after: str,
    figures: dict[str, Any],
) -> nn.Module:
    """The model, pruned in place by its masks, with its outcome in ``run``.

    Args:
        model: The network whose scales are set to zero.
        masks: Of its BatchNorm layers.
        threshold: Up to which a mask means pruning, where no rows are held out.
        held: Rows on which the threshold is chosen instead.
        drop: Largest loss of accuracy on them, as a share of all of them.
        run: Of the repair.
        after: How long masks were learned, in words.
        figures: What the outcome says besides.
    """
    smallest = min(float(mask.min()) for mask in masks.values())
    figures = {**figures, "smallest_mask": round(smallest, 4)}
    if held is not None:
        threshold, counts = choose(model, masks, held, drop, run)
        figures.update(counts)
    pruned = {} if threshold is None else prune(model, masks, threshold)
    figures.update(threshold=threshold, pruned=pruned, channels=sum(map(len, pruned.values())))
    if pruned:
        run.outcome = Outcome(status="repaired", figures=figures)
        return model
    if threshold is None:
        reason = f"every threshold costs more than {drop:g} of accuracy on {len(held or ())} held-out clean rows"
    else:
        reason = f"the smallest mask is {smallest:.2f} after {after}, the threshold {threshold:g}"
    run.outcome = Outcome(status="unchanged", reason=f"nothing was pruned: {reason}", figures=figures)
    return model


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
