"""Counts with intervals: the only form in which Theriac reports a rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from theriac.core.errors import InputError
from theriac.core.ranges import Count, Positive, Whole, typed

Z95 = 1.959963984540054  # two-sided 95 % point of the normal distribution


def share(value: float) -> str:
    """A share in percent with one decimal; 0 and 100 only where it is exactly that."""
    shown = 100 * value
    return f"{min(max(shown, 0.1), 99.9) if 0 < value < 1 else shown:.1f}"


@dataclass(frozen=True)
class Rate:
    """``hits`` out of ``total``, with a 95 % Wilson interval.

    Raises:
        InputError: If the population is empty: a rate over nothing is an error, not NaN.
    """

    hits: int
    total: int
    of: str = ""  # the population, in words

    def __post_init__(self) -> None:
        if self.total <= 0:
            raise InputError(f"the population of {self.of or 'this rate'} is empty; there is no row to count")
        if not 0 <= self.hits <= self.total:
            raise InputError(f"{self.hits} hits out of {self.total} can't be")

    @property
    def value(self) -> float:
        """The share, in [0, 1]."""
        return self.hits / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson score interval, in [0, 1] (Wilson, JASA 1927)."""
        return wilson(self.hits, self.total)

    @property
    def percent(self) -> str:
        """The share in percent with one decimal; 0 and 100 only where every row says so."""
        return f"{share(self.value)} %"

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.percent} ({self.hits}/{self.total}, 95 % {100 * low:.1f} to {100 * high:.1f})"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with the computed value and interval beside the counts."""
        low, high = self.interval
        return {
            "hits": self.hits,
            "total": self.total,
            "of": self.of,
            "value": round(self.value, 6),
            "interval": [round(low, 6), round(high, 6)],
        }


@typed()
def wilson(hits: Whole, total: Count, z: Positive = Z95) -> tuple[float, float]:
    """Wilson score interval of a binomial share."""
    p, n = hits / total, total
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # at the ends the bound is exactly 0 or 1; rounding must not push the share outside
    return (0.0 if hits == 0 else max(0.0, center - half)), (1.0 if hits == total else min(1.0, center + half))


@dataclass(frozen=True)
class Difference:
    """``after`` minus ``before``, with Newcombe's hybrid score interval for two independent shares.

    The rows are usually the same ones, so the interval is on the wide side (conservative).
    """

    before: Rate
    after: Rate

    @property
    def value(self) -> float:
        """In [-1, 1]."""
        return self.after.value - self.before.value

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval (Newcombe, Statistics in Medicine 1998, method 10)."""
        return self.at(Z95)

    def at(self, z: float) -> tuple[float, float]:
        """The same interval at another level.

        Args:
            z: Two-sided point of the normal distribution, such as 1.96 for 95 %.
        """
        (l1, u1), (l2, u2) = (wilson(r.hits, r.total, z) for r in (self.after, self.before))
        p1, p2 = self.after.value, self.before.value
        low = p1 - p2 - math.hypot(p1 - l1, u2 - p2)
        high = p1 - p2 + math.hypot(u1 - p1, p2 - l2)
        return max(-1.0, low), min(1.0, high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:+z.1f} points (95 % {100 * low:+z.1f} to {100 * high:+z.1f})"


@dataclass(frozen=True)
class Spread:
    """Mean over seeds with a 95 % t interval, the spread and the worst."""

    mean: float
    std: float
    low: float
    high: float
    n: int
    smallest: float
    largest: float


@typed()
def over_seeds(values: Sequence[float]) -> Spread:
    """Summarize one number over seeds.

    Raises:
        InputError: With fewer than two values: one seed has no spread.
    """
    n = len(values)
    if n < 2:
        raise InputError(f"{n} value(s) came; a spread over seeds needs at least two")
    from scipy.stats import t

    mean = sum(values) / n
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(t.ppf(0.975, n - 1)) * std / math.sqrt(n)
    return Spread(mean, std, mean - half, mean + half, n, min(values), max(values))
