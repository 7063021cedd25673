"""What each attack plants: clean accuracy, attack success and recovered accuracy of a victim, beside a benign model's success.

Run a plan (a YAML file of jobs) again with::

    python benchmarks/attacks.py benchmarks/plans/attacks.yaml --data cifar10=<folder>

Each job adds one record for each of its seeds to ``benchmarks/results/<plan>.jsonl``; what is there is skipped, so a
killed run goes on where it was, and a victim that was being trained goes on from its last checkpoint. Victims, benign models
and what was planted are kept in ``runs/``. The benign model of a data set, recipe and seed is trained once for all attacks. An
attack that can't be fitted is told and left out; the command then ends with 1.
"""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import yaml
from table import Table
from victims import asked, machine, plan_arguments, plan_recipe, thin, training_rows, victim_model

import theriac as th
from theriac.attacks import MultiTarget, load_planted, save_planted
from theriac.core.errors import InputError, TheriacError
from theriac.core.files import read_json, write_json
from theriac.core.method import create
from theriac.metrics import cross_accuracy, leakage, success_by_target
from theriac.models import Builder
from theriac.models.store import digest

FIELDS = ("data", "load", "rows", "recipe", "model", "options", "precision", "seeds")  # a job's own, or the plan's


def main() -> int:
    args = plan_arguments(__doc__)
    plan = yaml.safe_load(args.plan.read_text())
    paths = dict(item.split("=", 1) for item in args.data)
    loaded: dict[str, Any] = {}
    out, failed = Table.of(args.plan.stem, args.out), 0
    for job in asked(plan["jobs"], args):
        job = {**{k: plan[k] for k in FIELDS if k in plan}, **job}
        for seed in job.get("seeds", [0]):
            name = f"{job['name']}-{seed}"
            if name in out:
                continue
            if job["data"] not in loaded:
                loaded[job["data"]] = th.load(paths.get(job["data"], job["data"]), **job.get("load", {}))
            try:
                record = run_job(name, job, seed, loaded[job["data"]], args.runs)
            except TheriacError as error:
                failed += 1
                print(f"{name:34s} failed: {error}", flush=True)
                continue
            record["machine"] = machine()
            record["command"] = f"python benchmarks/attacks.py {args.plan.as_posix()} --job {job['name']}"
            out.put(name, record)
            print(summary(record), flush=True)
    return 1 if failed else 0


def run_job(name: str, job: dict[str, Any], seed: int, data: Any, runs: Path) -> dict[str, Any]:
    options = dict(job["attack"])
    attack = create("attack", options.pop("name"), options.pop("preset", None), **options)
    folder = runs / "attacks" / job["data"] / name
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        told = victim(attack, job, seed, data, folder)
        model, planted = th.load_model(folder), load_planted(folder)
        control: dict[str, Any] = {k: job[k] for k in ("data", "rows", "recipe", "model", "options", "precision") if k in job}
        size = f"-{job['rows']}" if "rows" in job else ""
        control |= {"key": f"benign-{job['data']}{size}-{job['recipe']}-{seed}", "seed": seed}
        benign, _, benign_seconds = victim_model(control, data, runs)
        run = th.Run(seed=seed, precision=job.get("precision", "auto"), quiet=True)
        found, other = (th.evaluate(m, data.test, planted, run=run) for m in (model, benign))
        excess = found.excess_asr(other)
    return {
        "name": name,
        "attack": attack.config(),
        "data": job["data"],
        "model": job.get("model", "preact_resnet18"),
        "options": job.get("options", {"width": 16}),
        "recipe": job["recipe"],
        "subset": job.get("rows"),  # training rows, class-balanced, the same for every attack and seed; null = all
        "seed": seed,
        "precision": run.precision_reason,
        "needs": {"training_control": attack.trains, "fitted": attack.must_fit},
        "victim": found.to_dict(),
        "benign": {**other.to_dict(), "train_seconds": benign_seconds},
        "excess_asr": {"value": excess.value, "interval": list(excess.interval)},
        "more": more(model, planted, data.test, run),
        **told,
        "weights": digest(folder / "model.safetensors"),
        "planted": digest(folder / "planted.safetensors"),
        "warnings": [str(w.message) for w in caught],
    }


