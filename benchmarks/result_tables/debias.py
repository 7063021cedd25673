"""Results of ``debias.py``: one table a task, mean and standard deviation over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from table import RESULTS, Record

from result_tables.reading import debias_records
from result_tables.words import network_words, seeds_words
from theriac.core.method import Method
from theriac.report.cards import grid

NUMBERS = {
    "acc": "ACC",
    "bacc": "bACC",
    "odds_gap": "odds gap",
    "dp_gap": "DP gap",
    "worst_cell": "worst cell",
    "worst_group": "worst group",
}
NOTES = (
    "Percent, mean ± standard deviation over seeds. bACC: mean over (group, label) cells of a cell's accuracy. odds gap: mean\n"
    "odds difference ('Bias'). DP gap: demographic parity difference. worst: lowest accuracy of a cell, of a group. *: must\n"
    "be told the group at inference.\n"
)
NEEDS_GROUP = ("teacher", "logit-adjust")  # of the plan's methods, those that need the group at inference


def page(results: Path = RESULTS) -> str:
    """All tasks, every method."""
    made = "Made by `python benchmarks/debias.py benchmarks/plans/debias.yaml --data NAME=<folder> ...`."
    parts = [f"# debias\n\n{made}\n", NOTES]
    for task, records in debias_records(results).items():
        parts.append(f"## {task}\n\n{_setting(records[0])}\n\n{_table(records)}\n")
        queries = [r for r in records if "queries" in r]
        if queries:
            parts.append(f"The same teachers, asked otherwise:\n\n{_by_query(queries)}\n")
        flips = [r for r in records if "flips" in r]
        if flips:
            parts.append(f"Predictions that a trigger changes, % of the test rows:\n\n{_flipped(flips)}\n")
    return "\n".join(parts)


def for_method(cls: type[Method], results: Path) -> list[str]:
    """One method beside plain training, as blocks for its card."""
    blocks = []
    for task, records in debias_records(results).items():
        mine = [r for r in records if r["config"] and r["config"]["method"] == cls.name]
        if mine:
            plain = [r for r in records if not r["config"]]
            blocks.append(f"{task}: {_setting(mine[0])}\n\n{_table(plain + mine)}")
    if blocks:
        blocks.insert(0, f"All methods side by side: [debias](../../benchmarks/results/debias.md). {' '.join(NOTES.split())}")
    return blocks


def _setting(record: Record) -> str:
    rows, recipe = record["rows"], ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in record["recipe"].items())
    groups = " and ".join(record["data"]["groups"])
    cells = "; ".join(", ".join(map(str, row)) for row in rows["cells"])
    network = network_words(record["model"])
    trained = f"{rows['train']} rows (by group and label: {cells})"
    return f"{trained}, groups {groups}; {rows['test']} test rows; {network}, {recipe}."


def _table(records: Sequence[Record]) -> str:
    rows = []
    for name, members in _by_method(records).items():
        rows.append([
            _named(name),
            *[_spread([_value(m["fairness"][key]) for m in members]) for key in NUMBERS],
            seeds_words(m["seed"] for m in members),
        ])  # fmt: skip
    return grid(["method", *NUMBERS.values(), "seeds"], rows)


def _by_query(records: Sequence[Record]) -> str:
    rows = []
    for name, members in _by_method(records).items():
        for query in ("reverse", "none", "aligned"):
            seen = [m["fairness"] if query == "reverse" else m["queries"][query] for m in members]
            rows.append([name, query, *[_spread([_value(f[key]) for f in seen]) for key in NUMBERS]])
    return grid(["method", "query", *NUMBERS.values()], rows)


def _flipped(records: Sequence[Record]) -> str:
    rows = []
    for name, members in _by_method(records).items():
        each = zip(*[[f["value"] for f in m["flips"]] for m in members], strict=True)
        rows.append([_named(name), *[_spread(list(values)) for values in each]])
    return grid(["method", "first trigger", "second"], rows)


def _named(name: str) -> str:
    return f"{name}*" if name.endswith(NEEDS_GROUP) else name


def _by_method(records: Sequence[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record["method"], []).append(record)
    return found


def _value(part: object) -> float:
    return float(part["value"] if isinstance(part, dict) else part)  # type: ignore[arg-type]


def _spread(values: Sequence[float]) -> str:
    mean = 100 * statistics.fmean(values)
    return f"{mean:.1f} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else f"{mean:.1f}"
