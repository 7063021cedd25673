"""Rates with counts and intervals."""

from theriac.metrics._degenerate import ClassCount, degenerate
from theriac.metrics.backdoor import aim, evaluate, predict
from theriac.metrics.by_group import fairness
from theriac.metrics.evaluation import Comparison, Evaluation, compare, der
from theriac.metrics.fairness import Fairness
from theriac.metrics.flips import flip_rate
from theriac.metrics.intervals import Difference, Rate, Spread, over_seeds, wilson

__all__ = [
    "ClassCount",
    "Comparison",
    "Difference",
    "Evaluation",
    "Fairness",
    "Rate",
    "Spread",
    "aim",
    "compare",
    "degenerate",
    "der",
    "evaluate",
    "fairness",
    "flip_rate",
    "over_seeds",
    "predict",
    "wilson",
]