def victim(attack: Any, job: dict[str, Any], seed: int, data: Any, folder: Path) -> dict[str, Any]:
    """Train and keep a victim, unless it is there; what was poisoned, how long it took, and how training went."""
    if (folder / "told.json").exists():
        known: dict[str, Any] = read_json(folder / "told.json")
        return known
    run = th.Run(seed=seed, folder=folder, quiet=True, precision=job.get("precision", "auto"))
    build = Builder(job.get("model", "preact_resnet18"), job.get("options", {"width": 16}))
    train = training_rows(job, data)
    resumed = any(folder.glob("*.checkpoint.pt"))  # then the seconds are those of the last part
    clock = time.perf_counter()
    if attack.trains:
        made = attack.train(build, train, run, plan_recipe(job["recipe"]))
        model, planted, fitted, poisoned = made.model, made.planted, None, None
        kind = planted.state.get("rows.kind", attack.kinds(train, run))
        dirty = None
    else:
        poisoned = attack.poison(train, run, build)
        fitted, clock = time.perf_counter() - clock, time.perf_counter()
        model, planted, kind, dirty = None, poisoned.planted, poisoned.kind, poisoned.dirty
        model = th.train(build, poisoned, recipe=plan_recipe(job["recipe"]), run=run)
    clean, poison, cross = kind.cpu().bincount(minlength=3).tolist()
    told = {
        "rows": {"all": len(train), "clean": clean, "poison": poison, "cross": cross, "relabeled": dirty},
        "fit_seconds": None if fitted is None else round(fitted, 1),  # None: part of training
        "train_seconds": round(time.perf_counter() - clock, 1),
        "resumed": resumed,
        "poisoned_set": None if poisoned is None else poisoned.split.content_hash(),  # None: there is no fixed set of bytes
        "events": [e for e in thin(run.events) if e["event"] not in ("train", "mask", "lira-stage1")],
        "history": thin(run.history("train")),
    }
    th.save(model, folder)
    save_planted(planted, folder)
    write_json(folder / "told.json", told)  # last: a folder without it is not done
    return told


def more(model: Any, planted: Any, split: Any, run: Any) -> dict[str, Any]:
    """What single attacks are judged by besides: rows that should resist, classes they are not for, each of several goals."""
    found: dict[str, Any] = {}
    made = th.attacks.Victim(model, planted)
    with contextlib.suppress(InputError):  # it has no cross rows
        found["cross_accuracy"] = cross_accuracy(made, split, run=run).to_dict()
    rates = success_by_target(made, split, planted, run=run)
    if len(rates) > 1:
        found["by_target"] = {str(k): r.to_dict() for k, r in rates.items()}
        found["lowest"] = min(r.value for r in rates.values())
    with contextlib.suppress(InputError):  # it is for rows of every class
        found["leak"] = {str(k): r.to_dict() for k, r in leakage(made, split, planted, run=run).items()}
    if isinstance(planted.attack, MultiTarget):
        alone = {t: th.evaluate(model, split, p, run=run).asr for t, p in MultiTarget.parts(planted).items()}
        found["alone"] = {str(t): rate.to_dict() for t, rate in alone.items() if rate is not None}
    return found


def summary(record: dict[str, Any]) -> str:
    rates = " ".join(f"{k} {100 * record['victim'][k]['value']:5.1f}" for k in ("acc", "asr", "ra"))
    rows = record["rows"]
    return (
        f"{record['name']:34s} {rates}  benign asr {100 * record['benign']['asr']['value']:5.1f}  "
        f"{rows['poison']} + {rows['cross']} rows  {record['train_seconds']:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
