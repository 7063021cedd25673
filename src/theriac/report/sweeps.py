"""One self-contained HTML page from a sweep: matrices of attacks and defenses, what they cost, triggers, and every cell."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from markupsafe import Markup

from theriac.core.files import write_atomically
from theriac.core.paths import PAGES, new_file, writing
from theriac.core.text import seconds as duration
from theriac.metrics.intervals import share as percent
from theriac.report.page import environment, style


@dataclass(frozen=True)
class Quantity:
    """A number of the matrix.

    Args:
        name: As in the store.
        short: In heads of tables.
        title: In words.
        high: Whether higher is better.
        share: Whether it is a share, shown in percent.
    """

    name: str
    short: str
    title: str
    high: bool
    share: bool = True


QUANTITIES = (
    Quantity("asr", "ASR %", "Attack success rate (ASR, %)", False),
    Quantity("acc", "ACC %", "Clean accuracy (ACC, %)", True),
    Quantity("ra", "RA %", "Recovered accuracy (RA, %)", True),
    Quantity("der", "DER %", "Defense effectiveness rating (DER, %)", True),
    Quantity("seconds", "seconds", "Time of a job (seconds)", False, share=False),
)
_AUDITED = ("alarms in",)  # column of cells, where there were audits
STEPS = 9  # colors of cells, from bad to good
# Bad, middle, good, text and small text of a cell, in light and in dark; orange and blue differ for the color-blind, too
LIGHT = ("#f3b184", "#f6f3ec", "#93c9d6", "#111111", "#333333")
DARK = ("#7a3c12", "#302f2d", "#0e5363", "#f4f4f4", "#dddddd")
HOLDS = 0.2  # worst attack success above which a headline names no best defense
FIRST_WARNINGS = 4  # of cells that mislead, above all numbers; the others unfold
NARROW = 8  # columns of a matrix that fit upright on paper


@dataclass(frozen=True)
class Number:
    """A number of a cell.

    Args:
        mean: Its mean over seeds.
        low: Lower end of the 95 % interval; None without one.
        high: Upper end.
        basis: What the interval is over: "seeds" (t), "rows" (one seed; Wilson over its test rows), or "" without one.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    basis: Literal["seeds", "rows", ""] = ""


