"""What debiasing did, judged from the counts of two models on the same rows: what got better, what got worse, what is noise.

A model that answers one class only has no gaps, a model that never predicts some class may have small ones, and a gap can close
because the better-off group lost. Such results come first, whatever the gaps say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from theriac.core.errors import InputError, shortened
from theriac.core.ranges import typed
from theriac.metrics import gaps
from theriac.metrics._degenerate import ClassCount, fallen, how_many, percent
from theriac.metrics.fair import Fairness
from theriac.metrics.gaps import Counts

Kind = Literal["one class", "lost class", "harmed", "mixed", "worse", "improved", "unclear"]
HEADLINE, SENTENCE = 15, 25  # words at most
MAX_PAIRS = 10_000_000  # cells of the table of pairs
_RISING = ("acc", "bacc", "group_acc", "recall")  # more is better; of a gap, less
_SHOWN = {"acc": "ACC", "bacc": "bACC", "group_acc": "accuracy"}
_FIGURES = ("acc", "bacc", "dp_gap", "opportunity_gap", "odds_gap", "worst_odds_gap")


@dataclass(frozen=True)
class Change:
    """One figure of two models.

    Args:
        name: A key of ``FORMULAS``, or of one group "group_acc" (accuracy) or "recall" (of rows of the positive class).
        before: Of the plain model, in [0, 1].
        after: Of the debiased one.
        noise: The size that changes of this figure stay below in 95 % of cases if both models are alike; it holds for all
            figures that are judged together.
        group: The group, or "" for all rows.
        label: The class of a recall.
    """

    name: str
    before: float
    after: float
    noise: float
    group: str = ""
    label: str = ""

    @property
    def change(self) -> float:
        """After minus before, in [-1, 1]."""
        return self.after - self.before

    @property
    def beyond(self) -> bool:
        """Whether the change is larger than noise."""
        return abs(self.change) > self.noise + 1e-9

    @property
    def better(self) -> bool:
        """Whether it moved to the good side."""
        return (self.change > 0) == (self.name in _RISING)

    @property
    def shown(self) -> str:
        """The figure's usual name."""
        return f"recall of {short(self.label)}" if self.name == "recall" else _SHOWN.get(self.name, self.name.replace("_", " "))

    @property
    def move(self) -> str:
        """The figure with both values."""
        return f"{self.shown} {100 * self.before:.1f}→{100 * self.after:.1f} %"

    @property
    def points(self) -> str:
        """The figure with its change in points."""
        return f"{self.shown} {100 * self.change:+z.1f} points".replace("-", "−")

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        where = {key: value for key, value in (("group", self.group), ("label", self.label)) if value}
        ends = (self.change - self.noise, self.change + self.noise)
        numbers = {"before": self.before, "after": self.after, "change": self.change, "noise": self.noise}
        return {
            "measure": self.name,
            **where,
            **{key: round(value, 6) for key, value in numbers.items()},
            "interval": [round(max(-1.0, ends[0]), 6), round(min(1.0, ends[1]), 6)],
            "beyond_noise": self.beyond,
        }


@dataclass(frozen=True)
class Verdict:
    """What debiasing did, as data and in words.

    Args:
        kind: What comes first: "one class", "lost class", "harmed", or by the figures "mixed", "worse", "improved", "unclear".
        headline: The result in at most 15 words (names count as one).
        sentence: More of it, in at most 25.
        improved: Figures that got better beyond noise; none where a model answers one class only.
        worse: Figures that got worse beyond noise.
        unclear: Figures whose change is within noise.
        harmed: Accuracies of groups, and their recalls of the positive class, that fell beyond noise.
        lost: Classes of test rows that the debiased model recognizes no row of, though the plain one does.
        fell: Classes that it recognizes less often, by more than 10 points and beyond chance, over all groups.
        one_class: The class that the debiased model (else the plain one) answers for every row, or "".
        paired: Whether it is known which rows both models answer alike; if not, noise is larger than it would be.
    """

    kind: Kind
    headline: str
    sentence: str
    improved: tuple[Change, ...] = ()
    worse: tuple[Change, ...] = ()
    unclear: tuple[Change, ...] = ()
    harmed: tuple[Change, ...] = ()
    lost: tuple[str, ...] = ()
    fell: tuple[str, ...] = ()
    one_class: str = ""
    paired: bool = False

    def __str__(self) -> str:
        return f"{self.headline} {self.sentence}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a record."""
        parts = {name: [c.to_dict() for c in getattr(self, name)] for name in ("improved", "worse", "unclear", "harmed")}
        facts = {name: getattr(self, name) for name in ("kind", "headline", "sentence", "one_class", "paired")}
        return {**facts, "lost": list(self.lost), "fell": list(self.fell), **parts}


