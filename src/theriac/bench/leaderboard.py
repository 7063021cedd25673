"""Published numbers beside those measured here, with a verdict that is computed.

The rule, in full:

1. A published entry is compared with each setting (data, network, recipe, clean rows, options) in which its method was
   measured, over the attacks that both have.
2. It *cannot be compared*, if anything differs that the source states: data, number of training rows, network, width, recipe,
   poison rate, clean rows, sensitive column, options of the method; if no attack is in common; or with fewer than two seeds.
3. Else, for each number that both have, the mean over those attacks with its 95 % t interval over seeds decides: the result
   *falls short* if all of the interval is worse than the published mean by more than ``MARGIN``, and it *agrees* if none of it
   is. Of several numbers the worst verdict counts. If the interval holds both, there are too few seeds to tell, and it *cannot
   be compared*.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from theriac.bench.reported import GRADES, HIGH, LOW, NUMBERS, Reported, method_called, read_reported
from theriac.bench.tables import Mean, Row, in_words
from theriac.core.errors import unknown
from theriac.core.files import write_atomically
from theriac.core.method import methods
from theriac.core.paths import as_path, writing

MARGIN = 0.02  # two points; ours
NEAR = 2.0  # largest factor between a default and a neighbor of it
SHORT = {"asr": "ASR", "acc": "ACC", "bacc": "balanced ACC", "dp_gap": "DP gap", "opportunity_gap": "opportunity gap"}
SHORT |= {"odds_gap": "odds gap"}
Verdict = Literal["agrees", "falls short", "cannot be compared"]
HEAD = ("method", "reported", "source", "measured here", "with", "verdict", "stability")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One result of one defense: one attack, one seed.

    Args:
        method: Name of the defense.
        label: How tables call it, with its clean rows.
        options: Its options; one that is missing is at its default.
        data: Name of the data.
        train_rows: How many of its training rows were taken; None for all of them.
        from_folder: Whether they come from a folder or file of somebody's own, of which nobody knows whether it is the set.
        model: Architecture and its options, under ``architecture`` and their names.
        recipe: Name of the training recipe.
        changed: What is done to data and recipe beyond their names, such as fewer classes or another learning rate.
        clean: Clean rows, a number or a share; None if the method got none.
        group: Sensitive column.
        attack: Name and options of the attack; None without one.
        attack_label: How tables call it.
        seed: What tells repetitions apart.
        numbers: Shares by name, such as ``asr``.
        rows: Test rows behind each of them, where it was counted.
        setting: Data, network and recipe, in words.
    """

    method: str
    label: str
    options: Mapping[str, Any]
    data: str
    train_rows: int | None = None
    from_folder: bool = False
    model: Mapping[str, Any] = field(default_factory=dict)
    recipe: str = ""
    changed: Mapping[str, Any] = field(default_factory=dict)
    clean: float | int | None = None
    group: str | None = None
    attack: Mapping[str, Any] | None = None
    attack_label: str = ""
    seed: str
    numbers: Mapping[str, float]
    rows: Mapping[str, int] = field(default_factory=dict)
    setting: str

    @property
    def victim(self) -> str:
        """Seed of the victim."""
        return self.seed.partition("/")[0]

    @property
    def plain_attack(self) -> str | None:
        """Name of the attack if its options are those of its class or of a preset, except rate and target; else None."""
        return "" if self.attack is None else _plain_name(json.dumps(self.attack, sort_keys=True, default=str))

    @property
    def poison_rate(self) -> float | None:
        """Share of poisoned rows."""
        if self.attack is None:
            return None
        cls = methods("attack").get(str(self.attack.get("method")))
        rate = self.attack.get("poison_rate", None if cls is None else cls().config().get("poison_rate"))
        return None if rate is None else float(rate)


