"""AGE's deciding experiment: which rule and which repair, chosen on some victims and reported on others.

    python benchmarks/age.py benchmarks/plans/age.yaml --data cifar10=<folder>
    python benchmarks/age.py benchmarks/plans/age.yaml --choose     # summary of what has been measured
    python benchmarks/age.py --rehearse                             # a minute on digits, nothing is kept

Victims are run folders (``<runs>/victims/<name>``, as theriac.save writes them); a missing one is trained by its recipe. The
handful comes from rows of the test split that are set aside and never scored, so the victim has not seen them. Edits of the
head are scored on cached features, which gives the same numbers as the whole network (the largest difference of a logit is
recorded). One record a victim in ``benchmarks/results/<plan>.jsonl``; cells that it holds already are not run again.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from table import Table
from torch import nn
from victims import machine, victim_model

import theriac as th
from theriac.core.method import create
from theriac.models import features, parameter_count, to_input
from theriac.repairs import AGE

MOST_ACC_LOSS, MOST_TCA_LOSS = 0.02, 0.05  # of the choice: methods notes on AGE, section 5
SEES_STAMPED = ("head_stamped", "later_stamped_held", "R2", "R5")  # reported apart: they train on stamped rows with true labels

REHEARSAL = """
pool: 200
per_class: [1, 5]
seeds: [0, 1]
rules: [none, zero_changed, project]
retrain: [head, head_held, head_stamped]
later: {rules: [project], per_class: [5], seeds: [0], retrain: [head_held]}
inverted: {per_class: [5], seeds: [0]}
baselines: [{name: ft, epochs: 5}]
victims:
  tune: {data: digits, attack: {name: blended}, seed: 100, recipe: short_8, options: {width: 8}, role: tuning}
  badnets: {data: digits, attack: {name: badnets}, seed: 0, recipe: short_8, options: {width: 8}, role: report}
  benign: {data: digits, judge: {name: badnets}, seed: 0, recipe: short_8, options: {width: 8}, role: benign}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, nargs="?")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--only", default="", help="victims whose name contains this")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--choose", action="store_true")
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.rehearse:
        with tempfile.TemporaryDirectory() as folder:
            measure(yaml.safe_load(REHEARSAL), args, Table.of("rehearsal", Path(folder)), Path(folder))
            choose(Table.of("rehearsal", Path(folder)))
        return
    if args.plan is None:
        parser.error("a plan is needed, such as benchmarks/plans/age.yaml")
    out = Table.of(args.plan.stem)
    if not args.choose:
        measure(yaml.safe_load(args.plan.read_text()), args, out, args.runs)
    choose(out)


def measure(plan: dict[str, Any], args: argparse.Namespace, out: Table, runs: Path) -> None:
    paths = dict(item.split("=", 1) for item in args.data)
    for key, victim in plan["victims"].items():
        old = out.get(key)
        if args.only not in key:
            continue
        data = th.load(paths.get(victim["data"], victim["data"]))
        model, attack, _ = victim_model({**victim, "key": key}, data, runs)
        planted = (attack or create("attack", **victim["judge"])).plant(data.train)
        pool, test = data.test.cut(plan.get("pool", 1000), seed=1000, stratified=True)
        began = time.perf_counter()
        cached = Cached.of(model, planted, pool, test)
        record: dict[str, Any] = old or {
            "victim": {**victim, "key": key},
            "parameters": parameter_count(model),
            "pool_rows": len(pool),
            "before": th.evaluate(cached.head, cached.test, cached.planted).to_dict(),
            "largest_logit_difference": cached.difference,
            "cells": [],
            "seconds": 0.0,
        }
        ran = len(record["cells"])
        done = {identity(c) for c in record["cells"]}
        if victim["role"] != "benign":
            record["cells"] += head_cells(plan, cached, done)
            record["cells"] += later_cells(plan, model, planted, pool, test, done)
            record["cells"] += baseline_cells(plan, model, planted, pool, test, done)
        if victim["role"] != "tuning":
            record["cells"] += inverted_cells(plan, model, planted, pool, test, done)
        if len(record["cells"]) == ran:
            continue
        record["seconds"] = round(record["seconds"] + time.perf_counter() - began, 1)
        record |= {"machine": machine(), "command": f"python benchmarks/age.py {args.plan} --only {key}"}
        out.put(key, record)
        print(f"{key}: {len(record['cells']) - ran} cells in {record['seconds']:.0f} s", flush=True)


def identity(cell: dict[str, Any]) -> tuple[Any, ...]:
    """What tells one cell of a victim from the others."""
    return tuple(cell[k] for k in ("kind", "rule", "retrain", "per_class", "seed"))


