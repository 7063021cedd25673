"""The page of ``benchmarks/rows.py``: detectors of rows beside the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from table import RESULTS, Record, Table

from theriac.core.method import Method
from theriac.report.cards import grid

NAMES = {
    "repaired_twin": "Repaired twin",
    "strip": "STRIP",
    "scan": "SCAn",
    "spectral": "Spectral Signatures",
    "activation_clustering": "Activation Clustering",
    "scale_up": "SCALE-UP",
    "loss_isolation": "Loss isolation",
    "agpd": "AGPD",
}
ANSWERS = {"together": "scan without clean rows", "together_clean": "scan with them"}


def page(results: Path = RESULTS) -> str:
    """All cases: how often each detector suspected rows, which of them were poisoned, and AUROC over the seeds."""
    cases: dict[str, list[Record]] = {}
    for record in Table.of("rows", results):
        cases.setdefault(str(record["case"]), []).append(record)
    head = ["rows", "learned", *ANSWERS.values(), *NAMES.values()]
    body = [
        [case, _learned(members), *(_cell(members, name) for name in (*ANSWERS, *NAMES))]
        for case, members in sorted(cases.items())
    ]
    every = [record for members in cases.values() for record in members]
    seeds = sorted({record["seed"] for record in every})
    return (
        "# Detectors of rows\n\n"
        f"{_headline(every)}\n\n"
        "Made by `python benchmarks/make_tables.py` from `rows.jsonl` (`python benchmarks/rows.py --data "
        "fashion_mnist=<folder>`). Digits, and 3,000 rows of Fashion-MNIST; PreAct-ResNet-18 of width 8, trained as "
        f"`theriac scan-data` does, fp32; seeds {', '.join(map(str, seeds))}, torch {every[0]['machine']['torch']}. A cell: in "
        "how many of the seeds rows were suspected, poisoned ones of all suspected, and the mean AUROC (0.5 is guessing). "
        "Learned: poisoned rows that the network gives their wrong label. Without clean rows a scan takes the word of STRIP, "
        "SCAn, Spectral Signatures and Activation Clustering. The repaired twin and AGPD get 100 clean test rows of digits, "
        "200 of Fashion-MNIST, the others none. Thresholds were chosen on other seeds of digits, the twin's also on "
        "Fashion-MNIST. Rows named after a sweep are of its networks: of width 16, 10,000 rows of CIFAR-10, 200 clean ones.\n\n"
        f"{grid(head, body)}\n"
    )


def for_detector(cls: type[Method], results: Path = RESULTS) -> list[str]:
    """A detector of rows over all cases: how often it suspected rows where some are poisoned, and where none is."""
    records = [r for r in Table.of("rows", results) if cls.name in r["detectors"]]
    if not records:
        return []
    attacked = [r for r in records if r["poisoned"]]
    told = [r["detectors"][cls.name] for r in attacked]
    right, flagged = (sum(part[key] for part in told) for key in ("right", "flagged"))
    areas = [part["auroc"] for part in told if part["auroc"] is not None]
    benign = [r["detectors"][cls.name]["verdict"] == "suspicious" for r in records if not r["poisoned"]]
    raised = sum(part["verdict"] == "suspicious" for part in told)
    return [
        f"From [rows](../../benchmarks/results/rows.md): it suspected rows of {raised} of {len(told)} poisoned sets, "
        f"{right} of {flagged} suspected rows being poisoned, and of {sum(benign)} of {len(benign)} benign ones; "
        f"AUROC {min(areas):.2f} to {max(areas):.2f}, {sum(areas) / len(areas):.2f} on average."
    ]


def _headline(records: list[Record]) -> str:
    """What a scan says with and without clean rows, of sets with and without poison."""
    parts, records = [], [r for r in records if "together" in r]
    for name, words in (("together_clean", "with clean rows"), ("together", "without")):
        attacked = [r for r in records if r["poisoned"]]
        caught = [r for r in attacked if r[name]["right"] >= 0.5 * r["poisoned"]]
        alarms = [r for r in records if not r["poisoned"] and r[name]["flagged"]]
        benign = len(records) - len(attacked)
        parts.append(
            f"{words} it names half of the poisoned rows or more in {len(caught)} of {len(attacked)} poisoned sets, and "
            f"suspects rows of {len(alarms)} of {benign} benign ones"
        )
    text = "; ".join(parts)
    return f"**{text[0].upper()}{text[1:]}.**"


def _learned(members: list[Record]) -> str:
    poisoned = sum(m["poisoned"] for m in members)
    return f"{100 * sum(m['learned'] for m in members) / poisoned:.0f} %" if poisoned else ""


def _cell(members: list[Record], name: str) -> str:
    told: list[dict[str, Any] | None] = [m.get(name) if name in ANSWERS else m["detectors"].get(name) for m in members]
    parts = [part for part in told if part is not None]
    if len(parts) < len(told):
        return "-"
    raised = sum(part["verdict"] == "suspicious" for part in parts)
    right, flagged = (sum(part[key] for part in parts) for key in ("right", "flagged"))
    areas = [part["auroc"] for part in parts if part["auroc"] is not None]
    area = f"; {sum(areas) / len(areas):.2f}" if areas else ""
    return f"{raised} of {len(parts)}{f', {right}/{flagged}' if flagged else ''}{area}"
