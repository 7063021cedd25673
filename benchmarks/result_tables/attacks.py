"""Results of ``attacks.py``: one page a plan, all attacks in short, and an attack's own part of its method card."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from table import RESULTS, Record

from result_tables.reading import attack_plans, cbd_records, job_name, repair_plans
from result_tables.words import (
    RATES,
    attack_words,
    config_words,
    counted,
    families,
    judge_words,
    network_words,
    plain_training,
    seeds_words,
    settings_words,
    victim_family,
    victim_words,
)
from theriac.core.method import Method
from theriac.report.cards import grid

HEAD = ["preset, what differs", "network, recipe", "poisoned + cover rows", "ACC %", "ASR %", "RA %"]
HEAD += ["benign model: ACC %", "ASR %", "RA %", "ACC lost", "seeds"]
NOTES = """Last iterate.
One seed with its counts, several with mean, standard deviation and range. Benign model: of the same recipe and seed, trained on
clean rows, judged on the same stamped rows. ACC lost: points, benign minus victim.
"""
SHORT = (("victim", "acc"), ("victim", "asr"), ("benign", "asr"))
HASHES = """First digits of SHA-256. The same plan on the same kind of machine makes the same bytes. -: no fixed set of poisoned
rows, because the attack stamps while it trains; nothing fitted, so that the trigger follows from the configuration.
"""


def page(plan: str, records: Sequence[Record]) -> str:
    """One plan's page: what was planted and how well, what resists, and the hashes by which other results name a victim."""
    rows, more, victims = [], [], []
    for members in families(list(records), _alike):
        job = job_name(members[0])
        rows.append([job, *_row(members)])
        more += [[job, *told] for told in _more(members)]
        victims += [[m["name"], *(f"`{made[:12]}`" if made else "-" for made in _hashes(m))] for m in members]
    command = re.split(r" --(?:only|job) ", records[0]["command"])[0]
    parts = [f"# {plan}\n\nMade by `{command} --data NAME=<folder>`, tabulated by `python benchmarks/make_tables.py`. {NOTES}"]
    parts.append(grid(["run", *HEAD], rows))
    if more:
        parts += ["\n## What else an attack is judged by\n", grid(["run", "what", "victim %", "seeds"], more)]
    parts += [f"\n## Victims\n\n{HASHES}", grid(["victim", "poisoned rows", "what was fitted", "weights"], victims)]
    return "\n".join(parts) + "\n"


def for_attack(cls: type[Method], results: Path = RESULTS) -> list[str]:
    """One attack's rows of every plan, for its card."""
    blocks = []
    for plan, records in attack_plans(results).items():
        mine = [r for r in records if r["attack"]["method"] == cls.name]
        rows = [[members[0]["data"], *_row(members)] for members in families(mine, _alike)]
        if rows:
            told = f"From [{plan}](../../benchmarks/results/{plan}.md); beside a benign model judged on the same stamped rows."
            blocks.append(f"{told}\n\n{grid(['data', *HEAD], rows)}")
    return blocks


def overview(results: Path = RESULTS) -> str:
    """All attacks in short, for the page of pictures: success and what it costs, one table a plan."""
    head = ["run", "recipe", "poisoned + cover rows", "ACC %", "ACC lost", "ASR %", "benign model's ASR %", "seeds"]
    blocks = []
    for plan, records in attack_plans(results).items():
        rows = []
        for members in families(records, _alike):
            acc, asr, other = (_short([m[who][k]["value"] for m in members]) for who, k in SHORT)
            told = [
                f"[{job_name(members[0])}](methods/{members[0]['attack']['method']}.md)",
                members[0]["recipe"],
                _planted(members[0]),
            ]
            rows.append([*told, acc, _lost(members), asr, other, _seeds(members)])
        link = f"[{plan}](../benchmarks/results/{plan}.md)"
        blocks.append(f"{link}: `{records[0]['data']}`, {_recipe(records[0]).rsplit(',', 1)[0]}.\n\n{grid(head, rows)}")
    return "\n\n".join(blocks)


def _short(values: Sequence[float]) -> str:
    shown = f"{100 * sum(values) / len(values):.1f}"
    return f"{shown} ({100 * min(values):.1f} to {100 * max(values):.1f})" if len(values) > 1 else shown


def _lost(members: Sequence[Record]) -> str:
    lost = [100 * (m["benign"]["acc"]["value"] - m["victim"]["acc"]["value"]) for m in members]
    return f"{sum(lost) / len(lost):+z.1f}"


