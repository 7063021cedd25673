"""SAU's inner step: perturbations that fool the repaired and the poisoned model into the same class.

The plain formulation and the fast one give the same perturbations. Fast means: clean predictions come from outside, gradients
are taken with respect to the perturbation only, and a row that is shared already leaves the batch. It may leave because its
loss terms are all masked out, so its gradient is zero and it would never move again while the weights stand still.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from theriac.core import check
from theriac.core.errors import unknown


@dataclass
class Perturbation:
    """What the search returns for a batch."""

    delta: torch.Tensor  # (B, ...), the perturbation
    frozen_class: torch.Tensor  # int64 (B,), the poisoned model's class for x + delta
    passes: int  # row passes spent: forward 1, input gradient 1, for each model


def start(x: torch.Tensor, radius: float, init: str, generator: torch.Generator | None) -> torch.Tensor:
    """The first perturbation: "max" (+radius everywhere), "min", "zero" or "random"."""
    if init in ("max", "min"):
        return torch.full_like(x, radius if init == "max" else -radius)
    if init == "zero":
        return torch.zeros_like(x)
    if init == "random":  # uniform in [0, 1), as the official code draws it; the search projects
        return torch.rand(x.shape, generator=generator, dtype=x.dtype).to(x.device)
    raise unknown("init", init, ("max", "min", "zero", "random"))


def project(delta: torch.Tensor, radius: float, norm: str) -> torch.Tensor:
    """Back into the ball, row by row: "linf", "l2", "l1" (rescaling when outside, as the official code) or "none"."""
    if norm == "linf":
        return delta.clamp(-radius, radius)
    if norm == "none":
        return delta
    if norm not in ("l1", "l2"):
        raise unknown("norm", norm, ("linf", "l2", "l1", "none"))
    scale: torch.Tensor = (radius / sizes(delta, norm).clamp_min(1e-12)).clamp(max=1.0)
    return delta * scale.view(-1, *([1] * (delta.dim() - 1)))


def sizes(delta: torch.Tensor, norm: str) -> torch.Tensor:
    """Norms of the rows in the ball's own norm (B,); without a ball, the largest change of a number."""
    norms: torch.Tensor = delta.flatten(1).norm(p={"l1": 1, "l2": 2}.get(norm, float("inf")), dim=1)
    return norms


