"""What the committed results say about one method, as Markdown: the tables of the method cards (``docs/build.py``)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attack_tables import for_attack
from debias_tables import for_method
from measured import (
    RATES,
    age_records,
    attack_words,
    cbd_records,
    change,
    config_words,
    counted,
    families,
    judge_words,
    network_words,
    precision_words,
    repair_family,
    repair_plans,
    seeds_words,
    settings_words,
    victim_family,
    victim_words,
)
from table import RESULTS, Record

from theriac.core.method import Method
from theriac.repairs.age.edits import FORMER as RULES
from theriac.repairs.age.restore import FORMER as REPAIRS
from theriac.report.cards import grid

HEAD = ["ACC %", "ASR %", "RA %"]


def for_card(cls: type[Method], results: Path = RESULTS) -> str:
    """Everything reported about one method, as Markdown; empty if there is nothing."""
    readers: dict[str, tuple[Callable[[type[Method], Path], list[str]], ...]] = {
        "attack": (for_attack, _attacked),
        "training": (_trained,),
        "repair": (_repaired, _edited),
        "detector": (),
        "debiasing": (for_method,),
    }
    return "\n\n".join(block for reader in readers[cls.kind] for block in reader(cls, results))


def _repaired(cls: type[Method], results: Path) -> list[str]:
    blocks = []
    for plan, records in repair_plans(results).items():
        mine = [r for r in records if r["repair"] and r["repair"]["method"] == cls.name and r.get("after")]
        rows = []
        for members in families(mine, partial(repair_family, plan=plan)):
            first = members[0]
            victim = first["victim"]
            judged = judge_words(first, plan)
            what = judged if victim.get("attack") else f"no attack, judged by {judged}"
            rows.append([
                f"{victim['data']}: {what}",
                victim_words(victim),
                f"{settings_words(first['repair'])}; {precision_words(first)}",
                first["clean_rows"],
                *[change([m["before"][k] for m in members], [m["after"][k] for m in members]) for k in RATES],
                _seeds(members),
            ])  # fmt: skip
        if rows:
            head = ["victim", "network, recipe", "preset, what differs; precision", "clean rows", *HEAD, "seeds"]
            blocks.append(f"{_from(plan, mine[0])}\n\n{grid(head, rows)}")
    return blocks


def _seeds(members: Sequence[Record]) -> str:
    victims = seeds_words(m["victim"].get("seed", 0) for m in members)
    repairs = seeds_words(m.get("seed", 0) for m in members)
    return f"{repairs} (victim {victims})" if repairs != victims else repairs


def _from(plan: str, record: Record) -> str:
    command = re.split(r" --(?:only|job) ", record["command"])[0]
    table = f"[{plan}](../../benchmarks/results/{plan}.md)"
    return f"From {table}, `{command}`; before → after."


def _attacked(cls: type[Method], results: Path) -> list[str]:
    """Victims as trained, beside benign models that were trained the same way and judged by the same trigger."""
    rows: list[list[Any]] = []
    plans = repair_plans(results)
    benign = {
        json.dumps([_trained_alike(r["victim"]), judge_words(r, plan)]): r["before"]
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
    for members in families([r for r in cbd_records(results) if r["arm"] == "plain"], _plain_key):
        first = members[0]
        if first["attack"]["method"] != cls.name or not first["poisoned_rows"]:
            continue
        net = f"{network_words(first['model'])}, {first['method']['epochs']} epochs, {first['data']['rows']} rows"
        what = f"{first['data']['name']}: {config_words(first['attack'])}"
        row = [what, net, *[counted([m["evaluation"][k] for m in members]) for k in RATES]]
        rows.append([*row, "", "", seeds_words(m["seed"] for m in members)])
    if not rows:
        return []
    head = ["data: attack", "network, recipe", *HEAD, "benign model: ASR %", "RA %", "seeds"]
    return [f"Victims as trained, without any defense.\n\n{grid(head, rows)}"]


def _trained_alike(victim: Record) -> str:
    return json.dumps({k: v for k, v in victim_family(victim).items() if k not in ("attack", "stamp")}, sort_keys=True)


def _plain_key(record: Record) -> list[Any]:
    shared = ("epochs", "batch_size", "lr", "momentum", "weight_decay", "cutout", "input_norm")
    recipe = [record["method"].get(k) for k in shared]
    return [record["data"]["name"], record["data"]["rows"], record["attack"], record["model"], recipe, record["arm"]]


def _arm_key(record: Record) -> list[Any]:
    return [*_plain_key(record), record["method"] if record["arm"] == "cbd" else None, precision_words(record)]


def _trained(cls: type[Method], results: Path) -> list[str]:
    """A training-time defense beside plain training on the same rows, and on the clean ones among them."""
    records = [r for r in cbd_records(results) if r["method"]["method"] == cls.name]
    names = {"plain": "plain training", "clean": "the clean rows alone"}
    records.sort(key=lambda r: ("plain", "cbd", "clean").index(r["arm"]))
    rows = []
    for members in families(records, _arm_key):
        first = members[0]
        attacked = first["poisoned_rows"] > 0
        told = config_words(first["attack"])
        own = f"{cls.title} {settings_words(first['method'])}"
        verdicts = [m["health"].get("verdict", "") for m in members if m.get("health")]
        aurocs = [f"{m['gates']['auroc']:.2f}" for m in members if "auroc" in m.get("gates", {})]
        rows.append([
            f"{first['data']['name']}, {first['data']['rows']} rows: "
            + (told if attacked else f"no attack, judged by {first['attack']['method']}"),
            f"{network_words(first['model'])}, {first['method']['epochs']} epochs; {precision_words(first)}",
            names.get(first["arm"], own),
            *[counted([m["evaluation"][k] for m in members]) if first["evaluation"][k] else "" for k in RATES],
            ", ".join([*verdicts, *(["AUROC " + ", ".join(aurocs)] if aurocs else [])]),
            seeds_words(m["seed"] for m in members),
        ])  # fmt: skip
    if not rows:
        return []
    rows.sort(key=lambda row: (row[0], row[1]))
    head = ["data: attack", "network; precision", "arm", *HEAD, "f_B: health, AUROC of its loss", "seeds"]
    return [f"From `python benchmarks/cbd.py`; the command of each run is in its record.\n\n{grid(head, rows)}"]


def _edited(cls: type[Method], results: Path) -> list[str]:
    """AGE's experiment: the default rule and its controls; for other repairs, their rows as baselines with few clean rows."""
    blocks = []
    for plan, records in age_records(results).items():
        rows = [
            _cells_row(record, members)
            for record in records
            for members in families(
                [_renamed(cell) for cell in record["cells"]], lambda c: [c["kind"], c["rule"], c["retrain"], c["per_class"]]
            )
            if _shown(cls, members[0])
        ]
        if rows:
            made = f"`python benchmarks/age.py benchmarks/plans/{plan}.yaml`"
            more = " All rules and repairs are in that table." if cls.name == "age" else ""
            head = ["victim", "what", "rows a class", *HEAD, "target class %", "left alone", "seeds of the handful"]
            blocks.append(f"From `benchmarks/results/{plan}.jsonl`, {made}; before → after.{more}\n\n{grid(head, rows)}")
    return blocks


