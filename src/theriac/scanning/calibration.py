"""From measurements to a probability: a logistic model fitted on a population of small networks, shipped as plain JSON.

``calibration.json`` holds the linear classifier on sorted weights, whose log-odds are one measurement; for each of two sets of
measurements (weights alone; weights and behavior) names, centers, scales, slopes and thresholds; the range of networks it was
fitted on; and what it reached on held-out networks.
``benchmarks/population.py fit`` makes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import torch
from torch import nn

from theriac.core.card import Card
from theriac.core.outcome import Verdict
from theriac.core.split import Split

EVEN = 0.5  # share of backdoored networks that the probability is for, unless another one is named
FEWEST = 5  # ours: clean pictures of a class; without any, a benign network was called backdoored
FARTHEST = 6.0  # ours: standard deviations from the population beyond which a measurement is out of its range


@dataclass(frozen=True)
class Judgment:
    """What the logistic model says.

    Args:
        probability: That the network is backdoored, among networks like those of the population of which the share ``prior``
            is backdoored.
        outside: Why the network is unlike them; if there is any reason, the probability is uncalibrated.
        least: The probability if measurements out of range spoke neither for nor against a backdoor; None if the network is
            unlike the population by its kind.
        weighty: The log-odds of a network whose measurements are all the population's means, as "start", then what each of the
            measurements that moved them most adds.
    """

    probability: float
    outside: tuple[str, ...]
    least: float | None
    weighty: tuple[tuple[str, float], ...]


@cache
def calibration() -> dict[str, Any]:
    """The file that is shipped with the package."""
    made: dict[str, Any] = json.loads(resources.files("theriac.scanning").joinpath("calibration.json").read_text("utf-8"))
    return made


def word(which: str, judgment: Judgment | None) -> Verdict:
    """The verdict that a probability comes to; weights alone do not tell benign from backdoored networks (see the table).

    Measurements that are out of range make it abstain, unless the others are suspicious without them.
    """
    if judgment is None or judgment.least is None or which == "weights":
        return "abstains"
    low, high = calibration()[which]["thresholds"]
    if judgment.outside:
        return "suspicious" if judgment.least >= low else "abstains"
    return "backdoored" if judgment.probability >= high else "suspicious" if judgment.probability >= low else "clean"


def judge(features: Mapping[str, float], which: str, reasons: tuple[str, ...] = (), prior: float = EVEN) -> Judgment | None:
    """The probability from measurements, or None if some that it needs are missing.

    Args:
        features: By name.
        which: "weights" or "behavior".
        reasons: Why the network is out of range by its kind, see :func:`out_of_range`.
        prior: Share of backdoored networks among those that one would scan, in (0, 1). The model was fitted with equal weights
            of both, which is a half; another share shifts the log-odds.
    """
    fitted = calibration()[which]
    if any(name not in features or not math.isfinite(features[name]) for name in fitted["names"]):
        return None
    odds, outside, moved = fitted["intercept"] + math.log(prior / (1 - prior)), list(reasons), []
    inside = 0.0
    for name, center, scale, slope in zip(*(fitted[k] for k in ("names", "centers", "scales", "slopes")), strict=True):
        away = (features[name] - center) / scale
        if abs(away) > FARTHEST:
            outside.append(f"its {name.replace('_', ' ')} is {features[name]:.2f}, and the population's about {center:.2f}")
        else:
            inside += slope * away
        away = max(-FARTHEST, min(FARTHEST, away))
        moved.append((name, slope * away))
    moved.sort(key=lambda pair: -abs(pair[1]))
    all_of_them = _chance(odds + sum(share for _, share in moved))
    weighty = (("start", odds), *moved[:4])
    return Judgment(all_of_them, tuple(outside), None if reasons else _chance(odds + inside), weighty)


def sorted_score(curves: torch.Tensor) -> float:
    """Log-odds of a backdoor by the linear classifier on sorted weights, see :func:`theriac.scanning.weights.sorted_weights`.

    Each quantile counts as no farther than ``FARTHEST`` standard deviations from the population's mean.
    """
    fitted = calibration()["sorted"]
    centers, scales, slopes = (torch.tensor(fitted[k], dtype=torch.float64) for k in ("centers", "scales", "slopes"))
    away = ((curves.double() - centers) / scales).clamp(-FARTHEST, FARTHEST)
    return float(away @ slopes + fitted["intercept"])


def _chance(odds: float) -> float:
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, odds))))


def _within(value: float, bounds: tuple[float, float]) -> bool:
    return bounds[0] <= value <= bounds[1]


def out_of_range(model: nn.Module, card: Card, rows: int | None = None) -> tuple[str, ...]:
    """Why a network is unlike those of the population by pictures' size, classes, architecture, or is scanned with fewer rows.

    Args:
        model: The network.
        card: What its inputs and classes are.
        rows: Number of clean rows at hand; None if there are none.
    """
    allowed, reasons = calibration()["range"], []
    if card.kind != "image":
        return ("it takes rows of a table",)
    if any(hasattr(m, "unrepairable") for m in model.modules()):
        return (
            "it is a program of torch.export, which has no repaired twin to compare with; scan the module that it was made of",
        )
    sides = (min(card.size), max(card.size))
    near = [region for region in allowed["regions"] if all(_within(side, region["side"]) for side in sides)]
    if not near:
        reasons.append(f"its pictures have {' x '.join(map(str, card.size))} pixels")
    if not _within(card.num_classes, allowed["classes"]):
        reasons.append(f"it has {card.num_classes} classes")
    inside = getattr(getattr(model, "prepare", None), "size", None)
    if inside is not None and tuple(inside) != card.size:
        reasons.append(f"it resizes its pictures to {' x '.join(map(str, inside))} pixels")
    if not any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
        reasons.append("it has no BatchNorm")
    dense = sum(isinstance(m, nn.Linear) for m in model.modules())
    if dense > 1:  # a plain network of this kind with BadNets at 99 % success was given the probability 0.16
        reasons.append(f"it has {dense} fully connected layers, and those have one")
    layers = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    if layers < allowed["convolutions"]:  # a plain network of four with BadNets at 99 % success was given 0.41
        reasons.append(f"it has {layers} convolutions, and those have {allowed['convolutions']} or more")
    size = sum(p.numel() for p in model.parameters())
    if not any(region["parameters"][0] / 2 <= size <= 2 * region["parameters"][1] for region in near or allowed["regions"]):
        reasons.append(f"it has {size:,} parameters" + (" for pictures of this size" if near else ""))
    if rows is not None and rows < allowed["rows"]:
        reasons.append(f"there are {rows} clean pictures, and those were scanned with {allowed['rows']}")
    return tuple(dict.fromkeys(reasons))


def lacking(rows: Split) -> str:
    """Why clean pictures are unlike those of the population by their classes; empty if they are not.

    A twin that is repaired without a class forgets it, and then every trigger of that class seems to be the model's alone.

    Args:
        rows: Clean pictures, with the classes that the model answers.
    """
    few = [name for name, count in zip(rows.card.classes, rows.count().tolist(), strict=True) if count < FEWEST]
    if not few:
        return ""
    more = f" and of {len(few) - 1} more classes" if len(few) > 1 else ""
    return f"the clean pictures hold fewer than {FEWEST} of class {few[0]!r}{more}, and a twin repaired with them forgets it"


def too_often_wrong(card: Card, hits: int, rows: int) -> str:
    """Why a network is unlike those of the population by its accuracy on clean pictures; empty if it is not.

    Args:
        card: What its inputs are: for larger pictures there were other networks.
        hits: Clean pictures that it gets right.
        rows: Clean pictures.
    """
    sides = (min(card.size), max(card.size))
    least = [r["accuracy"] for r in calibration()["range"]["regions"] if all(_within(side, r["side"]) for side in sides)]
    if not least or hits / rows >= min(least):
        return ""
    return f"it gets {hits} of {rows} clean pictures right, and those got {100 * min(least):.0f} % or more"
