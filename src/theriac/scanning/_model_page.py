"""The page of a scan of a model: the verdict, what it rests on, and the patterns as pictures."""

from __future__ import annotations

from typing import Any

from theriac.report import picture, render
from theriac.scanning.calibration import calibration

HEADLINES = {
    "clean": "No sign of a backdoor was found",
    "suspicious": "There are signs that should not be there",
    "backdoored": "This network behaves as backdoored ones do",
    "abstains": "This scan can give no answer",
}
MEASURES = {  # the most informative first
    "excess": "largest",
    "patch": "patch",
    "perturbation": "perturbation",
    "warp": "warp",
    "patch_lead": "patch, log-odds",
    "inversion": "inversion",
    "overlaid": "overlaid patch",
    "dimmed": "dimmed",
    "head": "last layer",
    "probes": "probes",
}
AS_NUMBERS = ("patch_lead", "head", "probes")  # log-odds, and robust standard deviations; the others are shares of rows
LEADS = {  # what the columns of the table are, those that are there
    "excess": (
        "the largest share of other classes' rows that the best patch, perturbation or warp sends to each class, and the share "
        "for each of the three"
    ),
    "patch_lead": "the log-odds that the patch gives to the class",
    "inversion": "rows that a trigger in the space of features sends there, counted on those that it was searched on",
    "overlaid": "rows that the patch still sends there with another picture laid over them",
    "dimmed": "how likely the class is where pictures are dimmed",
    "head": "how far its row of the last layer stands out, in robust standard deviations",
    "probes": "how many random probes into that layer it takes, likewise",
}
WORDS = {
    "start": "where every such network starts, before its measurements",
    "channel_peak": "strongest channel against the usual one",
    "head_sum": "sum of a class's row in the last layer",
    "head_length": "length of a class's row in the last layer",
    "head_peak": "largest weight of a class's row in the last layer",
    "head_bias": "bias of a class",
    "probe_share": "random probes that one class takes",
    "excess": "rows that a trigger sends to one class, beyond what happens in a repaired twin",
    "patch_lead": "log-odds that a patch gives to one class and not in the twin, against the usual class",
}
SHOWN = 10  # classes in the table, the most suspicious ones


def page(scan: Any) -> str:
    """The page of a ModelScan as text."""
    names = () if scan.card is None else scan.card.classes
    measures = [name for name in MEASURES if name in scan.classes]
    first = scan.classes.get("excess", scan.classes.get("head"))
    order = [] if first is None else first.argsort(descending=True, stable=True).tolist()[:SHOWN]
    rows = [(names[k], [_cell(m, float(scan.classes[m][k])) for m in measures]) for k in order]
    images = [
        (_caption(name, scan), picture((255 * pattern).round().clamp(0, 255).to("cpu").byte()))
        for name, pattern in scan.pictures.items()
        if pattern.shape[0] in (1, 3)
    ]
    reached = calibration()["behavior"]
    return render(
        "scan.html.j2",
        scan=scan,
        headline=HEADLINES[scan.verdict],
        chance=scan.chance,
        measures=[MEASURES[name] for name in measures],
        lead=[LEADS[name] for name in measures if name in LEADS],
        twin="excess" in scan.features,
        rows=rows,
        left_out=len(names) - len(rows),
        images=images,
        weighty=[(WORDS.get(name, name), f"{value:+z.1f}".replace("-", "\u2212")) for name, value in scan.weighty],
        fresh=reached["fresh"],
        other=reached["held_out_other"],
        pixelated=scan.card is not None and max(scan.card.size, default=0) <= 64,
    )


def _caption(name: str, scan: Any) -> str:
    """What a pattern is, and the class that it sends most rows to, which another kind of pattern may not."""
    kinds = {"patch": "patch", "perturbation": "perturbation", "the picture warped": "warp", "the row moved": "inversion"}
    kind = kinds.get(name)
    return name if kind not in scan.classes else f"{name}, toward {scan.card.classes[int(scan.classes[kind].argmax())]}"


def _cell(measure: str, value: float) -> str:
    text = f"{value:+z.1f}" if measure in AS_NUMBERS else f"{100 * value:+z.0f} %"
    return text.replace("-", "\u2212")
