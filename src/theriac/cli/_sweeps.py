"""How sweeps and their results are shown in a terminal."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from theriac.bench import Forecast, Sweep, compare, grouped, leaderboard, ranks, scores_of
from theriac.bench.statistics import attacks_of, common_cells, least_attacks
from theriac.bench.store import Store
from theriac.bench.tables import (
    GAP_HEADS,
    SHOWN,
    Group,
    Row,
    audits,
    beside_repairs,
    in_words,
    interval,
    misleading,
    rows,
    summary,
)
from theriac.cli import _options as opt
from theriac.cli import _show
from theriac.core import check
from theriac.core.errors import InputError, unknown
from theriac.core.text import line, seconds
from theriac.report.figures import write_figure
from theriac.report.sweeps import FIRST_WARNINGS, Comparison, Number, Published, SweepCell, write_sweep

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
    check.integer("workers", workers, 1, 1024)
    plan, left = forecast.plan, forecast.left
    facts: dict[str, Any] = {
        "sweep": plan.spec.name,
        "jobs": len(plan.nodes),
        "kinds": plan.kinds,
        "cells": len(plan.cells),
        "shared": plan.shared,
        "done": len(forecast.done),
        "failed": len(forecast.failed),
        "blocked": len(forecast.blocked),
        "left": left,
        "seconds": forecast.seconds,
        "timed": forecast.guessed,
        "timed_by_others": forecast.rough,
        "refused": plan.refused,
    }
    if as_json:
        _show.as_json(facts)
        return
    kinds = {"train": "trainings", "repair": "repairs", "debias": "debiased models", "judge": "counts of benign models"}
    kinds["audit"] = "audits"
    work = ", ".join(f"{count:,} {kinds[kind]}" for kind, count in plan.kinds.items())
    if forecast.seconds is None:
        time = "unknown: the store has no timings of such work yet" if left else "nothing is left to do"
    else:
        rest = (
            "" if forecast.guessed == left else f" for {forecast.guessed:,} of the {left:,} jobs; the others are not timed yet"
        )
        time = f"about {seconds(forecast.seconds / workers)} with {workers} worker{'s' * (workers > 1)}{rest}"
        if forecast.rough:
            time += f"; a guess, since {forecast.rough:,} are of methods that this store has not timed yet"
    body = [
        ["jobs", f"{len(plan.nodes):,}: {work}"],
        ["cells", f"{len(plan.cells):,}; {plan.shared:,} of them from a model that another one starts from, too"],
        [
            "done",
            f"{len(forecast.done):,}"
            + (f"; {len(forecast.failed):,} failed (--retry-failed)" if forecast.failed else "")
            + (f"; {len(forecast.blocked):,} need one of them" if forecast.blocked else ""),
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
        page = write_page(store, results, sweep.store / f"{_file_name(sweep.name)}.html", "--store")
    if as_json:
        where = {"store": str(sweep.store), "page": str(page), "seconds": round(sweep.seconds, 1)}
        facts = {"status": "done", **dataclasses.asdict(sweep), **where}
        _show.as_json(facts)
    else:
        show_rows(results, as_json=False)
    parts = [f"{sweep.done:,} of {sweep.jobs:,} jobs done ({sweep.made:,} now, in {seconds(sweep.seconds)})"]
    parts += [f"{len(sweep.failed):,} failed (--retry-failed does them again)"] if sweep.failed else []
    parts += [f"{sweep.blocked:,} could not be done, because what they need failed"] if sweep.blocked else []
    _show.tell("; ".join(parts))
    if sweep.refused:
        what, why = next(iter(sweep.refused.items()))
        more = f" (and {len(sweep.refused) - 1:,} more, see --plan)" if len(sweep.refused) > 1 else ""
        _show.tell(f"left out of the spec: {what}: {why}{more}")
    _show.saved(sweep.store)
    tell_written(page)
    if not as_json:
        _show.following("results", sweep.store, "--out", "results.csv")


def _file_name(name: str) -> str:
    """A sweep's name as that of a file; one that had to be changed gets a mark, so that two sweeps never have one file."""
    plain = re.sub(r"[^\w.-]+", "_", name).strip(".") or "sweep"
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def show_rows(results: Sequence[Row], *, as_json: bool) -> None:
    """Results, over seeds in a terminal and one by one as JSON."""
    if as_json:
        _show.as_json(list(results))
        return
    if not results:
        _show.tell("there are no such results")
        return
    groups = [g for g in grouped(results) if g.role in _MATRIX or any(row["status"] == "failed" for row in g.rows)]
    body = summary(groups)
    always: tuple[str, ...] = ("attack", "defense", "ACC %", "ASR %", *GAP_HEADS)
    if any(len(group.done) < len(group.rows) for group in groups):
        always += ("seeds",)  # how many have a result
    used = [
        i for i, name in enumerate(SHOWN) if len(texts := {line[i] for line in body}) > 1 or (name in always and any(texts))
    ]
    used.sort(key=lambda i: SHOWN[i] not in ("attack", "defense"))
    title = ", ".join(dict.fromkeys(line[0] for line in body)) or "no results"
    _warn_of(groups)
    _show.rows(title, [SHOWN[i] for i in used], [[line[i] for i in used] for line in body])


