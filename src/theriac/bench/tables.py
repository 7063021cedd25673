"""Results as rows: one for each cell and seed, cells over their seeds, and the files that they are exported to."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, Literal

from theriac.auditing.result import BENIGN, SUBJECT
from theriac.bench.store import Store
from theriac.core.errors import InputError, unknown
from theriac.core.files import write_atomically
from theriac.core.paths import as_path, writing
from theriac.core.text import in_markdown
from theriac.metrics import Spread, der, over_seeds, wilson
from theriac.metrics.debiased import short
from theriac.metrics.intervals import share

RATES = ("acc", "asr", "ra", "target_acc")
RATIOS = ("features: existence",)  # figures of an audit that are no shares of rows
GAPS = ("bacc", "dp_gap", "opportunity_gap", "odds_gap")  # of debiased models
SENTENCE_END = re.compile(r"(?<=[.?]) (?=[A-Z0-9])")
QUOTED = re.compile(r"(?<![^ (])'.*?'(?![^ .,:;)])")  # the name of a class or group, which may look like the end of a sentence
LABELS = ("data", "model", "recipe", "attack", "defense", "clean")
COLUMNS = (
    "sweep",
    *LABELS,
    "role",
    "seed",
    "defense_seed",
    "status",
    *(f"{name}{end}" for name in RATES for end in ("", "_hits", "_total")),
    "acc_before",
    "asr_before",
    "ra_before",
    "der",
    *(f"{name}{end}" for name in GAPS for end in ("", "_before")),
    "outcome",
    "degenerate",
    "harmed",
    "alarms",
    "audit",
    "seconds",
    "cpu_seconds",
    "peak_mb",
    "row_passes",
    "machine",
    "device",
    "precision",
    "versions",
    "warnings",
    "error",
    "options",
    "key",
)

STATUSES = ("done", "failed", "planned")  # of a job; that none has one is an answer
Row = dict[str, Any]
_MODEL = "(SELECT other FROM needs WHERE needs.key = cells.key AND needs.place = 0)"
_VICTIM = "(SELECT v.options FROM needs JOIN jobs v ON v.key = other WHERE needs.key = cells.key AND needs.place = 0)"


def rows(store: Store, sweep: str | None = None, **labels: str) -> list[Row]:
    """One row for each cell and seed, in the order of the plan.

    Args:
        store: The store.
        sweep: Name of one sweep; left out: all of them.
        **labels: Only rows with this label, such as ``status="done"``.

    Returns:
        Plain values under the names in ``COLUMNS``; None where there is no such number. Of several sweeps, a result that they
        share counts once; where a label means different things in two of them, it also names the sweep. An audit is part of
        the row of its model: ``alarms`` counts its signs of a backdoor, and ``audit`` holds its figures as JSON. DER of a
        model that a training-time defense made is counted against the plain victim of the same seed, if there is one only.

    Raises:
        InputError: On an unknown sweep or label.
    """
    if sweep is not None and sweep not in store.sweeps():
        raise unknown("sweep", sweep, store.sweeps())
    scores: dict[str, dict[tuple[str, str], tuple[int, int]]] = {}
    for key, stage, name, hits, total in store.db.execute("SELECT key, stage, name, hits, total FROM scores"):
        scores.setdefault(key, {})[stage, name] = (hits, total)
    names = ("sweep", *LABELS, "role", "seed", "defense_seed", "key", "status", "result", "options")
    facts = ("seconds", "cpu_seconds", "peak_mb", "row_passes", "machine", "device", "precision", "versions", "error")
    select = ", ".join([*(f"cells.{n}" for n in names[:10]), *(f"jobs.{n}" for n in (*names[10:], *facts)), _MODEL, _VICTIM])
    query = f"SELECT {select} FROM cells JOIN jobs USING (key) JOIN sweeps ON sweeps.name = sweep"
    query = query.replace("jobs.key", "cells.key") + " WHERE ? IS NULL OR sweep = ? ORDER BY sweeps.started, sweep, place"
    selected = [
        _row(dict(zip((*names, *facts, "of", "victim"), values, strict=True)), scores)
        for values in store.db.execute(query, (sweep, sweep))
    ]
    selected = _with_audits(selected)
    _add_der(selected)
    if sweep is None:
        selected = _apart(selected)
    for label, value in labels.items():
        if label not in (*LABELS, "role", "status"):
            raise unknown("label", label, (*LABELS, "role", "status"))
        known = {row[label] for row in selected} | (set(STATUSES) if label == "status" else set())
        if value not in known:
            raise unknown(label, value, known)
        selected = [row for row in selected if row[label] == value]
    return selected


def _row(row: Row, scores: Mapping[str, Mapping[tuple[str, str], tuple[int, int]]]) -> Row:
    try:
        result, own, victim = (json.loads(row.pop(name) or "{}") for name in ("result", "options", "victim"))
        # a repair's own options do not say how its victim was made
        row["options"] = json.dumps({**victim, **own}, sort_keys=True)
        result = {**result}
    except (json.JSONDecodeError, TypeError):
        raise InputError(
            f"the store is damaged: what it holds of job {row['key'][:12]} is no JSON object; restore a copy"
        ) from None
    counted = scores.get(row["key"], {})
    for name in RATES:
        after = counted.get(("after", name))
        hits, total = after or (None, None)
        row |= {name: None if after is None else after[0] / after[1], f"{name}_hits": hits, f"{name}_total": total}
        if name != "target_acc":
            before = counted.get(("before", name))
            row[f"{name}_before"] = None if before is None else before[0] / before[1]
    outcome, audit = (result.get(name) or {} for name in ("outcome", "audit"))
    row |= {
        "alarms": len(audit["alarms"]) if audit else None,
        "audit": json.dumps(_looks(audit)) if audit else None,
        "der": result.get("der"),
        "outcome": outcome.get("status"),
        "degenerate": " ".join(result.get("degenerate") or ()),
        "harmed": _harmed(result.get("verdict") or {}),
        "warnings": "; ".join(result.get("notes") or ()),
    }
    fairness = result.get("fairness") or {}
    for end, which in (("", "debiased"), ("_before", "plain")):
        figures = fairness.get(which) or {}
        row |= {f"{name}{end}": (figures.get(name) or {}).get("value") for name in GAPS}
        if end and figures:
            row["acc_before"] = (figures.get("acc") or {}).get("value")
    return row


def _harmed(verdict: Mapping[str, Any]) -> str | None:
    """The largest fall of each group that debiasing harmed beyond noise, as JSON; None of no debiased model."""
    if "harmed" not in verdict:
        return None
    fell: dict[str, float] = {}
    for change in verdict["harmed"]:
        fell[change["group"]] = min(change["change"], fell.get(change["group"], 0.0))
    return json.dumps(fell)


def _looks(audit: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The figures of an audit in which a backdoor would show, by look and model."""
    return {
        f"{line['look']}: {line['figure']}": {model: cell["value"] for model, cell in line["cells"].items()}
        for line in audit["lines"]
        if line["bad"]
    }


