"""Results of ``debias.py``: one table a task, mean and standard deviation over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from scipy.stats import ttest_1samp
from table import RESULTS, Record

from result_tables.reading import debias_records
from result_tables.words import network_words, seeds_words
from theriac.bench.statistics import holm
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
NEEDS_GROUP = ("teacher", "logit-adjust", "thresholds", "thresholds-odds")  # methods that need the group at inference
SEEDS = 5  # fewer seeds make no comparison
LEVEL = 0.05
PAIRED = (
    "Paired over seeds (two-sided t test, Holm over a column): the change from plain training in points, in bold where it is\n"
    "beyond chance. No harm: the odds gap falls and the worst group's accuracy does not. A trade: it falls at that accuracy's\n"
    "cost. Harm: the gap does not fall, and it rises or that accuracy falls.\n"
)
BESIDE = "{} less each rival, paired likewise, in points, with p after Holm.\n"


def page(results: Path = RESULTS) -> str:
    """All tasks, every method."""
    made = "Made by `python benchmarks/debias.py benchmarks/plans/debias.yaml --data NAME=<folder> ...`."
    parts = [f"# debias\n\n{made}\n", NOTES]
    for task, records in debias_records(results).items():
        parts.append(f"## {task}\n\n{_setting(records[0])}\n\n{_table(records)}\n")
        if compared := _beside_plain(records):
            parts.append(f"{PAIRED}\n{compared}\n")
        if compared := _beside_dwb(records):
            parts.append(compared)
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


def _beside_plain(records: Sequence[Record]) -> str:
    """Each method's change from plain training, and what it comes to; empty with fewer than :data:`SEEDS` seeds."""
    methods = _by_method(records)
    plain = methods.pop("plain", [])
    pairs = {name: found for name, members in methods.items() if len(found := _pairs(members, plain)) >= SEEDS}
    figures = ("odds_gap", "dp_gap", "worst_group", "bacc")
    tests = {key: _tests(pairs, key) for key in figures}
    rows = []
    for name in pairs:
        told = {key: (tests[key][name][0], tests[key][name][1] < LEVEL) for key in figures}
        words = [f"**{100 * mean:+.1f}**" if sure else f"{100 * mean:+.1f}" for mean, sure in told.values()]
        answers = [_value(record["fairness"][key]) for record, _ in pairs[name] for key in ("odds_gap", "dp_gap")]
        result = verdict(told["odds_gap"], told["worst_group"]) if any(answers) else "answers one class"
        rows.append([_named(name), *words, result])
    return grid(["method", *(NUMBERS[key] for key in figures), "beside plain training"], rows) if rows else ""


def verdict(gap: tuple[float, bool], worst: tuple[float, bool]) -> str:
    """What a change of the odds gap and one of the worst group's accuracy come to; each with whether it is beyond chance."""
    fairer, less_fair = gap[1] and gap[0] < 0, gap[1] and gap[0] > 0
    better, harmed = worst[1] and worst[0] > 0, worst[1] and worst[0] < 0
    if fairer:
        return "a trade" if harmed else "no harm"
    if harmed or less_fair:
        return "a trade, the other way" if less_fair and better else "harm"
    return "better for the worst group, gap not distinguishable" if better else "not distinguishable"


def _beside_dwb(records: Sequence[Record]) -> str:
    """DwB's best form here beside every rival, paired; empty with fewer than :data:`SEEDS` seeds."""
    methods = _by_method(records)
    ours = next((name for name in ("dwb-pictures", "dwb-exact") if len(methods.get(name, ())) >= SEEDS), None)
    if ours is None:
        return ""
    rivals = {name: _pairs(methods[ours], m) for name, m in methods.items() if not name.startswith("dwb")}
    rivals = {name: pair for name, pair in rivals.items() if len(pair) >= SEEDS}
    tests = {key: _tests(rivals, key) for key in ("odds_gap", "dp_gap", "acc")}
    rows = []
    for name in rivals:
        told = [tests[key][name] for key in tests]
        words = [f"{100 * mean:+.1f} (p {p:.3f})" for mean, p in told]
        rows.append([_named(name), *words, "differs" if any(p < LEVEL for _, p in told) else "not distinguishable"])
    return f"{BESIDE.format(ours)}\n{grid(['rival', *(NUMBERS[key] for key in tests), ''], rows)}\n"


def _pairs(first: Sequence[Record], second: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Records of the same seed."""
    other = {record["seed"]: record for record in second}
    return [(record, other[record["seed"]]) for record in first if record["seed"] in other]


def _tests(pairs: Mapping[str, Sequence[tuple[Record, Record]]], key: str) -> dict[str, tuple[float, float]]:
    """For each method, its mean difference of a figure and the p value after Holm."""
    found = {name: _test(pair, key) for name, pair in pairs.items()}
    adjusted = holm([p for _, p in found.values()])
    return {name: (mean, p) for (name, (mean, _)), p in zip(found.items(), adjusted, strict=True)}


def _test(pairs: Sequence[tuple[Record, Record]], key: str) -> tuple[float, float]:
    """Mean difference of a figure, and the p value of a paired t test; 1 where all pairs are equal."""
    changes = [_value(a["fairness"][key]) - _value(b["fairness"][key]) for a, b in pairs]
    if len(set(changes)) == 1:
        return changes[0], 1.0 if not changes[0] else 0.0
    return statistics.fmean(changes), float(ttest_1samp(changes, 0.0).pvalue)


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
