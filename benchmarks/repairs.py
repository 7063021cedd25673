"""Victims and their repairs on real images: clean accuracy, attack success, recovered accuracy, with the benign control.

Run a plan (a YAML file of victims and repairs) again with::

    python benchmarks/repairs.py benchmarks/plans/foundation.yaml --data cifar10=<folder> --data fashion_mnist=<folder>

Each job adds one record to ``benchmarks/results/<plan>.jsonl``; jobs whose record is there are skipped, so a killed run goes on
where it was. Victims are kept in ``runs/`` and trained once for all repairs.
"""

from __future__ import annotations

import argparse
import platform
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from table import RESULTS, Table

import theriac as th
from theriac.core.card import Augment
from theriac.core.files import read_json, write_json
from theriac.core.method import create
from theriac.models import Builder, make, parameter_count, to_input
from theriac.training import Recipe, loop


def machine() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "theriac": th.__version__,
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
        "gpu": gpu,
    }


def plan_arguments(about: str | None) -> argparse.Namespace:
    """What scripts that run a plan of jobs are told; sets the number of threads."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--data", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--only", default="", help="run only jobs whose name contains this")
    parser.add_argument("--job", default="", help="run the job of this very name")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    return args


def plan_recipe(name: str) -> Recipe:
    """The recipe that a plan names; with ``-flips`` after it, images are flipped and not cropped."""
    base, _, change = name.partition("-")
    if change not in ("", "flips"):
        raise SystemExit(f"recipe {name}: expected a recipe, or a recipe and -flips")
    found = th.recipe(base)
    return found.replace(name=name, augment=Augment(flip=True)) if change else found


def asked(jobs: list[dict[str, Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """The jobs that ``--only`` and ``--job`` mean; leaves with an error if there is none."""
    found = [job for job in jobs if args.only in job["name"] and args.job in ("", job["name"])]
    if not found:
        wanted = f"--job {args.job}" if args.job else f"--only {args.only}"
        raise SystemExit(f"{wanted} is no job of {args.plan.name}; it has {', '.join(job['name'] for job in jobs)}")
    return found


def main() -> None:
    args = plan_arguments(__doc__)
    plan = yaml.safe_load(args.plan.read_text())
    out = Table.of(args.plan.stem, args.out)
    paths = dict(item.split("=", 1) for item in args.data)
    loaded: dict[str, Any] = {}
    for job in asked(plan["jobs"], args):
        if job["name"] in out:
            continue
        victim = {**plan["victims"][job["victim"]], "key": job["victim"]}
        name = victim["data"]
        if name not in loaded:
            loaded[name] = th.load(paths.get(name, name))
        record = run_job(args.plan.stem, job, victim, scored_rows(victim, loaded[name]), args.runs)
        record["machine"] = machine()
        record["command"] = f"python benchmarks/repairs.py {args.plan.as_posix()} --only {job['name']}"
        out.put(job["name"], record)
        print(summary(record), flush=True)


def run_job(plan: str, job: dict[str, Any], victim: dict[str, Any], data: Any, runs: Path) -> dict[str, Any]:
    model, attack, began = victim_model(victim, data, runs)
    # a benign control is judged with the attack named by the job, since it has none of its own
    judged = attack or (create("attack", **job["judge"]) if "judge" in job else None)
    planted = judged.plant(data.train) if judged is not None else None
    record: dict[str, Any] = {"name": job["name"], "victim": victim, "repair": None, "warnings": []}
    if "judge" in job:
        record["judge"] = job["judge"]
    record["parameters"] = parameter_count(model)
    record["train_seconds"] = began
    before = th.evaluate(model, data.test, planted)
    record["before"] = before.to_dict()
    if "repair" not in job:
        return record
    options = dict(job["repair"])
    repair = create("repair", options.pop("name"), options.pop("preset", None), **options)
    if getattr(repair, "knowledge", "") == "known":  # AGE's case of a known trigger; a benign control gets the judge's
        repair = repair.with_trigger(planted)
    clean = data.train.sample(job.get("clean", 0.05), seed=job.get("clean_seed", 1000))
    # a folder, so that a long repair that is killed goes on from its last checkpoint
    folder = runs / "repairs" / plan / job["name"]
    run = th.Run(seed=job.get("seed", 0), precision=job.get("precision", "auto"), folder=folder, quiet=True)
    clock = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fixed = repair.repair(model, clean, run)
    record["seconds"] = round(time.perf_counter() - clock, 1)
    record["warnings"] = [str(w.message) for w in caught]
    record["outcome"] = run.outcome.to_dict() if run.outcome else None
    after = th.evaluate(fixed, data.test, planted)
    used = (run.history(repair.name) or [{}])[-1].get("pool_rows", len(clean))  # AGE takes a handful of them
    record.update(repair=repair.config(), clean_rows=used, seed=run.seed, precision=run.precision_reason)
    record["after"] = after.to_dict()
    record["der"] = th.compare(before, after).der if planted is not None else None
    record["moved"] = moved(model, fixed)
    record["history"] = thin(run.history(repair.name))
    return record


def moved(old: Any, new: Any) -> dict[str, float]:
    """How far the weights went, relative to their norm: convolutions together, and the classifier."""
    head = th.models.classifier(old)[0] + ".weight"
    pairs = [(k, v, new.state_dict()[k]) for k, v in old.state_dict().items() if k.endswith("weight") and v.dim() >= 2]
    shares = {}
    for name, chosen in (("body", [p for p in pairs if p[0] != head]), ("head", [p for p in pairs if p[0] == head])):
        change = sum(((b - a) ** 2).sum() for _, a, b in chosen)
        shares[name] = round(float((change / sum((a**2).sum() for _, a, _ in chosen)) ** 0.5), 4)
    return shares


def thin(events: list[dict[str, Any]], most: int = 25) -> list[dict[str, Any]]:
    """At most ``most`` events, first and last included, without clock times."""
    step = max(1, -(-len(events) // most))
    kept = [e for i, e in enumerate(events) if i % step == 0 or i == len(events) - 1]
    return [{k: round(v, 5) if isinstance(v, float) else v for k, v in e.items() if k != "time"} for e in kept]


def victim_model(victim: dict[str, Any], data: Any, runs: Path) -> tuple[Any, Any, float]:
    folder = runs / "victims" / victim["key"]
    attack = create("attack", **victim["attack"]) if victim.get("attack") else None
    if (folder / "run.json").exists():
        return th.load_model(folder), attack, read_json(folder / "seconds.json")
    run = th.Run(seed=victim.get("seed", 0), folder=folder, quiet=True, precision=victim.get("precision", "auto"))
    build = Builder(victim.get("model", "preact_resnet18"), victim.get("options", {"width": 16}))
    clock = time.perf_counter()
    train = training_rows(victim, data)
    if victim.get("stamp") == "after_augment":
        model = train_stamped_late(build, attack, train, plan_recipe(victim["recipe"]), run)
    else:
        rows = train if attack is None else attack.poison(train, run)
        model = th.train(build, rows, recipe=plan_recipe(victim["recipe"]), run=run)
    seconds = round(time.perf_counter() - clock, 1)
    write_json(folder / "seconds.json", seconds)
    th.save(model, folder)
    return model, attack, seconds


def scored_rows(victim: dict[str, Any], data: th.Data) -> th.Data:
    """The data that a victim is trained and scored on: with ``held_out``, both inside the training rows, for tuning."""
    if "held_out" not in victim:
        return data
    test, train = data.train.cut(victim["held_out"], seed=victim.get("seed", 0), stratified=True)
    return th.Data(train=train, test=test)


def training_rows(victim: dict[str, Any], data: Any) -> th.Split:
    """All training rows, or a class-balanced subset of them: the same for every attack and seed."""
    rows: th.Split = data.train.sample(victim["rows"], seed=0, stratified=True) if "rows" in victim else data.train
    return rows


def train_stamped_late(build: Any, attack: Any, split: th.Split, recipe: Recipe, run: th.Run) -> Any:
    """The same poisoned rows, but stamped after augmentation: the trigger is never shifted, cropped or mirrored."""
    poisoned = attack.poison(split, run)
    planted, labels = poisoned.planted, poisoned.y_true

    def stamp(batch: Any) -> None:
        hit = poisoned.poison[batch.position]
        pixels = (batch.x[hit] * 255).round().to(torch.uint8)
        batch.x[hit] = to_input(planted.stamp(pixels, labels[batch.position][hit], phase="train"))

    relabeled = split.replace(y=poisoned.split.y)
    return loop(make(build, relabeled, run), relabeled, run, recipe, after_augment=stamp)


def summary(record: dict[str, Any]) -> str:
    def rates(part: dict[str, Any]) -> str:
        return " ".join(f"{k} {100 * part[k]['value']:5.1f}" for k in ("acc", "asr", "ra") if part[k])

    after = f" -> {rates(record['after'])} ({record['seconds']:.0f} s)" if "after" in record else ""
    last = record["history"][-1] if record.get("history") else {}
    cosine = f" cos {last['cosine']:+.2f}" if "cosine" in last else ""
    if "moved" in record:
        cosine += f" moved {record['moved']['body']:.2f}"
    return f"{record['name']:44s} {rates(record['before'])}{after}{cosine}"


if __name__ == "__main__":
    main()