@dataclass(frozen=True, kw_only=True)
class Stability:
    """How a method's attack success moves with one of its own options.

    Args:
        option: The option.
        values: Its values, the default among them.
        low: Lowest mean ASR over the attacks.
        high: Highest mean ASR.
        attacks: How many attacks the means are over.
    """

    option: str
    values: tuple[float, ...]
    low: float
    high: float
    attacks: int

    def __str__(self) -> str:
        values = ", ".join(f"{value:g}" for value in self.values)
        return f"{100 * (self.high - self.low):.1f} points ({self.option} {values})"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One published entry beside one measured setting.

    Args:
        entry: What was published.
        attacks: What both were averaged over.
        reported: Published mean by number; over ``attacks``, or over all that the entry has if none is in common.
        reported_worst: Published worst value by number.
        label: The measured defense; empty if it was not measured.
        setting: Data, network and recipe of the measurement.
        measured: Means over ``attacks``, one for each seed.
        measured_worst: Worst of the means over seeds by number.
        worst_attack: Which attack has the worst ASR.
        verdict: By the rule of this module.
        why: Reasons.
        stability: Spread of the method under its own options in this setting; None where there are no such runs.
    """

    entry: Reported
    attacks: tuple[str, ...] = ()
    reported: Mapping[str, float]
    reported_worst: Mapping[str, float]
    label: str = ""
    setting: str = ""
    measured: Mapping[str, Mean] = field(default_factory=dict)
    measured_worst: Mapping[str, float] = field(default_factory=dict)
    worst_attack: str = ""
    verdict: Verdict
    why: tuple[str, ...] = ()
    stability: Stability | None = None

    @property
    def seeds(self) -> int:
        """How many seeds the means are over."""
        return max((len(mean.values) for mean in self.measured.values()), default=0)


def beside(trials: Iterable[Trial], entries: Sequence[Reported] | None = None) -> list[Line]:
    """Every published entry beside every setting in which its method was measured.

    Args:
        trials: What was measured; :func:`trials_of` makes it from rows of a store.
        entries: What was published; None takes the shipped file.

    Returns:
        Lines by method; an entry whose method was not measured has one line that says so.
    """
    groups: dict[tuple[str, str, str, str], list[Trial]] = {}
    for trial in trials:
        own = json.dumps(_plain(trial.options), sort_keys=True, default=str)
        groups.setdefault((trial.method, trial.setting, trial.label, own), []).append(trial)
    everything = [trial for group in groups.values() for trial in group]
    lines = []
    for entry in read_reported() if entries is None else entries:
        mine = [group for (method, *_), group in groups.items() if method == entry.method]
        mine = [group for group in mine if _detector(entry) in (None, _options(group[0]).get("detector"))]
        lines += [_line(entry, group, everything) for group in mine] or [_line(entry, [], everything)]
    order = list(dict.fromkeys(line.entry.method for line in lines))
    return sorted(lines, key=lambda line: order.index(line.entry.method))


def trials_of(results: Sequence[Row]) -> list[Trial]:
    """Finished rows of defended and debiased models, as :func:`theriac.bench.rows` gives them."""
    made = []
    for row in results:
        if row["status"] != "done" or row["role"] not in ("defended", "debiased"):
            continue
        options = json.loads(row["options"])
        data, clean = options["data"], options.get("clean")
        numbers = {name: float(row[name]) for name in NUMBERS if row.get(name) is not None}
        defense = {k: v for k, v in options["defense"].items() if k not in ("version", "inside")}
        made.append(
            Trial(
                method=defense.pop("method"),
                label=" ".join(part for part in (row["defense"], row["clean"]) if part),
                options=defense,
                data=Path(data["name"]).name,
                train_rows=data.get("rows"),
                from_folder=Path(data["name"]).is_absolute() or "test" in (data.get("options") or {}),
                model=options.get("model") or {},
                recipe=options.get("recipe") or row["recipe"],
                changed=_changes(options),
                clean=None if clean is None else clean["amount"],
                group=(data.get("options") or {}).get("sensitive"),
                attack=options.get("attack"),
                attack_label=row["attack"],
                seed=f"{row['seed']}/{row['defense_seed']}",
                numbers=numbers,
                rows={name: row[f"{name}_total"] for name in numbers if row.get(f"{name}_total")},
                setting=", ".join(part for part in (row["data"], row["model"], row["recipe"]) if part),
            )
        )
    return made


def _changes(options: Mapping[str, Any]) -> dict[str, Any]:
    """What a job does to the data and the recipe that their names do not say."""
    data = options["data"]
    loaded = {k: v for k, v in (data.get("options") or {}).items() if k not in ("sensitive", "label")}
    more = {name: data[name] for name in ("classes", "disturbed", "test_rows") if data.get(name)}
    clean = options.get("clean") or {}
    if clean.get("source", "train") not in ("train", "val"):
        more["clean rows of"] = Path(clean["source"]).name
    augment = {"augment": options["augment"]} if options.get("augment") else {}
    return {**loaded, **more, **augment, **(options.get("recipe_options") or {})}


def stability(trials: Sequence[Trial], method: str, setting: str, clean: float | int | None) -> Stability | None:
    """Spread of a method's mean ASR over its defaults and their neighbors; None without both.

    A neighbor differs from the defaults in one number, by a factor of at most ``NEAR``. Means are over the attacks and seeds
    that all of them have. Of several options, the one with the largest spread is given.
    """
    cls = method_called(method)
    if cls is None:
        return None
    usual, plain = _plain(cls().config()), dict[tuple[str, str], float]()
    around: dict[str, dict[float, dict[tuple[str, str], float]]] = {}
    for trial in trials:
        if (trial.method, trial.setting, trial.clean) != (method, setting, clean) or "asr" not in trial.numbers:
            continue
        own = {**usual, **_plain(trial.options)}
        changed = [name for name in own if own[name] != usual.get(name)]
        place = (trial.attack_label, trial.seed)
        if not changed:
            plain[place] = trial.numbers["asr"]
        elif len(changed) == 1 and _near(own[changed[0]], usual.get(changed[0])):
            around.setdefault(changed[0], {}).setdefault(float(own[changed[0]]), {})[place] = trial.numbers["asr"]
    spreads = []
    for option, values in around.items():
        values = {float(usual[option]): plain, **values}
        shared = sorted(set.intersection(*(set(scores) for scores in values.values())))
        if shared:
            means = [sum(scores[place] for place in shared) / len(shared) for scores in values.values()]
            attacks = len({attack for attack, _ in shared})
            spreads.append(
                Stability(option=option, values=tuple(sorted(values)), low=min(means), high=max(means), attacks=attacks)
            )
    return max(spreads, key=lambda s: s.high - s.low, default=None)


@cache
def _plain_name(attack: str) -> str | None:
    config = json.loads(attack)
    name = str(config.pop("method"))
    cls = methods("attack").get(name)
    if cls is None:
        return None
    own = {k: v for k, v in config.items() if k not in ("version", "inside", "poison_rate", "target")}
    starts = [_plain(start.config()) for start in (cls(), *(getattr(cls, preset)() for preset in cls.presets()))]
    return name if any(all(start.get(k, v) == v for k, v in own.items()) for start in starts) else None


def _near(value: Any, usual: Any) -> bool:
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) and v > 0 for v in (value, usual))
    return numbers and 1 / NEAR <= value / usual <= NEAR


def _line(entry: Reported, group: Sequence[Trial], everything: Sequence[Trial]) -> Line:
    names = {trial.plain_attack for trial in group}
    shared = tuple(name for name in entry.attacks if name in names)
    published = [entry.attacks[name] for name in shared or entry.attacks]
    reported, reported_worst = dict(entry.mean), dict(entry.worst)
    for name in NUMBERS:
        values = [figures[name] for figures in published if name in figures]
        if values and len(values) == len(published):
            reported[name], reported_worst[name] = sum(values) / len(values), _worst(name, values)
    if not group:
        return Line(
            entry=entry,
            reported=reported,
            reported_worst=reported_worst,
            verdict="cannot be compared",
            why=("not measured here",),
        )
    counted = shared or tuple(sorted(name for name in names if name is not None))
    measured, measured_worst, worst_attack = _measured(group, counted)
    first = group[0]
    verdict, why = _judged(entry, group, shared, reported, measured)
    return Line(
        entry=entry,
        attacks=counted,
        reported=reported,
        reported_worst=reported_worst,
        label=first.label,
        setting=first.setting,
        measured=measured,
        measured_worst=measured_worst,
        worst_attack=worst_attack,
        verdict=verdict,
        why=why,
        stability=stability(everything, entry.method, first.setting, first.clean),
    )


def _measured(group: Sequence[Trial], attacks: Sequence[str]) -> tuple[dict[str, Mean], dict[str, float], str]:
    """Mean over attacks for each seed that has all of them, the worst attack by number, and which one has the worst ASR.

    An attack that was measured with several targets, rates or presets counts once, with the mean of those, and so does a
    defense that was repeated on one victim: its seeds are those of the victims.
    """
    means, worst, which = dict[str, Mean](), dict[str, float](), ""
    for name in NUMBERS:
        cells: dict[str, dict[str, list[float]]] = {}
        rows: dict[tuple[str, str], int] = {}
        for trial in group:
            if trial.plain_attack in attacks and name in trial.numbers:
                cells.setdefault(trial.victim, {}).setdefault(str(trial.plain_attack), []).append(trial.numbers[name])
                rows[trial.victim, str(trial.plain_attack)] = trial.rows.get(name, 0)
        table = {seed: {attack: sum(v) / len(v) for attack, v in row.items()} for seed, row in cells.items()}
        complete = {seed: scores for seed, scores in table.items() if len(scores) == len(attacks)}
        full = list(complete.values())
        if not full or not attacks:
            continue
        counted = [count for (seed, _), count in rows.items() if seed in complete]
        means[name] = Mean(tuple(sum(scores.values()) / len(scores) for scores in full), sum(counted) if all(counted) else 0)
        by_attack = {attack: sum(scores[attack] for scores in full) / len(full) for attack in attacks}
        worst[name] = _worst(name, list(by_attack.values()))
        if name == "asr":
            which = max(by_attack, key=by_attack.__getitem__)
    return means, worst, which


def _judged(
    entry: Reported,
    group: Sequence[Trial],
    shared: Sequence[str],
    reported: Mapping[str, float],
    measured: Mapping[str, Mean],
) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict and its reasons, by the rule of this module."""
    why = differences(entry, group)
    if entry.over:
        why.append(f"published is a mean over {entry.over} attacks, which are not known one by one")
    elif not shared:
        why.append("no attack in common")
    both = [name for name in NUMBERS if name in reported and name in measured]
    if not why and not both:
        why.append("no number in common")
    if not why and min(len(measured[name].values) for name in both) < 2:
        why.append("one seed here: no interval")
    if why:
        return "cannot be compared", tuple(why)
    worse, unclear = [], []
    for name in both:
        low, high = _interval(measured[name]) or (0.0, 1.0)  # two seeds or more have one
        limit = reported[name] + MARGIN if name in LOW else reported[name] - MARGIN
        best, last = (low, high) if name in LOW else (-high, -low)
        limit = limit if name in LOW else -limit
        words = f"{SHORT[name]} {in_words(measured[name], 100)}, published {100 * reported[name]:.1f}"
        if best > limit:
            worse.append(words)
        elif last > limit:
            unclear.append(f"the interval is too wide: {words}")
    if worse:
        return "falls short", tuple(worse)
    return ("cannot be compared", tuple(unclear)) if unclear else ("agrees", ())