def pairs_of(before: torch.Tensor, after: torch.Tensor, y: torch.Tensor, group: torch.Tensor, like: Fairness) -> Counts | None:
    """Rows by group, label and both models' predictions, int64 (G, K, K, K), for :func:`judge`; None of very many classes.

    Args:
        before: Predictions of the plain model, int64 (N,).
        after: Of the debiased one.
        y: Labels.
        group: Groups.
        like: The counts of one of them on these rows; groups without rows are left out, as there.
    """
    k, number = len(like.classes), int(group.max()) + 1
    if number * k**3 > MAX_PAIRS:
        return None
    cell = ((group * k + y) * k + before) * k + after
    n = torch.bincount(cell, minlength=number * k**3).view(-1, k, k, k).numpy()
    filled: Counts = n[n.sum((1, 2, 3)) > 0]
    return filled


def listed(pairs: Counts) -> list[list[int]]:
    """A table of pairs for a record: group, label, both predictions and rows of each cell that has any."""
    at = pairs.nonzero()
    cells: list[list[int]] = np.stack([*at, pairs[at]], 1).tolist()
    return cells


def unlisted(cells: Any, like: Fairness) -> Counts | None:
    """The inverse of :func:`listed`; None of no list.

    Raises:
        InputError: If it is no such list.
    """
    shape = (len(like.groups), *[len(like.classes)] * 3)
    if cells is None or math.prod(shape) > MAX_PAIRS:
        return None
    try:
        rows = np.array(cells, np.int64).reshape(-1, 5)
        pairs = np.zeros(shape, np.int64)
        if (rows < 0).any():
            raise ValueError("a number is below 0")
        np.add.at(pairs, tuple(rows[:, :4].T), rows[:, 4])
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        raise InputError(f"the record of a fairness evaluation has no valid pairs: {error}") from None
    return pairs


