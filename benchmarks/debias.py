"""Debiasing with a designed backdoor beside plain training and the baselines that its theory makes mandatory.

    python benchmarks/debias.py benchmarks/plans/debias.yaml --data adult=<folder> --data fairface=<folder> ...

One record a (task, method, seed) in ``benchmarks/results/debias.jsonl``; what is there is skipped. All methods of a task
share rows, architecture and recipe; every model is the last iterate, and nothing is selected on test rows. Tables:
``make_tables.py``. Plain training is tuned for a task on rows held out of the training rows of another seed, with::

    python benchmarks/debias.py benchmarks/plans/debias.yaml --tune fairface-longer --data fairface=<folder>
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from table import RESULTS, Table
from victims import machine, thin

import theriac as th
from theriac.core.method import create
from theriac.data import regroup
from theriac.debias._select import cut_validation
from theriac.debias._teacher import AskedTeacher, query_map
from theriac.debias.base import groups_of
from theriac.metrics import flip_rate
from theriac.models import Builder, parameter_count
from theriac.training import Recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--data", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument(
        "--tune", default="", metavar="TASK", help="train the variants of its ``tuning`` and print their scores"
    )
    parser.add_argument("--only", default="", help="run only what has this in its name, task-method-seed")
    parser.add_argument("--runs", type=Path, default=None, help="folder for checkpoints, so that a killed run goes on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    plan = yaml.safe_load(args.plan.read_text(encoding="utf-8"))
    paths = dict(item.split("=", 1) for item in args.data)
    if args.tune:
        tune(args, plan["tasks"][args.tune], paths)
        return
    out = Table.of("debias", args.out)
    for task_name, task in plan["tasks"].items():
        for seed in task["seeds"]:
            train = test = None
            for name, options in {**plan["methods"], **task.get("methods", {})}.items():
                stem = f"{task_name}-{name}-seed{seed}"
                if args.only not in stem or stem in out or name in task.get("without", ()):
                    continue
                if train is None or test is None:
                    train, test = TASKS[task["rows"]](paths, seed, **task.get("options", {}))
                record = one(task, name, options, seed, train, test, args.runs and args.runs / "debias" / stem)
                record |= {"name": stem, "task": task_name, "command": command(args, stem)}
                out.put(stem, record)
                print(line(record), flush=True)


def one(
    task: dict[str, Any], name: str, options: Any, seed: int, train: th.Split, test: th.Split, folder: Path | None
) -> dict[str, Any]:
    """Train one model and count its predictions."""
    run = th.Run(seed=seed, quiet=True, folder=folder, precision=task.get("precision", "auto"))
    build = Builder(task["model"], task.get("model_options", {}))
    began = time.perf_counter()
    record: dict[str, Any] = {"method": name, "config": None}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if options is None or options["name"] == "plain":
            own = {k: v for k, v in (options or {}).items() if k != "name"}
            record["config"] = {"method": "plain", **own} if own else None
            model: Any = th.train(build, train, recipe=plain_recipe(task["recipe"] | own, len(train)), run=run)
        elif options["name"] == "boosting":
            record["config"] = {"method": "boosting", **{k: v for k, v in options.items() if k != "name"}}
            model = boosted(train, test, seed, options.get("constraint", ""), options.get("how", ""))
        else:
            method = create("debiasing", options["name"], options.get("preset"), **fitted(options, task))
            record["config"] = method.config()
            model = method.fit(build, train, run)
        record["seconds"] = round(time.perf_counter() - began, 1)
        told = th.fairness(model, test, run=run)
        if isinstance(model, AskedTeacher):  # the same teacher, asked otherwise
            asked = {q: AskedTeacher(model.model, model.bank, query_map(q, 2)[:, None]) for q in ("none", "aligned")}
            record["queries"] = {q: th.fairness(m, test, run=run).to_dict() for q, m in asked.items()}
        if task.get("flips"):
            bank = create("debiasing", "dwb").bank(train)
            record["flips"] = [rate.to_dict() for rate in flip_rate(model, test, bank, run=run)]
    record["warnings"] = [str(w.message) for w in caught]
    history = [e for label in ("train", "dwb_teacher", "dwb_student", "dba") for e in run.history(label)]
    return record | {
        "seed": seed,
        "rows": {"train": len(train), "test": len(test), "cells": cell_counts(train), "test_cells": cell_counts(test)},
        "data": {"name": train.card.name, "hash": train.content_hash(), "groups": list(train.card.groups)},
        "model": {
            "name": task["model"],
            "options": task.get("model_options", {}),
            "parameters": parameter_count(model) if isinstance(model, torch.nn.Module) else None,
        },
        "recipe": task["recipe"],
        "precision": run.precision_reason,
        "fairness": told.to_dict(),
        "history": thin(history, 8),
        "machine": machine(),
    }


def plain_recipe(told: dict[str, Any], rows: int) -> Recipe:
    """What the methods use, for training without any of them; steps become whole passes, as there."""
    size = told["batch_size"]
    epochs = told.get("epochs") or math.ceil(told["steps"] / math.ceil(rows / size))
    more = {"lr": told.get("lr", 1e-3), "augment": told.get("augment", "card"), "weight_decay": told.get("weight_decay", 0.0)}
    if isinstance(more["augment"], dict):
        more["augment"] = th.Augment(**more["augment"])
    return Recipe(name="plain", epochs=epochs, batch_size=size, optimizer="adam", schedule="constant", **more)


def tune(args: argparse.Namespace, task: dict[str, Any], paths: dict[str, str]) -> None:
    """Plain training with each variant of the task's ``tuning``, scored on a fifth of every cell of the training rows."""
    asked = task["tuning"]
    train, _ = TASKS[task["rows"]](paths, asked["seed"], **task.get("options", {}))
    run = th.Run(seed=asked["seed"], quiet=True, precision=task.get("precision", "auto"))
    rest, held = cut_validation(train, 0.2, run)
    out = Table.of("debias_tuning", args.out)
    for name, own in asked["variants"].items():
        stem = f"{args.tune}-{name}-seed{asked['seed']}"
        if stem in out:
            continue
        began = time.perf_counter()
        build = Builder(task["model"], task.get("model_options", {}))
        model = th.train(build, rest, recipe=plain_recipe(task["recipe"] | own, len(rest)), run=run)
        told = th.fairness(model, held, run=run)
        record = {"name": stem, "task": args.tune, "variant": name, "options": own, "seed": asked["seed"], "held": len(held)}
        record |= {
            "recipe": task["recipe"],
            "precision": run.precision_reason,
            "fairness": told.to_dict(),
            "machine": machine(),
        }
        record |= {"seconds": round(time.perf_counter() - began, 1), "command": command(args, stem)}
        out.put(stem, record)
        print(line(record), flush=True)