def tell_failed(results: Sequence[Row]) -> None:
    """Say what failed, of results that are shown later than they were made."""
    failed = {row["key"]: row for row in results if row["status"] == "failed"}
    if failed:
        row = next(iter(failed.values()))
        named = " · ".join(part for part in (row["attack"], row["defense"], row["clean"]) if part)
        _show.tell(f"{len(failed):,} failed, the first {named}: {line(row['error'] or '')[:200]}")


def _warn_of(groups: Sequence[Group]) -> None:
    """Say which cells mislead, or hold a group that is harmed."""
    broken = misleading(groups)
    _show.alarm([f"† {text}" for text in broken[:FIRST_WARNINGS]])
    if len(broken) > FIRST_WARNINGS:
        more = len(broken) - FIRST_WARNINGS
        _show.alarm([f"† {more:,} more cell{' carries' if more == 1 else 's carry'} a warning; the page names them"])


def write_page(store: Store, results: Sequence[Row], path: str | Path, option: str = "--page") -> Path:
    """The page of results of a store."""
    groups, sweeps = beside_repairs(grouped(results)), list(dict.fromkeys(row["sweep"] for row in results))
    pictures: dict[str, bytes] = {}
    several = len({row["data"] for row in results}) > 1
    named = {row["key"]: row for row in results if row["role"] == "victim"}
    images = store.pictures(named)
    for key, row in named.items():  # in the order of the plan; the first seed of each attack is shown
        if key in images:
            pictures.setdefault(f"{row['data']}: {row['attack']}" if several else row["attack"], images[key])
    troubles = [
        (f"{r['attack']}, {r['defense']}, seed {r['seed']}", str(r["error"])) for r in results if r["status"] == "failed"
    ]
    troubles += [pair for name in sweeps for pair in store.refused(name).items()]
    return write_sweep(
        ", ".join(sweeps) or "no results",
        [_cell(group) for group in groups],
        path,
        pictures=pictures,
        comparisons=[made for name in ("asr", "der") if (made := _comparison(groups, name)) is not None],
        fairness=[line for group in groups for line in _fairness(group)],
        audits=audits(groups),
        published=_published(results),
        troubles=troubles,
        option=option,
    )


def write_figure_of(results: Sequence[Row], path: str, number: str) -> Path:
    """The figure of one number of results."""
    return write_figure([_cell(group) for group in beside_repairs(grouped(results))], path, number, option="--figure")


def _cell(group: Group) -> SweepCell:
    """A cell of the page."""
    values = {name: interval(group, name) for name in (*_COMPARED, "seconds")}
    facts = dict.fromkeys(
        ", ".join(f"{row[n]}" for n in ("machine", "device", "precision", "versions") if row[n]) for row in group.done
    )
    return SweepCell(
        setting=", ".join(part for part in group.labels[:3] if part),
        attack=group.attack,
        defense=group.full_defense,
        role=group.role,
        seeds=(len(group.done), len(group.rows)),
        victims=group.victims,
        alarms=group.alarmed,
        numbers={name: Number(*value) for name, value in values.items() if value is not None},
        degenerate=tuple(group.degenerate),
        harmed=tuple(group.harmed),
        environment="; ".join(facts),
        keys=tuple(row["key"][:12] for row in group.rows),
    )