def _renamed(cell: Record) -> Record:
    """A cell with today's names of rules and repairs."""
    return {**cell, "rule": RULES.get(cell["rule"], cell["rule"]), "retrain": REPAIRS.get(cell["retrain"], cell["retrain"])}


def _cells_row(record: Record, members: Sequence[Record]) -> list[Any]:
    victim, first = record["victim"], members[0]
    own = victim.get("attack")
    judged = attack_words(own) if own else f"no attack, judged by {attack_words(victim['judge'])}"
    trigger = "searched" if first["kind"] == "inverted" else "known"
    where = "later layers" if first["kind"] == "later" else "head"
    what = f"{first['rule']} + {first['retrain']}, {where}, trigger {trigger}"
    rates = (*RATES, "target_acc")
    after = {k: [{"hits": m[k][0], "total": m[k][1]} for m in members if k in m] for k in rates}
    return [
        f"{victim['data']}: {judged}",
        f"{first['rule']} {settings_words(first['config'])}" if "config" in first else what,
        first["per_class"],
        *[change([record["before"][k]], after[k]) if after[k] and record["before"].get(k) else "" for k in rates],
        sum(m["told"].get("outcome", "repaired") != "repaired" for m in members) or "",
        seeds_words(m["seed"] for m in members),
    ]


def _shown(cls: type[Method], cell: Record) -> bool:
    if cls.name != "age":
        return bool(cell["kind"] == "baseline" and cell.get("config", {}).get("method") == cls.name)
    usual = cls().config()
    if cell["kind"] in ("inverted", "baseline"):
        return True
    if cell["kind"] == "later":
        return bool(cell["retrain"] == usual["retrain"])
    chosen = cell["rule"] in (usual["rule"], "project") and cell["retrain"] in (usual["retrain"], "head_stamped")
    return chosen or (cell["kind"] == "head" and cell["rule"] == "none" and cell["retrain"] == "head")
