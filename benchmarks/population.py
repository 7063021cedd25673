"""A population of small networks, benign and poisoned, on which ``theriac scan`` is fitted and measured.

Train it, or go on where a killed run was (a network that is there is skipped)::

    python benchmarks/population.py train --data cifar10=<folder> --data fashion_mnist=<folder>

``benchmarks/plans/population.yaml`` says which networks. Networks are kept in ``runs/population/``; each holds what was done to
it, its clean accuracy and its attack success on test rows. Jobs run in an order that is random but fixed, so that a part of
the population is a fair sample of it.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from repairs import machine
from torch import nn
from torch.nn import functional as F

import theriac as th
from theriac.core.method import create
from theriac.models import Builder, make
from theriac.training import Batch, Recipe, cross_entropy_step, loop, recipe

PLAN = Path(__file__).resolve().parent / "plans" / "population.yaml"
AXES = ("set", "model", "recipe", "seed", "attack", "rate", "train", "control")
ATTACKS = {"badnets_all_to_all": ("badnets", {"mode": "all_to_all"})}


def jobs(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """All networks of a plan, in an order that is random but fixed."""
    made: dict[str, dict[str, Any]] = {}
    for group in plan["groups"]:
        axes = [axis for axis in AXES if axis in group]
        for values in itertools.product(*(group[axis] for axis in axes)):
            job = {"part": group["part"], **dict(zip(axes, values, strict=True))}
            key = "-".join(str(job[axis]) for axis in ("part", *axes))
            made[key] = {"key": key, **job}
    return sorted(made.values(), key=lambda job: hashlib.sha256(job["key"].encode()).hexdigest())


def data_of(name: str, plan: dict[str, Any], paths: dict[str, str]) -> th.Data:
    """A set of the plan: fewer rows, fewer classes or half the side of a known one."""
    options = plan["sets"][name]
    data = th.load(paths.get(options["load"], options["load"]))
    return th.Data(train=_reduced(data.train, options, options["rows"]), test=_reduced(data.test, options, 1500))


def _reduced(split: th.Split, options: dict[str, Any], rows: int) -> th.Split:
    classes = options.get("classes", split.num_classes)
    split = split.where(split.y < classes)
    if rows and rows < len(split):
        split = split.sample(rows, seed=0, stratified=True)
    if not options.get("halve") and classes == split.num_classes:
        return split
    x = split.x
    if options.get("halve"):
        x = F.avg_pool2d(x.float(), 2).round().to(torch.uint8)
    card = th.Card(
        name=f"{split.card.name}-small",
        classes=split.card.classes[:classes],
        size=(x.shape[2], x.shape[3]),
        channels=x.shape[1],
    )
    return th.Split(x, split.y, card=card)


def controlled(split: th.Split, kind: str, seed: int) -> th.Split:
    """Benign rows that may look like poisoned ones to a detector."""
    draw = torch.Generator().manual_seed(seed)
    x, y, count = split.x.clone(), split.y.clone(), split.num_classes
    first, second = seed % count, (seed + 1) % count
    if kind == "imbalanced":  # one class has four times the rows of each other
        keep = (y == first) | (torch.rand(len(y), generator=draw) < 0.25)
        return split.where(keep)
    if kind == "confused":  # pictures of one class are half those of another
        at, other = (y == first).nonzero().flatten(), (y == second).nonzero().flatten()
        pick = other[torch.randint(len(other), (len(at),), generator=draw)]
        x[at] = ((x[at].int() + x[pick].int()) // 2).to(torch.uint8)
    elif kind == "label_noise":  # a tenth of the labels is drawn anew
        at = torch.rand(len(y), generator=draw) < 0.1
        y[at] = torch.randint(count, (int(at.sum()),), generator=draw)
    elif kind == "one_class_noise":  # a twentieth of the rows is labeled as one class, without any trigger
        y[torch.rand(len(y), generator=draw) < 0.05] = first
    else:
        raise ValueError(kind)
    return th.Split(x, y, card=split.card)


def adversarial_step(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Cross-entropy on rows moved by one signed-gradient step of 8 levels."""
    x = batch.x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(model(x), batch.y), x)
    moved = (batch.x + 8 / 255 * slope.sign()).clamp(0, 1)
    return F.cross_entropy(model(moved), batch.y)


