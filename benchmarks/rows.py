"""Detectors of rows on poisoned and benign digits: what they rank first, what they flag, and false alarms where nothing is.

Run it again with::

    python benchmarks/rows.py

Each case and seed has one record in ``benchmarks/results/rows.jsonl``; detectors that it has are skipped. Thresholds were
chosen on seeds 11 to 13, the detectors that take part after a look at seed 0; other seeds are reported.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import torch
from table import RESULTS, Table
from victims import machine

import theriac as th
from theriac.core.method import create
from theriac.scanning.rows import DETECTORS, OVERLAYS, combine

ALSO = ("scale_up", "loss_isolation", "agpd")  # measured, but no part of a scan by default
CLEAN = 100  # test rows for those that need clean ones; others get none

CASES: dict[str, dict[str, Any]] = {
    "badnets": {"attack": "badnets"},
    "blended": {"attack": "blended"},
    "trojannn": {"attack": "trojannn"},
    "badnets 3 %": {"attack": "badnets", "options": {"poison_rate": 0.03}},
    "wanet strong": {"attack": "wanet", "options": {"strength": 4.0, "cross_ratio": 1.0}},
    "benign": {},
    "benign, imbalanced": {"keep": [1.0, 0.2]},
    "benign, 10 % wrong labels": {"noise": 0.1},
}


def rows_of(case: dict[str, Any], run: th.Run, build: Any) -> tuple[th.Split, torch.Tensor]:
    """The rows of a case as they would come, and which of them are poisoned."""
    rows, draw = th.load("digits").train, torch.Generator().manual_seed(run.seed)
    if "attack" in case:
        poisoned = create("attack", case["attack"], **case.get("options", {})).poison(rows, run, build)
        return poisoned.split, poisoned.poison
    if "keep" in case:  # every second class loses most of its rows
        share = torch.tensor(case["keep"])[rows.y % 2]
        rows = rows.where(torch.rand(len(rows), generator=draw) < share)
    if "noise" in case:
        wrong = torch.rand(len(rows), generator=draw) < case["noise"]
        other = (rows.y + torch.randint(1, 10, (len(rows),), generator=draw)) % 10
        rows = rows.replace(y=torch.where(wrong, other, rows.y))
    return rows, torch.zeros(len(rows), dtype=torch.bool)


def measure(case: dict[str, Any], seed: int, known: dict[str, Any]) -> dict[str, Any]:
    """One case: a victim, every detector that its record does not have, and all together."""
    run, build = th.Run(seed=seed, precision="fp32", quiet=True), th.Builder("preact_resnet18", {"width": 8})
    rows, poison = rows_of(case, run, build)
    model = th.train(build, rows, recipe="short_15", run=run)
    record: dict[str, Any] = {"rows": len(rows), "poisoned": int(poison.sum()), "seed": seed, **known}
    record["detectors"] = dict(known.get("detectors", {}))
    if not set(DETECTORS) <= set(record["detectors"]):
        record["detectors"] = {}  # what they say together needs all of them
    clean = th.load("digits").test.sample(CLEAN, seed=seed, stratified=True)
    findings = {}
    for name in (*DETECTORS, *ALSO):
        if name in record["detectors"]:
            continue
        options: dict[str, Any] = {"overlays": OVERLAYS} if name == "strip" else {}
        detector = create("detector", name, **options)
        clock = time.process_time()
        given = clean if detector.needs.clean_rows else None
        finding = detector.detect(model if detector.needs.model else None, rows, given, run=run)
        findings[name] = finding
        record["detectors"][name] = judged(finding, poison) | {"cpu_seconds": round(time.process_time() - clock, 2)}
    if not findings.keys() >= set(DETECTORS):
        return record
    scan = combine(rows, {name: findings[name] for name in DETECTORS}, {}, seed=seed)
    flagged = poison[list(scan.flagged)] if scan.flagged else poison[:0]
    record["together"] = {
        "verdict": scan.verdict,
        "flagged": len(scan.flagged),
        "right": int(flagged.sum()),
        "share": scan.share,
        "interval": None if scan.interval is None else list(scan.interval),
        "auroc": auroc(scan.scores, poison),
    }
    return record


def judged(finding: Any, poison: torch.Tensor) -> dict[str, Any]:
    """A finding beside the truth."""
    flagged = poison[list(finding.flagged)] if finding.flagged else poison[:0]
    return {
        "verdict": finding.verdict,
        "flagged": len(finding.flagged),
        "right": int(flagged.sum()),
        "auroc": None if finding.rows is None else auroc(finding.rows, poison),
    }


def auroc(scores: torch.Tensor, poison: torch.Tensor) -> float | None:
    """Chance that a poisoned row ranks before a clean one; None where none is poisoned."""
    return round(th.metrics.detection(scores, poison).auroc, 4) if bool(poison.any()) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    out = Table.of("rows", RESULTS)
    for seed in args.seeds:
        for name, case in CASES.items():
            key = f"{name}, seed {seed}"
            known = out.get(key) or {}
            if set(known.get("detectors", ())) >= {*DETECTORS, *ALSO}:
                continue
            record = measure(case, seed, known)
            out.put(key, {**record, "case": name, "machine": machine(), "command": "python benchmarks/rows.py"})
            said = {n: f"{d['verdict'][:4]} {d['right']}/{d['flagged']} {d['auroc']}" for n, d in record["detectors"].items()}
            print(key, record["poisoned"], said, record["together"], flush=True)


if __name__ == "__main__":
    main()
