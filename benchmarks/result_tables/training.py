"""Results of ``cbd.py``: a training-time defense's own part of its method card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from table import RESULTS, Record

from result_tables.reading import cbd_records
from result_tables.words import (
    RATES,
    config_words,
    counted,
    families,
    network_words,
    plain_training,
    precision_words,
    seeds_words,
    settings_words,
)
from theriac.core.method import Method
from theriac.report.cards import grid


def for_defense(cls: type[Method], results: Path = RESULTS) -> list[str]:
    """A training-time defense beside plain training on the same rows, and on the clean ones among them."""
    records = [r for r in cbd_records(results) if r["method"]["method"] == cls.name]
    names = {"plain": "plain training", "clean": "the clean rows alone"}
    records.sort(key=lambda r: ("plain", "cbd", "clean").index(r["arm"]))
    rows = []
    for members in families(records, _arm_key):
        first = members[0]
        attacked = first["poisoned_rows"] > 0
        told = config_words(first["attack"])
        own = f"{cls.title} {settings_words(first['method'])}"
        verdicts = [m["health"].get("verdict", "") for m in members if m.get("health")]
        aurocs = [f"{m['gates']['auroc']:.2f}" for m in members if "auroc" in m.get("gates", {})]
        rows.append([
            f"{first['data']['name']}, {first['data']['rows']} rows: "
            + (told if attacked else f"no attack, judged by {first['attack']['method']}"),
            f"{network_words(first['model'])}, {first['method']['epochs']} epochs; {precision_words(first)}",
            names.get(first["arm"], own),
            *[counted([m["evaluation"][k] for m in members]) if first["evaluation"][k] else "" for k in RATES],
            ", ".join([*verdicts, *(["AUROC " + ", ".join(aurocs)] if aurocs else [])]),
            seeds_words(m["seed"] for m in members),
        ])  # fmt: skip
    if not rows:
        return []
    rows.sort(key=lambda row: (row[0], row[1]))
    head = ["data: attack", "network; precision", "arm", "ACC %", "ASR %", "RA %", "f_B: health, AUROC of its loss", "seeds"]
    return [f"From `python benchmarks/cbd.py`; the command of each run is in its record.\n\n{grid(head, rows)}"]


def _arm_key(record: Record) -> list[Any]:
    return [*plain_training(record), record["method"] if record["arm"] == "cbd" else None, precision_words(record)]