def _with_audits(results: Sequence[Row]) -> list[Row]:
    """The rows, with each finished audit in the row of its model; those that failed or wait stay rows of their own.

    Of several audits of a model, that of the row's own sweep counts, then one with a benign model, then the last.
    """
    audits: dict[str, list[Row]] = {}
    for row in results:
        if row["role"] == "audited" and row["audit"] is not None:
            audits.setdefault(row["of"], []).append(row)
    others = []
    for row in results:
        if row["key"] in audits:
            own = max(reversed(audits[row["key"]]), key=lambda a: (a["sweep"] == row["sweep"], f'"{BENIGN}"' in a["audit"]))
            row |= {"alarms": own["alarms"], "audit": own["audit"]}
        if row["role"] != "audited" or row["audit"] is None:
            others.append({name: value for name, value in row.items() if name != "of"})
    return others


@dataclass(frozen=True)
class Mean:
    """One number over seeds.

    Args:
        values: One for each seed of the victim.
        rows: Test rows behind all of them together, where it is a share that was counted; else 0.
    """

    values: tuple[float, ...]
    rows: int = 0

    @property
    def mean(self) -> float:
        """Their mean."""
        return sum(self.values) / len(self.values)

    @property
    def spread(self) -> Spread | None:
        """With a 95 % t interval; None for one seed."""
        return over_seeds(list(self.values)) if len(self.values) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % t interval, which is at least as wide as Wilson's over all rows; None for one seed.

        Seeds that happen to agree, as near 0 and 1 they do, have a t interval of no width, which says more than was counted.
        """
        spread = self.spread
        if spread is None:
            return None
        if not self.rows:
            return spread.low, spread.high
        low, high = wilson(round(self.mean * self.rows), self.rows)
        return max(0.0, min(low, spread.low)), min(1.0, max(high, spread.high))


@dataclass(frozen=True)
class Group:
    """A cell of the matrix over its seeds.

    Args:
        labels: Data, model, recipe, attack, defense and clean rows, as the spec calls them.
        role: As in :class:`theriac.bench.plans.Cell`.
        rows: One for each seed, and for each seed of the defense.
    """

    labels: tuple[str, ...]
    role: str
    rows: list[Row] = field(default_factory=list)

    @property
    def attack(self) -> str:
        """Label of the attack."""
        return self.labels[3]

    @property
    def defense(self) -> str:
        """Label of the defense."""
        return self.labels[4]

    @property
    def full_defense(self) -> str:
        """Label of the defense, with its clean rows."""
        return " ".join(part for part in self.labels[4:] if part)

    @property
    def done(self) -> list[Row]:
        """Rows that have a result."""
        return [row for row in self.rows if row["status"] == "done"]

    @property
    def victims(self) -> int:
        """How many seeds of the victim have a result; a defense may have been repeated on each."""
        return len({row.get("seed") for row in self.done})

    @property
    def degenerate(self) -> list[str]:
        """Results that a degenerate model would also reach, in sentences, each once, and with how many have it if not all."""
        counts = Counter(text for row in self.done for text in sentences(row.get("degenerate") or ""))
        of = len(self.done)
        return [
            text if count == of else f"{text.removesuffix('.')} ({count} of {of} results)." for text, count in counts.items()
        ]

    @property
    def falls(self) -> dict[str, list[float]]:
        """For each group that debiasing harmed in some results, its largest fall in each of them, in [-1, 0)."""
        fell: dict[str, list[float]] = {}
        for row in self.done:
            for name, change in json.loads(row.get("harmed") or "{}").items():
                fell.setdefault(name, []).append(change)
        return fell

    @property
    def harmed(self) -> list[str]:
        """Groups that debiasing harmed, in sentences: in how many results, and by how much at most."""
        of = len(self.done)
        return [
            f"Harms group {short(name)}{f' in {len(falls)} of {of} results' * (of > 1)}: accuracy or recall down by "
            f"{'up to ' * (len(falls) > 1)}{-100 * min(falls):.1f} points."
            for name, falls in self.falls.items()
        ]

    @property
    def cautions(self) -> list[str]:
        """What to know before its numbers are believed, in sentences."""
        return [*self.degenerate, *self.harmed]

    @property
    def alarmed(self) -> tuple[int, int]:
        """For how many victims an audit saw a sign of a backdoor, and how many have an audit."""
        return _alarmed(self.done)

    def over(self, name: str) -> Mean | None:
        """A number over seeds of the victim; None if no row has it.

        Repetitions of a defense on one victim are alike, so they count once, with their mean: else an interval would say
        how alike they are, and not how victims differ.
        """
        values: dict[Any, list[float]] = {}
        counted: dict[Any, int] = {}  # test rows of each seed
        for row in self.done:
            if row.get(name) is not None:
                values.setdefault(row.get("seed"), []).append(float(row[name]))
                counted.setdefault(row.get("seed"), row.get(f"{name}_total") or 0)
        rows = sum(counted.values()) if all(counted.values()) else 0
        return Mean(tuple(sum(own) / len(own) for own in values.values()), rows) if values else None


def sentences(text: str) -> list[str]:
    """The sentences of a row's ``degenerate``.

    Examples:
        >>> sentences("Class 'St. John' fell: 97.2 % to 0.0 %. 3 classes are lost, such as '8': 0 of 35 rows right.")
        ["Class 'St. John' fell: 97.2 % to 0.0 %.", "3 classes are lost, such as '8': 0 of 35 rows right."]
    """
    masked = QUOTED.sub(lambda name: "_" * len(name[0]), text)
    starts = [0, *(end.end() for end in SENTENCE_END.finditer(masked))]
    return [text[a:b].strip() for a, b in pairwise([*starts, len(text)]) if text[a:b].strip()]


def grouped(results: Sequence[Row]) -> list[Group]:
    """Cells over their seeds, in the order of the rows; a result that comes under two seeds of its defense counts once."""
    groups: dict[tuple[Any, ...], Group] = {}
    for row in results:
        labels = tuple(row[name] for name in LABELS)
        group = groups.setdefault((labels, row["role"]), Group(labels, row["role"]))
        alike = {(other["key"], other["seed"]) for other in group.rows}
        if (row["key"], row["seed"]) not in alike:  # as seed 0 of a repair is there twice, with and without defense_seeds
            group.rows.append(row)
    return list(groups.values())


def beside_repairs(groups: Sequence[Group]) -> list[Group]:
    """The same groups, with training-time defenses under the recipe of the repairs that they stand beside.

    Such a defense has no recipe of its own. Where its data and model have several, it stays apart.
    """
    recipes: dict[tuple[str, ...], set[str]] = {}
    for group in groups:
        recipes.setdefault(group.labels[:2], set()).update([group.labels[2]] if group.labels[2] else [])

    def placed(group: Group) -> Group:
        own = recipes[group.labels[:2]]
        return replace(group, labels=(*group.labels[:2], *own, *group.labels[3:])) if len(own) == 1 else group

    return [placed(group) for group in groups]


def _add_der(results: Sequence[Row]) -> None:
    """DER of training-time defenses, whose own result holds none."""
    victims: dict[tuple[Any, ...], list[Row]] = {}
    for row in results:
        if row["role"] == "victim" and row["asr"] is not None:
            victims.setdefault(_setting(row), []).append(row)
    for row in results:
        if row["role"] == "defended" and row["der"] is None and row["asr"] is not None:
            beside = victims.get(_setting(row), [])
            if len(beside) == 1:  # of several recipes none is the one that the defense took the place of
                row["der"] = der(beside[0]["acc"], row["acc"], beside[0]["asr"], row["asr"])


def _setting(row: Row) -> tuple[Any, ...]:
    return row["sweep"], row["data"], row["model"], row["attack"], row["seed"]


def _apart(results: Sequence[Row]) -> list[Row]:
    """Rows of several sweeps, so that none counts twice and labels that say the same mean the same.

    Where two sweeps mean different things by a label, it also names the sweep.
    """
    full = all("content" in _options(row) for row in results)  # else some rows come from an earlier version
    meant: dict[tuple[Any, ...], dict[str, dict[str, set[str]]]] = {}  # by labels, whatever the seed: sweep, part, facts
    known: dict[tuple[Any, ...], dict[str, set[str]]] = {}  # by cell: sweep, keys
    for row in results:
        facts = meant.setdefault(_labels(row), {}).setdefault(row["sweep"], {part: set() for part in LABELS})
        for part, text in _meaning(row, full).items():
            facts[part].add(text)
        known.setdefault(_cell(row), {}).setdefault(row["sweep"], set()).add(row["key"])
    unlike: set[tuple[str, str, str]] = set()  # sweep, part, label
    for labels, sweeps in meant.items():
        for (one, own), (two, other) in combinations(sweeps.items(), 2):
            parts = [part for part in LABELS if own[part].isdisjoint(other[part])]
            unlike |= {(sweep, part, labels[LABELS.index(part)]) for sweep in (one, two) for part in parts}
    for cell, by_sweep in known.items():
        for (one, keys), (two, others) in combinations(by_sweep.items(), 2):
            apart = any((one, part, label) in unlike for part, label in zip(LABELS, cell, strict=False))
            if keys.isdisjoint(others) and not apart:  # of a count of a benign model the other victim, else another version
                part = "attack" if cell[len(LABELS)].startswith("judged") else "data"
                unlike |= {(sweep, part, cell[LABELS.index(part)]) for sweep in (one, two)}
    counted, single = set(), []
    for row in results:
        row |= {part: f"{row[part]} [{row['sweep']}]" for part in LABELS if (row["sweep"], part, row[part]) in unlike}
        place = (_cell(row), row["key"])
        if place not in counted:
            counted.add(place)
            single.append(row)
    return single


def _labels(row: Row) -> tuple[Any, ...]:
    return (*(row[name] for name in LABELS), row["role"])


def _cell(row: Row) -> tuple[Any, ...]:
    return (*_labels(row), row["seed"], row["defense_seed"])


def _options(row: Row) -> dict[str, Any]:
    return dict(json.loads(row.get("options") or "{}"))


# which options of a job say what each label means
_MEANING = {
    "data": ("data", "content", "augment", "precision", "compared"),  # auto is another precision on another processor
    "model": ("model",),
    "recipe": ("recipe", "recipe_options"),
    "attack": ("attack",),
    "defense": ("defense",),
    "clean": ("clean",),
}


def _meaning(row: Row, content: bool) -> dict[str, str]:
    """What each label of a row means, for whatever seed, as text; what the rows hold only where all results say it."""
    options = _options(row)
    options["precision"] = row.get("precision") or options.get("precision")
    return {
        part: json.dumps([options.get(name) for name in names if content or name != "content"], sort_keys=True)
        for part, names in _MEANING.items()
    }


Basis = Literal["seeds", "rows", ""]


def interval(group: Group, name: str) -> tuple[float, float | None, float | None, Basis] | None:
    """Mean of a number, its 95 % interval and what that is over; None without a number.

    Over several seeds of the victim it is a t interval (see :attr:`Mean.interval`). Of one run, a share that was counted has
    Wilson's over its test rows; other numbers have none, nor have repetitions of a defense on one victim, which tell nothing of
    other victims.
    """
    value = group.over(name)
    if value is None:
        return None
    ends = value.interval
    if ends is not None:
        low, high = max(0.0, ends[0]), ends[1]
        return value.mean, low, min(1.0, high) if name in (*RATES, *GAPS, "der") else high, "seeds"
    row, *others = (row for row in group.done if row.get(name) is not None)
    if not others and row.get(f"{name}_total"):
        return value.mean, *wilson(row[f"{name}_hits"], row[f"{name}_total"]), "rows"
    return value.mean, None, None, ""


GAP_HEADS = {"bACC %": "bacc", "DP gap %": "dp_gap", "opportunity gap %": "opportunity_gap", "odds gap %": "odds_gap"}
_HEADS = ("data", "model", "recipe", "attack", "defense", "clean", "role", "seeds")
SHOWN = (*_HEADS, "ACC %", "ASR %", "RA %", "DER", *GAP_HEADS, "alarms in", "seconds")


def summary(groups: Sequence[Group]) -> list[list[str]]:
    """Cells over their seeds as texts, under the names in ``SHOWN``."""
    lines = []
    for group in groups:
        mark = " †" if group.cautions else ""
        figures = [text and text + mark for text in (in_words(group.over(name), 100) for name in ("acc", "asr", "ra"))]
        time, der_words = group.over("seconds"), in_words(group.over("der"), 1, 3)
        last = [der_words and der_words + mark, *(_moved(group, name) for name in GAP_HEADS.values())]
        last.append("{} of {}".format(*group.alarmed) if any(group.alarmed) else "")
        last.append("" if time is None else f"{time.mean:.1f}")
        seeds = f"{len(group.done)}" if len(group.done) == len(group.rows) else f"{len(group.done)} of {len(group.rows)}"
        if group.victims < len(group.done):
            seeds += f", {group.victims} victim{'s' * (group.victims > 1)}"
        lines.append([*group.labels, group.role, seeds, *figures, *last])
    return lines


def _moved(group: Group, name: str) -> str:
    """A figure of the plain model and of the debiased one."""
    before, after = group.over(f"{name}_before"), in_words(group.over(name), 100)
    return f"{share(before.mean)} → {after}" if before is not None and after else after


def filled(lines: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Names and texts of the columns of a summary in which some cell has something."""
    used = [i for i, name in enumerate(SHOWN) if name in _HEADS or any(line[i] for line in lines)]
    return [SHOWN[i] for i in used], [[line[i] for i in used] for line in lines]


