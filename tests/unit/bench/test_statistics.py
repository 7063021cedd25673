from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from theriac.bench import run
from theriac.bench.statistics import Cell, compare, holm, least_attacks, ranks, scores_of, signed_ranks
from theriac.bench.tables import Group, Mean, beside_repairs
from theriac.cli.main import app
from theriac.core.errors import InputError
from theriac.metrics import wilson
from theriac.repairs import FT


def table(**rows: list[float]) -> dict[str, dict[Cell, float | None]]:
    return {name: {f"attack {i}": value for i, value in enumerate(values)} for name, values in rows.items()}


def test_holm_by_hand() -> None:
    """Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, never falling."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_eight_wins_of_eight_are_told_apart_and_four_of_four_are_not() -> None:
    """All n signs the same way: the exact two-sided p value is 2 / 2^n."""
    (pair,) = compare(table(a=[0.1 * i for i in range(1, 9)], b=[0.0] * 8))
    assert pair.p == pytest.approx(2 / 2**8)
    assert (pair.verdict, pair.attacks) == ("a is higher", 8)
    assert pair.difference == pytest.approx(0.45)
    (pair,) = compare(table(a=[0.0] * 4, b=[0.1, 0.2, 0.3, 0.4]))
    assert pair.p == pytest.approx(2 / 2**4)
    assert pair.verdict == "not distinguishable"


def test_equal_defenses_and_strangers() -> None:
    (pair,) = compare(table(a=[0.5, 0.5], b=[0.5, 0.5]))
    assert (pair.p, pair.verdict) == (1.0, "not distinguishable")
    assert compare({"a": {"x": 0.1}, "b": {"y": 0.1}}) == []


def test_pairs_are_corrected_together() -> None:
    pairs = compare(table(a=[0.1 * i for i in range(1, 9)], b=[0.0] * 8, c=[0.0] * 8))
    assert [pair.adjusted for pair in pairs] == pytest.approx([3 * 2 / 2**8, 3 * 2 / 2**8, 1.0])


def test_ranks_by_hand() -> None:
    scores = table(a=[0.9, 0.5], b=[0.8, 0.5], c=[0.1, 0.6])
    assert ranks(scores) == {"a": 1.75, "b": 2.25, "c": 2.0}
    assert ranks(scores, high=False) == {"a": 2.25, "b": 1.75, "c": 2.0}
    with pytest.raises(InputError, match="no attack"):
        ranks({"a": {"x": 1.0}, "b": {"y": 1.0}})


def test_scores_are_by_attack_and_seed() -> None:
    made = [{"status": "done", "der": value, "seed": i, "defense_seed": None} for i, value in enumerate((0.5, 0.7))]
    made.append({"status": "failed", "der": None, "seed": 2, "defense_seed": None})
    labels = ("digits", "mlp", "adam", "patch", "repair", "5 %")
    groups = [
        Group(labels, "defended", made),
        Group(labels, "victim", made),
        Group((*labels[:4], "other", ""), "defended", made[2:]),
    ]
    patch = "digits / mlp / adam / patch"
    assert scores_of(groups, "der") == {"repair 5 %": {(patch, "0"): 0.5, (patch, "1"): 0.7, (patch, "2"): None}}


def test_a_training_defense_is_compared_with_repairs_and_repetitions_count_once() -> None:
    """CBD has no recipe and one run a victim; FT two repairs of each victim, whose mean counts."""

    def group(defense: str, recipe: str, values: dict[tuple[int, int | None], float]) -> Group:
        rows = [{"status": "done", "asr": v, "seed": s, "defense_seed": d} for (s, d), v in values.items()]
        return Group(("digits", "m", recipe, "patch", defense, ""), "defended", rows)

    groups = [
        group("CBD", "", {(0, None): 0.1, (1, None): 0.2}),
        group("FT", "short_8", {(0, 0): 0.5, (0, 1): 0.7, (1, 0): 0.9, (1, 1): 0.9}),
    ]
    place = "digits / m / short_8 / patch"
    scores = scores_of(groups, "asr")
    assert scores == {
        "CBD": {(place, "0"): 0.1, (place, "1"): 0.2},
        "FT": {(place, "0"): pytest.approx(0.6), (place, "1"): pytest.approx(0.9)},
    }
    (pair,) = compare(scores)
    assert pair.difference == pytest.approx(-0.6)
    assert {made.labels[2] for made in beside_repairs(groups)} == {"short_8"}  # so a page and a figure have one matrix of both
    two = [*groups, group("FT", "short_30", {(0, 0): 0.3})]
    assert {cell[0] for cell in scores_of(two, "asr")["CBD"]} == {"digits / m /  / patch"}  # beside which recipe is not known


def test_gaps_are_left_out_of_both_and_counted() -> None:
    """On p only seed 0 is in both: 0.2 against 0.1. On q both seeds are: means 0.5 and 0.2. On r the second has nothing."""
    first: dict[Cell, float | None] = {("p", "0"): 0.2, ("p", "1"): 0.9, ("q", "0"): 0.4, ("q", "1"): 0.6, ("r", "0"): 1.0}
    second: dict[Cell, float | None] = {("p", "0"): 0.1, ("p", "1"): None, ("q", "0"): 0.1, ("q", "1"): 0.3}
    (pair,) = compare({"a": first, "b": second})
    assert (pair.attacks, pair.left_out) == (2, 2)
    assert pair.difference == pytest.approx((0.1 + 0.3) / 2)
    assert ranks({"a": first, "b": second}, high=False) == {"a": 2.0, "b": 1.0}
    assert compare({"a": {("p", "0"): 0.1}, "b": {("p", "1"): 0.1}}) == []


@pytest.mark.parametrize("ties", [False, True])
def test_signed_ranks_are_those_of_another_library(ties: bool) -> None:
    from scipy.stats import wilcoxon

    draw = np.random.default_rng(0)
    for number in (2, 5, 9):
        changes = draw.normal(size=number).round(1 if ties else 9)
        assert signed_ranks(list(changes)) == pytest.approx(wilcoxon(changes[changes != 0]).pvalue)
    assert signed_ranks([0.0, 0.0]) == 1.0
    assert signed_ranks([1.0] * 60) == pytest.approx(2 / 2**60)  # as quick for many attacks


def test_the_command_compares(people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {
        "name": "two",
        "data": {"name": str(people), "label": "hired"},
        "models": {"name": "mlp", "hidden": [8]},
        "recipes": {"name": "adam_2", "lr": 0.05},
        "attacks": [{"name": "tabular_value", "poison_rate": 0.2, "count": 2}],
        "defenses": [{"name": "ft", "epochs": 1}, {"name": "ft", "epochs": 2, "as": "longer"}],
        "clean": 0.5,
        "precision": "fp32",
        "controls": False,
    }
    run(spec, tmp_path, quiet=True)
    results = CliRunner().invoke(app, ["results", str(tmp_path), "--compare", "asr", "--json"])
    report = json.loads(results.stdout)
    assert [pair["verdict"] for pair in report["pairs"]] == ["not distinguishable"]
    assert sum(report["ranks"].values()) == 3
    assert "longer" in CliRunner().invoke(app, ["results", str(tmp_path), "--compare", "der"]).output
    assert report["pairs"][0]["left_out"] == 0

    def fail(*_: object) -> None:
        raise RuntimeError("no repair today")

    monkeypatch.setattr(FT, "_repair", fail)  # of seed 1; those of seed 0 are done
    run({**spec, "seeds": [0, 1]}, tmp_path, quiet=True, say=lambda _: None)
    again = CliRunner().invoke(app, ["results", str(tmp_path), "--compare", "asr", "--json"])
    assert [pair["left_out"] for pair in json.loads(again.stdout)["pairs"]] == [1]
    wrong = CliRunner().invoke(app, ["results", str(tmp_path), "--compare", "speed"])
    assert wrong.exit_code == 2
    assert "unknown --compare 'speed'" in wrong.output


def test_sums_in_another_order_are_ties() -> None:
    """Three seeds with the same rates in another order: equal means, whose floating sums may differ in the last bit."""
    draws = np.random.default_rng(0)
    scores: dict[str, dict[Cell, float | None]] = {"a": {}, "b": {}}
    uneven = 0
    while uneven < 8:
        rates = [float(r) for r in draws.integers(1, 1000, 3) / 1000]
        if sum(rates) == sum(rates[::-1]):
            continue
        high, low = (rates, rates[::-1]) if sum(rates) > sum(rates[::-1]) else (rates[::-1], rates)
        for seed in range(3):
            scores["a"][f"attack {uneven}", str(seed)] = high[seed]
            scores["b"][f"attack {uneven}", str(seed)] = low[seed]
        uneven += 1
    (pair,) = compare(scores)
    assert (pair.p, pair.difference) == (1.0, 0.0)
    assert ranks(scores) == {"a": 1.5, "b": 1.5}


@pytest.mark.parametrize(
    ("changes", "higher"),
    [
        ([0.0] * 7 + [0.1 + 0.01 * i for i in range(6)], "a"),  # the median is 0, and all that differ are higher
        ([0.001 + 0.0001 * i for i in range(16)] + [-0.1 - 0.01 * i for i in range(14)], "b"),  # more rises, larger falls
    ],
)
def test_the_verdict_leans_as_the_ranks_of_its_test_do(changes: list[float], higher: str) -> None:
    scores = {"a": {str(i): 0.5 + change for i, change in enumerate(changes)}, "b": {str(i): 0.5 for i in range(len(changes))}}
    (pair,) = compare(scores)
    assert pair.adjusted < 0.05
    assert pair.verdict == f"{higher} is higher"
    (turned,) = compare({"b": scores["b"], "a": scores["a"]})
    assert (turned.verdict, turned.leaning) == (pair.verdict, -pair.leaning)


def test_equal_differences_share_their_rank() -> None:
    base, rows = [13, 76, 21, 37, 65, 57, 22], [3, 2, -2, 2, 3, 2, 1]
    (pair,) = compare(table(a=[(b + r) / 100 for b, r in zip(base, rows, strict=True)], b=[b / 100 for b in base]))
    assert pair.p == signed_ranks([float(r) for r in rows]) == 0.09375


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(InputError, match="the score of FT under a is nan"):
        compare({"FT": {"a": math.nan}, "CLP": {"a": 0.1}})


def test_so_many_attacks_are_the_least_that_can_tell_pairs_apart() -> None:
    for pairs in (1, 3, 15, 91):
        least = least_attacks(pairs)
        p = {n: signed_ranks([float(k + 1) for k in range(n)]) for n in (least - 1, least)}
        assert holm([p[least], *[1.0] * (pairs - 1)])[0] < 0.05 <= holm([p[least - 1], *[1.0] * (pairs - 1)])[0]


def test_one_row_more_is_one_row_more_whatever_it_is_added_to() -> None:
    """Six attacks differ by one row of 323, one of them downward: 2 x 7 / 64 of the ways to give signs are as far off."""
    hits, signs = [33, 9, 34, 36, 14, 28], [1, 1, 1, 1, 1, -1]
    high = {f"a{i}": (hit + sign) / 323 for i, (hit, sign) in enumerate(zip(hits, signs, strict=True))}
    (pair,) = compare({"x": high, "y": {f"a{i}": hit / 323 for i, hit in enumerate(hits)}})
    assert pair.p == pytest.approx(14 / 64)
    assert pair.leaning == pytest.approx(4 / 6)
    assert ranks({"x": {"a": 0.1 + 0.2}, "y": {"a": 0.3}}) == {"x": 1.5, "y": 1.5}


def test_seeds_that_agree_by_chance_have_an_interval_all_the_same() -> None:
    assert Mean((0.99, 0.99)).interval == (0.99, 0.99)  # no rows were counted
    low, high = Mean((0.99, 0.99), rows=646).interval or (1.0, 0.0)
    assert low < 0.985
    assert high > 0.993
    assert (low, high) == pytest.approx(wilson(640, 646), abs=1e-3)
    wide = Mean((0.5, 0.9), rows=646)
    assert wide.interval == (0.0, 1.0)  # the t interval of two seeds this far apart

    draw, held = np.random.default_rng(0), 0
    for _ in range(400):
        counts = draw.binomial(323, 0.997, 3)
        low, high = Mean(tuple(counts / 323), rows=3 * 323).interval or (1.0, 0.0)
        held += low <= 0.997 <= high
    assert held >= 0.93 * 400
