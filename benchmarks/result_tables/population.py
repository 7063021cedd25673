"""The page of ``benchmarks/population.py``: what the shipped probability of a scan reaches on held-out networks."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from table import RESULTS, Record, Table

from theriac.report.cards import grid
from theriac.scanning.calibration import calibration, judge

RESTS = {"weights": "weights", "behavior": "weights and behavior"}
PARTS = {"left_one_out": "fitted part, each network left out once", "held_out": "held out"}


def page(results: Path = RESULTS) -> str:
    """AUROC, caught ones, verdicts and times; then every held-out network."""
    records = list(Table.of("population", results))
    shipped = calibration()
    weak = shipped["provenance"]["left_out_as_too_weak"]
    held = [r for r in records if r["part"] == "held" and r["key"] not in weak]
    told = shipped["provenance"]["fitted_on"]
    seconds = {part: statistics.median(r["seconds"][part] for r in records) for part in RESTS}
    head = ("rests on", "networks", "AUROC (95 %)", "caught at 1 % FPR", "at 5 % FPR", "Brier", "benign", "poisoned")
    body = [_figures(RESTS[which], PARTS[part], shipped[which][part]) for which in RESTS for part in PARTS]
    kinds = sorted({_kind(r) for r in held})
    by_kind = [_by_kind(kind, [r for r in held if _kind(r) == kind]) for kind in kinds]
    machine = records[0]["machine"]
    return (
        "# Scan, on networks that it was not fitted on\n\n"
        "Made by `python benchmarks/make_tables.py` from `population.jsonl` (`python benchmarks/population.py`) with the "
        f"logistic model that is shipped. Fitted on {told['benign']} benign and {told['poisoned']} poisoned networks; strength "
        "and thresholds were chosen there. The held-out part has other attacks, attackers who train flat or even out the head, "
        "another architecture, another set (Fashion-MNIST at 14 x 14 pixels) and other controls of benign training "
        "([plan](../plans/population.yaml)). One seed each, fp32, "
        f"torch {machine['torch']}. {len(weak)} attacked networks with an attack success below 50 % are left out, being "
        "neither benign nor backdoored. The last two columns count the verdicts clean / suspicious / backdoored.\n\n"
        f"{grid(head, body)}\n\n"
        f"Median time of a network: weights {1000 * seconds['weights']:.0f} ms, behavior {seconds['behavior']:.1f} s, on one "
        "thread of a loaded machine. Reliability: [population.svg](population.svg).\n\n"
        "## By kind, held out\n\n"
        f"{grid(('networks', 'count', 'verdicts', 'mean probability'), by_kind)}\n\n"
        "## Each network, held out\n\n"
        f"{grid(('network', 'accuracy', 'attack success', 'by weights', 'and behavior'), [_line(r) for r in held])}\n"
    )


def chance(record: Record, which: str) -> float:
    """What the shipped model says about the measurements of a record."""
    judgment = judge(record["features"], which)
    assert judgment is not None
    return judgment.probability


def _figures(rests: str, part: str, f: dict[str, Any]) -> tuple[str, ...]:
    low, high = f["interval"]
    tpr = [f"{f['tpr'][share][0]} of {f['tpr'][share][1]}" for share in ("0.01", "0.05")]
    counts = [" / ".join(map(str, f["verdicts"][kind].values())) for kind in ("benign", "poisoned")]
    area = f"{f['auroc']:.3f} ({low:.3f} to {high:.3f})"
    return rests, f"{part} ({f['clean']} + {f['poisoned']})", area, *tpr, f"{f['brier']:.3f}", *counts


def _kind(record: Record) -> str:
    how = "" if record.get("train", "plain") == "plain" else f", {record['train']}"
    if "attack" in record:
        return f"{record['attack']}{how}"
    return f"benign, {record['control']}" if "control" in record else f"benign{how}"


def _by_kind(kind: str, records: list[Record]) -> tuple[str, ...]:
    low, high = calibration()["behavior"]["thresholds"]
    chances = [chance(r, "behavior") for r in records]
    words = ["backdoored" if c >= high else "suspicious" if c >= low else "clean" for c in chances]
    counts = ", ".join(f"{words.count(word)} {word}" for word in ("clean", "suspicious", "backdoored") if word in words)
    return kind.replace("_", " "), str(len(records)), counts, f"{statistics.mean(chances):.2f}"


def _line(r: Record) -> tuple[str, ...]:
    asr = "" if r["asr"] is None else f"{100 * r['asr']:.0f} %"
    acc = f"{100 * r['acc']:.0f} %"
    return r["key"].removeprefix("held-"), acc, asr, f"{chance(r, 'weights'):.2f}", f"{chance(r, 'behavior'):.2f}"
