"""Results of ``age.py``: rules, repairs and baselines with a handful of clean rows, for method cards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from table import RESULTS, Record

from result_tables.reading import age_records
from result_tables.words import RATES, attack_words, change, families, seeds_words, settings_words
from theriac.core.method import Method
from theriac.repairs.age.edits import FORMER as RULES
from theriac.repairs.age.restore import FORMER as REPAIRS
from theriac.report.cards import grid


def for_edits(cls: type[Method], results: Path = RESULTS) -> list[str]:
    """AGE's experiment: the default rule and its controls; for other repairs, their rows as baselines with few clean rows."""
    blocks = []
    for plan, records in age_records(results).items():
        rows = [
            _cells_row(record, members)
            for record in records
            for members in families(
                [_renamed(cell) for cell in record["cells"]], lambda c: [c["kind"], c["rule"], c["retrain"], c["per_class"]]
            )
            if _shown(cls, members[0])
        ]
        if rows:
            made = f"`python benchmarks/age.py benchmarks/plans/{plan}.yaml`"
            more = " All rules and repairs are in that table." if cls.name == "age" else ""
            head = [
                "victim",
                "what",
                "rows a class",
                "ACC %",
                "ASR %",
                "RA %",
                "target class %",
                "left alone",
                "seeds of the handful",
            ]
            blocks.append(f"From `benchmarks/results/{plan}.jsonl`, {made}; before → after.{more}\n\n{grid(head, rows)}")
    return blocks


def _renamed(cell: Record) -> Record:
    """A cell with today's names of rules and repairs."""
    return {**cell, "rule": RULES.get(cell["rule"], cell["rule"]), "retrain": REPAIRS.get(cell["retrain"], cell["retrain"])}


def _cells_row(record: Record, members: Sequence[Record]) -> list[Any]:
    victim, first = record["victim"], members[0]
    own = victim.get("attack")
    judged = attack_words(own) if own else f"no attack, judged by {attack_words(victim['judge'])}"
    trigger = "searched" if first["kind"] == "inverted" else "known"
    where = "later layers" if first["kind"] == "later" else "head"
    what = f"{first['rule']} + {first['retrain']}, {where}, trigger {trigger}"
    rates = (*RATES, "target_acc")
    after = {k: [{"hits": m[k][0], "total": m[k][1]} for m in members if k in m] for k in rates}
    return [
        f"{victim['data']}: {judged}",
        f"{first['rule']} {settings_words(first['config'])}" if "config" in first else what,
        first["per_class"],
        *[change([record["before"][k]], after[k]) if after[k] and record["before"].get(k) else "" for k in rates],
        sum(m["told"].get("outcome", "repaired") != "repaired" for m in members) or "",
        seeds_words(m["seed"] for m in members),
    ]


def _shown(cls: type[Method], cell: Record) -> bool:
    if cls.name != "age":
        return bool(cell["kind"] == "baseline" and cell.get("config", {}).get("method") == cls.name)
    usual = cls().config()
    if cell["kind"] in ("inverted", "baseline"):
        return True
    if cell["kind"] == "later":
        return bool(cell["retrain"] == usual["retrain"])
    chosen = cell["rule"] in (usual["rule"], "project") and cell["retrain"] in (usual["retrain"], "head_stamped")
    return chosen or (cell["kind"] == "head" and cell["rule"] == "none" and cell["retrain"] == "head")
