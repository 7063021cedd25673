"""Distance of a network from its old self, measured through the old features: a change of basis does not increase it."""

from __future__ import annotations

import torch
from torch import nn

from theriac.models.editing import Weight, duplicate
from theriac.models.taps import Tap


def center(z: torch.Tensor) -> torch.Tensor:
    """Logits (B, K) less their mean over rows (any bias) and over classes; neither mean says anything about the class."""
    z = z - z.mean(0)
    return z - z.mean(1, keepdim=True)


def effective_head(z: torch.Tensor, f0: torch.Tensor, ridge: float) -> torch.Tensor:
    """The linear head that, put on the old features, comes nearest to given logits.

    Args:
        z: Logits (B, K).
        f0: Old features (B, D) of the same rows.
        ridge: Added to the features' covariance, in units of its mean eigenvalue.

    Returns:
        E[z f0^T] (E[f0 f0^T] + ridge)^-1, both centered, (K, D); differentiable in ``z``.
    """
    f0 = f0 - f0.mean(0)
    covariance = f0.T @ f0 / len(f0)
    shift = ridge * covariance.diagonal().mean().clamp_min(1e-12)
    covariance = covariance + shift * torch.eye(len(covariance), dtype=f0.dtype, device=f0.device)
    head: torch.Tensor = torch.linalg.solve(covariance, f0.T @ center(z) / len(f0))
    return head.T


class Pullback:
    """Compares the effective heads of the new network and of the old one on the same views.

    Args:
        model: The network, still with its old weights; a frozen copy is kept.
        head: Name of its classifier, whose input are the features.
        ridge: See :func:`effective_head`.
    """

    def __init__(self, model: nn.Module, head: str, ridge: float) -> None:
        self.old, self.ridge = Tap(duplicate(model).eval().requires_grad_(False), head), ridge
        self.scale = float(Weight(model.get_submodule(head), head).value.detach().norm())

    def cosine(self, logits: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Cosine between the effective heads, from the new logits (B, K) of inputs ``x``; differentiable in the logits."""
        with torch.no_grad():
            before, f0 = self.old(x)
        with torch.autocast(logits.device.type, enabled=False):
            f0 = wide(f0)
            heads = [effective_head(wide(z), f0, self.ridge).flatten() for z in (logits, before)]
            cosine: torch.Tensor = torch.dot(*heads) / (heads[0].norm() * heads[1].norm()).clamp_min(1e-12)
        return cosine

    def distance(self, cosine: torch.Tensor) -> torch.Tensor:
        """||W0|| times the distance of the two heads scaled to norm 1: as the plain distance on its sphere, 0 to 2 ||W0||."""
        return self.scale * (2 - 2 * cosine).clamp_min(1e-12).sqrt()


def wide(values: torch.Tensor) -> torch.Tensor:
    """At least float32: a covariance is inverted here."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def blends(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Every row mixed with another of its batch, at a share drawn evenly between 0 and 1; one share a row."""
    partner = torch.randperm(len(x), generator=generator).to(x.device)
    share = torch.rand(len(x), generator=generator).to(x).view(-1, *([1] * (x.dim() - 1)))
    return share * x + (1 - share) * x[partner]
