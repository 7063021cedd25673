"""What the scripts of the first edition share: what machine it is, plans of jobs, and victims that are trained once."""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path
from typing import Any

import torch
from table import RESULTS

import theriac as th
from theriac.core.card import Augment
from theriac.core.files import read_json, write_json
from theriac.core.method import create
from theriac.models import Builder
from theriac.training import Recipe


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
    rows = train if attack is None else attack.poison(train, run)
    model = th.train(build, rows, recipe=plan_recipe(victim["recipe"]), run=run)
    seconds = round(time.perf_counter() - clock, 1)
    write_json(folder / "seconds.json", seconds)
    th.save(model, folder)
    return model, attack, seconds


def training_rows(victim: dict[str, Any], data: Any) -> th.Split:
    """All training rows, or a class-balanced subset of them: the same for every attack and seed."""
    rows: th.Split = data.train.sample(victim["rows"], seed=0, stratified=True) if "rows" in victim else data.train
    return rows
