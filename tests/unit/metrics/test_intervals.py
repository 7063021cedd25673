"""Intervals against scipy and against published worked examples."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from theriac.core.errors import InputError
from theriac.metrics.intervals import Difference, Rate, over_seeds, wilson


@pytest.mark.parametrize(("hits", "total"), [(0, 1), (1, 1), (0, 10), (10, 10), (3, 10), (81, 263), (15, 148), (9999, 10000)])
def test_wilson_equals_scipy(hits, total):
    expected = stats.binomtest(hits, total).proportion_ci(method="wilson")
    assert wilson(hits, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_the_published_examples(hits, total, low, high):
    """Newcombe, Statistics in Medicine 17, 857-872 (1998), table I, method 3."""
    assert wilson(hits, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_never_excludes_the_share():
    for total in (1, 2, 7, 450, 10000):
        for hits in {0, 1, total // 2, total - 1, total}:
            low, high = wilson(hits, total)
            assert 0 <= low <= hits / total <= high <= 1


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0000),
    ],
)
def test_difference_equals_the_published_examples(first, second, low, high):
    """Newcombe, Statistics in Medicine 17, 873-890 (1998), table II, method 10."""
    difference = Difference(before=Rate(*second), after=Rate(*first))
    assert difference.value == pytest.approx(first[0] / first[1] - second[0] / second[1])
    assert difference.interval == pytest.approx((low, high), abs=5e-5)


def test_difference_has_a_sign():
    down = Difference(before=Rate(48, 80), after=Rate(10, 80))
    up = Difference(before=Rate(10, 80), after=Rate(48, 80))
    assert down.value == -up.value < 0
    assert down.interval == pytest.approx((-up.interval[1], -up.interval[0]))
    assert "-47.5 points" in str(down)


@pytest.mark.parametrize("values", [[0.1, 0.2], [1.0, 2.0, 4.0], [0.5, 0.5, 0.5, 0.5]])
def test_over_seeds_equals_scipy(values):
    spread = over_seeds(values)
    assert spread.mean == pytest.approx(np.mean(values))
    assert spread.std == pytest.approx(np.std(values, ddof=1))
    error = np.std(values, ddof=1) / len(values) ** 0.5
    if error > 0:
        expected = stats.t.interval(0.95, len(values) - 1, loc=spread.mean, scale=error)
        assert (spread.low, spread.high) == pytest.approx(expected)
    else:
        assert spread.low == spread.high == spread.mean
    assert (spread.smallest, spread.largest, spread.n) == (min(values), max(values), len(values))


@pytest.mark.parametrize("values", [[], [0.5]])
def test_one_seed_has_no_spread(values):
    with pytest.raises(InputError, match="at least two"):
        over_seeds(values)


@pytest.mark.parametrize(("hits", "total"), [(0, 0), (0, -1), (2, 1), (-1, 4)])
def test_impossible_rates_are_refused(hits, total):
    with pytest.raises(InputError):
        Rate(hits, total, "rows of nothing")


def test_an_empty_rate_names_its_population():
    with pytest.raises(InputError, match=r"rows of nothing is empty"):
        Rate(0, 0, "rows of nothing")


def test_a_rate_as_text_and_as_data():
    rate = Rate(3, 4, "rows")
    assert str(rate).startswith("75.0 % (3/4, 95 % ")
    data = rate.to_dict()
    assert (data["hits"], data["total"], data["value"], data["of"]) == (3, 4, 0.75, "rows")
    assert data["interval"] == pytest.approx(list(rate.interval), abs=1e-6)