@typed("pairs")
def judge(before: Fairness, after: Fairness, pairs: Counts | None = None) -> Verdict:
    """Judge a debiased model beside a plain one on the same rows.

    Noise is what changes would be if both models were alike: their answers are swapped at random, row by row where ``pairs``
    tells which rows they answer differently, else within each cell of group and label, which is the more cautious. A figure
    changed beyond noise if chance moves any of the figures so far, in its own standard deviations, in at most 5 % of the draws.
    Draws are seeded.

    Args:
        before: Counts of the plain model.
        after: Counts of the debiased one.
        pairs: Rows by group, label, plain and debiased prediction (:func:`pairs_of`).

    Raises:
        InputError: If the two are of different rows, groups or classes.

    Examples:
        >>> plain = Fairness((((90, 10), (30, 70)), ((80, 20), (10, 90))), ("f", "m"), ("no", "yes"))
        >>> empty = Fairness((((100, 0), (100, 0)), ((100, 0), (100, 0))), ("f", "m"), ("no", "yes"))
        >>> judge(plain, empty).headline
        "The debiased model predicts 'no' for every row; its gaps mean nothing."
    """
    old, new = (f.table.numpy() for f in (before, after))
    names = (before.groups, before.classes, before.positive)
    if names != (after.groups, after.classes, after.positive) or not np.array_equal(old.sum(2), new.sum(2)):
        raise InputError("before and after are counts of different rows, groups or classes; both models must answer the same")
    shape = (*old.shape, old.shape[2])
    if pairs is not None and (not isinstance(pairs, np.ndarray) or pairs.shape != shape):
        raise InputError(
            f"pairs is {shortened(pairs)}; expected counts {shape} by group, label and both predictions (pairs_of)"
        )
    if pairs is not None and not (np.array_equal(pairs.sum(3), old) and np.array_equal(pairs.sum(2), new)):
        raise InputError("pairs does not add up to the counts of before and after")
    generator = np.random.default_rng(gaps.SEED)
    draws = int(np.clip(20_000_000 // old.size, 100, gaps.DRAWS))
    drawn = _alike(old, new, draws, generator) if pairs is None else _swapped(old, new, pairs, draws, generator)
    changes = _changes(before, after, drawn, groups=False)
    harmed = tuple(c for c in _changes(before, after, drawn, groups=True) if c.beyond and not c.better)
    alone = [f.one_class for f in (before, after)]
    improved = () if any(alone) else tuple(c for c in changes if c.beyond and c.better)
    worse = tuple(c for c in changes if c.beyond and not c.better)
    unclear = tuple(c for c in changes if not c.beyond)
    right = [np.diagonal(f, axis1=1, axis2=2).sum(0) for f in (old, new)]
    lost = tuple(before.classes[k] for k in ((right[0] > 0) & (right[1] == 0)).nonzero()[0])
    fell = tuple(fallen(_classes(before), _classes(after)))
    kind, headline = _headline(alone, lost, harmed, fell, improved, worse, int(old.sum()))
    return Verdict(
        kind=kind,
        headline=headline,
        sentence=_sentence(improved, worse, unclear, harmed, fell),
        improved=improved,
        worse=worse,
        unclear=unclear,
        harmed=harmed,
        lost=lost,
        fell=tuple(new.name for _, new in fell),
        one_class=next((one.name for one in (alone[1], alone[0]) if one is not None), ""),
        paired=pairs is not None,
    )


def _alike(old: Counts, new: Counts, draws: int, generator: np.random.Generator) -> tuple[Counts, Counts]:
    """Counts of two models, (draws, G, K, K) each, whose answers in each cell are dealt at random."""
    out = np.zeros((2, draws, *old.shape), np.int64)
    for a, k in np.ndindex(*old.shape[:2]):
        out[:, :, a, k] = gaps.shuffled(np.stack([old[a, k], new[a, k]]), draws, generator).swapaxes(0, 1)
    return out[0], out[1]


def _swapped(old: Counts, new: Counts, pairs: Counts, draws: int, generator: np.random.Generator) -> tuple[Counts, Counts]:
    """Counts of two models, (draws, G, K, K) each, whose answers to each row are swapped or not, at random."""
    from scipy.sparse import csr_array

    a, k, one, other = ((pairs > 0) & ~np.eye(pairs.shape[2], dtype=bool)).nonzero()
    number = np.arange(len(a))
    places = [np.ravel_multi_index((a, k, said), old.shape) for said in (one, other)]
    moves = csr_array(
        (np.repeat([-1, 1], len(a)), (np.concatenate(places), np.concatenate([number, number]))), shape=(old.size, len(a))
    )
    swaps = generator.binomial(pairs[a, k, one, other][:, None], 0.5, size=(len(a), draws))
    moved = (moves @ swaps).T.reshape(draws, *old.shape)
    return old + moved, new - moved


def _figures(n: Counts, positive: int, groups: bool) -> dict[tuple[str, int], Any]:
    """Figures of counts (..., G, K, K), by name and number of the group; NaN where the rows do not say."""
    right = np.diagonal(n, axis1=-2, axis2=-1)
    if groups:
        own, recall = right.sum(-1) / n.sum((-2, -1)), gaps.recall(n)[..., positive]
        return {(name, g): f[..., g] for name, f in (("group_acc", own), ("recall", recall)) for g in range(n.shape[-3])}
    figures = gaps.measured(gaps.recall(n), gaps.shares(n), positive) | {"acc": right.sum((-2, -1)) / n.sum((-3, -2, -1))}
    return {(name, -1): figures[name] for name in _FIGURES}


def _changes(before: Fairness, after: Fairness, drawn: tuple[Counts, Counts], *, groups: bool) -> list[Change]:
    first, second = (_figures(n, before.positive, groups) for n in (before.table.numpy(), after.table.numpy()))
    keys = [key for key in first if not (np.isnan(first[key]) or np.isnan(second[key]))]
    one, other = (_figures(n, before.positive, groups) for n in drawn)
    moved = np.stack([other[key] - one[key] for key in keys])
    spread = moved.std(1)
    level = np.quantile(np.abs(moved / np.where(spread > 0, spread, np.inf)[:, None]).max(0), 0.95, method="higher")
    return [
        Change(
            name,
            float(first[name, g]),
            float(second[name, g]),
            float(level * wide),
            "" if g < 0 else before.groups[g],
            before.classes[before.positive] if name == "recall" else "",
        )
        for (name, g), wide in zip(keys, spread, strict=True)
    ]


def short(name: str) -> str:
    """A name from outside in quotes, and not too long for a headline."""
    return repr(name if len(name) <= 32 else f"{name[:31]}…")


def _headline(
    alone: Sequence[ClassCount | None],
    lost: Sequence[str],
    harmed: Sequence[Change],
    fell: Sequence[tuple[ClassCount, ClassCount]],
    improved: Sequence[Change],
    worse: Sequence[Change],
    rows: int,
) -> tuple[Kind, str]:
    plain, debiased = alone
    if debiased is not None:
        every = how_many(debiased.predicted, rows)
        if plain is not None and (plain.name, plain.predicted) == (debiased.name, debiased.predicted):
            return "one class", f"Both models predict {short(debiased.name)} for {every}; no gap means nothing."
        return "one class", f"The debiased model predicts {short(debiased.name)} for {every}; its gaps mean nothing."
    if plain is not None:
        every = how_many(plain.predicted, rows)
        return "one class", f"The plain model predicts {short(plain.name)} for {every}; comparing gaps with it means nothing."
    if lost:
        more = f" (and {len(lost) - 1} other classes)" if len(lost) > 1 else ""
        return "lost class", f"The debiased model no longer recognizes any row of {short(lost[0])}{more}."
    if harmed:
        most = min(harmed, key=lambda c: c.change)
        more = f" (and {len({c.group for c in harmed}) - 1} more)" if len({c.group for c in harmed}) > 1 else ""
        first = f"Harms group {short(most.group)}{more}: {most.points}"
        return "harmed", _fit(first, [_listed("worse", worse[:1], worse), _listed("better", improved[:1], improved)], HEADLINE)
    if worse:
        kind: Kind = "mixed" if improved else "worse"
        parts = [_listed("better", improved[:1], improved) if improved else "nothing better"]
        for number in (2, 1):
            text = _fit(_listed("Worse", worse[:number], worse), parts, HEADLINE)
            if parts[0] in text:
                return kind, text
        return kind, text
    if fell:
        better = _listed("better", improved[:1], improved) if improved else "no gap changed beyond noise"
        return "mixed" if improved else "worse", _fit(_less(*fell[0]), [better], HEADLINE)
    if improved:
        return "improved", _fit(_listed("Better", improved[:2], improved), ["nothing worse beyond noise"], HEADLINE)
    return "unclear", f"No gap and no accuracy changed beyond noise on {rows:,} test rows."


def _classes(counts: Fairness) -> list[ClassCount]:
    """Counts by class, over all groups."""
    n = counts.table.numpy().sum(0)
    return [ClassCount(name, int(n[k, k]), int(n[k].sum()), int(n[:, k].sum())) for k, name in enumerate(counts.classes)]


def _less(old: ClassCount, new: ClassCount) -> str:
    return f"Class {short(new.name)} is recognized less: {percent(old.hits, old.rows)} to {percent(new.hits, new.rows)}"


def _sentence(
    improved: Sequence[Change],
    worse: Sequence[Change],
    unclear: Sequence[Change],
    harmed: Sequence[Change],
    fell: Sequence[tuple[ClassCount, ClassCount]],
) -> str:
    parts = [f"{short(c.group)} harmed ({c.points})" for c in sorted(harmed, key=lambda c: c.change)[:2]]
    parts += [f"class {short(new.name)} fell" for _, new in fell[:1]]
    parts += [
        f"{_listed(word, some[:2], some)}{_more(some)}" for word, some in (("worse", worse), ("better", improved)) if some
    ]
    rest = f"within noise {', '.join(c.shown for c in unclear)}" if unclear else ""
    return _fit(f"Beyond noise: {parts[0] if parts else 'nothing'}", [*parts[1:], rest], SENTENCE)


def _listed(word: str, some: Sequence[Change], every: Sequence[Change]) -> str:
    """Figures with their moves: accuracy, then the largest; the worst odds gap, which says the same as the odds gap, last."""
    ordered = sorted(every, key=lambda c: (c.name == "worst_odds_gap", c.name != "acc", -abs(c.change)))[: len(some)]
    return f"{word} {', '.join(c.move for c in ordered)}" if some else ""


def _more(every: Sequence[Change]) -> str:
    """How many figures a list of two leaves out."""
    return f" and {len(every) - 2} more" if len(every) > 2 else ""


def _fit(first: str, parts: Sequence[str], words: int) -> str:
    """Clauses one after the other, up to the limit of words; names with blanks may make it longer."""
    for part in parts:
        longer = f"{first}; {part}"
        if part and len(longer.split()) <= words:
            first = longer
    return f"{first}."