def _interval(mean: Mean) -> tuple[float, float] | None:
    """The 95 % interval of a share over seeds, which ends where shares end; None for one seed."""
    ends = mean.interval
    return None if ends is None else (max(0.0, ends[0]), min(1.0, ends[1]))


def differences(entry: Reported, group: Sequence[Trial]) -> list[str]:
    """What a source states and a measurement does otherwise, in words."""
    first, said, why = group[0], entry.setting, list[str]()
    if first.data != said.data:
        why.append(f"data {first.data}, not {said.data}")
    else:
        if first.from_folder:
            why.append(f"rows from a folder that is called {said.data}, not the published set by its name")
        if said.train_rows is not None and first.train_rows not in (None, said.train_rows):
            why.append(f"{first.train_rows:,} training rows, not {said.train_rows:,}")
        if said.group is not None and str(first.group).lower() != said.group:
            why.append(f"groups by {first.group}, not {said.group}")
    if said.model is not None and first.model.get("architecture", said.model) != said.model:
        why.append(f"network {first.model['architecture']}, not {said.model}")
    elif said.width is not None and first.model.get("width", said.width) != said.width:
        why.append(f"width {first.model['width']}, not {said.width}")
    if said.recipe is not None and first.recipe != said.recipe:
        why.append(f"recipe {first.recipe or 'unknown'}, not {said.recipe}")
    changed = {name: value for trial in group for name, value in trial.changed.items()}
    why += [f"{name} is {value}" for name, value in sorted(changed.items())]
    rates = sorted({t.poison_rate for t in group if t.plain_attack in entry.attacks and t.poison_rate is not None})
    if said.poison_rate is not None and any(abs(rate - said.poison_rate) > 1e-9 for rate in rates):
        why.append(f"poison rate {', '.join(f'{100 * rate:g}' for rate in rates)} %, not {100 * said.poison_rate:g} %")
    if said.clean is not None and first.clean is not None:
        rows = round(said.clean * said.train_rows) if said.train_rows else None
        if isinstance(first.clean, float) and abs(first.clean - said.clean) > 1e-9:
            why.append(f"{100 * first.clean:g} % clean rows, not {100 * said.clean:g} %")
        elif isinstance(first.clean, int) and first.clean != rows:
            why.append(f"{first.clean:,} clean rows, not {'%g %%' % (100 * said.clean) if rows is None else f'{rows:,}'}")
    own = _options(first)
    for name, value in entry.options.items():
        if name in own and own[name] != value:
            why.append(f"{name} {own[name]}, not {value:g}" if isinstance(value, float) else f"{name} {own[name]}, not {value}")
    return why


