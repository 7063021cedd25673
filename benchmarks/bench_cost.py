"""What a sweep costs beside its jobs, with real ones: two workers against one, the runner's share, a large plan.

On two idle cores (eight minutes; a busy machine makes every number worse)::

    python benchmarks/bench_cost.py --out benchmarks/results

Each part adds one record to ``bench_cost.jsonl``: what was measured, the goal, and whether it was reached. ``--rehearse``
takes networks of a second. What needs no real jobs is tested: ``tests/unit/bench`` has the share of the driver with jobs that
wait, the memory of a plan, and the size of a page.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from table import Table
from victims import machine

import theriac as th
from theriac.bench import Store, make_plan, read_spec, run
from theriac.bench.plans import Loader

GOALS = {"workers": 0.6, "runner": 0.02, "plan": 2.0}  # share of one worker's time; share of a sweep; CPU seconds


def spec(jobs: int, width: int, epochs: int) -> dict[str, Any]:
    """Benign networks that differ in their seed only."""
    return {
        "name": "cost",
        "data": "digits",
        "models": {"name": "preact_resnet18", "width": width},
        "recipes": f"short_{epochs}",
        "precision": "fp32",
        "seeds": list(range(jobs)),
    }


def epoch_seconds(width: int) -> float:
    """Seconds of one epoch on one thread."""
    data, build = th.load("digits").train, th.Builder("preact_resnet18", {"width": width})
    run_ = th.Run(quiet=True, precision="fp32")
    th.train(build, data, recipe="short_3", run=run_)
    return float(statistics.median(event["seconds"] for event in run_.history("train")))


def workers(jobs: int, width: int) -> dict[str, Any]:
    """The same small jobs with one and with two worker processes of one thread each."""
    seconds = {}
    for count in (1, 2):
        with tempfile.TemporaryDirectory() as store:
            began = time.perf_counter()
            sweep = run(spec(jobs, width, 4), store, engine="workers", workers=count, threads=1, quiet=True)
            seconds[count] = round(time.perf_counter() - began, 2)
            assert sweep.done == jobs, sweep.failed
    return {"what": f"{jobs} networks of 4 epochs", "seconds": seconds, "value": round(seconds[2] / seconds[1], 4)}


def runner(jobs: int, width: int, long: float) -> dict[str, Any]:
    """How much of a sweep's time in one process is not spent in its jobs: plan, store, events, handing out."""
    epochs = max(1, round(long / epoch_seconds(width)))
    with tempfile.TemporaryDirectory() as store:
        began = time.perf_counter()
        sweep = run(spec(jobs, width, epochs), store, engine="process", quiet=True)
        seconds = time.perf_counter() - began
        assert sweep.done == jobs, sweep.failed
        with Store(store, make=False) as opened:
            own = [took for _, _, took in opened.timings()]
    facts = {"seconds": {"sweep": round(seconds, 2), "jobs": [round(took, 2) for took in own]}}
    return {"what": f"{jobs} networks of {epochs} epochs", **facts, "value": round(1 - sum(own) / seconds, 4)}


def plan() -> dict[str, Any]:
    """Processor time of laying out ten thousand jobs."""
    large = spec(3, 4, 1) | {
        "attacks": [{"name": "badnets", "rates": [i / 1000 for i in range(1, 42)]}],
        "defenses": [{"name": "ft", "lr": i / 1000} for i in range(1, 41)],
    }
    checked, load = read_spec(large), Loader()
    load(checked.data[0].value)
    began = time.process_time()
    made = make_plan(checked, load=load)
    return {"what": f"a plan of {len(made.nodes):,} jobs", "value": round(time.process_time() - began, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(GOALS), help=f"of {', '.join(GOALS)}; all if left out")
    parser.add_argument("--rehearse", action="store_true", help="few small networks, to see that it works")
    parser.add_argument("--out", type=Path, help="folder of the table; left out: it is only printed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    small = args.rehearse
    measures = {
        "workers": lambda: workers(*((4, 4) if small else (20, 16))),
        "runner": lambda: runner(*((2, 4, 1.0) if small else (10, 16, 10.0))),
        "plan": plan,
    }
    for part in args.parts:
        load = os.getloadavg()[0]
        record = measures[part]()
        record |= {"goal": GOALS[part], "reached": record["value"] <= GOALS[part]}
        print(f"{part}: {record['what']}: {record['value']} (goal {record['goal']}); {record.get('seconds', '')}", flush=True)
        if args.out and not small:
            facts = {"load": round(load, 1), "machine": machine(), "command": f"python benchmarks/bench_cost.py {part}"}
            Table.of("bench_cost", args.out).put(part, {**record, **facts})


if __name__ == "__main__":  # its workers read this file, too
    main()
