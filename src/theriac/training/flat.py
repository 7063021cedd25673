"""Sharpness-aware training: step from the gradient at the worst nearby weights, and measure how sharp a minimum is.

Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR 2021
(https://arxiv.org/abs/2010.01412); the adaptive norm is that of Kwon et al., "ASAM", ICML 2021
(https://arxiv.org/abs/2102.11600). Grade M: the papers' formulas.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from theriac.core.run import Run, as_run
from theriac.core.split import Split
from theriac.models.network import to_input
from theriac.models.outputs import on_device
from theriac.training._parallel import average
from theriac.training.step import Batch, BatchNorm, Step, StepResult, cross_entropy_step

Loss = Callable[[nn.Module, Batch], torch.Tensor]


class _Computed(torch.autograd.Function):
    """A loss whose gradient was computed already."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor, count: int, *both: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*both[count:])
        return loss.detach().clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        slopes = ctx.saved_tensors
        return None, None, *(grads[0] * g for g in slopes), *(None for _ in slopes)


def sam_step(
    rho: Callable[[int], float],
    *,
    step: Step = cross_entropy_step,
    ascent: Loss | None = None,
    adaptive: bool = False,
    beside: Sequence[nn.Module] = (),
) -> Step:
    """A step for :func:`~theriac.training.loop` that takes the gradient of ``step`` at the worst weights within ``rho``.

    The climb is ``e = rho g / ||g||`` with one norm over all parameters, or ``rho |w|^2 g / || |w| g ||`` where ``adaptive``.
    Weights are as before when the step returns, so weight decay and momentum act on them and not on the climbed ones. BatchNorm
    statistics are updated at the weights themselves only. Costs two forward and backward passes; three with an ``ascent``.

    Args:
        rho: Radius by step number.
        step: What is minimized.
        ascent: Loss to climb on instead; a batch on which its gradient is zero gets a plain step.
        adaptive: Scale each weight's climb with its size.
        beside: Networks that learn from the same loss, such as a trigger's generator. They do not climb, and get their gradient
            at the climbed weights; as those do, they keep statistics of the first pass only.
    """

    def climb_and_step(model: nn.Module, batch: Batch) -> StepResult:
        outcome = step(model, batch)
        here, figures = outcome if isinstance(outcome, tuple) else (outcome, {})
        weights = [p for p in model.parameters() if p.requires_grad]
        if ascent is None:
            slopes = _slopes(here, weights)
        else:
            with without_statistics(model):
                slopes = _slopes(ascent(model, batch), weights)
        average(slopes)  # one climb for all ranks
        moved = climb(weights, slopes, rho(batch.step), adaptive)
        try:
            with without_statistics(model, *beside):
                outcome = step(model, batch)
                there = outcome[0] if isinstance(outcome, tuple) else outcome
                others = [p for net in beside for p in net.parameters() if p.requires_grad]
                gradients = torch.autograd.grad(there, [*weights, *others], allow_unused=True)
        finally:
            with torch.no_grad():
                for weight, before in zip(weights, moved, strict=True):
                    weight.copy_(before)
        slopes = _filled(weights, gradients)
        taught = [(p, g) for p, g in zip(others, gradients[len(weights) :], strict=True) if g is not None]
        leaves, slopes = [*weights, *(p for p, _ in taught)], [*slopes, *(g for _, g in taught)]
        return with_slopes(here, leaves, slopes), {**figures, "climbed_loss": there.detach()}

    return climb_and_step


def with_slopes(loss: torch.Tensor, weights: Sequence[torch.Tensor], slopes: Sequence[torch.Tensor]) -> torch.Tensor:
    """A loss of the same value whose gradient is ``slopes``: for steps that compute the gradient themselves."""
    result: torch.Tensor = _Computed.apply(loss.detach(), len(weights), *weights, *slopes)
    return result


def climb(
    weights: Sequence[torch.Tensor], slopes: Sequence[torch.Tensor], rho: float, adaptive: bool = False
) -> list[torch.Tensor]:
    """Move weights in place to the linearized worst point within ``rho``; returns copies of what they were."""
    before = [w.detach().clone() for w in weights]
    with torch.no_grad():
        scaled = [w.abs() * g for w, g in zip(weights, slopes, strict=True)] if adaptive else list(slopes)
        norm = torch.stack([s.float().norm() for s in scaled]).norm()
        for weight, slope in zip(weights, slopes, strict=True):
            way = weight.square() * slope if adaptive else slope
            weight.add_(way * (rho / (norm + 1e-12)))
    torch.clear_autocast_cache()  # mixed precision keeps casts of the weights, which would be those of before
    return before


def sharpness(model: nn.Module, split: Split, rho: float, *, run: Run | None = None, batch_size: int = 512) -> float:
    """How much the mean cross-entropy rises at the linearized worst weights within ``rho``; the model is left as it was.

    Args:
        model: Raw inputs to logits.
        split: Rows whose loss counts: clean ones, or stamped ones with the attack's label.
        rho: Radius, in the norm of all weights together.
        run: Device.
        batch_size: Rows per pass.
    """
    run = as_run(run)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with on_device(model, run):
            return _rise(model, split.to(run.device), rho, batch_size)
    finally:
        for module, mode in modes:
            module.training = mode


def _rise(model: nn.Module, here: Split, rho: float, batch_size: int) -> float:
    weights = [p for p in model.parameters() if p.requires_grad]

    def mean_loss() -> torch.Tensor:
        parts = [_sum_loss(model, here, p) for p in here.batches(batch_size)]
        return torch.stack(parts).sum() / len(here)

    slopes = [torch.zeros_like(w) for w in weights]
    for positions in here.batches(batch_size):
        for total, part in zip(slopes, _slopes(_sum_loss(model, here, positions), weights), strict=True):
            total.add_(part)
    with torch.no_grad():
        low = mean_loss()
        before = climb(weights, slopes, rho)
        high = mean_loss()
        for weight, was in zip(weights, before, strict=True):
            weight.copy_(was)
    return float(high - low)


@contextlib.contextmanager
def without_statistics(*models: nn.Module) -> Iterator[None]:
    """BatchNorm layers in train mode use their batch and keep no statistics of it."""
    layers = [m for net in models for m in net.modules() if isinstance(m, BatchNorm) and m.training and m.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


def _sum_loss(model: nn.Module, split: Split, positions: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(to_input(split.rows(positions))), split.y[positions], reduction="sum")


def _slopes(loss: torch.Tensor, weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return _filled(weights, torch.autograd.grad(loss, weights, allow_unused=True))


def _filled(weights: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
    """Gradients of ``weights``, which come first in ``found``; zero where the loss does not depend on a weight."""
    return [torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradients, strict=False)]