def jensen_shannon(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Jensen-Shannon divergence of rows of probabilities (B, K), in nats (B,); floored at 1e-8, not renormalized."""
    p, q = p.clamp_min(1e-8), q.clamp_min(1e-8)
    m = (p + q) / 2
    js: torch.Tensor = 0.5 * ((p * p.log()).sum(1) + (q * q.log()).sum(1) - (p * m.log()).sum(1) - (q * m.log()).sum(1))
    return js


def inner_loss(
    logits: torch.Tensor,
    frozen_logits: torch.Tensor,
    y: torch.Tensor,
    clean_class: torch.Tensor,
    frozen_clean_class: torch.Tensor,
    adversarial: float,
    sharing: float,
    batch: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss that the perturbation minimizes, and which rows are shared (bool (B,)).

    A row is fooled for a model if its class differs from that model's own clean class; it is shared if both are fooled into
    the same class. Cross-entropy to the true label counts for rows not fooled yet, over 2 x ``batch``; Jensen-Shannon for
    rows not shared yet, over ``batch``.
    """
    moved_class, frozen_class = logits.argmax(1), frozen_logits.argmax(1)
    fooled, frozen_fooled = moved_class != clean_class, frozen_class != frozen_clean_class
    shared = fooled & frozen_fooled & (moved_class == frozen_class)
    ce = F.cross_entropy(logits, y, reduction="none") * ~fooled
    frozen_ce = F.cross_entropy(frozen_logits, y, reduction="none") * ~frozen_fooled
    fool = -(ce.sum() + frozen_ce.sum()) / (2 * batch)
    js = jensen_shannon(logits.softmax(1), frozen_logits.softmax(1))
    share = (js * ~shared).sum() / batch
    return adversarial * fool + sharing * share, shared


BUCKET = 32
"""Convolution kernels are set up anew for every batch size they have not met, which costs more than a few idle rows."""


def bucketed(rows: int, most: int, step: int = BUCKET) -> int:
    """``rows`` rounded up to a multiple of ``step``, at most ``most``."""
    return min(most, -(-rows // step) * step)


def search(
    model: nn.Module,
    frozen: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    clean_class: torch.Tensor,
    frozen_clean_class: torch.Tensor,
    *,
    radius: float,
    steps: int,
    step_size: float,
    norm: str,
    init: str,
    adversarial: float,
    sharing: float,
    low: torch.Tensor | None = None,
    high: torch.Tensor | None = None,
    drop_shared: bool = True,
    early_exit: bool = True,
    bucket: int = BUCKET,
    generator: torch.Generator | None = None,
    watch: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
) -> Perturbation:
    """Find shared adversarial perturbations for a batch; both models are in eval mode.

    Args:
        model: The model being repaired.
        frozen: The poisoned model.
        x: Model inputs (B, ...).
        y: True labels (B,).
        clean_class: The repaired model's classes for ``x``, (B,).
        frozen_clean_class: The poisoned model's classes for ``x``, (B,).
        radius: Bound of the perturbation in the given norm.
        steps: Most steps to take.
        step_size: Of the signed-gradient step.
        norm: Of the ball, see :func:`project`.
        init: Where to start, see :func:`start`.
        adversarial: Weight of the cross-entropy part.
        sharing: Weight of the Jensen-Shannon part.
        low: Keep ``x + delta`` above this; None leaves the valid range unbounded, as the official code does.
        high: Keep ``x + delta`` below this.
        drop_shared: Let shared rows leave the batch (same result, fewer passes).
        early_exit: Stop when every row is shared (same result).
        bucket: Batch sizes shrink in steps of this many rows.
        generator: Of a random start.
        watch: Called with the perturbation and the shared rows at the start of each step, for tests.
    """
    batch = len(x)
    delta = project(start(x, radius, init, generator), radius, norm)
    if low is not None and high is not None:
        delta = (x + delta).clamp(low, high) - x
    frozen_class = torch.full_like(y, -1)
    live = torch.arange(batch, device=x.device)
    passes = 0
    for _ in range(steps):
        part = slice(None) if len(live) == batch else live
        d = delta[part].detach().requires_grad_(True)
        logits, frozen_logits = model(x[part] + d), frozen(x[part] + d)
        loss, shared = inner_loss(
            logits, frozen_logits, y[part], clean_class[part], frozen_clean_class[part], adversarial, sharing, batch
        )
        passes += 2 * len(d)
        if watch is not None:
            watch(delta, shared)
        if early_exit and bool(shared.all()):
            frozen_class[part] = frozen_logits.argmax(1)
            return Perturbation(delta, frozen_class, passes)
        gradient = check.slope(loss, d)
        passes += 2 * len(d)
        moved = project(d.detach() - step_size * gradient.sign(), radius, norm)
        if low is not None and high is not None:
            moved = (x[part] + moved).clamp(low, high) - x[part]
        delta = delta.clone()
        delta[part] = moved
        if drop_shared and norm in ("linf", "none") and low is None:
            # under these projections a row without a gradient stays exactly where it is
            frozen_class[live[shared]] = frozen_logits.argmax(1)[shared]
            resting, live = live[shared], live[~shared]
            if not len(live):
                return Perturbation(delta, frozen_class, passes)
            live = torch.cat([live, resting[: bucketed(len(live), batch, bucket) - len(live)]]).sort().values
    with torch.no_grad():
        part = slice(None) if len(live) == batch else live
        frozen_class[part] = frozen(x[part] + delta[part]).argmax(1)
    return Perturbation(delta, frozen_class, passes + len(live))
