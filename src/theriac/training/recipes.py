"""Training recipes: hyperparameters as data, with their epochs in the name."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from theriac.core.card import Augment
from theriac.core.errors import InputError, unknown
from theriac.core.method import FORMER
from theriac.core.ranges import Count, Fraction, NonNegative, Positive, check_fields, typed


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train. ``batch_size`` counts all ranks together under data-parallel training."""

    name: str = "custom"
    epochs: Count
    batch_size: Count = 128
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: Positive = 0.1
    momentum: Fraction = 0.9  # of SGD
    nesterov: bool = False
    amsgrad: bool = False  # of Adam
    weight_decay: NonNegative = 0.0
    schedule: Literal["constant", "cosine", "cosine_by_step", "one_cycle", "multistep"] = "cosine"
    warmup: Fraction = 0.25  # share of the steps that one_cycle climbs
    milestones: tuple[Fraction, ...] = ()  # shares of the epochs at which multistep divides lr by 10
    augment: Augment | Literal["card", "none"] = "card"
    drop_last: bool = False
    norm: Literal["train", "eval"] = "train"  # BatchNorm: use and update batch statistics, or keep the stored ones
    precision: Literal["run", "fp32"] = "run"
    clip_norm: NonNegative = 0.0  # largest gradient norm; 0 = no clipping
    sam_rho: NonNegative = 0.0  # radius of sharpness-aware steps (theriac.training.flat), which cost double; 0 = plain steps
    sam_ramp: Fraction = 0.1  # share of the steps over which that radius grows
    sam_adaptive: bool = False  # ASAM's norm

    def __post_init__(self) -> None:
        check_fields(self)

    def replace(self, **changes: Any) -> Recipe:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of one step. ``cosine`` and ``multistep`` change once an epoch, as the literature's code does.

        ``cosine_by_step`` takes a step for an epoch, as code does that moves a schedule of epochs once a step: the learning
        rate falls to zero and rises again, every ``epochs`` steps.
        """
        total, epoch = self.epochs * steps_per_epoch, step // steps_per_epoch
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + _cos(epoch / self.epochs))
        if self.schedule == "cosine_by_step":
            return self.lr * 0.5 * (1 + _cos(step / self.epochs))
        if self.schedule == "multistep":
            return self.lr * 0.1 ** sum(epoch >= round(m * self.epochs) for m in self.milestones)
        if self.schedule == "one_cycle":
            climb = max(1, round(self.warmup * total))
            if step < climb:
                return self.lr * (step + 1) / climb
            return self.lr * 0.5 * (1 + _cos((step - climb) / max(1, total - climb)))
        return self.lr

    def rho_at(self, step: int, steps_per_epoch: int) -> float:
        """Radius of one sharpness-aware step: it grows evenly at first, or training may stall."""
        rise = max(1, round(self.sam_ramp * self.epochs * steps_per_epoch))
        return self.sam_rho * min(1.0, (step + 1) / rise)


def _cos(share: float) -> float:
    return math.cos(math.pi * share)


_FAMILIES: dict[str, dict[str, Any]] = {
    # BackdoorBench @ f02e353 and the SAU and D3 repositories: SGD 0.01/0.9/5e-4, batch 128, cosine over the epochs
    "paper": {"lr": 0.01, "weight_decay": 5e-4, "schedule": "cosine", "drop_last": True},
    # ours: one cycle to 0.1; 8 epochs reach about 84 % on CIFAR-10 at width 16 (benchmarks/results). Not called fast: its
    # victims are as accurate and obey as well, but fine-tuning leaves far more of their backdoors (lengths.md there)
    "short": {"lr": 0.1, "weight_decay": 5e-4, "schedule": "one_cycle", "nesterov": True, "drop_last": True},
    # ours, for tables and other small sets
    "adam": {"optimizer": "adam", "lr": 1e-3, "weight_decay": 1e-4, "schedule": "cosine"},
}


@typed()
def recipe(name: str | Recipe) -> Recipe:
    """A recipe by name: a family and its epochs, such as ``paper_100``, ``short_8`` or ``adam_30``.

    Raises:
        InputError: On an unknown family, or a name without epochs.
    """
    if isinstance(name, Recipe):
        return name
    match = re.fullmatch(r"([a-z]+)_([1-9][0-9]{0,4})", name)
    if match is not None and match[1] in FORMER:
        return recipe(f"{FORMER[match[1]]}_{match[2]}")
    if match is None or match[1] not in _FAMILIES:
        near = str(unknown("recipe", name, [f"{f}_{e}" for f, e in (("paper", 100), ("short", 8), ("adam", 30))]))
        raise InputError(f"{near} (a family and its epochs, 1 to 99999)")
    return Recipe(name=name, epochs=int(match[2]), **_FAMILIES[match[1]])
