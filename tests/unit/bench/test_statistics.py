from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from theriac.bench import run
from theriac.bench.statistics import compare, holm, ranks, scores_of
from theriac.bench.tables import Group
from theriac.cli.main import app
from theriac.core.errors import InputError


def table(**rows: list[float]) -> dict[str, dict[str, float]]:
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


def test_scores_are_means_over_seeds() -> None:
    done = [{"status": "done", "der": value} for value in (0.5, 0.7)]
    labels = ("digits", "mlp", "adam", "patch", "repair", "5 %")
    groups = [Group(labels, "defended", done), Group(labels, "victim", done)]
    assert scores_of(groups, "der") == {"repair 5 %": {"digits / mlp / adam / patch": pytest.approx(0.6)}}


def test_the_command_compares(people: Path, tmp_path: Path) -> None:
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
    wrong = CliRunner().invoke(app, ["results", str(tmp_path), "--compare", "speed"])
    assert wrong.exit_code == 2
    assert "unknown --compare 'speed'" in wrong.output