@dataclass
class Cached:
    """A victim reduced to its head: features of all rows, clean and stamped, computed once."""

    head: nn.Linear
    pool: th.Split
    test: th.Split
    planted: Looked
    difference: float

    @classmethod
    def of(cls, model: nn.Module, planted: Any, pool: th.Split, test: th.Split) -> Cached:
        """Four passes over the rows: pool and test, clean and stamped."""
        tap = features(model.eval())
        head: Any = tap.module
        parts, difference = [], 0.0
        for split in (pool, test):
            both = []
            for stamp in (False, True):
                rows = []
                for at in split.batches(512):
                    x = split.rows(at)
                    x = planted.stamp(x, split.y[at], split.index[at], "test") if stamp else x
                    with torch.inference_mode():
                        logits, seen = tap(to_input(x))
                        difference = max(difference, float((head(seen) - logits).abs().max()))
                    rows.append(seen.clone())
                both.append(torch.cat(rows))
            parts.append(both)
        stamped = Looked(planted, torch.cat([parts[0][1], parts[1][1]]))
        ids = torch.arange(len(pool) + len(test))
        splits = [
            th.Split(parts[i][0], split.y, index=ids[i * len(pool) :][: len(split)], card=_table(split, head.in_features))
            for i, split in enumerate((pool, test))
        ]
        return cls(head, splits[0], splits[1], stamped, difference)


def _table(split: th.Split, width: int) -> th.Card:
    columns = tuple(th.Column(name=f"f{i}") for i in range(width))
    return th.Card(name=split.card.name, kind="table", classes=split.card.classes, columns=columns)


class Looked:
    """The planted attack in feature space: a stamped row is looked up by its number."""

    def __init__(self, planted: Any, stamped: torch.Tensor) -> None:
        self.stamped, self.name, self.target, self.population = stamped, planted.name, planted.target, planted.population

    def stamp(self, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str) -> torch.Tensor:
        """Features of the stamped rows with these numbers."""
        return self.stamped[index]


def cell(repair: Any, model: Any, clean: th.Split, test: th.Split, planted: Any, seed: int, **about: Any) -> dict[str, Any]:
    """One repair and its score."""
    run = th.Run(seed=seed, precision="fp32", quiet=True)
    clock = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fixed = repair.repair(model, clean, run)
    seconds = round(time.perf_counter() - clock, 3)
    after = th.evaluate(fixed, test, planted)
    told = (run.history("age") or [{}])[-1]
    kept = ("outcome", "target", "source", "strength", "proxy_before", "proxy_edit", "proxy_repair", "acc_repair", "tca_repair")
    rates = {k: [r.hits, r.total] for k in ("acc", "asr", "ra", "target_acc") if (r := getattr(after, k)) is not None}
    searched = [{k: e[k] for k in ("norms", "success", "index", "flagged", "seconds")} for e in run.history("inversion")]
    return {
        **about,
        "seed": seed,
        **rates,
        "seconds": seconds,
        "told": {k: told[k] for k in kept if k in told},
        **({"inversion": searched[-1]} if searched else {}),
        "warnings": [str(w.message) for w in caught],
    }


def head_cells(plan: dict[str, Any], cached: Cached, done: set[Any]) -> list[dict[str, Any]]:
    cells = []
    for rule in plan["rules"]:
        for retrain in plan["retrain"]:
            if rule == "none" and retrain == "head_held":
                continue  # nothing is held, so this is R1
            for n in plan["per_class"]:
                age = AGE(rule=rule, retrain=retrain, per_class=n).with_trigger(cached.planted)
                about = {"kind": "head", "rule": rule, "retrain": retrain, "per_class": n}
                for seed in plan["seeds"]:
                    if identity({**about, "seed": seed}) not in done:
                        cells.append(cell(age, cached.head, cached.pool, cached.test, cached.planted, seed, **about))
    return cells


def later_cells(
    plan: dict[str, Any], model: Any, planted: Any, pool: th.Split, test: th.Split, done: set[Any]
) -> list[dict[str, Any]]:
    cells, part = [], plan.get("later", {})
    for rule in part.get("rules", ()):
        for retrain in part["retrain"]:
            for n in part["per_class"]:
                age = AGE(rule=rule, scope="later", retrain=retrain, per_class=n).with_trigger(planted)
                about = {"kind": "later", "rule": rule, "retrain": retrain, "per_class": n}
                seeds = [seed for seed in part["seeds"] if identity({**about, "seed": seed}) not in done]
                cells += [cell(age, model, pool, test, planted, seed, **about) for seed in seeds]
    return cells


def inverted_cells(
    plan: dict[str, Any], model: Any, planted: Any, pool: th.Split, test: th.Split, done: set[Any]
) -> list[dict[str, Any]]:
    cells, part = [], plan.get("inverted", {})
    for n in part.get("per_class", ()):
        age = AGE(rule="project", per_class=n, **part.get("options", {}))
        about = {"kind": "inverted", "rule": age.rule, "retrain": age.retrain, "per_class": n, "scope": age.scope}
        seeds = [seed for seed in part["seeds"] if identity({**about, "seed": seed}) not in done]
        cells += [cell(age, model, pool, test, planted, seed, **about) for seed in seeds]
    return cells


