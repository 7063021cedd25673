"""Universal perturbations: one small change that leads all rows to a target class, searched with or without gradients.

All perturbations of a search are batched: one for each target class, over the same rows.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from theriac.core import check
from theriac.core.run import Run
from theriac.models._undisturbed import undisturbed
from theriac.models.outputs import evaluating

AT_ONCE = 512  # rows a forward pass


def by_gradient(
    model: nn.Module, x: torch.Tensor, targets: torch.Tensor, radius: float, steps: int, run: Run, *, away: bool = False
) -> torch.Tensor:
    """Perturbations within ``radius`` (each pixel) that sign steps find, with the mean gradient over the rows.

    Args:
        model: Inputs to logits.
        x: Inputs in [0, 1], (N, C, H, W), on the run's device.
        targets: Classes to lead to, int64 (D, N): one perturbation for each of the D lines.
        radius: Largest change of a pixel.
        steps: Number of sign steps, each of a quarter of the radius.
        run: Device and precision.
        away: Lead away from ``targets``, to any other class, instead of to them.

    Returns:
        Perturbations (D, C, H, W).
    """
    delta = torch.zeros((len(targets), *x.shape[1:]), device=x.device)
    with undisturbed(model), run.autocast(model):  # no inference mode: the perturbation has a gradient
        for _ in range(steps):
            slope = torch.zeros_like(delta)
            for lines, rows in _parts(targets, len(x)):
                with torch.enable_grad():
                    moved = delta[lines].clone().requires_grad_(True)
                    loss = _losses(model, x[rows], targets[lines][:, rows], moved, away).sum()
                    slope[lines] += check.slope(loss, moved)
            delta = (delta - 0.25 * radius * slope.sign()).clamp(-radius, radius)
    return delta


def by_queries(
    model: nn.Module,
    x: torch.Tensor,
    targets: torch.Tensor,
    radius: float,
    queries: int,
    run: Run,
    draw: torch.Generator,
    *,
    away: bool = False,
) -> torch.Tensor:
    """As :func:`by_gradient`, from the model's answers alone: squares of full strength, taken over where the loss falls.

    Args:
        model: Inputs to logits.
        x: Inputs in [0, 1], (N, C, H, W).
        targets: Classes to lead to, int64 (D, N).
        radius: Largest change of a pixel.
        queries: Number of proposals; each costs one forward pass of all rows.
        run: Device and precision.
        draw: CPU generator of the squares.
        away: Lead away from ``targets``, to any other class, instead of to them.
    """
    lines, (channels, height, width) = len(targets), x.shape[1:]
    sign = torch.randint(0, 2, (lines, channels, 1, width), generator=draw) * 2.0 - 1
    delta = (radius * sign).expand(lines, channels, height, width).clone().to(x.device)
    with evaluating(model, run):
        best = _mean_losses(model, x, targets, delta, away)
        for number in range(queries):
            share = 0.5 * (1 - number / queries) + 0.05  # of the image's area that a proposal changes, ever less
            side = (max(1, round(height * share**0.5)), max(1, round(width * share**0.5)))
            top = int(torch.randint(0, height - side[0] + 1, (), generator=draw))
            left = int(torch.randint(0, width - side[1] + 1, (), generator=draw))
            level = (torch.randint(0, 2, (lines, channels, 1, 1), generator=draw) * 2.0 - 1).to(x.device) * radius
            proposal = delta.clone()
            proposal[:, :, top : top + side[0], left : left + side[1]] = level
            now = _mean_losses(model, x, targets, proposal, away)
            better = now < best
            delta = torch.where(better[:, None, None, None], proposal, delta)
            best = torch.where(better, now, best)
    return delta


def reached(
    model: nn.Module, x: torch.Tensor, targets: torch.Tensor, delta: torch.Tensor, run: Run, *, away: bool = False
) -> torch.Tensor:
    """Which rows each perturbation leads to its class, or with ``away`` to any other one, bool (D, N), on the CPU."""
    hit = torch.zeros(targets.shape, dtype=torch.bool)
    with evaluating(model, run):
        for lines, rows in _parts(targets, len(x)):
            answers = _logits(model, x[rows], delta[lines]).argmax(-1)
            hit[lines, rows] = ((answers == targets[lines][:, rows]) != away).cpu()
    return hit


def _parts(targets: torch.Tensor, rows: int) -> list[tuple[slice, slice]]:
    """Blocks of perturbations and rows that make at most :data:`AT_ONCE` forward rows each."""
    width = min(rows, AT_ONCE)
    deep = max(1, AT_ONCE // width)
    return [(slice(i, i + deep), slice(j, j + width)) for i in range(0, len(targets), deep) for j in range(0, rows, width)]


def _logits(model: nn.Module, x: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    moved = (x[None] + delta[:, None]).clamp(0, 1)
    out: torch.Tensor = model(moved.flatten(0, 1)).float()
    return out.view(len(delta), len(x), -1)


def _losses(model: nn.Module, x: torch.Tensor, targets: torch.Tensor, delta: torch.Tensor, away: bool) -> torch.Tensor:
    """Summed cross-entropy of each perturbation, (D,); minus that, where rows are led away."""
    logits = _logits(model, x, delta)
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape).sum(1)
    return -losses if away else losses


def _mean_losses(model: nn.Module, x: torch.Tensor, targets: torch.Tensor, delta: torch.Tensor, away: bool) -> torch.Tensor:
    total = torch.zeros(len(targets), device=x.device)
    for lines, rows in _parts(targets, len(x)):
        total[lines] += _losses(model, x[rows], targets[lines][:, rows], delta[lines], away)
    return total / len(x)
