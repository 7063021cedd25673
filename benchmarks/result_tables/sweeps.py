"""Committed sweeps: attacks x defenses over seeds, worst cells, and paired comparisons."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from table import RESULTS, tables

from result_tables import debiased
from theriac.bench import compare, grouped, scores_of
from theriac.bench.statistics import LEVEL
from theriac.bench.tables import QUOTED, Group, Row, audits, in_words, sentences
from theriac.core.method import KINDS, Method, methods
from theriac.metrics import wilson
from theriac.metrics._degenerate import hollow

ASSURED = 0.10  # attack success above which "repaired" is a false assurance
CELLS = (
    "Misleading: cells in which the model answers one class, can't be told from guessing, lost a class (at most 5 % of it "
    "right, or the target class far below the others), or obeys without trigger. A class fell: by more than 10 points, beyond "
    "chance."
)


def sweeps(results: Path = RESULTS) -> dict[str, list[Row]]:
    """Rows of every committed sweep, by the name of its table."""
    return {name: [_row(r) for r in table] for name, table in tables(results).items() if name.startswith("sweep_")}


def page(name: str, rows: Sequence[Row]) -> str:
    """One sweep, a part for each of its settings (data, model, recipe)."""
    first = rows[0]
    facts = dict.fromkeys(
        ", ".join(str(row[part]) for part in ("machine", "device", "precision", "versions") if row.get(part)) for row in rows
    )
    clean = _budgets(rows)
    # a sweep that was stopped may have a benign model and no victim yet
    settings = {name: own for name, own in _settings(rows).items() if {"victim", "debiased"} & {row["role"] for row in own}}
    drawn = f", clean rows {' and '.join(clean)}" if clean else ""
    lines = [
        f"# {name.removeprefix('sweep_').replace('_', ' ').capitalize()}",
        "",
        f"{'; '.join(settings)}{drawn}; `{first['command']}`. "
        f"Made by `python benchmarks/make_tables.py` from `{name}.jsonl`; {'; '.join(facts)}.",
        "",
        "Percent, over the seeds that are there."
        if debiased.is_debiased(rows) or not any(row["role"] == "defended" for row in rows)
        else "Percent, over the seeds that are there. Worst: of all attacks and seeds. Excess: points of attack success above "
        "that of a benign model after the same repair, under the same trigger; an untargeted trigger, or one that hides the "
        "picture, counts errors of every model.",
    ]
    old = _earlier(rows)
    if old:
        lines += ["", f"Made with earlier versions: {', '.join(old)}. What changed is noted beside `version` in their code."]
    for setting, inside in settings.items():
        while not lines[-1]:  # parts that are left out leave their blank line
            lines.pop()
        part = debiased.setting if debiased.is_debiased(inside) else _setting
        lines += ["", *part(inside, f" ({setting})" if len(settings) > 1 else "")]
    return "\n".join(lines).rstrip() + "\n"


def for_defense(cls: type[Method], results: Path = RESULTS) -> list[str]:
    """A method's lines in every sweep that has it: over all its attacks and seeds, and where it was worst."""
    body = []
    for name, rows in sweeps(results).items():
        clean = _budgets(rows)
        for setting, inside in _settings(rows).items():
            groups = grouped(inside)
            defended = [group for group in groups if group.role == "defended"]
            for defense in dict.fromkeys(group.defense for group in defended):
                done = [row for group in _of(defended, defense) for row in group.done]
                if not done or json.loads(done[0]["options"])["defense"]["method"] != cls.name:
                    continue
                _, seeds, mean, worst, place, _, _, change, right, misleading, fell, cost = _line(defended, groups, defense)
                link = f"[{name.removeprefix('sweep_')}](../../benchmarks/results/{name}.md)"
                budget = next(iter(clean)) if len(clean) == 1 else ""  # else its name says it
                given = ", ".join(filter(None, (setting, f"{budget} clean" if budget and done[0]["clean"] else "")))
                attacks = str(len({row["attack"] for row in done if row["attack"]}))
                abstained = sum(row["outcome"] == "abstained" for row in done)
                called = f"{defense}, which abstained in {abstained} of {len(done)}" if abstained else defense
                called += "".join(f"; {text.partition(' ')[2]}" for text in _earlier(done, ("defense",)))
                body.append(
                    [link, given, called, attacks, seeds, mean, f"{worst} ({place})", change, right, misleading, fell, cost]
                )
    if not body:
        return []
    head = (
        "sweep",
        "setting",
        "as",
        "attacks",
        "seeds",
        "mean ASR",
        "worst ASR",
        "change in ACC",
        "mean RA",
        "misleading",
        "a class fell",
        "CPU s",
    )
    how = f"In sweeps, percent over all attacks and seeds. {CELLS}"
    return [f"{how}\n\n" + "\n".join(_grid(head, body))]