def _comparison(groups: Sequence[Group], name: str) -> Comparison | None:
    """Defenses compared by one number; None without two of them."""
    scores = scores_of(groups, name)
    if len(scores) < 2:
        return None
    shared, pairs = attacks_of(common_cells(scores)), compare(scores)
    return Comparison(
        quantity=name,
        pairs=[(p.first, p.second, p.attacks, p.left_out, p.difference, p.adjusted, p.verdict) for p in pairs],
        least=least_attacks(len(pairs)),
        ranks=ranks(scores, high=name != "asr") if shared else {},
        attacks=len(shared),
    )


_FAIR = {"acc": "accuracy", "bacc": "balanced accuracy over groups and labels"} | {
    f"{name}_gap": f"{words} gap"
    for name, words in (("dp", "demographic parity"), ("opportunity", "opportunity"), ("odds", "odds"))
}


def _fairness(group: Group) -> list[tuple[str, ...]]:
    """Figures of a debiased model beside the plain one, means over seeds."""
    if group.role != "debiased":
        return []
    setting, seeds = ", ".join(part for part in group.labels[:3] if part), str(len(group.done))
    pairs = [(words, group.over(f"{name}_before"), group.over(name)) for name, words in _FAIR.items()]
    return [
        (f"{group.defense}{' †' * bool(group.cautions)}", setting, seeds, words, in_words(before, 100), in_words(after, 100))
        for words, before, after in pairs
        if before is not None and after is not None
    ]


_COMPARED = ("acc", "asr", "ra", "der")


def show_comparison(results: Sequence[Row], name: str, *, as_json: bool) -> None:
    """Defenses compared over attacks, and their mean ranks where all were tried on the same."""
    if name not in _COMPARED:
        raise unknown("--compare", name, _COMPARED)
    groups = grouped(results)
    scores = scores_of(groups, name)
    if len(scores) < 2:
        raise InputError(f"{len(scores)} defense(s) have {name}; a comparison needs at least two")
    pairs = compare(scores)
    shared = attacks_of(common_cells(scores))
    places = ranks(scores, high=name != "asr") if shared else {}
    if as_json:
        lines = [dataclasses.asdict(pair) | {"verdict": pair.verdict} for pair in pairs]
        _show.as_json({"number": name, "pairs": lines, "ranks": places})
        return
    body = [
        [p.first, p.second, f"{p.attacks}", f"{p.left_out}", f"{p.difference:+.3f}", f"{p.adjusted:.3f}", p.verdict]
        for p in pairs
    ]
    _warn_of([group for group in groups if group.role == "defended"])
    head = ["first", "second", "attacks", "cells left out", "median difference", "p (Holm)", "verdict"]
    _show.rows(f"{name}: Wilcoxon's signed ranks over attacks", head, body)
    if any(p.left_out for p in pairs):
        _show.tell("a cell (attack and seed) is left out of a pair where one of the two has no result yet, or failed")
    if max((p.attacks for p in pairs), default=0) < (least := least_attacks(len(pairs))):
        _show.tell(
            f"with {len(pairs)} pair{'s' * (len(pairs) > 1)} none can be distinguishable over fewer than {least} attacks"
        )
    if len(pairs) < len(scores) * (len(scores) - 1) // 2:
        _show.tell("pairs without a cell in common are not shown")
    if places:
        order = sorted(places, key=places.__getitem__)
        title = f"mean rank over {len(shared)} attack{'s' * (len(shared) > 1)}, 1 is best"
        _show.rows(title, ["defense", "rank"], [[defense, f"{places[defense]:.2f}"] for defense in order])


def show_leaderboard(results: Sequence[Row], out: str | None, *, as_json: bool) -> None:
    """Published numbers beside measured ones, as a table, a file or JSON."""
    lines = leaderboard.beside(leaderboard.trials_of(results))
    if out is not None:
        tell_written(leaderboard.write_leaderboard(lines, out))
    elif as_json:
        _show.as_json([leaderboard.line_facts(line) for line in lines])
    else:
        table = leaderboard.table(lines)
        _show.rows("published numbers and those measured here", table.head, table.lines)
        for text in table.notes:
            _show.tell(text)


def _published(results: Sequence[Row]) -> Published | None:
    """The section of published numbers; None if no method with such numbers was measured."""
    table = leaderboard.table(leaderboard.beside(leaderboard.trials_of(results)))
    return Published(head=table.head, lines=table.lines, notes=table.notes) if table.lines else None


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