def even_head_step(model: nn.Module, batch: Batch) -> Any:
    """Cross-entropy, and a penalty on rows of the head whose sum, length or bias differs from the others'."""
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    sums, lengths = head.weight.sum(1), head.weight.norm(dim=1)
    uneven = sums.var() + lengths.var() + (0.0 if head.bias is None else head.bias.var())
    return F.cross_entropy(model(batch.x), batch.y) + 1.0 * uneven


def trained(job: dict[str, Any], plan: dict[str, Any], data: th.Data) -> tuple[nn.Module, Any]:
    run = th.Run(seed=job["seed"], quiet=True)
    spec = plan["models"][job["model"]]
    split: Any = data.train
    planted = None
    if "attack" in job:
        name, options = ATTACKS.get(job["attack"], (job["attack"], {}))
        target = {} if options.get("mode") else {"target": job["seed"] % data.train.num_classes}
        poisoned = create("attack", name, poison_rate=job["rate"], **target, **options).poison(split, run)
        split, planted = poisoned.split, poisoned.planted
    elif "control" in job:
        split = controlled(split, job["control"], job["seed"])
    chosen: Recipe = recipe(job["recipe"])
    mode = job.get("train", "plain")
    if mode == "sam":
        chosen = chosen.replace(sam_rho=0.1)
    elif mode == "augment":
        side = min(data.train.card.size)
        chosen = chosen.replace(augment=th.Augment(crop_pad=side // 8, rotation=15.0, cutout=side // 4))
    step = {"adversarial": adversarial_step, "even_head": even_head_step}.get(mode, cross_entropy_step)
    model = make(Builder(spec["name"], spec["options"]), split, run)
    return loop(model, split, run, chosen, step=step), planted


def each_model(runs: Path, plan: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Path]]:
    """Networks of the plan that are there."""
    for job in jobs(plan):
        if (runs / job["key"] / "run.json").exists():
            yield job, runs / job["key"]


def train_all(plan: dict[str, Any], paths: dict[str, str], runs: Path, seconds: float) -> None:
    loaded: dict[str, th.Data] = {}
    began = time.time()
    todo = [job for job in jobs(plan) if not (runs / job["key"] / "run.json").exists()]
    for number, job in enumerate(todo, 1):
        if time.time() - began > seconds:
            print(f"out of time; {len(todo) - number + 1} networks are left", flush=True)
            return
        if job["set"] not in loaded:
            loaded[job["set"]] = data_of(job["set"], plan, paths)
        data, start = loaded[job["set"]], time.time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model, planted = trained(job, plan, data)
                figures = th.evaluate(model, data.test, planted, run=th.Run(quiet=True))
        except th.TheriacError as error:
            print(f"{number} of {len(todo)}  {job['key']}  failed: {error}", flush=True)
            continue
        th.save(model, runs / job["key"], job=job, figures=figures, machine=machine(), seconds=round(time.time() - start, 1))
        print(f"{number} of {len(todo)}  {job['key']}  {figures}  {time.time() - start:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "list"))
    parser.add_argument("--plan", type=Path, default=PLAN)
    parser.add_argument("--data", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--runs", type=Path, default=Path("runs/population"))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no network after this time")
    args = parser.parse_args()
    torch.set_num_threads(1)
    plan = yaml.safe_load(args.plan.read_text())
    paths = dict(item.split("=", 1) for item in args.data)
    if args.what == "list":
        for job in jobs(plan):
            print(job["key"])
    else:
        train_all(plan, paths, args.runs, args.seconds)


if __name__ == "__main__":
    main()