def boosted(train: th.Split, test: th.Split, seed: int, constraint: str, how: str) -> torch.Tensor:
    """Predictions of gradient boosting on a table: plain, with group thresholds, or by fairlearn's reductions.

    Thresholds are fitted on a fifth of every cell that boosting does not see, and need the group at inference; reductions do
    not. ``constraint`` is "demographic_parity" or "equalized_odds".
    """
    from fairlearn.postprocessing import ThresholdOptimizer
    from fairlearn.reductions import DemographicParity, EqualizedOdds, ExponentiatedGradient
    from sklearn.ensemble import HistGradientBoostingClassifier

    kinds = [column.kind == "categorical" for column in train.card.columns]
    made = HistGradientBoostingClassifier(categorical_features=kinds, random_state=seed)
    x, y, rows = train.x.numpy(), train.y.numpy(), test.x.numpy()
    if how == "reductions":
        moments = {"demographic_parity": DemographicParity, "equalized_odds": EqualizedOdds}
        fair = ExponentiatedGradient(made, moments[constraint]())
        fair.fit(x, y, sensitive_features=groups_of(train).numpy())
        return torch.as_tensor(fair.predict(rows, random_state=seed)).long()
    if how == "thresholds":
        rest, held = cut_validation(train, 0.2, th.Run(seed=seed, quiet=True))
        made.fit(rest.x.numpy(), rest.y.numpy())
        chosen = ThresholdOptimizer(estimator=made, constraints=constraint, prefit=True, predict_method="predict_proba")
        chosen.fit(held.x.numpy(), held.y.numpy(), sensitive_features=groups_of(held).numpy())
        return torch.as_tensor(chosen.predict(rows, sensitive_features=groups_of(test).numpy(), random_state=seed)).long()
    return torch.as_tensor(made.fit(x, y).predict(rows)).long()