def _alike(record: Record) -> Any:
    shared = ("data", "model", "options", "recipe", "subset")
    config = {k: v for k, v in record["attack"].items() if k != "seed"}
    return [job_name(record), config, {k: record.get(k) for k in shared}]


def _recipe(record: Record) -> str:
    victim = {k: record[k] for k in ("model", "options", "recipe")}
    return victim_words(victim | ({"rows": record["rows"]["all"]} if record.get("subset") else {}))


def _planted(record: Record) -> str:
    rows = record["rows"]
    return f"{rows['poison']} + {rows['cross']} of {rows['all']}" if rows["cross"] else f"{rows['poison']} of {rows['all']}"


def _row(members: Sequence[Record]) -> list[str]:
    first = members[0]
    rates = [counted([m[who][k] for m in members]) for who in ("victim", "benign") for k in RATES]
    told = [settings_words(first["attack"]), _recipe(first), _planted(first)]
    return [*told, *rates, _lost(members), _seeds(members)]


def _hashes(record: Record) -> tuple[str | None, str | None, str]:
    fitted = any(record["needs"].values())  # else the trigger follows from the configuration
    return record["poisoned_set"], record["planted"] if fitted else None, record["weights"]


def _seeds(members: Sequence[Record]) -> str:
    return seeds_words(m["seed"] for m in members)


def _more(members: Sequence[Record]) -> list[list[str]]:
    """Cross accuracy, success by target, each goal alone, and leakage to classes that the attack is not for."""
    names = {
        "cross_accuracy": "rows that should resist: accuracy",
        "by_target": "success with target",
        "alone": "success of the part alone, target",
        "leak": "stamped rows of classes it is not for, sent to the target: class",
    }
    found: dict[str, list[Record]] = {}
    for member in members:
        for key, words in names.items():
            value = member["more"].get(key)
            if value is not None and "hits" in value:
                found.setdefault(words, []).append(value)
            elif value and len(value) <= 10:
                for name, rate in value.items():
                    found.setdefault(f"{words} {name}", []).append(rate)
    return [[words, counted(rates), _seeds(members)] for words, rates in found.items()]


def for_victims(cls: type[Method], results: Path = RESULTS) -> list[str]:
    """Victims as trained, beside benign models that were trained the same way and judged by the same trigger."""
    rows: list[list[Any]] = []
    plans = repair_plans(results)
    benign = {
        json.dumps([_trained_alike(r["victim"]), judge_words(r)]): r["before"]
        for plan, records in plans.items()
        for r in records
        if not r["victim"].get("attack") and r["before"].get("asr")
    }
    own = [r for records in plans.values() for r in records if (r["victim"].get("attack") or {}).get("name") == cls.name]
    one_each = {json.dumps(r["victim"], sort_keys=True): r for r in own}  # the same victim serves several repairs and plans
    for members in families(list(one_each.values()), lambda r: victim_family(r["victim"])):
        victim = members[0]["victim"]
        judged = attack_words(victim["attack"])
        control = benign.get(json.dumps([_trained_alike(victim), judged]))
        row = [f"{victim['data']}: {judged}", victim_words(victim)]
        row += [counted([m["before"][k] for m in members]) for k in RATES]
        row += [counted([control[k]]) if control else "" for k in ("asr", "ra")]
        rows.append([*row, seeds_words(m["victim"].get("seed", 0) for m in members)])
    for members in families([r for r in cbd_records(results) if r["arm"] == "plain"], plain_training):
        first = members[0]
        if first["attack"]["method"] != cls.name or not first["poisoned_rows"]:
            continue
        net = f"{network_words(first['model'])}, {first['method']['epochs']} epochs, {first['data']['rows']} rows"
        what = f"{first['data']['name']}: {config_words(first['attack'])}"
        row = [what, net, *[counted([m["evaluation"][k] for m in members]) for k in RATES]]
        rows.append([*row, "", "", seeds_words(m["seed"] for m in members)])
    if not rows:
        return []
    head = ["data: attack", "network, recipe", "ACC %", "ASR %", "RA %", "benign model: ASR %", "RA %", "seeds"]
    return [f"Victims as trained, without any defense.\n\n{grid(head, rows)}"]


def _trained_alike(victim: Record) -> str:
    return json.dumps({k: v for k, v in victim_family(victim).items() if k not in ("attack", "stamp")}, sort_keys=True)
