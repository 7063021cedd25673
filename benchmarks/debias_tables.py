"""The committed debiasing results as tables: one a task, mean and standard deviation over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import yaml
from measured import PLANS, network_words, seeds_words
from table import RESULTS, Record, Table

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
TOLD = ("teacher", "logit-adjust")  # of the plan's methods, those that need the group at inference


def debias_records(results: Path = RESULTS) -> dict[str, list[Record]]:
    """Records of ``debias.py`` by task, tasks and methods in the order of the plan."""
    plan = yaml.safe_load((PLANS / "debias.yaml").read_text("utf-8"))
    found: dict[str, list[Record]] = {}
    for record in Table.of("debias", results):
        if record["method"] not in plan["methods"] and record["method"] not in plan["tasks"][record["task"]].get("methods", {}):
            continue  # of an older plan
        found.setdefault(record["task"], []).append(record)
    ordered: dict[str, list[Record]] = {}
    for task, about in plan["tasks"].items():
        names = [*plan["methods"], *about.get("methods", {})]
        if task in found:
            ordered[task] = sorted(found[task], key=lambda r: (names.index(r["method"]), r["seed"]))
    return ordered


def page(results: Path = RESULTS) -> str:
    """All tasks, every method."""
    made = "Made by `python benchmarks/debias.py benchmarks/plans/debias.yaml --data NAME=<folder> ...`."
    parts = [f"# debias\n\n{made}\n", NOTES]
    for task, records in debias_records(results).items():
        parts.append(f"## {task}\n\n{setting(records[0])}\n\n{table(records)}\n")
        queries = [r for r in records if "queries" in r]
        if queries:
            parts.append(f"The same teachers, asked otherwise:\n\n{asked(queries)}\n")
        flips = [r for r in records if "flips" in r]
        if flips:
            parts.append(f"Predictions that a trigger changes, % of the test rows:\n\n{flipped(flips)}\n")
    return "\n".join(parts)


def for_method(cls: type[Method], results: Path) -> list[str]:
    """One method beside plain training, as blocks for its card."""
    blocks = []
    for task, records in debias_records(results).items():
        mine = [r for r in records if r["config"] and r["config"]["method"] == cls.name]
        if mine:
            plain = [r for r in records if not r["config"]]
            blocks.append(f"{task}: {setting(mine[0])}\n\n{table(plain + mine)}")
    if blocks:
        blocks.insert(0, f"All methods side by side: [debias](../../benchmarks/results/debias.md). {' '.join(NOTES.split())}")
    return blocks


def setting(record: Record) -> str:
    rows, recipe = record["rows"], ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in record["recipe"].items())
    groups = " and ".join(record["data"]["groups"])
    cells = "; ".join(", ".join(map(str, row)) for row in rows["cells"])
    network = network_words(record["model"])
    trained = f"{rows['train']} rows (by group and label: {cells})"
    return f"{trained}, groups {groups}; {rows['test']} test rows; {network}, {recipe}."


def table(records: Sequence[Record]) -> str:
    rows = []
    for name, members in by_method(records).items():
        rows.append([
            told(name),
            *[spread([value(m["fairness"][key]) for m in members]) for key in NUMBERS],
            seeds_words(m["seed"] for m in members),
        ])  # fmt: skip
    return grid(["method", *NUMBERS.values(), "seeds"], rows)


def asked(records: Sequence[Record]) -> str:
    rows = []
    for name, members in by_method(records).items():
        for query in ("reverse", "none", "aligned"):
            seen = [m["fairness"] if query == "reverse" else m["queries"][query] for m in members]
            rows.append([name, query, *[spread([value(f[key]) for f in seen]) for key in NUMBERS]])
    return grid(["method", "query", *NUMBERS.values()], rows)


def flipped(records: Sequence[Record]) -> str:
    rows = []
    for name, members in by_method(records).items():
        each = zip(*[[f["value"] for f in m["flips"]] for m in members], strict=True)
        rows.append([told(name), *[spread(list(values)) for values in each]])
    return grid(["method", "first trigger", "second"], rows)


def told(name: str) -> str:
    return f"{name}*" if name.endswith(TOLD) else name


def by_method(records: Sequence[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record["method"], []).append(record)
    return found


def value(part: object) -> float:
    return float(part["value"] if isinstance(part, dict) else part)  # type: ignore[arg-type]


def spread(values: Sequence[float]) -> str:
    mean = 100 * statistics.fmean(values)
    return f"{mean:.1f} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else f"{mean:.1f}"
