"""Rates with counts and intervals."""

from theriac.metrics.backdoor import aim, evaluate, predict
from theriac.metrics.by_group import fairness
from theriac.metrics.evaluation import Comparison, Evaluation, compare, der
from theriac.metrics.fairness import Fairness
from theriac.metrics.flips import flip_rate
from theriac.metrics.intervals import Difference, Rate, Spread, over_seeds, wilson
from theriac.metrics.stamped import cross_accuracy, leak, success_by_target

__all__ = [
    "Comparison",
    "Difference",
    "Evaluation",
    "Fairness",
    "Rate",
    "Spread",
    "aim",
    "compare",
    "cross_accuracy",
    "der",
    "evaluate",
    "fairness",
    "flip_rate",
    "leak",
    "over_seeds",
    "predict",
    "success_by_target",
    "wilson",
]
