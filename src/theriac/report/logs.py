"""What training and repairs logged, as curves and as facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from theriac.core.text import seconds
from theriac.report import charts
from theriac.report.findings import title_of
from theriac.report.records import Result, Study


@dataclass(frozen=True)
class Quantity:
    """How a number of an epoch's event is called and drawn."""

    title: str
    share: bool = False
    span: tuple[float, float] | None = None


ACCURACY = Quantity("accuracy on the clean rows in training, as augmented", share=True)
LOSS = Quantity("loss")
# the first of these that a repair logs is drawn beside its accuracy
DRAWN = {
    "active": Quantity("rows on which a perturbation fools the old model", share=True),
    "cosine": Quantity("cosine between the new and the old head", span=(-1.0, 1.0)),
    "clean_loss": Quantity("loss on the clean rows beyond the bound"),
    "loss": LOSS,
}
FACTS = {
    **DRAWN,
    "perturbation": Quantity("largest perturbation (pixels in [0, 1])"),
    "passes_per_row": Quantity("network passes for each row"),
    "cosine_row_min": Quantity("smallest cosine of a class"),
    "cosine_row_max": Quantity("largest cosine of a class"),
    "distance": Quantity("distance from the old head"),
    "accuracy": ACCURACY,
}


@dataclass(frozen=True)
class Panel:
    """Curves of one piece of work, with their legend."""

    name: str
    curves: list[charts.Curves]
    legend: list[tuple[str, int]]  # label and style number


@dataclass(frozen=True)
class Logged:
    """What one repair of one victim logged, from first to last epoch."""

    victim: str
    repair: str
    detail: str  # epochs, clean rows and time
    facts: list[tuple[str, str]]


def values(result: Result, key: str) -> list[float]:
    """One number an epoch; empty if the history does not hold it throughout."""
    series = [e.get(key) for e in result.history]
    numbers = [float(v) for v in series if isinstance(v, (int, float)) and not isinstance(v, bool)]
    return numbers if len(numbers) == len(series) else []


def training(study: Study) -> Panel | None:
    """Loss and accuracy of the models as they were trained."""
    trained = [r for r in study.results if r.repair is None and r.history]
    return _panel("", trained, styles(study), {"loss": LOSS, "accuracy": Quantity("training accuracy", share=True)})


def repairing(study: Study) -> list[Panel]:
    """For each repair: accuracy on its clean rows, and the quantity that shows its effect."""
    lines = []
    for name in dict.fromkeys(title_of(r) for r in study.repairs):
        mine = [r for r in study.repairs if title_of(r) == name and r.history]
        key = next((k for k in DRAWN if mine and all(values(r, k) for r in mine)), "")
        quantities = {"accuracy": ACCURACY} | ({key: DRAWN[key]} if key else {})
        panel = _panel(name, mine, styles(study), quantities)
        if panel is not None:
            lines.append(panel)
    return lines


def styles(study: Study) -> dict[str, int]:
    """How the curves of each victim look: 0 for a model that nobody attacked, else 1 to 4 in turn."""
    attacked = list(dict.fromkeys(r.victim for r in study.results if r.attack is not None or r.repair is not None))
    return {r.victim: 1 + attacked.index(r.victim) % 4 if r.victim in attacked else 0 for r in study.results}


def _panel(name: str, results: Sequence[Result], style: Mapping[str, int], quantities: Mapping[str, Quantity]) -> Panel | None:
    drawn = []
    for key, what in quantities.items():
        series = [(r.victim, values(r, key), style[r.victim]) for r in results]
        made = charts.curves(what.title, series, share=what.share, span=what.span)
        if made is not None:
            drawn.append(made)
    return Panel(name, drawn, [(r.victim, style[r.victim]) for r in results]) if drawn else None


def facts(study: Study) -> list[Logged]:
    """First and last values of what the repairs logged."""
    lines = []
    for r in study.repairs:
        texts = []
        for key, what in FACTS.items():
            logged = values(r, key)
            if not logged or (key == "loss" and values(r, "clean_loss")):  # a loss that holds a distance says little
                continue
            first, last = _text(logged[0], what.share), _text(logged[-1], what.share)
            texts.append((what.title, last if first == last else f"{first} → {last}"))
        size = [f"{len(r.history):,} epochs"] * bool(r.history) + [f"{r.rows:,} clean rows"] * bool(r.rows)
        size += [] if r.seconds is None else [seconds(r.seconds)]
        lines.append(Logged(r.victim, title_of(r), ", ".join(size), texts))
    return lines


def _text(value: float, share: bool) -> str:
    return f"{100 * value:.1f} %" if share else f"{value:.3g}".replace("-", "−")
