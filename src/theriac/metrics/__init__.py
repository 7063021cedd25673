"""Backdoor, fairness and detection figures, with counts and intervals."""

from theriac.metrics._degenerate import ClassCount, degenerate
from theriac.metrics.backdoor import attack_labels, compare, evaluate, predict
from theriac.metrics.by_group import fairness
from theriac.metrics.debiased import Verdict, judge, listed, pairs_of, unlisted
from theriac.metrics.evaluation import Comparison, Evaluation, der
from theriac.metrics.fair import Fairness
from theriac.metrics.flips import flip_rate
from theriac.metrics.gaps import Measure, Noise
from theriac.metrics.intervals import Difference, Rate, Spread, over_seeds, wilson
from theriac.metrics.roc import Detection, brier, detection
from theriac.metrics.stamped import cross_accuracy, leakage, success_by_group, success_by_target
from theriac.metrics.wrapping import Way, WrappingCheck, check_wrapping

__all__ = [
    "ClassCount",
    "Comparison",
    "Detection",
    "Difference",
    "Evaluation",
    "Fairness",
    "Measure",
    "Noise",
    "Rate",
    "Spread",
    "Verdict",
    "Way",
    "WrappingCheck",
    "attack_labels",
    "brier",
    "check_wrapping",
    "compare",
    "cross_accuracy",
    "degenerate",
    "der",
    "detection",
    "evaluate",
    "fairness",
    "flip_rate",
    "judge",
    "leakage",
    "listed",
    "over_seeds",
    "pairs_of",
    "predict",
    "success_by_group",
    "success_by_target",
    "unlisted",
    "wilson",
]
