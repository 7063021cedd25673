"""Neural Cleanse: for every class, the smallest patch that sends all rows there, for all classes at once.

Paper: Wang et al., "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks", IEEE S&P 2019. Schedules
from the authors' Keras code (bolunwang/backdoor) and its port in SCLBD/BackdoorBench (both read in code: grade A).

A patch is a mask m (one value a pixel) and a pattern p, both through ``tanh(z) / 2 + 1/2``; a stamped row is
``(1 - m) x + m p`` in pixels in [0, 1]. Minimized: mean cross-entropy to the class plus ``cost * sum(m)``, with a cost that
rises while the patch works and falls while it does not. Classes never meet in a loss and the network is in eval mode, so one
pass over K x B stamped rows gives what K separate searches would.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from theriac.core.errors import InputError
from theriac.core.memory import kept_memory
from theriac.core.poisoned import as_clean
from theriac.core.ranges import Count, typed
from theriac.core.run import Run, as_run
from theriac.core.split import Split
from theriac.detectors.neural_cleanse.search import Schedule, Search
from theriac.models import batch_rows
from theriac.models._undisturbed import frozen
from theriac.models.layout import arranged
from theriac.models.outputs import on_device

FEWEST_CLASSES = 5  # ours: with fewer, a median over classes is too uncertain, and the search abstains
MOST_SUSPECTS = 3  # ours: classes that are searched a second time for being small, at most
LEAST = 0.1  # pixels; smaller masks count as equal where logarithms are taken
ROWS_PER_PASS = 2048


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
class Confirmation:
    """A class that stood out, searched on beside ordinary classes: as many rows and rounds for each of them."""

    label: int
    norm: float  # of its patch on these rows
    success: float  # share of these rows that the patch sends to the class
    index: float  # its anomaly index among these classes
    controls: dict[int, float]  # the ordinary classes, with the sizes of their patches
    holds: bool  # whether it stands out here too


@dataclass(frozen=True)
class Inverted:
    """The result of a search over classes: a score for every class, and which classes are flagged, if any.

    Norms and success belong to the search in which all classes had the same rows and rounds. Where a second one followed, the
    masks, patterns and indices of the classes that stood out in the first come from it, and ``flagged`` are those that it
    confirmed.
    """

    labels: tuple[int, ...]
    masks: torch.Tensor  # (K, H, W) in [0, 1]
    patterns: torch.Tensor  # (K, C, H, W) in [0, 1]
    norms: torch.Tensor  # (K,) sum of the mask, in pixels
    success: torch.Tensor  # (K,) share of all rows that the patch sends to the class
    index: torch.Tensor  # (K,) anomaly index: distance from the median norm in robust standard deviations; 0 = undefined
    flagged: tuple[int, ...]  # classes with a working patch that is an outlier on the small side, strongest first
    reason: str  # why nothing is flagged; empty otherwise
    threshold: float  # success that a patch needs
    confirmed: tuple[Confirmation, ...] = ()  # what a second search said of each class that stood out in the first

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
    rows_per_pass: Count | None = None,
) -> Inverted:
    """Search the smallest patch for each class.

    Args:
        model: Pixels in [0, 1] (B, C, H, W) to logits (B, K). It is left as it was.
        clean: Clean images; their labels are not used.
        run: Device; stream ``method`` for starts, ``order`` for mini-batches and for the rows of a first search.
        schedule: Default: :meth:`Schedule.official`.
        labels: Classes to search; default: all.
        rows_per_pass: Stamped rows in one forward pass, for memory; changes the last bits at most. Default: 2048, or as
            few as the device likes if the schedule is lean.

    Raises:
        InputError: On a table, or a label that is not a class.
    """
    run, schedule, clean = as_run(run), schedule or Schedule(), as_clean(clean)
    if clean.is_table:
        raise InputError(f"{clean.card.name!r} is a table; patches are searched on images")
    searched = tuple(range(clean.num_classes)) if labels is None else tuple(int(k) for k in labels)
    if not searched or not all(0 <= k < clean.num_classes for k in searched):
        raise InputError(f"labels is {list(searched)}; {clean.card.name!r} has classes 0 to {clean.num_classes - 1}")
    began = time.perf_counter()
    clean = clean.to(run.device)
    few = _few(clean, run, schedule, len(searched))
    per_pass = rows_per_pass or (batch_rows(clean) if schedule.lean else ROWS_PER_PASS)
    layout = arranged(model, run.device) if schedule.lean else contextlib.nullcontext()
    with kept_memory(run.device), on_device(model, run), frozen(model), layout:
        searches = [Search(model, few, run, schedule, searched, per_pass)]
        searches[0].run_rounds()
        inverted = judge(searched, *searches[0].best_patches(), schedule)
        if schedule.compared and schedule.confirm:
            inverted, second = confirm(searches[0], inverted, _drawn(clean, schedule.confirm_rows, run))
            searches += [second] if second else []
    run.event(
        "inversion",
        labels=list(searched),
        norms=[round(float(v), 4) for v in inverted.norms],
        success=[round(float(v), 4) for v in inverted.success],
        index=[round(float(v), 4) for v in inverted.index],
        flagged=list(inverted.flagged),
        reason=inverted.reason,
        rounds=sum(search.rounds for search in searches),
        row_passes=sum(search.row_passes for search in searches),
        seconds=round(time.perf_counter() - began, 3),
        **({"confirmed": [dataclasses.asdict(one) for one in inverted.confirmed]} if inverted.confirmed else {}),
    )
    return inverted


def _few(clean: Split, run: Run, schedule: Schedule, classes: int) -> Split:
    """The rows of the first search; where nothing can be compared, those of the second."""
    if not schedule.compared:
        return clean
    return _drawn(clean, schedule.compared if classes >= FEWEST_CLASSES else schedule.confirm_rows, run)


def _drawn(clean: Split, count: int, run: Run) -> Split:
    """At most ``count`` rows, drawn without labels; a smaller draw is the beginning of a larger one."""
    order = torch.randperm(len(clean), generator=run.generator("order", "inversion-rows"))
    return clean.take(order[:count].to(clean.device))


def confirm(first: Search, inverted: Inverted, rows: Split) -> tuple[Inverted, Search | None]:
    """Search on for the classes with small patches and for a spread of the others, on more rows, and judge these.

    A class that was picked for its small patch on few rows may have been picked by chance. So the verdict rests on the second
    search alone, in which it and the others have the same rows and rounds; the others are spread evenly over the sizes of the
    first search, so that their median and spread stand for those of all classes.
    """
    schedule, labels, sizes = first.schedule, inverted.labels, inverted.norms.double()
    small = (sizes < schedule.nominate * sizes.quantile(0.5)) & (inverted.success >= schedule.threshold)
    order = sizes.argsort(stable=True)
    suspects = [labels[int(at)] for at in order[small[order]]][:MOST_SUSPECTS]
    if not suspects or len(labels) < FEWEST_CLASSES:
        reason = inverted.reason or f"no patch is below {schedule.nominate} of the median size"
        return dataclasses.replace(inverted, flagged=(), reason=reason), None
    others = [labels[int(at)] for at in order if labels[int(at)] not in suspects]
    count = min(schedule.controls, len(others))
    controls = [others[(2 * at + 1) * len(others) // (2 * count)] for at in range(count)]
    again = (*suspects, *controls)
    plan = schedule.replace(rounds=schedule.confirm, restarts=1)
    second = Search(first.model, rows, first.run, plan, again, first.rows_per_pass, first.patches_of(again))
    second.run_rounds()
    masks, patterns, norms, success = second.best_patches()
    ordinary = {k: round(float(size), 4) for k, size in zip(controls, norms[len(suspects) :], strict=True)}
    checked: list[Confirmation] = []
    new = {name: getattr(inverted, name).clone() for name in ("masks", "patterns", "index")}
    for at, label in enumerate(suspects):
        beside = range(len(suspects), len(again)) if count >= FEWEST_CLASSES - 1 else (k for k in range(len(again)) if k != at)
        part = [at, *beside]
        some = [again[k] for k in part]
        alone = judge(tuple(some), masks[part], patterns[part], norms[part], success[part], schedule)
        index, works = float(alone.index[0]), bool(success[at] >= schedule.threshold)
        checked.append(Confirmation(label, float(norms[at]), float(success[at]), index, ordinary, label in alone.flagged))
        new["index"][labels.index(label)] = index
        if works:
            new["masks"][labels.index(label)], new["patterns"][labels.index(label)] = masks[at], patterns[at]
    checked.sort(key=lambda one: -one.index)
    flagged = tuple(one.label for one in checked if one.holds)
    reason = "" if flagged else f"no class stands out on {len(rows)} rows beside other classes"
    return dataclasses.replace(inverted, flagged=flagged, reason=reason, confirmed=tuple(checked), **new), second


def judge(
    labels: tuple[int, ...],
    masks: torch.Tensor,
    patterns: torch.Tensor,
    norms: torch.Tensor,
    success: torch.Tensor,
    schedule: Schedule,
) -> Inverted:
    """Flag the classes whose patch works and is an outlier on the small side; say why if there is none."""
    index = anomaly_index(norms.double().clamp_min(LEAST).log() if schedule.factors else norms)
    works = success >= schedule.threshold
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
