"""Neural Cleanse: for every class, the smallest patch that sends all rows there, for all classes at once.

Paper: Wang et al., "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks", IEEE S&P 2019. Schedules
from the authors' Keras code (bolunwang/backdoor) and its port in SCLBD/BackdoorBench (both read in code: grade A).

A patch is a mask m (one value a pixel) and a pattern p, both through ``tanh(z) / 2 + 1/2``; a stamped row is
``(1 - m) x + m p`` in pixels in [0, 1]. Minimized: mean cross-entropy to the class plus ``cost * sum(m)``, with a cost that
rises while the patch works and falls while it does not. Classes never meet in a loss and the network is in eval mode, so one
pass over K x B stamped rows gives what K separate searches would.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from theriac.core.errors import InputError
from theriac.core.poisoned import as_clean
from theriac.core.ranges import Count, typed
from theriac.core.run import Run, as_run
from theriac.core.split import Split
from theriac.detectors.neural_cleanse.search import Schedule, Search, frozen

FEWEST_CLASSES = 5  # ours: below, a median over classes says little, and the search abstains


@dataclass(frozen=True)
class InvertedTrigger:
    """A found patch: mask (H, W) and pattern (C, H, W), both in [0, 1]."""

    mask: torch.Tensor
    pattern: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Stamp stored images, uint8 (B, C, H, W); same shape and dtype."""
        mask, pattern = self.mask.to(x.device), self.pattern.to(x.device)
        return (x.float() * (1 - mask) + 255 * mask * pattern).round_().clamp_(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Inverted:
    """What a search over classes found: a score for every class, and the right to say "I do not know"."""

    labels: tuple[int, ...]
    masks: torch.Tensor  # (K, H, W) in [0, 1]
    patterns: torch.Tensor  # (K, C, H, W) in [0, 1]
    norms: torch.Tensor  # (K,) sum of the mask, in pixels
    success: torch.Tensor  # (K,) share of all rows that the patch sends to the class
    index: torch.Tensor  # (K,) anomaly index: distance from the median norm in robust standard deviations; 0 = undefined
    flagged: tuple[int, ...]  # classes with a working patch that is an outlier on the small side, strongest first
    reason: str  # why nothing is flagged; empty otherwise
    threshold: float  # success that a patch needs

    @property
    def abstains(self) -> bool:
        """Whether no class stands out."""
        return not self.flagged

    @property
    def smallest(self) -> int | None:
        """The class of the smallest patch that works, flagged or not; None if none works."""
        norms = torch.where(self.success >= self.threshold, self.norms, math.inf)
        return self.labels[int(norms.argmin())] if bool(norms.isfinite().any()) else None

    def trigger(self, label: int) -> InvertedTrigger:
        """The patch found for a class.

        Raises:
            InputError: If the class was not searched.
        """
        if label not in self.labels:
            raise InputError(f"label is {label}; patches were searched for the classes {list(self.labels)}")
        at = self.labels.index(label)
        return InvertedTrigger(self.masks[at], self.patterns[at])


def anomaly_index(norms: torch.Tensor) -> torch.Tensor:
    """``|L - median| / (1.4826 median|L - median|)`` for norms (K,), float64; zeros where that spread is zero."""
    values = norms.double()
    off = (values - values.quantile(0.5)).abs()
    spread = 1.4826 * off.quantile(0.5)
    return off / spread if spread > 0 else torch.zeros_like(off)


@typed("clean")
def invert(
    model: nn.Module,
    clean: Split,
    run: Run | None = None,
    schedule: Schedule | None = None,
    labels: Sequence[int] | None = None,
    *,
    rows_per_pass: Count = 2048,
) -> Inverted:
    """Search the smallest patch for each class.

    Args:
        model: Pixels in [0, 1] (B, C, H, W) to logits (B, K). It is left as it was.
        clean: Clean images; their labels are not used.
        run: Device; stream ``method`` for starts, ``order`` for mini-batches.
        schedule: Default: :meth:`Schedule.official`.
        labels: Classes to search; default: all.
        rows_per_pass: Stamped rows in one forward pass, for memory; does not change the result.

    Raises:
        InputError: On a table, or a label that is not a class.
    """
    run, schedule, clean = as_run(run), schedule or Schedule(), as_clean(clean)
    if clean.is_table:
        raise InputError(f"{clean.card.name!r} is a table; patches are searched on images")
    wanted = tuple(range(clean.num_classes)) if labels is None else tuple(int(k) for k in labels)
    if not wanted or not all(0 <= k < clean.num_classes for k in wanted):
        raise InputError(f"labels is {list(wanted)}; {clean.card.name!r} has classes 0 to {clean.num_classes - 1}")
    began = time.perf_counter()
    with frozen(model.to(run.device)):
        search = Search(model, clean.to(run.device), run, schedule, wanted, rows_per_pass)
        search.run_rounds()
        masks, patterns, norms, success = search.best_patches()
    inverted = judge(wanted, masks, patterns, norms, success, schedule)
    run.event(
        "inversion",
        labels=list(wanted),
        norms=[round(float(v), 4) for v in inverted.norms],
        success=[round(float(v), 4) for v in inverted.success],
        index=[round(float(v), 4) for v in inverted.index],
        flagged=list(inverted.flagged),
        reason=inverted.reason,
        rounds=search.rounds,
        row_passes=search.row_passes,
        seconds=round(time.perf_counter() - began, 3),
    )
    return inverted


def judge(
    labels: tuple[int, ...],
    masks: torch.Tensor,
    patterns: torch.Tensor,
    norms: torch.Tensor,
    success: torch.Tensor,
    schedule: Schedule,
) -> Inverted:
    """Flag the classes whose patch works and is an outlier on the small side; say why if there is none."""
    index, works = anomaly_index(norms), success >= schedule.threshold
    flagged: list[int] = []
    if not bool(works.any()):
        reason = "no search found a patch that works"
    elif len(labels) < FEWEST_CLASSES:
        index = torch.zeros_like(index)
        reason = f"an outlier among {len(labels)} classes means little; at least {FEWEST_CLASSES} are needed"
    elif not bool(index.any()):
        reason = "the patches of most classes are equally large, so the spread is zero"
    else:
        low = (index > schedule.outlier) & (norms < schedule.ratio * norms.quantile(0.5)) & works
        flagged = [labels[int(k)] for k in index.argsort(descending=True) if low[k]]
        reason = "" if flagged else "no class has a working patch that is an outlier on the small side"
    return Inverted(labels, masks, patterns, norms, success, index, tuple(flagged), reason, schedule.threshold)
