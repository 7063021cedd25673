"""Words and numbers of the tables: configurations, recipes, rates with intervals, and families of runs.

A *family* of runs differs in seeds only (of the victim, of the repair, of its clean rows); it becomes one row with mean,
standard deviation and range.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from table import Record

from theriac.core.errors import InputError
from theriac.core.method import KINDS, Method, methods
from theriac.metrics import Rate
from theriac.metrics.intervals import over_seeds

RATES = ("acc", "asr", "ra")
GONE = {"antidote": {"soft": 0.0, "temperature": 2.0}}  # options that are no more, at values that did nothing


def attack_words(attack: Record | None) -> str:
    """An attack's configuration as a plan writes it, in words."""
    if not attack:
        return "no attack"
    return ", ".join(str(v) if k in ("name", "method") else f"{k} {v}" for k, v in attack.items())


def config_words(config: Record) -> str:
    """A full configuration of an attack: its name, rate, and what differs from the nearest preset."""
    told = changes({k: v for k, v in config.items() if k != "poison_rate"})[1]
    return attack_words({"name": config["method"], "rate": config["poison_rate"], **told})


def network_words(model: Record) -> str:
    """A network with its options, as ``cbd.py`` writes it."""
    return "".join([model["name"], *(f", {k} {v}" for k, v in model["options"].items())])


def judge_words(record: Record) -> str:
    """What a record's stamped rows were stamped with: the victim's attack, or the one that its job names."""
    own = record["victim"].get("attack") or record.get("judge")
    return attack_words(own) if own else str(record["before"].get("attack", ""))


def victim_words(victim: Record) -> str:
    """Network and recipe."""
    given = victim.get("options", {"width": 16})
    options = "".join(f", {k.replace('_', ' ')}{'' if v is True else f' {v}'}" for k, v in given.items())
    rows = f", {victim['rows']} rows" if "rows" in victim else ""
    late = ", stamped after augmentation" if victim.get("stamp") == "after_augment" else ""
    return f"{victim.get('model', 'preact_resnet18')}{options}, {victim['recipe']}{rows}{late}"


def method_class(name: str) -> type[Method] | None:
    """The registered method of this name."""
    return next((methods(kind)[name] for kind in KINDS if name in methods(kind)), None)


def changes(config: Record) -> tuple[str, Record]:
    """The nearest preset of a configuration, and the options that differ from it.

    Options that the record does not know (they are younger than it) count as left at their defaults.
    """
    cls = method_class(config["method"])
    if cls is None:
        return "", {k: v for k, v in config.items() if k != "method"}
    gone = GONE.get(config["method"], {})
    config = {name: value for name, value in config.items() if name not in gone or value != gone[name]}
    usual = json.loads(json.dumps(cls().config()))
    full = {**usual, **json.loads(json.dumps(config))}
    with contextlib.suppress(InputError):  # an option that is no more
        full = json.loads(json.dumps(cls.from_config(full).config()))  # values by their names of today
    names = sorted(cls.presets(), key=lambda n: (n != "official", n != "corrected"))
    known = {n: json.loads(json.dumps(getattr(cls, n)().config())) for n in names}
    plain = next((n for n in names if known[n] == usual), "defaults")
    starts = {plain: usual, **known}
    nearest = min(starts, key=lambda n: sum(full.get(k) != starts[n].get(k) for k in full))
    return nearest, {k: v for k, v in full.items() if v != starts[nearest].get(k)}


def settings_words(config: Record) -> str:
    """The nearest preset and what differs from it, in words."""
    preset, different = changes(config)
    return ", ".join([f"`{preset}`"] * bool(preset) + [f"{k} {v}" for k, v in different.items()])


def precision_words(record: Record) -> str:
    """The number format that the method ran in."""
    own = (record.get("repair") or {}).get("precision", "run")  # SAU's own word outweighs the run's
    return own if own != "run" else str(record.get("precision", "")).partition(":")[0]


def rate(part: Record | None) -> str:
    """A share in percent with its 95 % Wilson interval."""
    if part is None:
        return ""
    found = Rate(part["hits"], part["total"])
    low, high = found.interval
    return f"{100 * found.value:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def counted(parts: Sequence[Record]) -> str:
    """One share with its counts, or several with mean, standard deviation and range."""
    rates = [Rate(p["hits"], p["total"]) for p in parts]
    if len(rates) == 1:
        return f"{100 * rates[0].value:.1f} ({rates[0].hits}/{rates[0].total})"
    return spread([r.value for r in rates])


def spread(values: Sequence[float]) -> str:
    """Mean, standard deviation and range over seeds, of shares, in percent."""
    found = over_seeds([100 * v for v in values])
    return f"{found.mean:.1f}, sd {found.std:.1f} ({found.smallest:.1f} to {found.largest:.1f})"


def change(before: Sequence[Record | None], after: Sequence[Record | None]) -> str:
    """A share before and after, as one cell."""
    old, new = [b for b in before if b], [a for a in after if a]
    if not old or not new:
        return ""
    first = sum(Rate(b["hits"], b["total"]).value for b in old) / len(old)
    return f"{100 * first:.1f} → {counted(new)}"


def seeds_words(numbers: Iterable[int]) -> str:
    """Seeds in order, each once."""
    return ", ".join(str(n) for n in sorted(set(numbers)))


def families(records: Sequence[Record], key: Callable[[Record], Any]) -> list[list[Record]]:
    """Records that are alike but for their seeds, in order of appearance."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[json.dumps(key(record), sort_keys=True)].append(record)
    return list(groups.values())


def victim_family(victim: Record) -> Record:
    """What a victim shares with its siblings of other seeds."""
    return {k: v for k, v in victim.items() if k not in ("seed", "key")}


def repair_family(record: Record) -> list[Any]:
    """What a repair shares with its siblings of other seeds."""
    repair = record["repair"]
    return [
        victim_family(record["victim"]),
        repair and [repair["method"], *changes(repair)],
        judge_words(record),
        record.get("clean_rows"),
        precision_words(record),
    ]


def plain_name(record: Record) -> str:
    """A job's name without the victim's key and without seeds."""
    return re.sub(r"-seed\d+$", "", record["name"].removeprefix(record["victim"]["key"] + "-"))


def plain_training(record: Record) -> list[Any]:
    """What a run of ``cbd.py`` shares with the plain training beside it."""
    shared = ("epochs", "batch_size", "lr", "momentum", "weight_decay", "cutout", "input_norm")
    recipe = [record["method"].get(k) for k in shared]
    return [record["data"]["name"], record["data"]["rows"], record["attack"], record["model"], recipe, record["arm"]]
