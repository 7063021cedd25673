"""How well scores tell poisoned from clean: rows of a training set, or models of a zoo."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from theriac.core.errors import InputError, shortened
from theriac.metrics.intervals import Z95, Rate

Values = torch.Tensor | Sequence[float]
FALSE_ALARMS = (0.01, 0.05)  # shares of false alarms at which the detection rate is counted


@dataclass(frozen=True, kw_only=True)
class Detection:
    """How well a score tells poisoned ones from clean ones.

    Args:
        auroc: Chance that a poisoned one scores higher than a clean one, ties counting half, in [0, 1]; 0.5 is guessing.
        average_precision: Mean over the poisoned ones of the precision at their score, in [0, 1]; guessing gives their share.
        tpr: For each share of false alarms in ``FALSE_ALARMS``, the poisoned ones caught at the lowest threshold that keeps
            false alarms at most at that share. Ones of equal score are caught together or not at all.
        poisoned: How many are poisoned.
        clean: How many are not.
    """

    auroc: float
    average_precision: float
    tpr: tuple[Rate, ...]
    poisoned: int
    clean: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of :attr:`auroc` (Newcombe, Statistics in Medicine 2006, method 5); never empty at 0 and 1.

        It takes the scored ones as independent draws.
        """
        return auroc_interval(self.auroc, self.poisoned, self.clean)

    def __str__(self) -> str:
        low, high = self.interval
        caught = "".join(
            f"\nTPR at {100 * share:g} % false alarms  {rate}" for share, rate in zip(FALSE_ALARMS, self.tpr, strict=True)
        )
        return (
            f"AUROC {self.auroc:.3f} (95 % {low:.3f} to {high:.3f}; {self.poisoned} poisoned, {self.clean} clean)"
            f"\naverage precision {self.average_precision:.3f}{caught}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "auroc": round(self.auroc, 6),
            "interval": [round(v, 6) for v in self.interval],
            "average_precision": round(self.average_precision, 6),
            "tpr": {f"{share:g}": rate.to_dict() for share, rate in zip(FALSE_ALARMS, self.tpr, strict=True)},
            "poisoned": self.poisoned,
            "clean": self.clean,
        }


def detection(scores: Values, poisoned: torch.Tensor | Sequence[bool]) -> Detection:
    """Judge a detector's scores by the truth.

    Args:
        scores: Of rows or of models, (N,), higher is more suspicious; finite.
        poisoned: Which are poisoned, bool (N,): for rows ``poisoned_set.poison``, so that rows with a trigger and their true
            label count as clean.

    Raises:
        InputError: On shapes that do not fit, NaN, or if all are poisoned or none is.

    Examples:
        >>> print(detection([0.1, 0.4, 0.35, 0.8], [False, False, True, True]).auroc)
        0.75
    """
    values, truth = _pair(scores, poisoned)
    many, few = int(truth.sum()), int((~truth).sum())
    if not many or not few:
        raise InputError(f"poisoned names {many} of {len(truth)}; a detector can only be judged where there are some of both")
    order = values.argsort(descending=True, stable=True)
    values, truth = values[order], truth[order]
    last = torch.cat([values[1:] != values[:-1], torch.ones(1, dtype=torch.bool)])  # of a group of equal scores
    hits, alarms = truth.cumsum(0)[last], (~truth).cumsum(0)[last]
    new_hits, new_alarms = hits.diff(prepend=hits[:0].new_zeros(1)), alarms.diff(prepend=alarms[:0].new_zeros(1))
    # poisoned ones met at each score, against clean ones that come later, and half of those that tie with them
    wins = new_hits.double() * ((few - alarms).double() + new_alarms.double() / 2)
    precision = hits.double() / (hits + alarms).double()
    tpr = []
    for share in FALSE_ALARMS:
        allowed = hits[alarms <= math.floor(share * few + 1e-9)]
        caught = int(allowed[-1]) if len(allowed) else 0
        tpr.append(Rate(caught, many, f"poisoned ones at {100 * share:g} % false alarms"))
    return Detection(
        auroc=float(wins.sum()) / (many * few),
        average_precision=float((new_hits.double() * precision).sum()) / many,
        tpr=tuple(tpr),
        poisoned=many,
        clean=few,
    )


def brier(chances: Values, poisoned: torch.Tensor | Sequence[bool]) -> float:
    """Mean squared distance of predicted chances in [0, 1] from the truth (0 or 1); 0 is best, always one half gives 0.25.

    Raises:
        InputError: On shapes that do not fit, or a chance outside [0, 1].
    """
    values, truth = _pair(chances, poisoned)
    if float(values.min()) < 0 or float(values.max()) > 1:
        raise InputError(f"chances go from {float(values.min()):g} to {float(values.max()):g}; expected numbers in [0, 1]")
    return float(((values - truth.double()) ** 2).mean())


def auroc_interval(auroc: float, poisoned: int, clean: int) -> tuple[float, float]:
    """95 % interval of an AUROC from two independent samples, in [0, 1].

    The ends are where the observed value lies ``Z95`` standard errors away, with the error that Hanley and McNeil (Radiology
    1982) give for exponential scores at that end, both sample sizes replaced by their mean (Newcombe, Statistics in Medicine
    2006, method 5).
    """
    mean = (poisoned + clean) / 2 - 1

    def off(t: float) -> float:
        spread = t * (1 - t) * (1 + mean * (1 - t) / (2 - t) + mean * t / (1 + t)) / (poisoned * clean)
        return abs(auroc - t) - Z95 * math.sqrt(spread)

    ends = []
    for far in (0.0, 1.0):
        inside, outside = auroc, far
        for _ in range(60):  # halving to beyond double precision
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if off(middle) <= 0 else (inside, middle)
        ends.append(far if abs(far - auroc) < 1e-12 else inside)
    return ends[0], ends[1]


def _pair(scores: Values, poisoned: torch.Tensor | Sequence[bool]) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        values = torch.as_tensor(scores).detach().cpu().double()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"scores is {shortened(scores)}; expected one number each, (N,)") from None
    try:
        truth = torch.as_tensor(poisoned).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"poisoned is {shortened(poisoned)}; expected bool (N,)") from None
    if values.dim() != 1 or not len(values):
        raise InputError(f"scores have the shape {tuple(values.shape)}; expected one number each, (N,)")
    if truth.dtype != torch.bool or truth.shape != values.shape:
        raise InputError(f"poisoned is {truth.dtype} {tuple(truth.shape)}; expected bool ({len(values)},)")
    if not bool(values.isfinite().all()):
        raise InputError(f"{int((~values.isfinite()).sum())} of {len(values)} scores are NaN or infinite; expected numbers")
    return values, truth
