"""Turn committed JSON results into Markdown tables beside them: plans of ``repairs.py`` and ``attacks.py``, and ``debias.py``.

Run it with::

python benchmarks/make_tables.py            # every plan that has results
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import attack_tables
from debias_tables import page
from measured import (
    RATES,
    RESULTS,
    Record,
    attack_words,
    changes,
    families,
    judge_words,
    plain_name,
    precision_words,
    rate,
    repair_family,
    repair_plans,
    seeds_words,
    spread,
    victim_family,
    victim_words,
)

from theriac.report.cards import grid

SHOWN = ("epochs", "rounds", "lr", "lam", "alpha")  # always told, whatever the defaults are
NOTES = (
    "Rates come with 95 % Wilson intervals; over seeds with mean, standard deviation and range. cos(W, W0): between the new\n"
    "and the old classifier. body moved: change of all convolution weights relative to their norm. s: seconds on a busy\n"
    "machine, no measure of speed.\n"
)


def settings(record: Record) -> str:
    """The method with the options that matter most and all that differ from its nearest preset."""
    repair = record["repair"]
    told = {k: repair[k] for k in SHOWN if k in repair} | changes(repair)[1]
    told.pop("precision", None)
    shown = ", ".join(f"{k} {v}" for k, v in told.items())
    return f"{repair['method'].upper()} ({shown})"


def row(record: Record) -> list[str]:
    after = record["after"]
    return [
        record["name"],
        settings(record),
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


def by_victim(records: list[Record], plan: str) -> str:
    """One section a victim: every run, then those that differ in seeds only taken together."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["victim"]["key"], []).append(record)
    parts = []
    for key, members in sorted(groups.items()):
        victim = members[0]["victim"]
        told = attack_words(victim.get("attack")) if victim.get("attack") else "no attack (benign control)"
        parts.append(f"### {key}\n\n{victim['data']}, {victim_words(victim)}, seed {victim.get('seed', 0)}: {told}\n")
        judged = {judge_words(r, plan): r["before"] for r in members}
        first = [
            ["before" if victim.get("attack") else f"before ({name})", "none", *[rate(b[k]) for k in RATES], *[""] * 4]
            for name, b in judged.items()
        ]
        repaired = [r for r in members if r["repair"]]
        rows = []
        for alike in families(repaired, partial(repair_family, plan=plan)):
            rows += [row(r) for r in alike]
            if len(alike) > 1:
                rows.append(_together(alike))
        head = ["run", "repair", "ACC %", "ASR %", "RA %", "DER", "cos(W, W0)", "body moved", "s"]
        parts.append(grid(head, first + rows) + "\n")
    return "\n".join(parts)


def _together(alike: list[Record]) -> list[str]:
    mean = [spread([r["after"][k]["value"] for r in alike]) for k in RATES]
    name = f"**{plain_name(alike[0])}, {len(alike)} seeds**"
    return [name, settings(alike[0]), *mean, _mean([r["der"] for r in alike], ".3f"), *_moved(alike), ""]


def _moved(alike: list[Record]) -> tuple[str, str]:
    return _mean([_cosine(r) for r in alike], "+.2f"), _mean([r.get("moved", {}).get("body") for r in alike], ".2f")


def _mean(values: list[Any], form: str) -> str:
    known = [v for v in values if v is not None]
    return format(sum(known) / len(known), form) if known else ""


def over_victims(records: list[Record], plan: str) -> str:
    """One row a network and method, over victims of several seeds."""
    rows = []
    for alike in families([r for r in records if r["repair"]], partial(repair_family, plan=plan)):
        first = alike[0]
        cells = [spread([r["after"][k]["value"] for r in alike]) if len(alike) > 1 else rate(first["after"][k]) for k in RATES]
        network = re.sub(r"-\d+$", "", first["victim"]["key"])
        seeds = seeds_words(r["seed"] for r in alike)
        rows.append([network, plain_name(first), settings(first), *cells, *_moved(alike), seeds])
    head = ["network", "run", "repair", "ACC %", "ASR %", "RA %", "cos(W, W0)", "body moved", "seeds"]
    return grid(head, sorted(rows, key=lambda r: r[:2])) + "\n"


def tables(plan: str, records: list[Record]) -> str:
    """The page of one plan."""
    siblings = families(records, lambda r: victim_family(r["victim"]))
    several = any(len({r["victim"]["key"] for r in members}) > 1 for members in siblings)
    command = re.split(r" --(?:only|job) ", records[0]["command"])[0]
    formats = sorted({precision_words(r) for r in records if r["repair"]})
    made = f"Made by `{command}` and tabulated by `python benchmarks/make_tables.py`."
    body = over_victims(records, plan) if several else by_victim(records, plan)
    return f"# {plan}\n\n{made} Precision: {', '.join(formats)}.\n{NOTES}\n{body}"


def main() -> None:
    for plan, records in repair_plans(tuning=True).items():
        path = RESULTS / f"{plan}.md"
        path.write_text(tables(plan, records), encoding="utf-8")
        print(path, len(records))
    for plan, records in attack_tables.attack_plans().items():
        (RESULTS / f"{plan}.md").write_text(attack_tables.page(plan, records), encoding="utf-8")
    if (RESULTS / "debias").is_dir():
        (RESULTS / "debias.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