def audits(groups: Sequence[Group]) -> list[list[str]]:
    """What audits saw by defense, over its attacks and seeds: a head, then one line for each; empty without audits.

    Figures are percent of the defended models, in parentheses of the benign ones under the same look; what is no share of rows
    is a ratio. Both are over the audits that had a benign model, where some had; repetitions of a defense on one victim count
    once, with their mean.
    """
    by: dict[tuple[str, str], list[Row]] = {}
    for group in groups:
        own = [row for row in group.done if row.get("audit")]
        if own:
            by.setdefault((group.full_defense, ", ".join(part for part in group.labels[:3] if part)), []).extend(own)
    looked = {name: [_mean_audit(rows) for rows in _by_victim(own)] for name, own in by.items()}
    looks = list(dict.fromkeys(look for own in looked.values() for audit in own for look in audit))
    lines = [["defense", "setting", "alarms in", *looks]] if by else []
    for name, own in by.items():
        cells = [[audit[look] for audit in looked[name] if look in audit] for look in looks]
        lines.append(
            [
                *name,
                "{} of {}".format(*_alarmed(own)),
                *(_mean_look(look, cell) for look, cell in zip(looks, cells, strict=True)),
            ]
        )
    return lines


def _by_victim(results: Sequence[Row]) -> list[list[Row]]:
    """Rows with an audit, those that repeat a defense on one victim together."""
    victims: dict[tuple[Any, ...], list[Row]] = {}
    for row in results:
        if row.get("alarms") is not None:
            victims.setdefault((*(row.get(name) for name in LABELS), row.get("seed")), []).append(row)
    return list(victims.values())


