"""Detectors of rows on poisoned and benign sets: what they rank first, what they flag, and false alarms where nothing is.

Run it again with::

    python benchmarks/rows.py --data fashion_mnist=<folder>

Each case and seed has one record in ``benchmarks/results/rows.jsonl``; detectors that it has are skipped. Thresholds were
chosen on seeds 11 to 13, the detectors that take part after a look at seed 0; other seeds are reported. Without the folder only
digits are measured. The repaired twin is also measured on the victims of a sweep whose networks were kept::

    python benchmarks/rows.py --store <its store> --spec benchmarks/specs/cifar_matrix.yaml
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from table import RESULTS, Table
from victims import machine

import theriac as th
from theriac.bench import Store, make_plan, read_spec
from theriac.bench.plans import Loader, Node
from theriac.core.method import create
from theriac.models import run_over
from theriac.scanning.rows import DETECTORS, LEADING, OVERLAYS, DataScan, combine, usual_recipe

ALSO = ("scale_up", "loss_isolation", "agpd")  # measured on digits, but no part of a scan by default
CLEAN = {"digits": 100, "fashion_mnist": 200}  # test rows for those that need clean ones; others get none
ROWS = 3000  # of Fashion-MNIST's training rows

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
CASES |= {
    f"Fashion-MNIST: {name}": {**CASES[name], "data": "fashion_mnist"}
    for name in ("badnets", "blended", "badnets 3 %", "benign", "benign, 10 % wrong labels")
}


def data_of(case: dict[str, Any], seed: int, paths: dict[str, str]) -> th.Data:
    """The clean set of a case."""
    name = case.get("data", "digits")
    data = th.load(paths.get(name, name))
    return data if name == "digits" else th.Data(data.train.sample(ROWS, seed=seed), data.test)


def rows_of(case: dict[str, Any], data: th.Data, run: th.Run, build: Any) -> tuple[th.Split, torch.Tensor]:
    """The rows of a case as they would come, and which of them are poisoned."""
    rows, draw = data.train, torch.Generator().manual_seed(run.seed)
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


def measure(case: dict[str, Any], data: th.Data, seed: int, known: dict[str, Any]) -> dict[str, Any]:
    """One case: a victim, every detector that its record does not have, and all together."""
    run, build = th.Run(seed=seed, precision="fp32", quiet=True), th.Builder("preact_resnet18", {"width": 8})
    rows, poison = rows_of(case, data, run, build)
    recipe = usual_recipe(rows)
    model = th.train(build, rows, recipe=recipe, run=run)
    learned = run_over(model, rows, run=run).argmax(1).cpu() == rows.y.cpu()
    clean = data.test.sample(CLEAN[case.get("data", "digits")], seed=seed, stratified=True)
    record: dict[str, Any] = {"rows": len(rows), "poisoned": int(poison.sum()), "seed": seed, "recipe": recipe}
    record |= {"clean": len(clean), "learned": int((learned & poison).sum()), **known}
    record["detectors"] = dict(known.get("detectors", {}))
    if not {LEADING, *DETECTORS} <= set(record["detectors"]):
        record["detectors"] = {}  # what they say together needs all of them
    findings = {}
    for name in wanted(case):
        if name in record["detectors"]:
            continue
        options: dict[str, Any] = {"overlays": OVERLAYS} if name == "strip" else {}
        detector = create("detector", name, **options)
        clock = time.process_time()
        given = clean if detector.needs.clean_rows else None
        finding = detector.detect(model if detector.needs.model else None, rows, given, run=run)
        findings[name] = finding
        record["detectors"][name] = judged(finding, poison) | {"cpu_seconds": round(time.process_time() - clock, 2)}
    if findings.keys() >= {LEADING, *DETECTORS}:
        for part, names in (("together", DETECTORS), ("together_clean", (LEADING, *DETECTORS))):
            record[part] = answer_of(combine(rows, {name: findings[name] for name in names}, {}, seed=seed), poison)
    return record


def measure_victim(node: Node, home: Path) -> dict[str, Any]:
    """The repaired twin on one network of a sweep, and on the rows that it was trained on."""
    data, job, seed = node.job.data.load(), node.job, node.job.seed
    rows, poison = data.train, torch.zeros(len(data.train), dtype=torch.bool)
    if job.attack is not None:
        poisoned = job.attack.poison(rows, th.Run(seed=seed, quiet=True), job.model)
        rows, poison = poisoned.split, poisoned.poison
    run, model = th.Run(seed=seed, precision="fp32", quiet=True), th.load_model(home)
    learned = run_over(model, rows, run=run).argmax(1).cpu() == rows.y.cpu()
    clean = data.test.sample(20 * rows.num_classes, seed=seed, stratified=True)
    clock = time.process_time()
    finding = create("detector", LEADING).detect(model, rows, clean, run=run)
    found = judged(finding, poison) | {"cpu_seconds": round(time.process_time() - clock, 2)}
    record: dict[str, Any] = {"rows": len(rows), "poisoned": int(poison.sum()), "seed": seed, "clean": len(clean)}
    return record | {"learned": int((learned & poison).sum()), "detectors": {LEADING: found}}


def victims(store: Path, spec: Path) -> Iterator[tuple[str, Node, Path]]:
    """Networks of a sweep that are done, with names; none of attacks that are trained with their victim."""
    load, checked = Loader(), read_spec(spec)
    with Store(store, make=False) as opened:
        for group in checked.groups:
            for node in make_plan(group, load=load).nodes.values():
                trained = (
                    node.job.kind == "train" and node.job.defense is None and not getattr(node.job.attack, "trains", False)
                )
                if trained and opened.status(node.key) == "done":
                    yield f"{checked.name}: {node.cell.attack or 'benign'}", node, opened.home(node.key)


def wanted(case: dict[str, Any]) -> tuple[str, ...]:
    """Detectors of a case."""
    return (LEADING, *DETECTORS, *(() if "data" in case else ALSO))


def answer_of(scan: DataScan, poison: torch.Tensor) -> dict[str, Any]:
    """The answer of several detectors beside the truth."""
    flagged = poison[list(scan.flagged)] if scan.flagged else poison[:0]
    return {
        "verdict": scan.verdict,
        "flagged": len(scan.flagged),
        "right": int(flagged.sum()),
        "share": scan.share,
        "interval": None if scan.interval is None else list(scan.interval),
        "auroc": auroc(scan.scores, poison),
    }


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
    parser.add_argument("--data", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--only", default="", help="cases whose name begins so")
    parser.add_argument("--store", type=Path, help="networks of the sweep in this store, and nothing else")
    parser.add_argument("--spec", type=Path, help="of that store")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    out, paths = Table.of("rows", RESULTS), dict(item.split("=", 1) for item in args.data)
    if args.store:
        for name, node, home in victims(args.store, args.spec):
            key, command = f"{name}, seed {node.job.seed}", f"python benchmarks/rows.py --store <store> --spec {args.spec}"
            if key not in out:
                record = measure_victim(node, home)
                out.put(key, {**record, "case": name, "machine": machine(), "command": command})
                print(key, record, flush=True)
        return
    for seed in args.seeds:
        for name, case in CASES.items():
            key = f"{name}, seed {seed}"
            known = out.get(key) or {}
            if set(known.get("detectors", ())) >= set(wanted(case)) or not name.startswith(args.only):
                continue
            if "data" in case and case["data"] not in paths:
                continue
            record = measure(case, data_of(case, seed, paths), seed, known)
            out.put(key, {**record, "case": name, "machine": machine(), "command": "python benchmarks/rows.py"})
            said = {n: f"{d['verdict'][:4]} {d['right']}/{d['flagged']} {d['auroc']}" for n, d in record["detectors"].items()}
            print(key, record["poisoned"], said, record["together_clean"], flush=True)


if __name__ == "__main__":
    main()
