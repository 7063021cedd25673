"""What training and repairs logged, as curves and as facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from theriac.report import charts
from theriac.report.findings import title_of
from theriac.report.records import Result, Study

# what an epoch's event may hold, how it is called on the page, and whether it is a share
QUANTITIES: dict[str, tuple[str, bool]] = {
    "active": ("rows with a shared adversarial example", True),
    "cosine": ("cosine between the new and the old head", False),
    "clean_loss": ("loss on the clean rows beyond the bound", False),
    "loss": ("loss", False),
}
FACTS: dict[str, tuple[str, bool]] = {
    "active": ("rows with a shared adversarial example", True),
    "perturbation": ("largest perturbation (pixels in [0, 1])", False),
    "passes_per_row": ("network passes for each row", False),
    "cosine": ("cosine between the new and the old head", False),
    "cosine_row_min": ("smallest cosine of a class", False),
    "cosine_row_max": ("largest cosine of a class", False),
    "distance": ("distance from the old head", False),
    "clean_loss": ("loss beyond the bound", False),
    "loss": ("loss", False),
    "accuracy": ("accuracy on the clean rows", True),
}


@dataclass(frozen=True)
class Panel:
    """Curves of one piece of work, with who they are."""

    name: str
    curves: list[charts.Curves]
    legend: list[tuple[str, int]]  # label and style number


@dataclass(frozen=True)
class Logged:
    """What one repair of one victim logged, from first to last epoch."""

    victim: str
    repair: str
    epochs: int
    rows: int
    seconds: float | None
    facts: list[tuple[str, str]]


def values(result: Result, key: str) -> list[float]:
    """One number an epoch; empty if the history does not hold it throughout."""
    found = [e.get(key) for e in result.history]
    numbers = [float(v) for v in found if isinstance(v, (int, float)) and not isinstance(v, bool)]
    return numbers if len(numbers) == len(found) else []


def training(study: Study) -> Panel | None:
    """Loss and accuracy of the models as they were trained."""
    trained = [r for r in study.results if r.repair is None and r.history]
    return _panel("", trained, styles(study), [("loss", "loss", False), ("accuracy", "training accuracy", True)])


def repairing(study: Study) -> list[Panel]:
    """For each repair: accuracy on its clean rows, and the quantity that tells what it did."""
    found = []
    for name in dict.fromkeys(title_of(r) for r in study.repairs):
        mine = [r for r in study.repairs if title_of(r) == name and r.history]
        key = next((k for k in QUANTITIES if mine and all(values(r, k) for r in mine)), "")
        wanted = [("accuracy", "accuracy on the clean rows", True)]
        if key:
            wanted.append((key, *QUANTITIES[key]))
        panel = _panel(name, mine, styles(study), wanted)
        if panel is not None:
            found.append(panel)
    return found


def styles(study: Study) -> dict[str, int]:
    """How the curves of each victim look: 0 for a model that nobody attacked, else 1 to 4 in turn."""
    attacked = list(dict.fromkeys(r.victim for r in study.results if r.attack is not None or r.repair is not None))
    return {r.victim: 1 + attacked.index(r.victim) % 4 if r.victim in attacked else 0 for r in study.results}


def _panel(
    name: str, results: Sequence[Result], style: Mapping[str, int], wanted: Sequence[tuple[str, str, bool]]
) -> Panel | None:
    drawn = []
    for key, title, share in wanted:
        made = charts.curves(title, [(r.victim, values(r, key), style[r.victim]) for r in results], share=share)
        if made is not None:
            drawn.append(made)
    return Panel(name, drawn, [(r.victim, style[r.victim]) for r in results]) if drawn else None


def facts(study: Study) -> list[Logged]:
    """First and last values of what the repairs logged."""
    found = []
    for r in study.repairs:
        told = []
        for key, (name, share) in FACTS.items():
            logged = values(r, key)
            if not logged or (key == "loss" and values(r, "clean_loss")):  # a loss that holds a distance says little
                continue
            first, last = _text(logged[0], share), _text(logged[-1], share)
            told.append((name, last if first == last else f"{first} → {last}"))
        found.append(Logged(r.victim, title_of(r), len(r.history), r.rows, r.seconds, told))
    return found


def _text(value: float, share: bool) -> str:
    return f"{100 * value:.1f} %" if share else f"{value:.3g}".replace("-", "−")
