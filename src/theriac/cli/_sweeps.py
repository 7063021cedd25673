"""How sweeps and their results are shown in a terminal."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from theriac.bench import Forecast, Sweep, compare, grouped, ranks, scores_of
from theriac.bench.store import Store
from theriac.bench.tables import SHOWN, Row, interval, rows, summary
from theriac.cli import _options as opt
from theriac.cli import _show
from theriac.core.errors import InputError, unknown
from theriac.core.text import seconds
from theriac.report.sweeps import SweepCell, write_sweep

_MATRIX = (
    "victim",
    "defended",
    "debiased",
    "benign",
    "judged",
)  # roles of a terminal's table; controls of defenses are in files


def typed(ctx: typer.Context) -> str:
    """The command as it was typed."""
    return shlex.join(["theriac", *ctx.obj["argv"]])


def warn(text: str) -> None:
    """One line about a job that failed."""
    _show.tell(text)


def show_plan(forecast: Forecast, workers: int, *, as_json: bool) -> None:
    """What a sweep would do."""
    plan, left = forecast.plan, forecast.left
    facts: dict[str, Any] = {
        "sweep": plan.spec.name,
        "jobs": len(plan.nodes),
        "kinds": plan.kinds,
        "cells": len(plan.cells),
        "shared": plan.shared,
        "done": len(forecast.done),
        "failed": len(forecast.failed),
        "left": left,
        "seconds": forecast.seconds,
        "timed": forecast.guessed,
        "refused": plan.refused,
    }
    if as_json:
        _show.as_json(facts)
        return
    kinds = {"train": "trainings", "repair": "repairs", "debias": "debiased models", "judge": "counts of benign models"}
    work = ", ".join(f"{count:,} {kinds[kind]}" for kind, count in plan.kinds.items())
    if forecast.seconds is None:
        time = "unknown: the store has no timings yet" if left else "nothing is left to do"
    else:
        rest = (
            "" if forecast.guessed == left else f" for {forecast.guessed:,} of the {left:,} jobs; the others are not timed yet"
        )
        time = f"about {seconds(forecast.seconds / workers)} with {workers} worker{'s' * (workers > 1)}{rest}"
    body = [
        ["jobs", f"{len(plan.nodes):,}: {work}"],
        ["cells", f"{len(plan.cells):,}; {plan.shared:,} of them start from a model that another one has, too"],
        [
            "done",
            f"{len(forecast.done):,}" + (f"; {len(forecast.failed):,} failed (--retry-failed)" if forecast.failed else ""),
        ],
        ["left", f"{left:,}"],
        ["time", time],
    ]
    _show.rows(f"plan of {plan.spec.name}", ["", ""], body)
    if plan.refused:
        _show.rows("pairings that are refused", ["pairing", "reason"], [[what, why] for what, why in plan.refused.items()])


def show(sweep: Sweep, *, as_json: bool) -> None:
    """What became of a sweep, and its table."""
    with Store(sweep.store, make=False) as store:
        results = rows(store, sweep.name)
    if as_json:
        facts = dataclasses.asdict(sweep) | {"store": str(sweep.store), "seconds": round(sweep.seconds, 1)}
        _show.as_json(facts)
    else:
        show_rows(results, as_json=False)
    parts = [f"{sweep.done:,} of {sweep.jobs:,} jobs done ({sweep.made:,} now, in {seconds(sweep.seconds)})"]
    parts += [f"{len(sweep.failed):,} failed (--retry-failed does them again)"] if sweep.failed else []
    parts += [f"{sweep.blocked:,} could not be done, because what they need failed"] if sweep.blocked else []
    _show.tell("; ".join(parts))
    _show.saved(sweep.store)
    if not as_json:
        _show.following("results", str(sweep.store), "--out", "results.csv")


def show_rows(results: Sequence[Row], *, as_json: bool) -> None:
    """Results, over seeds in a terminal and one by one as JSON."""
    if as_json:
        _show.as_json(list(results))
        return
    groups = [group for group in grouped(results) if group.role in _MATRIX]
    body = summary(groups)
    used = [i for i, name in enumerate(SHOWN) if len({line[i] for line in body}) > 1 or name in ("attack", "defense", "ACC %")]
    used.sort(key=lambda i: SHOWN[i] not in ("attack", "defense"))
    title = ", ".join(dict.fromkeys(line[0] for line in body)) or "no results"
    _show.rows(title, [SHOWN[i] for i in used], [[line[i] for i in used] for line in body])


def write_page(store: Store, results: Sequence[Row], path: str) -> Path:
    """The page of results of a store."""
    cells = []
    for group in grouped(results):
        data, model, recipe, attack, defense, clean = group.labels
        numbers = {name: value for name in _COMPARED if (value := interval(group, name)) is not None}
        time = group.over("seconds")
        facts = dict.fromkeys(f"{row[n]}" for row in group.done for n in ("machine", "device", "precision", "versions"))
        keys = " ".join(row["key"][:12] for row in group.rows)
        cell = SweepCell(
            setting=", ".join(part for part in (data, model, recipe) if part),
            attack=attack,
            defense=" ".join(part for part in (defense, clean) if part),
            role=group.role,
            seeds=(len(group.done), len(group.rows)),
            numbers=numbers,
            seconds=None if time is None else time.mean,
            provenance="; ".join([*facts, keys]),
        )
        cells.append(cell)
    attacks = {row["key"]: row["attack"] for row in results}
    pictures = {attacks[key]: png for key, png in store.pictures(attacks).items()}
    sweeps = list(dict.fromkeys(row["sweep"] for row in results))
    troubles = [
        (f"{r['attack']}, {r['defense']}, seed {r['seed']}", str(r["error"])) for r in results if r["status"] == "failed"
    ]
    troubles += [pair for name in sweeps for pair in store.refused(name).items()]
    return write_sweep(", ".join(sweeps) or "no results", cells, path, pictures=pictures, troubles=troubles)


_COMPARED = ("acc", "asr", "ra", "der")


def show_comparison(results: Sequence[Row], name: str, *, as_json: bool) -> None:
    """Defenses compared over attacks, and their mean ranks where all were tried on the same."""
    if name not in _COMPARED:
        raise unknown("--compare", name, _COMPARED)
    scores = scores_of(grouped(results), name)
    if len(scores) < 2:
        raise InputError(f"{len(scores)} defense(s) have {name}; a comparison needs at least two")
    pairs = compare(scores)
    shared = set.intersection(*(set(row) for row in scores.values()))
    places = ranks(scores, high=name != "asr") if shared else {}
    if as_json:
        lines = [dataclasses.asdict(pair) | {"verdict": pair.verdict} for pair in pairs]
        _show.as_json({"number": name, "pairs": lines, "ranks": places})
        return
    body = [[p.first, p.second, f"{p.attacks}", f"{p.difference:+.3f}", f"{p.adjusted:.3f}", p.verdict] for p in pairs]
    head = ["first", "second", "attacks", "median difference", "p (Holm)", "verdict"]
    _show.rows(f"{name}: Wilcoxon's signed ranks over attacks", head, body)
    if places:
        order = sorted(places, key=places.__getitem__)
        title = f"mean rank over {len(shared)} attacks, 1 is best"
        _show.rows(title, ["defense", "rank"], [[defense, f"{places[defense]:.2f}"] for defense in order])


def show_collected(gone: Mapping[str, int], *, as_json: bool) -> None:
    """What was deleted."""
    if as_json:
        _show.as_json(dict(gone))
        return
    _show.tell(
        f"deleted {gone['jobs']:,} jobs, {gone['folders']:,} run folders and {gone['files']:,} files of tensors, "
        f"{gone['bytes'] / 1e6:,.1f} MB"
    )


def tell_written(path: Path) -> None:
    """Where a file is, unless quiet."""
    if not opt.quiet():
        _show.tell(f"written to {path}")