def fitted(options: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    """The method's options, with the task's recipe where the method has that option."""
    own = {k: v for k, v in options.items() if k not in ("name", "preset")}
    cls = type(create("debiasing", options["name"]))
    for key, value in {**task["recipe"], **task.get("method_recipe", {})}.items():
        if key in cls.__dataclass_fields__:
            own.setdefault(key, value)
    return own


def cell_counts(split: th.Split) -> list[list[int]]:
    assert split.group is not None
    wide = split.num_classes
    return torch.bincount(split.group * wide + split.y, minlength=wide * len(split.card.groups)).view(-1, wide).tolist()


# what the tasks train on


def adult(paths: dict[str, str], seed: int, sensitive: str, drop: tuple[str, ...] = ()) -> tuple[th.Split, th.Split]:
    """Census income: the official split; race as White against all others, as DBA has it."""
    data = th.load(paths.get("adult", "adult"), sensitive=sensitive, drop=tuple(drop) or None)
    if sensitive == "sex":
        return data.train, data.test
    data = regroup(data, {"White": "White"}, rest="other")
    return data.train, data.test


def german(paths: dict[str, str], seed: int, test_share: float = 0.3) -> tuple[th.Split, th.Split]:
    """Credit: no official split, so one a seed."""
    data = th.load(paths.get("german_credit", "german_credit"), sensitive="sex", test_share=test_share, seed=seed)
    return data.train, data.test


def colored(paths: dict[str, str], seed: int, source: str, share: float = 0.9, rows: int = 0) -> tuple[th.Split, th.Split]:
    """Pictures tinted red (group 1) or green (group 0): the tint goes with the label in training, never in the test."""
    data = th.load(paths.get(source, source))
    train = data.train.sample(rows, seed=0, stratified=True) if rows else data.train
    draw = torch.Generator().manual_seed(1000 + seed)
    return tint(train, share, draw), tint(data.test, 0.5, draw)


def tint(split: th.Split, share: float, draw: torch.Generator) -> th.Split:
    y = (split.y >= split.num_classes // 2).long()
    agree = torch.zeros(len(y), dtype=torch.bool)
    for label in (0, 1):  # exact shares, so that the test set is balanced
        at = (y == label).nonzero().flatten()
        at = at[torch.randperm(len(at), generator=draw)]
        agree[at[: round(share * len(at))]] = True
    group = torch.where(agree, y, 1 - y)
    gray = split.x.float().mean(1, keepdim=True)
    colors = torch.tensor([[0.3, 1.0, 0.3], [1.0, 0.3, 0.3]])[group][:, :, None, None]
    x = (gray * colors).round().to(torch.uint8)
    pixels = x.double() / 255
    card = split.card.replace(
        name=f"colored_{split.card.name}",
        classes=("lower half of the classes", "upper half"),
        groups=("green", "red"),
        channels=3,
        mean=tuple(pixels.mean((0, 2, 3)).tolist()),
        std=tuple(pixels.std((0, 2, 3)).tolist()),
    )
    return th.Split(x, y, group=group, index=split.index, card=card)


def fairface(paths: dict[str, str], seed: int, size: int = 48, many: int = 750, few: int = 83) -> tuple[th.Split, th.Split]:
    """Gender, with race biased in training: cells of ``many`` and ``few`` rows; Indian left out; the test is balanced."""
    data = th.load(paths.get("fairface", "fairface"), sensitive="race", size=size)
    first, second = "Black, East and Southeast Asian", "White, Middle Eastern and Latino"
    parts = dict.fromkeys(("Black", "East Asian", "Southeast Asian"), first)
    data = regroup(data, parts | dict.fromkeys(("White", "Middle Eastern", "Latino_Hispanic"), second))
    train, test = data.train, data.test
    draw = torch.Generator().manual_seed(1000 + seed)
    kept = []
    for group in (0, 1):
        for label in (0, 1):
            at = ((train.group == group) & (train.y == label)).nonzero().flatten()
            at = at[torch.randperm(len(at), generator=draw)]
            kept.append(at[: many if group == label else few])
    return train.take(torch.cat(kept).sort().values), test


TASKS: dict[str, Callable[..., tuple[th.Split, th.Split]]] = {
    "adult": adult,
    "german": german,
    "colored": colored,
    "fairface": fairface,
}


def command(args: argparse.Namespace, stem: str) -> str:
    given = " ".join(f"--data {item.split('=', 1)[0]}=<folder>" for item in args.data)
    return f"python benchmarks/debias.py benchmarks/plans/{args.plan.name} {given} --only {stem}"


def line(record: dict[str, Any]) -> str:
    rates = record["fairness"]

    def value(name: str) -> float:
        found = rates[name]
        return 100 * float(found["value"] if isinstance(found, dict) else found)

    text = " ".join(f"{k} {value(k):5.1f}" for k in ("acc", "bacc", "odds_gap", "dp_gap", "worst_cell", "worst_group"))
    return f"{record['name']:44s} {text} ({record['seconds']:.0f} s)"


if __name__ == "__main__":
    main()
