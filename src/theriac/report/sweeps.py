"""One self-contained HTML page from a sweep: matrices of attacks and defenses, triggers, every cell, and what failed."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from theriac.core.files import write_atomically
from theriac.core.paths import as_path, writing
from theriac.report.page import environment, style

NUMBERS = (  # name, title, whether higher is better; all are shares in [0, 1]
    ("asr", "Attack success rate (ASR, %)", False),
    ("acc", "Clean accuracy (ACC, %)", True),
    ("ra", "Recovered accuracy (RA, %)", True),
    ("der", "Defense effectiveness (DER, %)", True),
)
HEAD = ("attack", "defense", "setting", "role", "seeds")
Interval = tuple[float, float, float]  # mean, low, high


@dataclass(frozen=True, kw_only=True)
class SweepCell:
    """One cell of a sweep over its seeds.

    Args:
        setting: Data, model and recipe, in words.
        attack: Label of the attack.
        defense: Label of the defense, with its clean rows.
        role: Role of the cell, such as "defended".
        seeds: How many seeds have a result, of how many.
        numbers: Mean and 95 % interval of each number that there is.
        seconds: Mean seconds of a job; None if unknown.
        provenance: Machine, device, precision, versions and keys.
    """

    setting: str
    attack: str
    defense: str
    role: str
    seeds: tuple[int, int]
    numbers: Mapping[str, Interval]
    seconds: float | None
    provenance: str


def write_sweep(
    title: str,
    cells: Sequence[SweepCell],
    path: str | Path,
    *,
    pictures: Mapping[str, bytes] | None = None,
    troubles: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write the page of a sweep.

    Args:
        title: Its name.
        cells: Its cells.
        path: The HTML file.
        pictures: PNG files of triggers, by attack.
        troubles: Failed jobs and refused pairings, each with its reason.

    Returns:
        Where the page is.
    """
    path = as_path("--page", path)
    sources = [(name, f"data:image/png;base64,{base64.b64encode(png).decode()}") for name, png in (pictures or {}).items()]
    done = sum(cell.seeds[0] for cell in cells)
    text = (
        environment()
        .get_template("sweep.html.j2")
        .render(
            css=Markup(style()),  # our own file
            title=title,
            headline=f"{len(cells):,} cells, {done:,} results, {len(troubles):,} failed or refused",
            blocks=_blocks(cells),
            pictures=sources,
            head=(
                "attack",
                "defense",
                "setting",
                "role",
                "seeds",
                *(f"{n[0].upper()} %" for n in NUMBERS),
                "seconds",
                "provenance",
            ),
            every=[_line(cell) for cell in cells],
            troubles=troubles,
        )
    )
    with writing("--page", path):
        return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _line(cell: SweepCell) -> list[str]:
    numbers = [_words(cell.numbers.get(name)) for name, *_ in NUMBERS]
    time = "" if cell.seconds is None else f"{cell.seconds:.1f}"
    seeds = f"{cell.seeds[0]} of {cell.seeds[1]}"
    return [cell.attack, cell.defense, cell.setting, cell.role, seeds, *numbers, time, cell.provenance]


def _words(value: Interval | None) -> str:
    return "" if value is None else f"{100 * value[0]:.1f} ({_ends(value)})"


def _ends(value: Interval) -> str:
    return f"{100 * value[1]:.1f} to {100 * value[2]:.1f}"


def _blocks(cells: Sequence[SweepCell]) -> list[dict[str, Any]]:
    """A matrix for each setting and number: rows are attacks, columns defenses, with means and worst at both edges."""
    blocks = []
    for setting in dict.fromkeys(cell.setting for cell in cells):
        inside = [cell for cell in cells if cell.setting == setting and cell.role in ("victim", "defended")]
        for name, title, high in NUMBERS:
            values = {(cell.attack, cell.defense): cell.numbers[name] for cell in inside if name in cell.numbers}
            if values:
                blocks.append(_matrix(setting, name, title, values, high=high))
    return blocks


def _matrix(setting: str, name: str, title: str, values: Mapping[tuple[str, str], Interval], *, high: bool) -> dict[str, Any]:
    attacks, defenses = (list(dict.fromkeys(key[i] for key in values)) for i in (0, 1))
    worst = min if high else max

    def edge(numbers: Sequence[float], share: str) -> dict[str, Any]:
        number = worst(numbers) if share == "worst" else sum(numbers) / len(numbers)
        return {"text": f"{100 * number:.1f}", "small": "", "hue": None, "edge": True}

    def filled(value: Interval | None) -> dict[str, Any]:
        if value is None:
            return {"text": "", "small": "", "hue": None, "edge": False}
        good = value[0] if high else 1 - value[0]
        return {"text": f"{100 * value[0]:.1f}", "small": _ends(value), "hue": round(20 + 150 * good), "edge": False}

    lines = []
    for attack in attacks:
        row = [values[attack, defense][0] for defense in defenses if (attack, defense) in values]
        body = [filled(values.get((attack, defense))) for defense in defenses]
        lines.append({"title": attack, "cells": [*body, edge(row, "mean"), edge(row, "worst")]})
    blank = {"text": "", "small": "", "hue": None, "edge": True}
    for share in ("mean", "worst"):
        columns = [[values[a, defense][0] for a in attacks if (a, defense) in values] for defense in defenses]
        lines.append({"title": share, "cells": [*(edge(column, share) for column in columns), blank, blank]})
    caption = f"{setting}; {'higher' if high else 'lower'} is better. Small: 95 % interval, t over seeds, Wilson for one seed."
    return {"name": name, "title": title, "caption": caption, "columns": [*defenses, "mean", "worst"], "lines": lines}