def _alarmed(results: Sequence[Row]) -> tuple[int, int]:
    victims = _by_victim(results)
    return sum(any(row["alarms"] > 0 for row in own) for own in victims), len(victims)


def _mean_audit(results: Sequence[Row]) -> dict[str, dict[str, float]]:
    """The figures of audits of one victim's repairs, by look and model."""
    read = [json.loads(row["audit"]) for row in results]
    mean: dict[str, dict[str, float]] = {}
    for look in dict.fromkeys(look for audit in read for look in audit):
        cells = [audit[look] for audit in read if look in audit]
        for model in dict.fromkeys(model for cell in cells for model in cell):
            values = [cell[model] for cell in cells if model in cell]
            mean.setdefault(look, {})[model] = sum(values) / len(values)
    return mean


def _mean_look(look: str, cells: Sequence[Mapping[str, float]]) -> str:
    """Mean of one figure over audits, with that of the benign models."""
    if not cells:
        return ""
    times, digits = (1, 2) if look in RATIOS else (100, 1)
    cells = [cell for cell in cells if BENIGN in cell] or cells
    benign = [cell[BENIGN] for cell in cells if BENIGN in cell]
    control = f" ({times * sum(benign) / len(benign):.{digits}f})" if benign else ""
    return f"{times * sum(cell[SUBJECT] for cell in cells) / len(cells):.{digits}f}{control}"


