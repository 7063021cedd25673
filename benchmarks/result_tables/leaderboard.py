"""Published numbers beside those of the committed tables, with verdicts that ``theriac.bench.leaderboard`` computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from table import RESULTS, Record

from result_tables.reading import debias_records, repair_plans
from result_tables.sweeps import sweeps
from result_tables.words import judge_words, settings_words, victim_words
from theriac.bench.leaderboard import Trial, beside, markdown, trials_of
from theriac.bench.reported import method_called, read_reported
from theriac.core.method import methods

_GROUPS = {"adult-race": "race", "adult-race-alpha": "race", "adult-sex": "sex"}  # sensitive column by task
HEADER = """# Published numbers and ours

Made by `python benchmarks/make_tables.py` from the tables beside this page, those of tuning left out, and from
[reported.yaml](../../src/theriac/bench/reported.yaml), which holds every published number with its source. Nothing on this page
is judged by hand. `theriac results STORE --leaderboard` makes the same of any sweep.
"""


def page(results: Path = RESULTS) -> str:
    """All published entries beside all committed measurements."""
    lines = beside(trials(results))
    told = {entry.method for entry in read_reported()}
    silent = [cls.title or name for kind in ("repair", "training", "debiasing") for name, cls in methods(kind).items()]
    silent = [title for title in silent if title not in {_title(name) for name in told}]
    rest = f"Methods without a number in that file: {', '.join(silent)}.\n"
    notes = [f"- {_title(e.method)}, {e.source}: {e.note}" for e in read_reported() if e.note]
    return "\n".join([HEADER, markdown(lines), "Remarks on single entries:\n", *notes, "", rest])


def trials(results: Path = RESULTS) -> list[Trial]:
    """What the committed tables hold: repairs of victims, debiased models, and rows of sweeps."""
    made = [_repaired(plan, r) for plan, records in repair_plans(results).items() for r in records if _counts(r)]
    made += [_debiased(task, r) for task, records in debias_records(results).items() for r in records if r.get("config")]
    return made + [trial for rows in sweeps(results).values() for trial in trials_of(rows)]


def _title(name: str) -> str:
    cls = method_called(name)
    return name if cls is None else cls.title or name


def _counts(record: Record) -> bool:
    return bool(record["repair"] and record.get("after") and record["victim"].get("attack") and record["after"].get("asr"))


def _repaired(plan: str, record: Record) -> Trial:
    victim, repair = record["victim"], dict(record["repair"])
    label = f"{_title(repair['method'])} {settings_words(repair)}, {record.get('clean_rows', 0):,} rows"
    attack = dict(victim["attack"])
    return Trial(
        method=repair.pop("method"),
        label=label,
        options=repair,
        data=victim["data"],
        train_rows=victim.get("rows"),
        model={"architecture": victim.get("model", "preact_resnet18"), **victim.get("options", {"width": 16})},
        recipe=victim["recipe"],
        clean=record.get("clean_rows"),
        attack={"method": attack.pop("name"), **attack},
        attack_label=judge_words(record),
        seed=f"{victim.get('seed', 0)}/{record.get('seed', 0)}",
        numbers={name: record["after"][name]["hits"] / record["after"][name]["total"] for name in ("acc", "asr")},
        setting=f"{victim['data']}, {victim_words(victim)} ({plan})",
    )


def _debiased(task: str, record: Record) -> Trial:
    config: dict[str, Any] = dict(record["config"])
    name, figures = config["method"], record["fairness"]
    return Trial(
        method=name,
        label=f"{_title(name)} {settings_words(config)}",
        options={k: v for k, v in config.items() if k != "method"},
        data=record["data"]["name"],
        model={"architecture": record["model"]["name"], **record["model"]["options"]},
        group=_GROUPS.get(task),
        seed=str(record["seed"]),
        numbers={key: figures[key]["value"] for key in ("acc", "bacc", "dp_gap", "opportunity_gap", "odds_gap")},
        setting=f"{task} (debias)",
    )