def baseline_cells(
    plan: dict[str, Any], model: Any, planted: Any, pool: th.Split, test: th.Split, done: set[Any]
) -> list[dict[str, Any]]:
    cells = []
    for options in plan.get("baselines", ()):
        chosen = dict(options)
        repair = create("repair", chosen.pop("name"), chosen.pop("preset", None), **chosen)
        for n in plan["per_class"]:
            for seed in plan["seeds"]:
                about = {"kind": "baseline", "rule": repair.title, "retrain": "-", "per_class": n, "config": repair.config()}
                if identity({**about, "seed": seed}) in done:
                    continue
                few = pool.sample(n * pool.num_classes, seed=seed, stratified=True)
                cells.append(cell(repair, model, few, test, planted, seed, **about))
    return cells


def choose(out: Table) -> None:
    """Choose on the tuning victims, show the choice and its controls on the others; write the record ``summary``."""
    records = [record for record in out if "cells" in record]
    tuning = [r for r in records if r["victim"]["role"] == "tuning"]
    kinds = ("head", "later")
    table = [{"scope": kind, **row} for kind in kinds for row in averages(tuning, kind)]
    by_n = [{"scope": kind, **row} for kind in kinds for row in averages(tuning, kind, by_n=True)]
    best = pick(table)
    report = [r for r in records if r["victim"]["role"] == "report"]
    summary: dict[str, Any] = {
        "criterion": f"lowest mean ASR, at most {MOST_ACC_LOSS} ACC and {MOST_TCA_LOSS} target accuracy lost on average",
        "tuning_victims": [r["victim"]["key"] for r in tuning],
        "report_victims": [r["victim"]["key"] for r in report],
        "chosen": best,
        "chosen_by_per_class": {n: pick([r for r in by_n if r["per_class"] == n]) for n in {r["per_class"] for r in by_n}},
        "chosen_if_twice_as_much_may_be_lost": pick(table, MOST_ACC_LOSS, MOST_TCA_LOSS),
        "lowest_asr_at_any_cost": pick(table, 1.0, 1.0),
        "tuning": table,
        "tuning_by_per_class": by_n,
        "report": {kind: averages(report, kind, by_n=True) for kind in ("head", "later", "inverted", "baseline")},
        "benign": averages([r for r in records if r["victim"]["role"] == "benign"], "inverted", by_n=True),
    }
    out.put("summary", {**summary, "machine": machine(), "command": "python benchmarks/age.py --choose"})
    show("tuning victims", table)
    for name, row in (("all", best), *sorted(summary["chosen_by_per_class"].items())):
        told = f"{row['rule']} + {row['retrain']}, {row['scope']}, ASR {100 * row['asr']:.1f}" if row else "nothing"
        print(f"chosen, {name} rows a class: {told}")
    for kind, rows in summary["report"].items():
        show(f"reported victims, {kind}", rows)
    show("benign control, unknown trigger", summary["benign"])


def pick(rows: list[dict[str, Any]], acc: float = 0.0, tca: float = 0.0) -> dict[str, Any] | None:
    """The edit of lowest mean ASR among those that keep the accuracies and never see a stamped row with its true label."""
    fit = [
        row
        for row in rows
        if row["rule"] != "none"
        and row["retrain"] not in SEES_STAMPED
        and row["acc_loss"] <= MOST_ACC_LOSS + acc
        and row["tca_loss"] <= MOST_TCA_LOSS + tca
    ]
    return min(fit, key=lambda row: row["asr"], default=None)


def averages(records: list[dict[str, Any]], kind: str, by_n: bool = False) -> list[dict[str, Any]]:
    """Means over victims, seeds (and handfuls), with the worst ASR beside them."""
    groups: dict[tuple[Any, ...], list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for record in records:
        for one in record["cells"]:
            if one["kind"] == kind:
                key = (one["rule"], one["retrain"], *([one["per_class"]] if by_n else []))
                groups.setdefault(key, []).append((record["before"], one))
    rows = []
    for key, members in groups.items():

        def mean(name: str, members: Any = members) -> float:
            return float(sum(one[name][0] / one[name][1] for _, one in members) / len(members))

        def loss(name: str, members: Any = members) -> float:
            return float(sum(b[name]["value"] - one[name][0] / one[name][1] for b, one in members) / len(members))

        rows.append({
            "rule": key[0], "retrain": key[1], **({"per_class": key[2]} if by_n else {}), "runs": len(members),
            "acc": mean("acc"), "tca": mean("target_acc"), "asr": mean("asr"), "ra": mean("ra"),
            "worst_asr": max(one["asr"][0] / one["asr"][1] for _, one in members),
            "acc_loss": loss("acc"), "tca_loss": loss("target_acc"),
            "seconds": sum(one["seconds"] for _, one in members) / len(members),
            "left_alone": sum(one["told"].get("outcome", "repaired") != "repaired" for _, one in members),
        })  # fmt: skip
    return sorted(rows, key=lambda row: (row.get("per_class", 0), row["asr"]))


def show(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}")
    for row in rows:
        n = f"n={row['per_class']:<3d}" if "per_class" in row else ""
        rates = " ".join(f"{k} {100 * row[k]:5.1f}" for k in ("acc", "tca", "asr", "worst_asr", "ra"))
        print(f"  {row['rule']:5s} {row['retrain']:4s} {n} {rates}  {row['seconds']:.2f} s, {row['runs']} runs", flush=True)


if __name__ == "__main__":
    main()
