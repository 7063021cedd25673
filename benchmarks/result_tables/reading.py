"""The committed results that are reported, by plan and in its order.

Tuning runs choose settings, so the method cards leave them out: plans called tuning, victims whose role is ``tuning``, and
CBD's runs with seeds from 100 up.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import yaml
from table import RESULTS, Record, Table, tables

PLANS = Path(__file__).resolve().parents[1] / "plans"
TUNING = re.compile(r"(.+_)?tuning|cbd_stage1")
FIRST_TUNING_SEED = 100
FIRST_EDITION = "1ed9b97"  # the last commit that has the scripts and plans whose tables are kept


def repair_plans(results: Path = RESULTS, *, tuning: bool = False) -> dict[str, list[Record]]:
    """Records of repairs of the first edition by plan; what made them is gone, see ``made_by``."""
    found = {}
    for plan, table in sorted(tables(results).items(), key=lambda item: (item[0] != "foundation", item[0])):
        if TUNING.fullmatch(plan) and not tuning:
            continue
        records = [r for r in table if {"before", "name", "victim", "repair"} <= r.keys()]
        if records:
            found[plan] = records
    return found


def made_by(plan: str, record: Record, home: str) -> str:
    """What made the records of a plan, in Markdown.

    Args:
        plan: Its name.
        record: One of its records, which holds the command.
        home: Where ``benchmarks/`` lies from the page that says it.
    """
    command = re.split(r" --(?:only|job) ", record["command"])[0]
    if not (PLANS.parent / "specs" / "first_edition" / f"{plan}.yaml").is_file():
        return f"`{command}`"
    spec = f"{home}/specs/first_edition/{plan}.yaml"
    return f"`benchmarks/repairs.py` of commit {FIRST_EDITION}; [the same work as a spec]({spec})"


def cbd_records(results: Path = RESULTS) -> list[Record]:
    """Records of ``cbd.py`` that are reported."""
    return [r for r in Table.of("cbd", results) if "arm" in r and r["seed"] < FIRST_TUNING_SEED]


def age_records(results: Path = RESULTS) -> dict[str, list[Record]]:
    """Records of ``age.py`` by plan, without the tuning victims."""
    found: dict[str, list[Record]] = {}
    for plan, table in tables(results).items():
        records = [r for r in table if "cells" in r and r["victim"].get("role") != "tuning"]
        if records:
            found[plan] = records
    return found


def attack_plans(results: Path = RESULTS) -> dict[str, list[Record]]:
    """Records of ``attacks.py`` by plan, in the order of the plan, without the runs of tuning seeds."""
    found: dict[str, list[Record]] = {}
    for plan, table in tables(results).items():
        records = [r for r in table if {"attack", "victim", "benign", "planted"} <= r.keys()]
        if records:
            order = {name: i for i, name in enumerate(jobs(plan))}
            found[plan] = sorted(records, key=lambda r: (order.get(job_name(r), len(order)), r["seed"]))
    return found


def debias_records(results: Path = RESULTS) -> dict[str, list[Record]]:
    """Records of ``debias.py`` by task, tasks and methods in the order of the plan."""
    plan = yaml.safe_load((PLANS / "debias.yaml").read_text("utf-8"))
    found: dict[str, list[Record]] = {}
    for record in Table.of("debias", results):
        if record["method"] not in plan["methods"] and record["method"] not in plan["tasks"][record["task"]].get("methods", {}):
            continue  # of an older plan
        found.setdefault(record["task"], []).append(record)
    ordered: dict[str, list[Record]] = {}
    for task, about in plan["tasks"].items():
        names = [*plan["methods"], *about.get("methods", {})]
        if task in found:
            ordered[task] = sorted(found[task], key=lambda r: (names.index(r["method"]), r["seed"]))
    return ordered


@cache
def jobs(plan: str) -> dict[str, Record]:
    """The jobs of a plan by name, in order; none if there is no such plan."""
    path = PLANS / f"{plan}.yaml"
    return {job["name"]: job for job in yaml.safe_load(path.read_text("utf-8")).get("jobs", ())} if path.exists() else {}


def job_name(record: Record) -> str:
    """The job of an attack's record: its name without the seed."""
    return re.sub(rf"-{record['seed']}$", "", record["name"])