@dataclass(frozen=True, kw_only=True)
class SweepCell:
    """One cell of a sweep over its seeds.

    Args:
        setting: Data, model and recipe, in words.
        attack: Label of the attack.
        defense: Label of the defense, with its clean rows.
        role: Role of the cell, such as "defended".
        seeds: How many seeds have a result, of how many; several of them may be repetitions on one victim.
        numbers: Each number that there is, by the name of its quantity.
        degenerate: Results that a degenerate model would also reach, in sentences; empty if there are none.
        harmed: Groups that debiasing harmed, in sentences.
        environment: Machine, device, precision and versions.
        keys: Keys of the jobs in the store.
        victims: How many victims these are; 0 = one for each seed.
        alarms: In how many of its audits there was a sign of a backdoor, and how many there are.
    """

    setting: str
    attack: str
    defense: str
    role: str
    seeds: tuple[int, int]
    numbers: Mapping[str, Number]
    degenerate: tuple[str, ...] = ()
    harmed: tuple[str, ...] = ()
    environment: str = ""
    keys: tuple[str, ...] = ()
    victims: int = 0
    alarms: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        """Attack and defense in words."""
        return f"{self.attack} · {self.defense}"

    @property
    def cautions(self) -> tuple[str, ...]:
        """What to know before its numbers are believed, in sentences."""
        return (*self.degenerate, *self.harmed)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Defenses compared over attacks by one number.

    Args:
        quantity: Name of the number.
        pairs: First and second defense, attacks in common, cells left out because one of the two lacks a result, median
            difference, p value after Holm's correction, verdict.
        ranks: Mean rank of each defense; empty if there is no attack that all were tried on.
        attacks: How many attacks the ranks are over.
        least: Over how many attacks one of the pairs could be told apart at all.
    """

    quantity: str
    pairs: Sequence[tuple[str, str, int, int, float, float, str]]
    ranks: Mapping[str, float] = field(default_factory=dict)
    attacks: int = 0
    least: int = 6


@dataclass(frozen=True, kw_only=True)
class Published:
    """A table of published numbers beside measured ones.

    Args:
        head: Names of its columns.
        lines: Texts of its rows.
        notes: What holds for all of them, and how verdicts are made.
    """

    head: Sequence[str]
    lines: Sequence[Sequence[str]]
    notes: Sequence[str]


def write_sweep(
    title: str,
    cells: Sequence[SweepCell],
    path: str | Path,
    *,
    pictures: Mapping[str, bytes] | None = None,
    comparisons: Sequence[Comparison] = (),
    fairness: Sequence[tuple[str, ...]] = (),
    audits: Sequence[Sequence[str]] = (),
    published: Published | None = None,
    troubles: Sequence[tuple[str, str]] = (),
    option: str = "--page",
) -> Path:
    """Write the page of a sweep.

    Args:
        title: Its name.
        cells: Its cells.
        path: The HTML file.
        pictures: PNG files of triggers, by data and attack in words.
        comparisons: Statistics of defenses.
        fairness: Lines of debiased models: setting, method, seeds, figure, before, after.
        audits: What audits saw: names of columns, then a line for each defense; empty without audits.
        published: Published numbers beside the measured ones; None without them.
        troubles: Failed jobs and refused pairings, each with its reason.
        option: What names the file, for messages.

    Returns:
        Where the page is.
    """
    path = new_file(option, path, endings=PAGES)
    sources = [(name, f"data:image/png;base64,{base64.b64encode(png).decode()}") for name, png in (pictures or {}).items()]
    named = {text: chr(65 + i) if i < 26 else str(i) for i, text in enumerate(dict.fromkeys(c.environment for c in cells))}
    audited = any(cell.alarms[1] for cell in cells)
    text = (
        environment()
        .get_template("sweep.html.j2")
        .render(
            css=Markup(style() + colors()),  # our own
            title=title,
            headline=headline(cells, troubles),
            warnings=_warnings(cells),
            shown=FIRST_WARNINGS,
            alerts=_alerts(cells),
            facts=_facts(cells, troubles),
            quantities=QUANTITIES,
            settings=[_setting(name, cells) for name in dict.fromkeys(c.setting for c in cells if _in_matrix(c))],
            controls=_controls(cells),
            costs=_costs(cells),
            pictures=sources,
            comparisons=[_compared(c) for c in comparisons],
            fairness=fairness,
            audits=audits,
            published=published,
            head=(
                "attack",
                "defense",
                "setting",
                "role",
                "seeds",
                *(q.short for q in QUANTITIES),
                *_AUDITED[:audited],
                "where",
                "keys",
            ),
            every=[_line(cell, named, audited) for cell in cells],
            environments=[(short, long) for long, short in named.items() if long],
            troubles=troubles,
        )
    )
    with writing(option, path):
        return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def headline(cells: Sequence[SweepCell], troubles: Sequence[tuple[str, str]] = ()) -> str:
    """The most important fact in one sentence: warnings about results come before the best of them."""
    broken, harm = sum(bool(cell.cautions) for cell in cells), sum(bool(cell.harmed) for cell in cells)
    what = "harm a group of people (†)" if harm == broken else "carry a warning (†)"
    what += f", {harm:,} of them since they harm a group of people" if 0 < harm < broken else ""
    missing = sum(not cell.seeds[0] for cell in cells)
    if missing:  # whatever is best of what is there may be so for what is not
        why = f" ({_troubles(len(troubles))} failed or refused)" if troubles else " yet"
        warned = f"; {broken:,} {what}" if broken else ""
        return f"{missing:,} of {len(cells):,} cells have no result{why}{warned}."
    if broken:
        warning = f"{broken:,} of {len(cells):,} cells {what}"
        top = _best(cells)
        if top is None or any(cell.degenerate for cell in cells if cell.defense == top[0]):
            return f"{warning}."  # a model that predicts one class may have the lowest attack success of all
        return f"{warning}; lowest worst attack success: {percent(top[1])} % ({top[0]})."
    best = _best(cells)
    if best is not None:
        defense, worst, attacks, number = best
        of = f" of {number} defenses" if number > 1 else ""
        if worst > HOLDS:
            return f"No defense holds: the lowest worst attack success is {percent(worst)} % ({defense})."
        return f"{defense} has the lowest worst attack success{of}: {percent(worst)} % over {_some(attacks, 'attack')}."
    return f"{_some(len(cells), 'cell')}, {_troubles(len(troubles))} without a result."


def colors() -> str:
    """Style of the cells, light and dark."""

    def rules(palette: tuple[str, ...]) -> str:
        steps = "".join(f".q{i}{{--fill:{shade(palette, i)}}}" for i in range(STEPS))
        return f":root{{--on:{palette[3]};--on-small:{palette[4]}}}{steps}"

    dark = f"@media (prefers-color-scheme: dark){{{rules(DARK)}}}"
    return f"\n{rules(LIGHT)}\n{dark}\n@media print{{{rules(LIGHT)}}}\n"


def shade(palette: tuple[str, ...], step: int) -> str:
    """A color of a palette, from 0 (bad) to ``STEPS - 1`` (good)."""
    place = 2 * step / (STEPS - 1)
    low, high = (palette[0], palette[1]) if place < 1 else (palette[1], palette[2])
    part = place - (place >= 1)
    mixed = [round((1 - part) * int(low[i : i + 2], 16) + part * int(high[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{value:02x}" for value in mixed)


def matrix(cells: Sequence[SweepCell], setting: str, quantity: Quantity) -> dict[str, Any] | None:
    """Rows are attacks, columns defenses, with means and worst values at both edges; None without a number."""
    values = {(c.attack, c.defense): c for c in cells if c.setting == setting and _in_matrix(c) and quantity.name in c.numbers}
    if not values:
        return None
    attacks, defenses = (list(dict.fromkeys(key[i] for key in values)) for i in (0, 1))
    means = {key: cell.numbers[quantity.name].mean for key, cell in values.items()}
    plain = {cell.defense for cell in values.values() if cell.role == "victim"}
    others = [defense for defense in defenses if defense not in plain] or defenses  # a row's edges are over what was done
    top = max(means.values())

    def edge(numbers: Sequence[float], share: str, number: int) -> dict[str, Any]:
        if not numbers:
            return {"text": "", "small": "", "fill": None}
        value = (min if quantity.high else max)(numbers) if share == "worst" else sum(numbers) / len(numbers)
        partly = "" if len(numbers) == number else f"{len(numbers)} of {number}"
        return {"text": _figure(value, quantity), "small": partly, "fill": None}

    def filled(cell: SweepCell | None) -> dict[str, Any]:
        if cell is None:
            return {"text": "", "small": "", "fill": None}
        number = cell.numbers[quantity.name]
        small = (
            _ends(number, quantity)
            if number.basis == "seeds"
            else "1 victim"
            if cell.victims == 1 < cell.seeds[0]
            else "1 seed"
        )
        mark = " †" if cell.cautions and quantity.share else ""
        return {"text": _figure(number.mean, quantity) + mark, "small": small, "fill": _step(number.mean, quantity, top)}

    def of(line: Sequence[tuple[str, str]]) -> list[float]:
        return [means[key] for key in line if key in means]

    lines = [
        {
            "title": attack,
            "cells": [filled(values.get((attack, defense))) for defense in defenses],
            "edges": [edge(of([(attack, d) for d in others]), share, len(others)) for share in ("mean", "worst")],
        }
        for attack in attacks
    ]
    feet = [
        {"title": share, "cells": [edge(of([(a, defense) for a in attacks]), share, len(attacks)) for defense in defenses]}
        for share in ("mean", "worst")
    ]
    return {"quantity": quantity, "columns": defenses, "lines": lines, "feet": feet}


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which of some points (ASR, ACC) no other one is better than in one and at least as good as in the other, by ASR.

    Points that are equal are there together.
    """
    best, unbeaten = (math.inf, -math.inf), list[int]()
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best[1] or points[i] == best:
            best = points[i]
            unbeaten.append(i)
    return unbeaten


