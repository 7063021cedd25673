"""Rates with counts and intervals."""

from theriac.metrics.backdoor import Comparison, Evaluation, compare, der, evaluate, predict
from theriac.metrics.intervals import Difference, Rate, Spread, over_seeds, wilson

__all__ = [
    "Comparison",
    "Difference",
    "Evaluation",
    "Rate",
    "Spread",
    "compare",
    "der",
    "evaluate",
    "over_seeds",
    "predict",
    "wilson",
]