def misleading(groups: Sequence[Group]) -> list[str]:
    """What a † means: cells whose numbers a degenerate model would also reach, or where a group is harmed, by name."""
    broken = [group for group in groups if group.cautions]
    return [f"{group.attack} · {group.full_defense} ({group.role}): {' '.join(group.cautions)}" for group in broken]


def in_words(value: Mean | None, times: float, digits: int = 1) -> str:
    """The mean of shares with its interval over seeds, which ends where shares end."""
    if value is None:
        return ""
    ends, text = value.interval, share(value.mean) if (times, digits) == (100, 1) else f"{times * value.mean:.{digits}f}"
    if ends is None:
        return text
    low, high = max(0.0, ends[0]), min(1.0, ends[1])
    return f"{text} ({times * low:.{digits}f} to {times * high:.{digits}f})"


# files


def export(results: Sequence[Row], path: str | Path) -> Path:
    """Write rows to a file, in the format that its ending names.

    Args:
        results: What :func:`rows` gave.
        path: ``.csv``, ``.parquet`` and ``.jsonl`` hold one row for each seed; ``.md`` and ``.tex`` cells over their seeds.

    Raises:
        InputError: On another ending, or a path that can't be written.
    """
    path = as_path("--out", path)
    if path.suffix not in FORMATS:
        raise unknown("ending of --out", path.suffix or str(path), FORMATS)
    if not results:
        raise InputError("there is no row to write")
    plain = [{name: row.get(name) for name in COLUMNS} for row in results]
    with writing("--out", path):
        return write_atomically(path, lambda temporary: temporary.write_bytes(FORMATS[path.suffix](plain)))


