"""The committed results as Markdown: pages beside the results, and the measured parts of the method cards."""

from __future__ import annotations

from pathlib import Path

from table import RESULTS, tables

from result_tables import age, attacks, debias, file_scan, leaderboard, lengths, population, repairs, rows, sweeps, training
from result_tables.reading import attack_plans, repair_plans
from theriac.core.method import Method

READERS = {
    "attack": (attacks.for_attack, attacks.for_victims),
    "training": (sweeps.for_defense, training.for_defense),
    "repair": (sweeps.for_defense, repairs.for_repair, age.for_edits),
    "detector": (rows.for_detector,),
    "debiasing": (debias.for_method,),
}


def for_card(cls: type[Method], results: Path = RESULTS) -> str:
    """Everything reported about one method; empty if there is nothing."""
    return "\n\n".join(block for reader in READERS[cls.kind] for block in reader(cls, results))


def pages(results: Path = RESULTS) -> dict[Path, str]:
    """Every plan's page by its file."""
    texts = {plan: repairs.page(plan, records) for plan, records in repair_plans(results, tuning=True).items()}
    texts |= {plan: attacks.page(plan, records) for plan, records in attack_plans(results).items()}
    if "debias" in tables(results):
        texts["debias"] = debias.page(results)
    if "file_scan" in tables(results):
        texts["file_scan"] = file_scan.page(results)
    if "population" in tables(results):
        texts["population"] = population.page(results)
    if "rows" in tables(results):
        texts["rows"] = rows.page(results)
    texts |= {name: sweeps.page(name, kept) for name, kept in sweeps.sweeps(results).items()}
    if lengths.NAME in tables(results):
        texts["lengths"] = lengths.page(results)
    texts["leaderboard"] = leaderboard.page(results)
    return {results / f"{plan}.md": text for plan, text in texts.items()}