def _options(trial: Trial) -> dict[str, Any]:
    cls = method_called(trial.method)
    return {**({} if cls is None else _plain(cls().config())), **_plain(trial.options)}


def _detector(entry: Reported) -> Any:
    """The detector that a published filter works with; None for other methods."""
    return entry.options.get("detector")


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON has it: lists for tuples."""
    return dict(json.loads(json.dumps(options, default=str)))


def _worst(name: str, values: Sequence[float]) -> float:
    return min(values) if name in HIGH else max(values)


# words and files


@dataclass(frozen=True)
class Table:
    """Lines as texts.

    Args:
        head: Names of the columns that have any text.
        lines: Texts of measured lines.
        notes: What all lines share, which methods were not measured, and the rule.
    """

    head: list[str]
    lines: list[list[str]]
    notes: list[str]


def table(lines: Sequence[Line]) -> Table:
    """Lines as texts; what is the same in all of them is said once, and what was not measured is only named."""
    made = [line for line in lines if line.label]
    settings = {line.setting for line in made}
    setting = settings.pop() if len(settings) == 1 else ""
    reasons = [why for why in (made[0].why if made else ()) if all(why in line.why for line in made)]
    body = [line_words(line, setting, reasons) for line in made]
    used = [i for i in range(len(HEAD)) if any(line[i] for line in body)]
    notes = [f"All of them were measured on {setting}."] if setting else []
    notes += [f"No line can be compared, because of {'; '.join(reasons)}."] if reasons else []
    there = {line.entry.method for line in made}
    absent = list(dict.fromkeys(line_words(line)[0] for line in lines if line.entry.method not in there))
    notes += [f"Published, but not measured here: {', '.join(absent)}."] if absent else []
    return Table([HEAD[i] for i in used], [[line[i] for i in used] for line in body], [*notes, explained()])


def line_words(line: Line, setting: str = "", reasons: Sequence[str] = ()) -> list[str]:
    """A line as texts, under the names in ``HEAD``, without the setting and the reasons that were said already."""
    entry, cls = line.entry, method_called(line.entry.method)
    title = entry.method if cls is None else cls.title or cls.name
    detector = _detector(entry)
    over = entry.over or len(line.attacks if line.measured else entry.attacks)
    attacks = "" if "" in entry.attacks else f" ({over} attack{'s' * (over != 1)})"
    reported = [
        f"{SHORT[name]} {100 * line.reported[name]:.1f}{_tail(name, line.reported_worst.get(name), over)}"
        for name in NUMBERS
        if name in line.reported
    ]
    shown = [name for name in NUMBERS if name in line.measured and (name in line.reported or name in ("asr", "acc"))]
    measured = [
        f"{SHORT[name]} {in_words(line.measured[name], 100)}{_tail(name, line.measured_worst[name], len(line.attacks))}"
        for name in shown
    ]
    seeds = f"{line.seeds} seed{'s' * (line.seeds != 1)}" if line.seeds else ""
    why = "; ".join(reason for reason in line.why if reason not in reasons)
    where = "" if not line.worst_attack or len(line.attacks) < 2 else f" ({line.worst_attack})"
    if measured and where and shown[0] == "asr":
        measured[0] += where
    return [
        f"{title} {detector}" if detector else title,
        "; ".join(reported) + attacks,
        f"{entry.source} ({entry.grade})",
        "; ".join(measured),
        ", ".join(part for part in (line.label, "" if line.setting == setting else line.setting, seeds) if part),
        f"{line.verdict}: {why}" if why else line.verdict,
        "" if line.stability is None else str(line.stability),
    ]


def _tail(name: str, worst: float | None, attacks: int) -> str:
    return "" if worst is None or attacks < 2 or name != "asr" else f", worst {100 * worst:.1f}"


def line_facts(line: Line) -> dict[str, Any]:
    """A line as plain data, for JSON lines."""
    ends = {name: _interval(mean) or (None, None) for name, mean in line.measured.items()}
    return {
        "method": line.entry.method,
        "source": line.entry.source,
        "link": line.entry.link,
        "grade": line.entry.grade,
        "note": line.entry.note,
        "published_setting": line.entry.setting.model_dump(exclude_none=True) | {"options": dict(line.entry.options)},
        "attacks": list(line.attacks),
        "reported": dict(line.reported),
        "reported_worst": dict(line.reported_worst),
        "defense": line.label,
        "setting": line.setting,
        "seeds": line.seeds,
        "measured": {
            name: {"mean": mean.mean, "low": ends[name][0], "high": ends[name][1]} for name, mean in line.measured.items()
        },
        "measured_worst": dict(line.measured_worst),
        "worst_attack": line.worst_attack,
        "verdict": line.verdict,
        "why": list(line.why),
        "stability": None if line.stability is None else asdict(line.stability),
    }


def explained() -> str:
    """The rule of the verdicts, for readers of a table."""
    grades = "; ".join(f"{grade}: {words}" for grade, words in GRADES.items())
    return (
        "Percent, over the attacks that both have, with the 95 % t interval over seeds. Falls short: all of the interval is "
        f"worse than published by more than {100 * MARGIN:g} points; agrees: none of it is. Other data, network, recipe, "
        "poison rate, clean rows or options, or too few seeds: cannot be compared. Stability: spread of attack success when "
        f"one option is moved from its default, by a factor of at most {NEAR:g}. Grades: {grades}."
    )


def markdown(lines: Sequence[Line]) -> str:
    """Measured lines as a table in Markdown, below what they share."""
    made = table(lines)
    body = [made.head, ["---"] * len(made.head), *made.lines]
    grid = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n" for cells in body]
    return "\n\n".join([*made.notes, "".join(grid) if made.lines else ""])


def write_leaderboard(lines: Sequence[Line], path: str | Path) -> Path:
    """Write lines to a file, in the format that its ending names.

    Args:
        lines: What :func:`leaderboard` gave.
        path: ``.md`` for a table, ``.jsonl`` for one record a line.

    Raises:
        InputError: On another ending, or a path that can't be written.
    """
    path = as_path("--out", path)
    if path.suffix == ".md":
        text = markdown(lines)
    elif path.suffix == ".jsonl":
        text = "".join(json.dumps(line_facts(line), allow_nan=False) + "\n" for line in lines)
    else:
        raise unknown("ending of --out with --leaderboard", path.suffix or str(path), (".md", ".jsonl"))
    with writing("--out", path):
        return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
