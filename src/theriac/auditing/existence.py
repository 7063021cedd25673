"""How much of a backdoor a model's features hold, whatever its predictions are.

In the spirit of the "backdoor existence coefficient" (NeurIPS 2024, https://openreview.net/forum?id=E2odGznGim): a repaired
model's features on stamped rows are compared with the victim's, on a scale where a benign model is 0 and the victim is 1. This
is a reconstruction from the abstract's idea: the paper's choice of layers and neurons was not read. Here it is the penultimate
embedding.
"""

from __future__ import annotations

import math

import torch

from theriac.auditing.result import Coefficient
from theriac.core.errors import InputError

FOLDS = 10  # of the jackknife behind an interval


def centered_alignment(a: torch.Tensor, b: torch.Tensor) -> float:
    """Linear centered kernel alignment (CKA) of two feature tables of the same rows, in [0, 1].

    Args:
        a: Features, float (N, P).
        b: Features, float (N, Q).

    Raises:
        InputError: If the numbers of rows differ, or there are fewer than two.
    """
    if a.dim() != 2 or b.dim() != 2 or len(a) != len(b) or len(a) < 2:
        raise InputError(f"features are {tuple(a.shape)} and {tuple(b.shape)}; expected as many rows of each, at least two")
    a, b = (t.double() - t.double().mean(0) for t in (a, b))
    own = (a.T @ a).norm() * (b.T @ b).norm()
    return float((a.T @ b).norm() ** 2 / own) if float(own) > 0 else 0.0


def coefficient(subject: torch.Tensor, victim: torch.Tensor, benign: torch.Tensor) -> Coefficient | None:
    """``(CKA(subject, victim) - CKA(benign, victim)) / (1 - CKA(benign, victim))``, with a 95 % jackknife interval.

    Args:
        subject: Features of stamped rows, (N, D).
        victim: The victim's.
        benign: The benign model's.

    Returns:
        None where benign model and victim can't be told apart, so that there is no scale.
    """
    parts = _parts(subject, victim, benign)
    if parts is None:
        return None
    folds = [torch.arange(len(subject)) % FOLDS != k for k in range(FOLDS)] if len(subject) >= 5 * FOLDS else []
    values = []
    for keep in folds:
        some = _parts(subject[keep], victim[keep], benign[keep])
        values.append(parts[0] / parts[1] if some is None else some[0] / some[1])
    value = parts[0] / parts[1]
    half = math.inf
    if values:
        mean = sum(values) / FOLDS
        half = 1.96 * math.sqrt((FOLDS - 1) / FOLDS * sum((v - mean) ** 2 for v in values))
    return Coefficient(parts[0], parts[1], (value - half, value + half))


def _parts(subject: torch.Tensor, victim: torch.Tensor, benign: torch.Tensor) -> tuple[float, float] | None:
    floor = centered_alignment(benign, victim)
    if floor > 0.99 or centered_alignment(victim, victim) < 0.5:  # the same features, or the same for all rows
        return None
    return centered_alignment(subject, victim) - floor, 1 - floor


def nearest(features: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    """The class whose center lies nearest to each row, int64 (N,); a class without rows has a center of NaN."""
    return torch.cdist(features, centers.nan_to_num(1e9)).argmin(1)


def centers(features: torch.Tensor, y: torch.Tensor, classes: int) -> torch.Tensor:
    """Mean features of each class, (K, D); NaN for a class without rows."""
    total = torch.zeros(classes, features.shape[1]).index_add_(0, y.cpu(), features)
    count = torch.bincount(y.cpu(), minlength=classes)[:, None]
    return torch.where(count > 0, total / count, torch.nan)
