"""Logistic regression with an L1 penalty, many problems at once."""

from __future__ import annotations

import torch

_MOST = 2000  # iterations; the official choice of strengths needs a few hundred
_TOLERANCE = 1e-6  # largest change of a weight in an iteration at which a problem counts as solved


def lasso(x: torch.Tensor, y: torch.Tensor, strength: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Minimize ``strength * sum of cross-entropies + sum of |weights|``, without a penalty on the intercept.

    This is the objective of scikit-learn's ``LogisticRegression`` with an L1 penalty, whose C is the strength (its solver
    "liblinear" also shrinks the intercept). Solved by FISTA with restarts, in float64.

    Args:
        x: Features of each problem, float (P, N, D).
        y: Classes, int64 (P, N).
        strength: Of each problem, above 0, (P,).
        classes: K.

    Returns:
        Weights (P, K, D) and intercepts (P, K), float64; the intercepts of a problem sum to zero.
    """
    x = torch.cat([x.double(), torch.ones_like(x[..., :1], dtype=torch.float64)], 2)
    labels = torch.nn.functional.one_hot(y, classes).double()
    strength = strength.double()[:, None, None]
    rate = 2 / (strength * torch.linalg.matrix_norm(x, 2)[:, None, None] ** 2)  # the softmax's curvature is at most a half
    shrink = rate.expand(-1, 1, x.shape[2]).clone()
    shrink[..., -1] = 0
    at = x.new_zeros(len(x), classes, x.shape[2])
    ahead, momentum = at, x.new_ones(len(x), 1, 1)
    for _ in range(_MOST):
        slope = strength * (((x @ ahead.mT).softmax(2) - labels).mT @ x)
        moved = ahead - rate * slope
        new = moved.sign() * (moved.abs() - shrink).clamp_min(0)
        if float((new - at).abs().max()) < _TOLERANCE:
            at = new
            break
        back = ((ahead - new) * (new - at)).sum((1, 2), keepdim=True) > 0  # the step turned around: start without momentum
        momentum = torch.where(back, 1.0, momentum)
        grown = (1 + (1 + 4 * momentum**2).sqrt()) / 2
        ahead = torch.where(back, new, new + (momentum - 1) / grown * (new - at))
        at, momentum = new, grown
    weight, bias = at[..., :-1], at[..., -1]
    return weight, bias - bias.mean(1, keepdim=True)
