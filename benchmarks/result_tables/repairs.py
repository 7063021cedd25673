"""Repairs of the first edition: one page a plan, and a repair's own part of its method card."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from table import RESULTS, Record

from result_tables.reading import made_by, repair_plans
from result_tables.words import (
    RATES,
    attack_words,
    change,
    changes,
    families,
    judge_words,
    plain_name,
    precision_words,
    rate,
    repair_family,
    seeds_words,
    settings_words,
    spread,
    victim_family,
    victim_words,
)
from theriac.core.method import Method
from theriac.report.cards import grid

SHOWN = ("epochs", "rounds", "lr", "lam", "alpha")  # always told, whatever the defaults are
NOTES = (
    "Rates come with 95 % Wilson intervals; over seeds with mean, standard deviation and range. cos(W, W0): between the new\n"
    "and the old classifier. body moved: change of all convolution weights relative to their norm. s: seconds on a busy\n"
    "machine, no measure of speed.\n"
)


def page(plan: str, records: list[Record]) -> str:
    """One plan: every repair by victim, or over victims of several seeds."""
    siblings = families(records, lambda r: victim_family(r["victim"]))
    several = any(len({r["victim"]["key"] for r in members}) > 1 for members in siblings)
    formats = sorted({precision_words(r) for r in records if r["repair"]})
    made = f"Made by {made_by(plan, records[0], '..')}; tabulated by `python benchmarks/make_tables.py`."
    body = _over_victims(records) if several else _by_victim(records)
    return f"# {plan}\n\n{made} Precision: {', '.join(formats)}.\n{NOTES}\n{body}"


def _by_victim(records: list[Record]) -> str:
    """One section a victim: every run, then those that differ in seeds only taken together."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["victim"]["key"], []).append(record)
    parts = []
    for key, members in sorted(groups.items()):
        victim = members[0]["victim"]
        told = attack_words(victim.get("attack")) if victim.get("attack") else "no attack (benign control)"
        parts.append(f"### {key}\n\n{victim['data']}, {victim_words(victim)}, seed {victim.get('seed', 0)}: {told}\n")
        judged = {judge_words(r): r["before"] for r in members}
        first = [
            ["before" if victim.get("attack") else f"before ({name})", "none", *[rate(b[k]) for k in RATES], *[""] * 4]
            for name, b in judged.items()
        ]
        repaired = [r for r in members if r["repair"]]
        rows = []
        for alike in families(repaired, repair_family):
            rows += [_row(r) for r in alike]
            if len(alike) > 1:
                rows.append(_together(alike))
        head = ["run", "repair", "ACC %", "ASR %", "RA %", "DER", "cos(W, W0)", "body moved", "s"]
        parts.append(grid(head, first + rows) + "\n")
    return "\n".join(parts)


def _over_victims(records: list[Record]) -> str:
    """One row a network and method, over victims of several seeds."""
    rows = []
    for alike in families([r for r in records if r["repair"]], repair_family):
        first = alike[0]
        cells = [spread([r["after"][k]["value"] for r in alike]) if len(alike) > 1 else rate(first["after"][k]) for k in RATES]
        network = re.sub(r"-\d+$", "", first["victim"]["key"])
        seeds = seeds_words(r["seed"] for r in alike)
        rows.append([network, plain_name(first), _settings(first), *cells, *_moved(alike), seeds])
    head = ["network", "run", "repair", "ACC %", "ASR %", "RA %", "cos(W, W0)", "body moved", "seeds"]
    return grid(head, sorted(rows, key=lambda r: r[:2])) + "\n"


def for_repair(cls: type[Method], results: Path = RESULTS) -> list[str]:
    """One repair's rows of every plan, for its card."""
    blocks = []
    for plan, records in repair_plans(results).items():
        mine = [r for r in records if r["repair"] and r["repair"]["method"] == cls.name and r.get("after")]
        rows = []
        for members in families(mine, repair_family):
            first = members[0]
            victim = first["victim"]
            judged = judge_words(first)
            what = judged if victim.get("attack") else f"no attack, judged by {judged}"
            rows.append([
                f"{victim['data']}: {what}",
                victim_words(victim),
                f"{settings_words(first['repair'])}; {precision_words(first)}",
                first["clean_rows"],
                *[change([m["before"][k] for m in members], [m["after"][k] for m in members]) for k in RATES],
                _seeds(members),
            ])  # fmt: skip
        if rows:
            head = [
                "victim",
                "network, recipe",
                "preset, what differs; precision",
                "clean rows",
                "ACC %",
                "ASR %",
                "RA %",
                "seeds",
            ]
            blocks.append(f"{_from(plan, mine[0])}\n\n{grid(head, rows)}")
    return blocks


def _seeds(members: Sequence[Record]) -> str:
    victims = seeds_words(m["victim"].get("seed", 0) for m in members)
    repairs = seeds_words(m.get("seed", 0) for m in members)
    return f"{repairs} (victim {victims})" if repairs != victims else repairs


def _from(plan: str, record: Record) -> str:
    table = f"[{plan}](../../benchmarks/results/{plan}.md)"
    return f"From {table}, {made_by(plan, record, '../../benchmarks')}; before → after."


def _settings(record: Record) -> str:
    """The method with the options that matter most and all that differ from its nearest preset."""
    repair = record["repair"]
    told = {k: repair[k] for k in SHOWN if k in repair} | changes(repair)[1]
    told.pop("precision", None)
    shown = ", ".join(f"{k} {v}" for k, v in told.items())
    return f"{repair['method'].upper()} ({shown})"


def _row(record: Record) -> list[str]:
    after = record["after"]
    return [
        record["name"],
        _settings(record),
        *[rate(after[k]) for k in RATES],
        f"{record['der']:.3f}" if record.get("der") is not None else "",
        *_last(record),
        f"{record['seconds']:.0f}",
    ]


def _last(record: Record) -> tuple[str, str]:
    cosine = _cosine(record)
    moved = record.get("moved", {}).get("body")
    return "" if cosine is None else f"{cosine:+.2f}", "" if moved is None else f"{moved:.2f}"


def _cosine(record: Record) -> Any:
    return (record.get("history") or [{}])[-1].get("cosine")


def _together(alike: list[Record]) -> list[str]:
    mean = [spread([r["after"][k]["value"] for r in alike]) for k in RATES]
    name = f"**{plain_name(alike[0])}, {len(alike)} seeds**"
    return [name, _settings(alike[0]), *mean, _mean([r["der"] for r in alike], ".3f"), *_moved(alike), ""]


def _moved(alike: list[Record]) -> tuple[str, str]:
    return _mean([_cosine(r) for r in alike], "+.2f"), _mean([r.get("moved", {}).get("body") for r in alike], ".2f")


def _mean(values: list[Any], form: str) -> str:
    known = [v for v in values if v is not None]
    return format(sum(known) / len(known), form) if known else ""
