"""The page of ``benchmarks/rows.py``: detectors of rows beside the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from table import RESULTS, Record, Table

from theriac.report.cards import grid

NAMES = {
    "strip": "STRIP",
    "scan": "SCAn",
    "spectral": "Spectral Signatures",
    "activation_clustering": "Activation Clustering",
    "scale_up": "SCALE-UP",
    "loss_isolation": "Loss isolation",
    "agpd": "AGPD",
}


def page(results: Path = RESULTS) -> str:
    """All cases: how often each detector suspected rows, which of them were poisoned, and AUROC over the seeds."""
    cases: dict[str, list[Record]] = {}
    for record in Table.of("rows", results):
        cases.setdefault(str(record["case"]), []).append(record)
    names = [*NAMES, "together"]
    head = ["rows", *NAMES.values(), "together"]
    body = [[case, *(_cell(members, name) for name in names)] for case, members in sorted(cases.items())]
    seeds = sorted({record["seed"] for members in cases.values() for record in members})
    machine = next(iter(cases.values()))[0]["machine"]
    return (
        "# Detectors of rows\n\n"
        "Made by `python benchmarks/make_tables.py` from `rows.jsonl` (`python benchmarks/rows.py`). Digits, PreAct-ResNet-18 "
        f"of width 8, `short_15`, fp32; seeds {', '.join(map(str, seeds))}, torch {machine['torch']}. A cell: "
        "in how many of the seeds rows were suspected, poisoned ones of all suspected, and the mean AUROC (0.5 is "
        'guessing). "together" is what `theriac scan-data` says, from the first four. AGPD gets 100 clean '
        "test rows, the others none. Uncalibrated on other data.\n\n"
        f"{grid(head, body)}\n"
    )


def _cell(members: list[Record], name: str) -> str:
    parts: list[dict[str, Any]] = [m["together"] if name == "together" else m["detectors"][name] for m in members]
    raised = sum(part["verdict"] == "suspicious" for part in parts)
    right, flagged = (sum(part[key] for part in parts) for key in ("right", "flagged"))
    areas = [part["auroc"] for part in parts if part["auroc"] is not None]
    area = f"; {sum(areas) / len(areas):.2f}" if areas else ""
    return f"{raised} of {len(parts)}{f', {right}/{flagged}' if flagged else ''}{area}"