def _csv(plain: Sequence[Row]) -> bytes:
    sink = io.StringIO()
    writer = csv.DictWriter(sink, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain)
    return sink.getvalue().encode()


def _jsonl(plain: Sequence[Row]) -> bytes:
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in plain).encode()


def _parquet(plain: Sequence[Row]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    integers = ("seed", "defense_seed", "alarms", "row_passes")
    texts = {*LABELS, "sweep", "role", "status", "outcome", "degenerate", "harmed", "audit", "warnings", "error"}
    texts |= {"machine", "device", "precision", "versions", "options", "key"}

    def kind(name: str) -> Any:
        if name in texts:
            return pa.string()
        return pa.int64() if name in integers or name.endswith(("_hits", "_total")) else pa.float64()

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(plain), schema=pa.schema([(name, kind(name)) for name in COLUMNS])), sink)
    return bytes(sink.getvalue())


def _markdown(plain: Sequence[Row]) -> bytes:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(map(in_markdown, cells))} |"

    groups = grouped(plain)
    head, body = filled(summary(groups))
    lines = [line(head), line(["---"] * len(head)), *(line(cells) for cells in body)]
    lines += [part for text in misleading(groups) for part in ("", f"† {in_markdown(text)}")]
    return ("\n".join(lines) + "\n").encode()


_TEX = str.maketrans(
    {c: f"\\{c}" for c in "%&_#${}"}
    | {"\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\~{}", "·": r"$\cdot$", "†": r"\dag{}", "→": r"$\to$"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
)


def _latex(plain: Sequence[Row]) -> bytes:
    def line(cells: Sequence[str]) -> str:
        return f"{' & '.join(cell.translate(_TEX) for cell in cells)} \\\\"

    groups = grouped(plain)
    names, body = filled(summary(groups))
    notes = [rf"{{\par\footnotesize {f'† {text}'.translate(_TEX)}\par}}" for text in misleading(groups)]
    texts = len(_HEADS) - 1
    head = [rf"\begin{{tabular}}{{{'l' * texts}{'r' * (len(names) - texts)}}}", r"\hline", line(names), r"\hline"]
    return ("\n".join([*head, *map(line, body), r"\hline", r"\end{tabular}", *notes]) + "\n").encode()


FORMATS: dict[str, Callable[[Sequence[Row]], bytes]] = {
    ".csv": _csv,
    ".parquet": _parquet,
    ".jsonl": _jsonl,
    ".md": _markdown,
    ".tex": _latex,
}
