"""How hard an audit tries: sizes of its attacks and of its changes to a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval

from theriac.core.ranges import Count, Fraction, Positive, check_fields

VERSION = 1  # of what an audit does; whoever changes its figures raises it, so that sweeps make theirs again


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of an audit. All are ours: the works that gave the ideas were read in their abstracts only.

    Raises:
        InputError: On a value outside of its declared range.
    """

    retune_rows: Count = 8  # poisoned rows that an attacker re-tunes with, beside three times as many clean ones
    retune_steps: Count = 10  # updates of that attacker
    retune_lr: Positive = 0.005  # learning rate of those updates, SGD with momentum 0.9, BatchNorm statistics at rest
    radius: Positive = 8 / 255  # largest change of a pixel in [0, 1] by a universal perturbation
    search_rows: Count = 64  # training rows that a perturbation is searched on
    search_steps: Count = 30  # sign steps of the search with gradients, each of a quarter of the radius
    queries: Count = 200  # proposals of the search without gradients, each one forward pass of the search rows
    bits: Annotated[int, Interval(ge=2, le=16)] = 8  # of each weight, simulated: rounded and kept as float
    prune_weights: Fraction = 0.5  # share of each layer's weights, the smallest ones, set to zero
    prune_channels: Fraction = 0.1  # share of each convolution's output channels, those of the smallest norm, set to zero
    clean_rows: Count = 500  # training rows, at most, of fine-tuning and distillation
    tune_steps: Count = 100  # updates of further fine-tuning with clean rows
    tune_lr: Positive = 0.01  # learning rate of them
    distill_steps: Count = 400  # updates of a fresh network that learns the model's answers for the clean rows
    distill_lr: Positive = 0.05  # largest learning rate of them, one cycle
    batch_size: Count = 64  # rows an update

    def __post_init__(self) -> None:
        check_fields(self)
