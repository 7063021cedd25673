"""Rates with counts and intervals."""

from theriac.metrics.backdoor import aim, compare, evaluate, predict
from theriac.metrics.by_group import fairness
from theriac.metrics.evaluation import Comparison, Evaluation, der
from theriac.metrics.fairness import Fairness
from theriac.metrics.flips import flip_rate
from theriac.metrics.intervals import Difference, Rate, Spread, over_seeds, wilson

__all__ = [
    "Comparison",
    "Difference",
    "Evaluation",
    "Fairness",
    "Rate",
    "Spread",
    "aim",
    "compare",
    "der",
    "evaluate",
    "fairness",
    "flip_rate",
    "over_seeds",
    "predict",
    "wilson",
]
