"""Committed sweeps of debiased models: each method beside the plain model of its seed, and beside the others."""

from __future__ import annotations

from collections.abc import Sequence

from theriac.bench.tables import Group, Row, grouped
from theriac.metrics.intervals import over_seeds
from theriac.report.cards import grid

FIGURES = {"acc": "ACC", "bacc": "bACC", "odds_gap": "odds gap", "dp_gap": "DP gap"}
FIRST = "DwB exact"  # whom the others are held against


def is_debiased(rows: Sequence[Row]) -> bool:
    """Whether these are results of debiasing."""
    return any(row["role"] == "debiased" for row in rows)


def setting(rows: Sequence[Row], place: str) -> list[str]:
    """The part of a page that is about one setting.

    Args:
        rows: Its results.
        place: What is added to headings.
    """
    groups = [group for group in grouped(rows) if group.role == "debiased" and group.done]
    plain = [f"{name} {100 * _mean(groups, f'{figure}_before'):.1f}" for figure, name in FIGURES.items()]
    lines = [
        f"## Beside the plain model{place}",
        "",
        *_headline(groups),
        f"Plain models, means over seeds: {', '.join(plain)} %. bACC: mean over cells of group and label of a cell's accuracy; "
        "odds gap: mean odds difference; DP gap: demographic parity difference. Change: in points, of each seed against its "
        "own plain model, with a 95 % t interval over seeds. Degenerate: in how many seeds the model answers one class or "
        "lost one. Harmed: in how many seeds a group's accuracy, or its recall of the positive class, falls beyond noise, "
        "and by how many points at most.",
        "",
        grid(
            (
                "method",
                "seeds",
                *(part for name in FIGURES.values() for part in (name, "change")),
                "harmed",
                "degenerate",
                "CPU s",
            ),
            [_line(group) for group in groups],
        ),
        "",
    ]
    first = next((group for group in groups if group.defense == FIRST), None)
    if first is None:
        return lines
    return [
        *lines,
        f"## {FIRST} beside the others{place}",
        "",
        f"Points by which {FIRST} lies above the other, paired by seed, with 95 % t intervals that are not corrected for their "
        "number; *not distinguishable* where an interval holds zero. For gaps less is better.",
        "",
        grid(("other", *FIGURES.values()), [_beside(first, group) for group in groups if group is not first]),
        "",
    ]


def _mean(groups: Sequence[Group], name: str) -> float:
    values: dict[int, float] = {row["seed"]: row[name] for group in groups for row in group.done if row.get(name) is not None}
    return sum(values.values()) / len(values)


def _headline(groups: Sequence[Group]) -> list[str]:
    """What comes before all figures: methods after which a group is worse off in most of their seeds."""
    often = [group for group in groups if max(map(len, group.falls.values()), default=0) > len(group.done) / 2]
    if not often:
        return []
    named = sorted(often, key=lambda group: min(map(min, group.falls.values())))
    return [f"**Harm a group in most of their seeds: {', '.join(group.defense for group in named)}.**", ""]


def _line(group: Group) -> list[str]:
    cells = []
    for name in FIGURES:
        after = group.over(name)
        changes = [row[name] - row[f"{name}_before"] for row in group.done]
        cells += ["" if after is None else f"{100 * after.mean:.1f}", _points(changes)]
    hollow = sum(bool(row.get("degenerate")) for row in group.done)
    seconds = group.over("cpu_seconds")
    return [
        group.defense,
        ", ".join(str(row["seed"]) for row in group.done),
        *cells,
        ", ".join(f"{name} {len(falls)} of {len(group.done)} ({100 * min(falls):.1f})" for name, falls in group.falls.items()),
        f"{hollow} of {len(group.done)}",
        "" if seconds is None else f"{seconds.mean:.0f}",
    ]


def _beside(first: Group, other: Group) -> list[str]:
    own, theirs = ({row["seed"]: row for row in group.done} for group in (first, other))
    seeds = [seed for seed in own if seed in theirs]
    return [other.defense, *(_points([own[s][name] - theirs[s][name] for s in seeds], verdict=True) for name in FIGURES)]


def _points(changes: Sequence[float], verdict: bool = False) -> str:
    if len(changes) < 2:
        return "".join(f"{100 * change:+.1f}" for change in changes)
    spread = over_seeds([100 * change for change in changes])
    words = f"{spread.mean:+.1f} ({spread.low:+.1f} to {spread.high:+.1f})"
    return f"{words}, not distinguishable" if verdict and spread.low <= 0 <= spread.high else words
