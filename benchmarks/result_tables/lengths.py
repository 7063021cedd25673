"""Whether short forms reach what long ones do: recipes of victims, and presets of repairs, in the sweep ``lengths``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import spearmanr
from table import RESULTS

from result_tables import sweeps
from theriac.bench.tables import Row
from theriac.metrics import over_seeds

NAME, SHORT, LONG = "sweep_lengths", "short_20", "paper_100"
SUFFIX = " short"  # of labels of short presets
POINT, FIFTH = 0.01, 0.2  # a short form is called fast within one point and in a fifth of the time


@dataclass(frozen=True)
class Comparison:
    """A short form beside its long one, over the attacks that both have.

    Args:
        name: What is compared.
        changes: ACC and ASR of the short form less those of the long one, attack by attack: seeds of one attack are alike, so
            they count once, by their mean.
        time: Its share of the long form's CPU seconds.
    """

    name: str
    changes: dict[str, list[float]]
    time: float

    @property
    def verdict(self) -> str:
        """What the short form may be called."""
        spreads = [over_seeds(values) for values in self.changes.values()]
        if any(abs(s.mean) > POINT and not s.low <= 0 <= s.high for s in spreads):
            return "another result"
        if any(abs(s.mean) > POINT for s in spreads):
            return "too few attacks to tell"
        return "fast" if self.time <= FIFTH else "the same, but not in a fifth of the time"


def compared(name: str, short: Sequence[Row], long: Sequence[Row]) -> Comparison | None:
    """Compare cell by cell, then attack by attack; None with fewer than two attacks in common."""
    by = [{(row["attack"], row["seed"], row.get("defense", "")): row for row in rows} for rows in (short, long)]
    cells = [cell for cell in by[0] if cell in by[1]]
    changes: dict[str, list[float]] = {}
    for number in ("acc", "asr"):
        moved: dict[str, list[float]] = {}
        for cell in cells:
            pair = [rows[cell][number] for rows in by]
            if None not in pair:
                moved.setdefault(cell[0], []).append(pair[0] - pair[1])
        changes[number] = [_mean(own) for own in moved.values()]
    if len(changes["acc"]) < 2:
        return None
    first, second = (sum(rows[c]["cpu_seconds"] for c in cells) for rows in by)
    return Comparison(name, {k: v for k, v in changes.items() if len(v) > 1}, first / second)


def page(results: Path = RESULTS) -> str:
    """The page of both comparisons, and of the order in which victims of both recipes put the repairs."""
    rows = sweeps.sweeps(results)[NAME]

    def chosen(role: str, recipe: str, keep: Callable[[str], bool] = lambda name: True) -> list[Row]:
        return [row for row in rows if row["role"] == role and row["recipe"] == recipe and keep(row["defense"])]

    names = list(dict.fromkeys(row["defense"] for row in rows if row["role"] == "defended"))
    shared = [name for name in names if {row["recipe"] for row in rows if row["defense"] == name} >= {SHORT, LONG}]
    lines = [compared(f"victims, {SHORT} beside {LONG}", chosen("victim", SHORT), chosen("victim", LONG))]
    lines += [
        compared(
            f"{name} of victims of {SHORT} beside {LONG}",
            *([r for r in chosen("defended", recipe) if r["defense"] == name] for recipe in (SHORT, LONG)),
        )
        for name in shared
    ]
    presets: list[Comparison | None] = []
    for name in names:
        if name.endswith(SUFFIX) and name.removesuffix(SUFFIX) in names:
            short, long = (
                [{**r, "defense": ""} for r in chosen("defended", SHORT) if r["defense"] == n]
                for n in (name, name.removesuffix(SUFFIX))
            )
            presets.append(compared(name, short, long))
    means = [
        [_mean([r["asr"] for r in chosen("defended", recipe) if r["defense"] == name]) for name in shared]
        for recipe in (SHORT, LONG)
    ]
    rank = float(spearmanr(*means).statistic)
    first = rows[0]
    text = [
        "# Short and long forms",
        "",
        f"{first['data']}, {first['model']}; `{first['command']}`; "
        f"made by `python benchmarks/make_tables.py` from `{NAME}.jsonl`. "
        f"{first['machine']}, {first['device']}, {first['precision']}, {first['versions']}.",
        "",
        "Points of the short form less the long one, mean over attacks, each by its mean over seeds, with the 95 % t interval. "
        "A short form may be called fast if ACC and ASR are within one point on average, in a fifth of the time at most. Where "
        "a mean is further off and its interval has zero in it, there are too few attacks to tell. "
        f"{_named([line for line in (lines[0], *presets) if line is not None])}",
        "",
        "## Recipes of victims",
        "",
        *_table([line for line in lines if line is not None]),
        "",
        f"The order of repairs by mean attack success after them ({', '.join(shared)}): Spearman's rank correlation between "
        f"victims of the two recipes is {rank:.2f}.",
        "",
        "## Presets of repairs",
        "",
        *_table([line for line in presets if line is not None]),
    ]
    return "\n".join(text) + "\n"


def _named(lines: Sequence[Comparison]) -> str:
    """Which of the forms may be called fast, in a sentence."""
    fast = [line.name for line in lines if line.verdict == "fast"]
    if not fast:
        return "None of these may, so they are called short (`fast`, their former name, is still taken)."
    return f"Of these, {', '.join(fast)} may; the names say short for all (`fast`, their former name, is still taken)."


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _table(lines: Sequence[Comparison]) -> list[str]:
    body = [
        [
            line.name,
            str(len(line.changes["acc"])),
            *(_points(line.changes[n]) for n in ("acc", "asr")),
            f"{line.time:.2f}",
            line.verdict,
        ]
        for line in lines
    ]
    head = ["form", "attacks", "ACC", "ASR", "share of the time", "verdict"]
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)]


def _points(values: Sequence[float]) -> str:
    s = over_seeds(values)
    return f"{100 * s.mean:+.1f} ({100 * s.low:+.1f} to {100 * s.high:+.1f})"