def _in_matrix(cell: SweepCell) -> bool:
    return cell.role in ("victim", "defended")


def _troubles(number: int) -> str:
    return f"{number:,} {'pairing or job' if number == 1 else 'pairings or jobs'}"


def _some(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _figure(value: float, quantity: Quantity) -> str:
    if quantity.share:
        return percent(value)
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _ends(number: Number, quantity: Quantity) -> str:
    if number.low is None or number.high is None:
        return ""
    return f"{_figure(number.low, quantity)} to {_figure(number.high, quantity)}"


def _step(value: float, quantity: Quantity, top: float) -> int:
    """The color of a value; times are colored by their logarithm below the longest."""
    share = value if quantity.share else math.log1p(max(value, 0.0)) / math.log1p(top) if top > 0 else 0.0
    good = share if quantity.high else 1 - share
    return min(STEPS - 1, max(0, round((STEPS - 1) * good)))


def _best(cells: Sequence[SweepCell]) -> tuple[str, float, int, int] | None:
    """The defense with the lowest worst ASR of those that were tried on all attacks of the only setting."""
    inside = [cell for cell in cells if _in_matrix(cell) and "asr" in cell.numbers]
    attacks = {(cell.setting, cell.attack) for cell in inside}
    worst: dict[str, list[float]] = {}
    for cell in inside:
        if cell.role == "defended":
            worst.setdefault(cell.defense, []).append(cell.numbers["asr"].mean)
    full = {defense: max(values) for defense, values in worst.items() if len(values) == len(attacks)}
    if not full:
        return None
    defense = min(full, key=full.__getitem__)
    return defense, full[defense], len(attacks), len(full)


def _warnings(cells: Sequence[SweepCell]) -> list[str]:
    """Cells whose numbers mislead alone, as of a model that has lost a class or harms a group, by name."""
    return [f"† {cell.name} ({cell.role}, {cell.setting}): {' '.join(cell.cautions)}" for cell in cells if cell.cautions]


def _alerts(cells: Sequence[SweepCell]) -> list[str]:
    """Results that lack, and seeds that are too few."""
    alerts = []
    missing = sum(not cell.seeds[0] for cell in cells)
    if missing:
        alerts.append(f"{missing:,} of {len(cells):,} cells have no result: no table here is whole.")
    single = sum((cell.victims or cell.seeds[0]) == 1 for cell in cells)
    if single:
        which = "Every cell has" if single == len(cells) else f"{single:,} of {len(cells):,} cells have"
        alerts.append(f"{which} one seed: there is no interval over seeds, and differences may be chance.")
    partial = sum(0 < cell.seeds[0] < cell.seeds[1] for cell in cells)
    if partial:
        alerts.append(f"{partial:,} cell{' lacks' if partial == 1 else 's lack'} results of some seeds.")
    return alerts


def _facts(cells: Sequence[SweepCell], troubles: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    inside = [cell for cell in cells if _in_matrix(cell)]
    audits, attacks = sum(cell.alarms[1] for cell in cells), len({c.attack for c in inside})
    debiasing = len({c.defense for c in cells if c.role == "debiased"})
    return [
        *([("attacks", f"{attacks:,}")] if attacks or not debiasing else []),
        *([("defenses", f"{len({c.defense for c in inside if c.role == 'defended'}):,}")] if attacks or not debiasing else []),
        *([("debiasing methods", f"{debiasing:,}")] if debiasing else []),
        ("cells", f"{len(cells):,}"),
        ("results", f"{sum(c.seeds[0] for c in cells):,} of {sum(c.seeds[1] for c in cells):,}"),
        ("failed or refused", f"{len(troubles):,}"),
        *([("audits with an alarm", f"{sum(c.alarms[0] for c in cells):,} of {audits:,}")] if audits else []),
    ]


def _setting(name: str, cells: Sequence[SweepCell]) -> dict[str, Any]:
    blocks = [block for q in QUANTITIES if (block := matrix(cells, name, q)) is not None]
    plots = [plot for share in ("mean", "worst") if (plot := _scatter(cells, name, share)) is not None]
    wide = any(len(block["columns"]) > NARROW for block in blocks)
    return {"name": name, "blocks": blocks, "plots": plots, "wide": wide}


def _scatter(cells: Sequence[SweepCell], setting: str, share: str) -> dict[str, Any] | None:
    """Accuracy against ASR of each defense that was tried on every attack; accuracy starts at a round number below all."""
    inside = [c for c in cells if c.setting == setting and _in_matrix(c) and {"asr", "acc"} <= set(c.numbers)]
    attacks = {cell.attack for cell in inside}
    by: dict[str, list[SweepCell]] = {}
    for cell in inside:
        by.setdefault(cell.defense, []).append(cell)
    full = {defense: own for defense, own in by.items() if len(own) == len(attacks)}
    if len(full) < 2:
        return None
    points = []
    for own in full.values():
        asr, acc = ([c.numbers[name].mean for c in own] for name in ("asr", "acc"))
        points.append((max(asr), min(acc)) if share == "worst" else (sum(asr) / len(asr), sum(acc) / len(acc)))
    best = front(points)
    low = min(0.9, math.floor(10 * min(acc for _, acc in points)) / 10)
    left, right, top, bottom = 44.0, 440.0, 24.0, 236.0

    def at(asr: float, acc: float) -> tuple[float, float]:
        return round(left + (right - left) * asr, 1), round(bottom - (bottom - top) * (acc - low) / (1 - low), 1)

    spots = [at(*point) for point in points]
    dots = [
        {
            "x": spots[i][0],
            "y": spots[i][1],
            "label": label,
            "number": i + 1,
            "front": i in best,
            "name": name,
            "asr": percent(point[0]),
            "acc": percent(point[1]),
        }
        for i, (name, point, label) in enumerate(zip(full, points, label_places(spots), strict=True))
    ]
    return {
        "share": share,
        "dots": dots,
        "line": " ".join(f"{dots[i]['x']},{dots[i]['y']}" for i in best),
        "x": [(at(t / 4, low)[0], f"{25 * t}") for t in range(5)],
        "y": [(at(0, v)[1], f"{100 * v:.0f}") for v in (low, (1 + low) / 2, 1.0)],
        "box": (left, right, top, bottom),
        "attacks": len(attacks),
        "partial": len(by) - len(full),
    }


def label_places(spots: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Where the numbers of dots stand so that none covers another number or a dot, as near to its dot as that allows.

    Args:
        spots: Centers of the dots, in units of the plot.

    Returns:
        Centers of the numbers, in the same order. Where a crowd leaves no room, the place with the most room.
    """
    turns = [math.radians(angle) for angle in (-45, 45, 0, -90, 90, -135, 135, 180, -20, 20, -70, 70, -110, 110, 160)]
    around = [(r * math.cos(a), r * math.sin(a)) for r in range(13, 76, 7) for a in turns]
    taken: list[tuple[float, float]] = []
    for x, y in spots:
        near = [(round(x + dx, 1), round(y + dy, 1)) for dx, dy in around]
        inside = [p for p in near if 8 <= p[0] <= 452 and 18 <= p[1] <= 230]
        room = {p: min(_gap(p, q, 15, 12) for q in taken) if taken else 1.0 for p in inside}
        free = {p: min(room[p], *(_gap(p, q, 11, 10) for q in spots)) for p in inside}
        taken.append(next((p for p in inside if free[p] >= 1), max(inside, key=free.__getitem__)))
    return taken


def _gap(a: tuple[float, float], b: tuple[float, float], width: float, height: float) -> float:
    """How far apart two places are, in boxes of this size: at 1 they just do not touch."""
    return max(abs(a[0] - b[0]) / width, abs(a[1] - b[1]) / height)


def _controls(cells: Sequence[SweepCell]) -> list[tuple[str, ...]]:
    """Benign models, plain and defended: their accuracy, and how often each attack's trigger works without its backdoor."""
    lines: list[tuple[str, ...]] = []
    for cell in (c for c in cells if c.role in ("benign", "benign defended")):
        role = "judged" if cell.role == "benign" else "judged defended"
        same = [c for c in cells if (c.setting, c.defense, c.role) == (cell.setting, cell.defense, role)]
        rates = {c.attack: c.numbers["asr"].mean for c in same if "asr" in c.numbers}
        worst = max(rates, key=rates.__getitem__, default=None)
        mean = percent(sum(rates.values()) / len(rates)) if rates else ""
        acc = cell.numbers.get("acc")
        lines.append(
            (
                cell.defense,
                cell.setting,
                "" if acc is None else _worded(acc, QUANTITIES[1]),
                mean,
                "" if worst is None else f"{percent(rates[worst])} ({worst})",
            )
        )
    return lines


def _costs(cells: Sequence[SweepCell]) -> list[dict[str, Any]]:
    """Mean and longest time of a job by defense, with the length of a bar in percent."""
    times: dict[tuple[str, str], list[float]] = {}
    for cell in cells:
        if _in_matrix(cell) and "seconds" in cell.numbers:
            name = cell.defense if cell.role == "defended" else "training of the victim"
            times.setdefault((name, cell.setting), []).append(cell.numbers["seconds"].mean)
    most = max((sum(t) / len(t) for t in times.values()), default=0.0) or 1.0
    lines = []
    for (name, setting), t in sorted(times.items(), key=lambda item: sum(item[1]) / len(item[1])):
        mean = sum(t) / len(t)
        line = {"name": name, "setting": setting, "mean": duration(mean), "most": duration(max(t))}
        lines.append(line | {"bar": round(100 * mean / most, 1)})
    return lines


def _compared(comparison: Comparison) -> dict[str, Any]:
    quantity = next(q for q in QUANTITIES if q.name == comparison.quantity)
    pairs = [
        (first, second, str(attacks), str(left_out), _points(difference), _p(p), verdict)
        for first, second, attacks, left_out, difference, p, verdict in comparison.pairs
    ]
    different = sum(verdict != "not distinguishable" for *_, verdict in comparison.pairs)
    places = sorted(comparison.ranks.items(), key=lambda item: item[1])
    return {
        "quantity": quantity,
        "pairs": pairs,
        "different": different,
        "ranks": [(name, f"{rank:.2f}") for name, rank in places],
        "attacks": comparison.attacks,
        "least": comparison.least,
    }


def _points(difference: float) -> str:
    text = f"{100 * difference:+.1f}".replace("-", "−")
    return text if text[1:] != "0.0" else "0.0"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _worded(number: Number, quantity: Quantity) -> str:
    text, ends = _figure(number.mean, quantity), _ends(number, quantity)
    if number.basis == "seeds":
        return f"{text} ({ends})"
    return f"{text} [{ends}]" if number.basis == "rows" else text


def _line(cell: SweepCell, named: Mapping[str, str], audited: bool) -> list[str]:
    numbers = [_worded(cell.numbers[q.name], q) if q.name in cell.numbers else "" for q in QUANTITIES]
    role = f"{cell.role} †" if cell.cautions else cell.role
    seeds = f"{cell.seeds[0]}" if cell.seeds[0] == cell.seeds[1] else f"{cell.seeds[0]} of {cell.seeds[1]}"
    if 0 < cell.victims < cell.seeds[0]:
        seeds += f", {cell.victims} victim{'s' * (cell.victims > 1)}"
    where = named[cell.environment] if cell.environment else ""
    alarms = ["{} of {}".format(*cell.alarms) if cell.alarms[1] else ""][:audited]
    return [cell.attack, cell.defense, cell.setting, role, seeds, *numbers, *alarms, where, " ".join(cell.keys)]
