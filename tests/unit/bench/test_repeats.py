"""Repetitions of a defense on one victim count once: intervals are over victims."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from theriac.bench.tables import COLUMNS, Group, filled, grouped, interval, summary
from theriac.bench.tables import LABELS as NAMES

LABELS = ("d", "m", "r", "badnets", "fix", "5 %")


def group(shares: dict[int, list[float]]) -> Group:
    rows: list[dict[str, Any]] = [
        {"status": "done", "seed": victim, "defense_seed": repeat, "asr": share, "asr_hits": 1, "asr_total": 10}
        for victim, own in shares.items()
        for repeat, share in enumerate(own)
    ]
    return Group(LABELS, "defended", rows)


def test_means_are_over_victims_by_hand():
    cell = group({0: [0.1, 0.3], 1: [0.4, 0.4], 2: [0.6]})
    mean = cell.over("asr")
    assert mean is not None
    assert mean.values == pytest.approx((0.2, 0.4, 0.6))
    assert interval(cell, "asr") == (pytest.approx(0.4), 0.0, pytest.approx(0.4 + 4.302653 * 0.2 / 3**0.5), "seeds")
    assert summary([cell])[0][7] == "5, 3 victims"


def test_one_victim_repaired_often_has_no_interval_over_victims():
    cell = group({0: [0.1, 0.2, 0.3]})
    assert interval(cell, "asr") == (pytest.approx(0.2), None, None, "")
    assert summary([cell])[0][7] == "3, 1 victim"
    assert interval(group({0: [0.1]}), "asr")[3] == "rows"  # type: ignore[index]


def test_the_interval_covers_where_victims_differ_and_repairs_do_not():
    """Truth 50 %; victims spread by 5 points, repairs of one victim by half a point. Nominal 95 %."""
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        victims = 0.5 + 0.05 * draw.standard_normal(3)
        cell = group({k: list(v + 0.005 * draw.standard_normal(4)) for k, v in enumerate(victims)})
        _, low, high, _ = interval(cell, "asr")  # type: ignore[misc]
        covered += low <= 0.5 <= high  # type: ignore[operator]
    assert covered >= 0.92 * 400


def row(key: str, **changes: Any) -> dict[str, Any]:
    own = {**dict.fromkeys(COLUMNS), **dict.fromkeys(NAMES, ""), "attack": "a", "role": "defended", "status": "done", "seed": 0}
    return {**own, "key": key, **changes}


def test_a_result_under_two_seeds_of_its_defense_counts_once() -> None:
    """Seed 0 of a victim, repaired with and without ``defense_seeds``, is one job in two cells."""
    twice = [row("k0", asr=0.0), row("k0", asr=0.0, defense_seed=0)]
    (cell,) = grouped([*twice, row("k1", asr=0.3, defense_seed=1)])
    assert len(cell.done) == 2
    mean = cell.over("asr")
    assert mean is not None
    assert mean.values == pytest.approx((0.15,))


def test_recipes_stand_in_tables() -> None:
    lines = [row(name, recipe=name, role="victim", acc=0.5) for name in ("short_2", "short_3")]
    head, body = filled(summary(grouped(lines)))
    assert [line[head.index("recipe")] for line in body] == ["short_2", "short_3"]
