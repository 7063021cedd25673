"""Gaps between groups, from counts: intervals that hold for any number of groups, and the gap that chance alone produces.

The largest and the smallest group are chosen after looking, so the interval of their difference alone is too narrow. Here the
differences of **all** pairs get intervals that hold at once, and those enclose the gap, whichever groups are its ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
LEVEL = 0.05  # what all intervals here leave out
DRAWS = 1000  # shuffles behind a noise floor
SEED = 0  # of these shuffles: the same counts give the same floor


@dataclass(frozen=True)
class Noise:
    """What a gap would be if groups meant nothing: mean and 95th percentile over shuffles of the group labels."""

    mean: float
    high: float


@dataclass(frozen=True)
class Measure:
    """A figure that follows from many counts, with its interval.

    Args:
        name: A key of ``theriac.metrics.fair.FORMULAS``.
        value: In [0, 1].
        interval: 95 % interval, in [0, 1]; of a gap simultaneous over pairs of groups.
        noise: The gap that chance alone produces; None for figures that are not gaps.
    """

    name: str
    value: float
    interval: tuple[float, float]
    noise: Noise | None = None

    @property
    def detail(self) -> str:
        """Interval and noise floor, in words."""
        low, high = self.interval
        if self.name == "dp_ratio":
            return f"95 % {low:.3f} to {high:.3f}"
        text = f"95 % {100 * low:.1f} to {100 * high:.1f}"
        chance = "" if self.noise is None else f"; by chance {100 * self.noise.mean:.1f}, up to {100 * self.noise.high:.1f}"
        return text + chance

    @property
    def text(self) -> str:
        """The value: a ratio as it is, others in percent."""
        return f"{self.value:.3f}" if self.name == "dp_ratio" else f"{100 * self.value:.1f} %"

    def __str__(self) -> str:
        return f"{self.text} ({self.detail})"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        noise = None if self.noise is None else {"mean": round(self.noise.mean, 6), "p95": round(self.noise.high, 6)}
        ends = [round(end, 6) for end in self.interval]
        return {"value": round(self.value, 6), "interval": ends} | ({} if noise is None else {"noise": noise})


def limits(hits: Array, total: Array, level: float = LEVEL) -> tuple[Array, Array]:
    """Exact two-sided limits of binomial shares (Clopper and Pearson, Biometrika 1934), elementwise.

    They hold far out in the tails too, where many pairs are compared and score limits fail.
    """
    from scipy.special import betaincinv

    misses = total - hits
    low = np.where(hits > 0, betaincinv(np.maximum(hits, 0.5), misses + 1, level / 2), 0.0)
    high = np.where(misses > 0, betaincinv(hits + 1, np.maximum(misses, 0.5), 1 - level / 2), 1.0)
    return low, high


def gap_interval(hits: Array, total: Array, level: float = LEVEL) -> tuple[Array, Array]:
    """Interval of the largest minus the smallest of several independent shares: both ends, (...).

    The difference of every pair gets an interval at ``level`` divided by the number of pairs (Bonferroni), combined from exact
    limits as in Newcombe's method 10. Together they enclose every difference, hence the largest one. The lower end is below 0
    where no pair can be told apart.

    Args:
        hits: Rows that count, (..., G).
        total: Rows, (..., G), each at least 1.
        level: Share of cases in which the interval may miss.
    """
    share, groups = hits / total, hits.shape[-1]
    low, high = limits(hits, total, level / (groups * (groups - 1) / 2))
    difference = share[..., :, None] - share[..., None, :]
    down = np.hypot((share - low)[..., :, None], (high - share)[..., None, :])
    up = np.hypot((high - share)[..., :, None], (share - low)[..., None, :])
    other = ~np.eye(groups, dtype=bool)
    return (difference - down)[..., other].max(-1), (difference + up)[..., other].max(-1)


def ratio_interval(hits: Array, total: Array, level: float = LEVEL) -> tuple[float, float]:
    """Interval of the smallest of several independent shares, (G,), over the largest one.

    All shares lie within exact limits at once (Bonferroni); the ratio lies between the ends that these allow.
    """
    low, high = limits(hits, total, level / len(hits))
    other = ~np.eye(len(hits), dtype=bool)
    most = (high[:, None] / np.where(low > 0, low, np.nan))[other]
    return float(low.min() / high.max()), float(min(1.0, np.nan_to_num(most, nan=1.0).min()))


def mean_interval(hits: Array, total: Array, level: float = LEVEL) -> tuple[Array, Array]:
    """Interval of the plain mean of several independent shares, (..., M) to (...): the means that a score test accepts.

    Under each mean the shares are taken to be those that were seen, moved alike in log-odds, and half a row is allowed for
    counting whole rows, of the smallest cell, where one row moves the mean most; of one share it is Wilson's interval with that
    correction. Limits of each share combined by squares, as for differences, are too narrow where most shares are near 0 or 1:
    a share of 1 has no room above it, although the true one has some below.
    """
    from scipy.special import expit
    from scipy.stats import norm

    mean_share, bound = (hits / total).mean(-1), float(norm.isf(level / 2))
    odds, half = np.log((hits + 0.5) / (total - hits + 0.5)), 0.5 / (total.min(-1) * total.shape[-1])

    def at(shift: Array) -> tuple[Array, Array]:
        shares = expit(odds + shift[..., None])
        return shares.mean(-1), np.sqrt((shares * (1 - shares) / total).sum(-1)) / shares.shape[-1]

    ends = []
    for sign in (1, -1):
        low, high = np.full(mean_share.shape, -60.0), np.full(mean_share.shape, 60.0)
        for _ in range(60):
            middle = (low + high) / 2
            mean, error = at(middle)
            too_low = mean_share - sign * half - mean > sign * bound * error
            low, high = np.where(too_low, middle, low), np.where(too_low, high, middle)
        ends.append(at(high)[0])
    return ends[0], ends[1]


def smallest_interval(hits: Array, total: Array, level: float = LEVEL) -> tuple[float, float]:
    """Interval of the smallest of several independent shares, (M,): all lie within exact limits at once (Bonferroni)."""
    low, high = limits(hits, total, level / len(hits))
    return float(low.min()), float(high.min())


def clipped(ends: tuple[Any, Any]) -> tuple[float, float]:
    """Ends of an interval of something in [0, 1]."""
    return min(1.0, max(0.0, float(ends[0]))), min(1.0, max(0.0, float(ends[1])))


def shuffled(table: Counts, draws: int, generator: np.random.Generator) -> Counts:
    """Tables with the same margins, as shuffling the rows behind them among its lines gives, int64 (draws, R, C).

    Args:
        table: Counts, (R, C).
        draws: How many.
        generator: Source of chance.
    """
    lines, columns = table.shape
    out = np.zeros((draws, lines, columns), np.int64)
    left = np.repeat(table.sum(0)[None], draws, 0)
    for r in range(lines - 1):
        need, rest = np.full(draws, table[r].sum()), left.sum(1)
        for c in range(columns - 1):
            rest = rest - left[:, c]
            out[:, r, c] = generator.hypergeometric(left[:, c], rest, need)
            need = need - out[:, r, c]
        out[:, r, -1] = need
        left -= out[:, r]
    out[:, -1] = left
    return out


def recall(n: Counts) -> Array:
    """Share of each cell that is classified as its label, (..., G, K) from counts (..., G, K, K); NaN where no row is."""
    size = n.sum(-1)
    return np.where(size > 0, np.diagonal(n, axis1=-2, axis2=-1) / np.maximum(size, 1), np.nan)


def shares(n: Counts) -> Array:
    """Share of each group that is predicted as each class, (..., G, K) from counts (..., G, K, K)."""
    by_class = n.sum(-2)
    rates: Array = by_class / by_class.sum(-1, keepdims=True)
    return rates


def gaps(rates: Array) -> Array:
    """Largest minus smallest over groups, (..., G, K) to (..., K); NaN where fewer than two groups have rows."""
    there = ~np.isnan(rates)
    most, least = np.where(there, rates, -np.inf).max(-2), np.where(there, rates, np.inf).min(-2)
    return np.where(there.sum(-2) > 1, np.where(there.any(-2), most, 0) - np.where(there.any(-2), least, 0), np.nan)


def measured(right: Array, predicted: Array, positive: int) -> dict[str, Array]:
    """The mean accuracy over cells and the gaps, each of shape (...), NaN where the rows do not say.

    Args:
        right: Share of each cell that is classified as its label, (..., G, K); NaN where no row is.
        predicted: Share of each group that is predicted as each class, (..., G, K).
        positive: Number of the positive class.
    """
    by_label, by_class = gaps(right), gaps(predicted)
    used = ~np.isnan(right).all(axis=tuple(range(right.ndim - 1)))  # labels that some row has
    most, least = predicted[..., positive].max(-1), predicted[..., positive].min(-1)
    return {
        "bacc": np.nanmean(right, axis=(-2, -1)),
        "dp_gap": by_class.mean(-1),
        "dp_ratio": np.where(most > 0, least / np.where(most > 0, most, 1), 1.0),
        "opportunity_gap": by_label[..., positive],
        "odds_gap": by_label[..., used].mean(-1),
        "worst_odds_gap": by_label[..., used].max(-1),
    }


@cache
def noise_floor(counts: tuple[tuple[tuple[int, ...], ...], ...], positive: int) -> dict[str, Noise]:
    """What each gap would be if groups meant nothing, by name; gaps that the rows do not give are left out.

    Group labels are shuffled :data:`DRAWS` times: for gaps in P(predicted) among all rows, for gaps in P(predicted | label)
    among the rows of each label, so that every group keeps its rows of each label. Counts are drawn, not rows.

    Args:
        counts: Rows by group, label and prediction, (G, K, K).
        positive: Number of the positive class.
    """
    n, generator = np.array(counts, np.int64), np.random.default_rng(SEED)
    hits, size = np.diagonal(n, axis1=1, axis2=2), n.sum(2)
    dealt = [shuffled(np.stack([hits[:, k], size[:, k] - hits[:, k]], 1), DRAWS, generator) for k in range(n.shape[1])]
    right = np.where(size > 0, np.stack([d[..., 0] for d in dealt], -1) / np.maximum(size, 1), np.nan)
    by_class = shuffled(n.sum(1), DRAWS, generator)
    figures = measured(right, by_class / n.sum((1, 2))[:, None], positive)
    names = ("dp_gap", "opportunity_gap", "odds_gap", "worst_odds_gap")
    drawn = {name: figures[name] for name in names if not np.isnan(figures[name]).any()}
    return {name: Noise(float(v.mean()), float(np.quantile(v, 0.95))) for name, v in drawn.items()}
