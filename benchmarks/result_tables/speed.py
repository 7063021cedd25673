"""The speed suite's records as tables: pairs by group, growth curves, and on what machine."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from table import RESULTS, Record, Table

from theriac.report.cards import grid

PLAN = "speed"


def parts(results: Path = RESULTS) -> dict[str, str]:
    """Every generated part of the page about speed, by name."""
    records = list(Table.of(PLAN, results))
    pairs = [r for r in records if "points" not in r]
    groups: dict[str, list[Record]] = {}
    for record in pairs:
        groups.setdefault(record["key"].partition("-")[0], []).append(record)
    made = {"speed": "\n\n".join(_pairs(members) for members in groups.values()) or "Not measured yet."}
    curves = [r for r in records if "points" in r]
    made["growth"] = _curves(curves) if curves else "Not measured yet."
    return made


def _pairs(records: list[Record]) -> str:
    head = ["pair", "ours", "the other way", "times (lowest to highest)", "seconds", "MB", "over its floor"]
    rows = [
        [
            record["key"],
            record["what"],
            record["against"],
            f"{_loss(record['times']['median'])} ({record['times']['low']:.3g} to {record['times']['high']:.3g})",
            _each(record, "seconds", ".3g"),
            _each(record, "megabytes", ".0f"),
            f"{record['floor']['times']:.3g} x {record['floor']['what']}" if record.get("floor") else "",
        ]
        for record in records
    ]
    return f"{_about(records)}\n\n{grid(head, rows)}"


def _loss(times: float) -> str:
    return f"{times:.3g} x" if times >= 1 else f"**{times:.3g} x, a loss**"


def _each(record: Record, what: str, form: str) -> str:
    if not record["ours"][what]:
        return ""
    return " / ".join(f"{statistics.median(record[side][what]):{form}}" for side in ("ours", "reference"))


def _curves(records: list[Record]) -> str:
    rows = [
        [r["key"], r["over"], ", ".join(f"{size:g}: {spent:.3g}" for size, spent in r["points"]), f"{r['exponent']:.2f}"]
        for r in records
    ]
    return f"{_about(records)}\n\n{grid(['curve', 'over', 'size: seconds', 'exponent'], rows)}"


def _about(records: list[Record]) -> str:
    """Commands and machines, each once."""
    commands = dict.fromkeys(f"`{record['command']}`" for record in records)
    machines: dict[str, Any] = dict.fromkeys(_machine(record["machine"]) for record in records)
    clocks = dict.fromkeys(record["clock"] for record in records)
    return f"{', '.join(commands)}; {' clock, '.join(clocks)} clock. {' '.join(machines)}"


def _machine(machine: dict[str, Any]) -> str:
    return (
        f"{machine['processor']} ({machine['capability']}), {machine['threads']} thread, {machine['precision']}, torch "
        f"{machine['torch']}; a matrix product runs at {machine['matmul_gflops']:g} GFLOP/s, a copy at "
        f"{machine['copy_gbytes']:g} GB/s; load {machine['load']:g}."
    )