def _earlier(rows: Sequence[Row], parts: Sequence[str] = ("attack", "defense")) -> list[str]:
    """Methods of which the rows were made with an earlier version than today's, such as "ANP version 1 (now 2)"."""
    made: dict[str, None] = {}
    known = {name: cls for kind in KINDS for name, cls in methods(kind).items()}
    for row in rows:
        options = json.loads(row.get("options") or "{}")
        for facts in filter(None, (options.get(part) for part in parts)):
            cls, version = known.get(facts["method"]), facts.get("version", 1)
            if cls is not None and version != cls.version:
                made[f"{cls.title or cls.name} version {version} (now {cls.version})"] = None
    return list(made)


def _budgets(rows: Sequence[Row]) -> dict[str, None]:
    """What defenses were given of clean rows, each once."""
    return dict.fromkeys(str(row["clean"]) for row in rows if row["role"] == "defended" and row["clean"])


def _settings(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by data, model and recipe; where clean rows differ, a defense with fewer of them is another one."""
    if len(_budgets(rows)) > 1:
        rows = [{**row, "defense": " ".join(filter(None, (row["defense"], row["clean"])))} for row in rows]
    recipes: dict[str, dict[str, None]] = {}
    for row in rows:
        own = recipes.setdefault(f"{row['data']}, {row['model']}", {})
        if row["recipe"]:
            own[row["recipe"]] = None
    settings: dict[str, list[Row]] = {}
    for row in rows:
        place = f"{row['data']}, {row['model']}"
        for recipe in [row["recipe"]] if row["recipe"] else recipes[place]:  # a training defense stands beside every victim
            settings.setdefault(f"{place}, {recipe}", []).append(row)
    return settings


def _setting(rows: Sequence[Row], place: str) -> list[str]:
    groups = grouped(rows)
    defended = [group for group in groups if group.role == "defended"]
    attacks = list(dict.fromkeys(row["attack"] for row in rows if row["role"] == "victim"))
    cells = {d: _Cells.of(defended, d) for d in {group.defense for group in defended}}
    order = sorted(cells, key=lambda d: (cells[d].mostly(cells[d].hollow), _worst(defended, d)[0], d))
    if not order:
        return _undefended(groups, attacks, place)
    empty, fell = (
        [f"{d} ({count} of {cells[d].all})" for d in order if cells[d].mostly(count := getattr(cells[d], what))]
        for what in ("hollow", "fell")
    )
    return [
        f"## Defenses{place}",
        "",
        *([f"**Misleading in most of their cells, and last for it: {', '.join(empty)}.**", ""] if empty else []),
        *([f"**A class fell in most of their cells: {', '.join(fell)}.**", ""] if fell else []),
        *_grid(
            (
                *("defense", "seeds", "mean ASR", "worst ASR", "at", "worst excess", "at"),
                *("change in ACC", "mean RA", "misleading cells", "a class fell", "CPU s"),
            ),
            [_line(defended, groups, defense) for defense in order],
        ),
        "",
        f"{_victims(groups)}. {CELLS}",
        "",
        f"## Attack success by attack, mean over seeds{place}",
        "",
        *_grid(("attack", "benign", "victim", *order), [_by_attack(groups, attack, order) for attack in attacks]),
        "",
        f"## The true label back (RA), mean over seeds{place}",
        "",
        *_grid(("attack", "benign", *order), [_by_attack(groups, attack, order, "ra") for attack in attacks]),
        "",
        *_compared(defended, order, place),
        "",
        *_audited(defended, place),
        *_assured(defended, groups, order, place),
    ]


def _undefended(groups: Sequence[Group], attacks: Sequence[str], place: str) -> list[str]:
    """Victims of a sweep without defenses, such as a zoo: what they learned, beside the benign model."""
    made = {(group.role, group.attack): group.done for group in groups}
    numbers = [("victim", name) for name in ("acc", "asr", "ra", "target_acc")] + [("judged", "asr")]
    body = [[a, *(_share(_mean([row[name] for row in made.get((role, a), ())])) for role, name in numbers)] for a in attacks]
    return [
        f"## Victims{place}",
        "",
        f"Means over seeds. {_victims(groups)}.",
        "",
        *_grid(("attack", "accuracy", "attack success", "true label back", "target class", "ASR of the benign model"), body),
    ]


def _audited(defended: Sequence[Group], place: str) -> list[str]:
    """What audits of the defended models saw; nothing where there was none."""
    lines = [[cell for i, cell in enumerate(line) if i != 1] for line in audits(defended)]  # the setting is the part's
    if not lines:
        return []
    return [
        f"## After the defense{place}",
        "",
        "Audits of the defended models, means over attacks and seeds: percent of attack success after changes and under "
        "attack, in parentheses that of the benign model. An alarm lies beyond the benign model and chance. Existence: "
        "0 is the benign model's, 1 the victim's.",
        "",
        *_grid(lines[0], lines[1:]),
        "",
    ]


def _row(record: dict[str, Any]) -> Row:
    names = ("acc", "asr", "ra", "target_acc", "der", "degenerate", "defense_seed", "cpu_seconds", "seconds", "outcome")
    return {**dict.fromkeys(names), **record, "key": record["job"]}


def _of(groups: Sequence[Group], defense: str) -> list[Group]:
    return [group for group in groups if group.defense == defense]


def _worst(groups: Sequence[Group], defense: str) -> tuple[float, str]:
    cells = [
        (row["asr"], f"{row['attack']}, seed {row['seed']}") for g in _of(groups, defense) for row in g.done if row["attack"]
    ]
    return max(((share, place) for share, place in cells if share is not None), default=(0.0, ""))


@dataclass(frozen=True)
class _Cells:
    """How many cells of a defense there are, in how many the figures stand for nothing, and in how many a class fell."""

    all: int
    hollow: int
    fell: int

    @classmethod
    def of(cls, groups: Sequence[Group], defense: str) -> _Cells:
        rows = [row for group in _of(groups, defense) for row in group.done if row["attack"]]
        said = [sentences(row["degenerate"] or "") for row in rows]
        fell = (any(" fell" in QUOTED.sub("", text) and not hollow(text) for text in texts) for texts in said)
        return cls(len(rows), sum(any(map(hollow, texts)) for texts in said), sum(fell))

    def mostly(self, count: int) -> bool:
        """Whether a count is more than half of the cells."""
        return 2 * count > self.all


def _misleads(row: Row) -> bool:
    return any(hollow(text) for text in sentences(row["degenerate"] or ""))


def _excesses(rows: Sequence[Row], groups: Sequence[Group], defense: str) -> list[tuple[float, str]]:
    """By how much each repaired victim obeys more than the benign model after the same repair, and where; known ones only."""
    benign = {
        (row["attack"], row["seed"], row["defense_seed"]): row["asr"]
        for group in _of(groups, defense)
        for row in group.done
        if group.role == "judged defended"
    }
    return [
        (row["asr"] - benign[at], f"{row['attack']}, seed {row['seed']}")
        for row in rows
        if benign.get(at := (row["attack"], row["seed"], row["defense_seed"])) is not None and row["asr"] is not None
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _line(defended: Sequence[Group], groups: Sequence[Group], defense: str) -> list[str]:
    rows = [row for group in _of(defended, defense) for row in group.done if row["attack"]]
    before = {(row["attack"], row["seed"]): row["acc"] for g in groups if g.role == "victim" for row in g.done}
    changes = [row["acc"] - before[row["attack"], row["seed"]] for row in rows if (row["attack"], row["seed"]) in before]
    worst, place = _worst(defended, defense)
    excess, excess_place = max(_excesses(rows, groups, defense), default=(None, ""))
    seeds = sorted({row["seed"] for row in rows})
    cost, cells = _mean(changes), _Cells.of(defended, defense)
    return [
        defense,
        ", ".join(map(str, seeds)),
        _share(_mean([row["asr"] for row in rows])),
        _share(worst),
        place,
        "" if excess is None else f"{100 * excess:+.1f}",
        excess_place,
        "" if cost is None else f"{100 * cost:+.1f}",
        _share(_mean([row["ra"] for row in rows])),
        f"{cells.hollow} of {cells.all}",
        f"{cells.fell} of {cells.all}",
        f"{_mean([row['cpu_seconds'] for row in rows]) or 0:.0f}",
    ]


def _victims(groups: Sequence[Group]) -> str:
    rows = [row for group in groups if group.role == "victim" for row in group.done]
    return (
        f"Victims: {len(rows)}, accuracy {_share(_mean([r['acc'] for r in rows]))} on average, attack success "
        f"{_share(min(r['asr'] for r in rows))} to {_share(max(r['asr'] for r in rows))}"
    )


def _by_attack(groups: Sequence[Group], attack: str, order: Sequence[str], number: str = "asr") -> list[str]:
    cells = [attack]
    for role in ("judged", "victim") if number == "asr" else ("judged",):
        cells.append(next((in_words(g.over(number), 100) for g in groups if g.role == role and g.attack == attack), ""))
    for defense in order:
        group = next((g for g in _of(groups, defense) if g.role == "defended" and g.attack == attack), None)
        mean = None if group is None else group.over(number)
        cells.append("" if mean is None else f"{100 * mean.mean:.1f}")
    return cells


def _compared(defended: Sequence[Group], order: Sequence[str], place: str) -> list[str]:
    plain = {" ".join(filter(None, (group.defense, group.labels[5]))): group.defense for group in defended}
    body = [
        [
            plain[pair.first],
            plain[pair.second],
            str(pair.attacks),
            f"{100 * pair.difference:+.1f}",
            f"{pair.p:.4f}",
            f"{pair.adjusted:.4f}",
            pair.verdict if pair.adjusted >= LEVEL else "lower" if pair.leaning < 0 else "higher",
            str(pair.left_out),
        ]
        for pair in compare(scores_of(defended, "asr"))
        if plain[pair.first] == order[0] or plain[pair.second] == order[0]
    ]
    head = ("first", "second", "attacks", "median difference in ASR", "p", "p after Holm", "verdict", "cells left out")
    if not body:
        return []
    how = "Wilcoxon's signed-rank test over attacks, each by its mean over the seeds that both have; Holm over all pairs."
    return [f"## {order[0]} beside the others{place}", "", how, "", *_grid(head, body)]


def _assured(defended: Sequence[Group], groups: Sequence[Group], order: Sequence[str], place: str) -> list[str]:
    """What each defense said of its own work, and how often that was wrong.

    Args:
        defended: Cells of victims after a defense.
        groups: All cells, benign models after the same defense among them.
        order: Defenses as they are listed.
        place: What tells this part of the page from others, after its title.
    """
    if not any(row.get("outcome") == "abstained" for group in groups for row in group.done):
        return []  # defenses that always say the same need no table of what they said
    lowest: dict[tuple[Any, ...], float] = {}
    for group in defended:
        for row in group.done:
            if row["asr"] is not None and not _misleads(row):
                at = (row["attack"], row["seed"], row["defense_seed"])
                lowest[at] = min(row["asr"], lowest.get(at, 1.0))
    body = []
    for defense in order:
        rows = [row for g in _of(defended, defense) for row in g.done if row["attack"] and row["asr"] is not None]
        said = [row for row in rows if row["outcome"] == "repaired"]
        wrong = sum(row["asr"] > ASSURED for row in said)
        beyond = [excess > ASSURED for excess, _ in _excesses(said, groups, defense)]
        low, high = wilson(wrong, len(said)) if said else (0.0, 1.0)
        best = [lowest.get((row["attack"], row["seed"], row["defense_seed"]), row["asr"]) for row in rows]
        regret = [max(0.0, row["asr"] - least) for row, least in zip(rows, best, strict=True)]
        benign = [row["outcome"] for g in _of(groups, defense) if g.role == "benign defended" for row in g.done]
        body.append(
            [
                defense,
                f"{len(said)} of {len(rows)}",
                str(sum(row["outcome"] == "abstained" for row in rows)),
                f"{wrong} of {len(said)} ({_share(low)} to {_share(high)} %)",
                f"{sum(beyond)} of {len(beyond)}" if beyond else "",
                _share(_mean(regret)),
                _share(max(regret, default=None)),
                ", ".join(f"{benign.count(word)} {word}" for word in dict.fromkeys(benign) if word) or "none run",
            ]
        )
    how = (
        f"Falsely assured: the defense called the victim repaired and left more than {100 * ASSURED:.0f} % of attack success, "
        "with Wilson's 95 % interval. Beyond a benign model: more than that many points above a benign model after the same "
        "repair, since an untargeted trigger counts errors that every model makes. Regret: points of attack success above the "
        "best defense of this page on the same victim, cells that mislead left out."
    )
    told = ("says repaired", "abstains", "falsely assured", "beyond a benign model", "mean regret", "worst regret")
    head = ("defense", *told, "of benign models")
    return [f"## What each says of its own work{place}", "", how, "", *_grid(head, body)]


def _grid(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)]
