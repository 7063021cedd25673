"""What detectors of rows share: where a class falls into two groups, whether that counts, and the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from theriac.core.errors import InputError
from theriac.core.names import few
from theriac.core.outcome import Finding
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models import run_over

FEWEST_ROWS = 20  # ours: a class of fewer rows is not judged
FEWEST_CLASSES = 3  # of two classes neither is an outlier among the others
FEWEST_GROUP = 5  # ours: a smaller group may be a few outliers
SMALLEST_SHARE = 0.03  # ours: of a class; less than that are outliers, which every class has
LARGEST_SHARE = 0.9  # ours: of a class; more than that is the class
OWN_ANSWER = 0.5  # ours: least share of a group for which the model predicts its label; for wrong labels it predicts another
UNJUDGED = "not judged"  # under this name a finding's evidence has the classes that were not looked at
UNCALIBRATED = "uncalibrated: chosen on models of digits from other seeds than those of the committed table"


@dataclass(frozen=True, kw_only=True)
class Divided:
    """How each class falls into two groups.

    Args:
        classes: How far apart the groups are, on the detector's scale, float64 (K,); 0 for a class that is not judged.
        member: Whether a row is in the suspected group of its class, bool (N,).
        judged: Which classes were looked at, bool (K,).
    """

    classes: torch.Tensor
    member: torch.Tensor
    judged: torch.Tensor


def standing(
    divided: Divided, y: torch.Tensor, threshold: float, agrees: torch.Tensor | None, outlier: float = 0.0
) -> torch.Tensor:
    """Which classes stand out, bool (K,): a safeguard of ours, which no paper has.

    The groups must be further apart than ``threshold``, and further than those of most other classes; the suspected one
    must be more than a few outliers and not the class itself; and the model must predict the given label for most of
    it. A backdoored model does so with poisoned rows. Rows that are labeled wrongly by accident teach nothing that
    holds for other rows, and a model that generalizes contradicts them.

    Args:
        divided: The groups.
        y: Labels, (N,).
        threshold: Of ``divided.classes``.
        agrees: Whether the model gives a row its label, bool (N,); None where the detector has no such model.
        outlier: How many deviations above the median class the class must lie; 0 = it need not.
    """
    out = divided.judged & (divided.classes > threshold)
    if outlier:
        out &= outlying(divided.classes, divided.judged) > outlier
    for k in out.nonzero().flatten().tolist():
        group = (y == k) & divided.member
        fewest = max(float(FEWEST_GROUP), SMALLEST_SHARE * float((y == k).sum()))
        own = agrees is None or (bool(group.any()) and float(agrees[group].double().mean()) >= OWN_ANSWER)
        out[k] = own and fewest <= float(group.sum()) <= LARGEST_SHARE * float((y == k).sum())
    return out


def answer(
    rows: Split,
    scores: torch.Tensor,
    divided: Divided,
    out: torch.Tensor,
    threshold: float,
    *,
    unit: str,
    compares: bool,
    evidence: dict[str, Any] | None = None,
    origin: str = UNCALIBRATED,
) -> Finding:
    """The finding of a detector of rows: the suspected groups of the classes that stand out, strongest first.

    Args:
        rows: The rows.
        scores: Of each row, float64 (N,).
        divided: How classes fall into groups.
        out: Which classes stand out, bool (K,).
        threshold: Of ``divided.classes``.
        unit: What these are.
        compares: Whether a class stands out only among others, so that the detector abstains where there are too few of them.
        evidence: More plain data.
        origin: Where the threshold comes from.
    """
    y = rows.y.cpu()
    flagged = divided.member & out[y]
    order = scores.argsort(descending=True, stable=True)
    most = int(divided.classes.argmax())
    largest = f"the most divided class is {rows.card.classes[most]}: {unit} {float(divided.classes[most]):.3g}"
    verdict: dict[str, Any]
    there = rows.count().cpu() > 0
    unjudged = [name for name, out in zip(rows.card.classes, (there & ~divided.judged).tolist(), strict=True) if out]
    left_out = f"; {len(unjudged)} of {int(there.sum())} classes were not judged: {few(unjudged)}" if unjudged else ""
    if not bool(divided.judged.any()):
        verdict = {"verdict": "abstains", "reason": f"no class has {FEWEST_ROWS} rows that differ"}
    elif bool(flagged.any()):
        names = ", ".join(name for name, stands in zip(rows.card.classes, out.tolist(), strict=True) if stands)
        reason = f"{int(flagged.sum())} rows labeled {names} stand apart ({largest}, against {threshold:g})"
        verdict = {"verdict": "suspicious", "reason": reason}
    elif compares and int(divided.judged.sum()) < FEWEST_CLASSES:
        count = int(divided.judged.sum())
        reason = f"{count} classes have {FEWEST_ROWS} rows that differ, and it tells one from at least two others"
        verdict = {"verdict": "abstains", "reason": reason}
    elif 2 * len(unjudged) > int(there.sum()):
        verdict = {"verdict": "abstains", "reason": f"nothing stands out in the others{left_out}; that is most of them"}
    else:
        above = bool((divided.classes > threshold).any())
        why = "; other classes are as divided, its group is small, or the model contradicts its labels" if above else ""
        verdict = {"verdict": "clean", "reason": f"nothing stands out ({largest}, against {threshold:g}{why}){left_out}"}
    return Finding(
        **verdict,
        score=float(divided.classes.max()),
        classes=divided.classes,
        rows=scores,
        flagged=tuple(order[flagged[order]].tolist()),
        threshold=threshold,
        origin=origin,
        evidence={**(evidence or {}), UNJUDGED: unjudged},
    )


def agreement(model: nn.Module | None, rows: Split, run: Run) -> torch.Tensor:
    """Whether the model gives each row its label, bool (N,)."""
    return run_over(model, rows, run=run).argmax(1) == rows.y.cpu()


def by_class(rows: Split) -> list[tuple[int, torch.Tensor]]:
    """Positions of the rows of each class that has enough of them to be judged."""
    y = rows.y.cpu()
    places = [(k, (y == k).nonzero().flatten()) for k in range(rows.num_classes)]
    return [(k, at) for k, at in places if len(at) >= FEWEST_ROWS]


def pictures_only(title: str, *splits: Split | None) -> None:
    """Refuse table rows.

    Raises:
        InputError: If there are some.
    """
    if any(split is not None and split.is_table for split in splits):
        raise InputError(f"rows are those of a table; {title} changes pixels, so it needs pictures")


def more_varied(rows: Split, at: torch.Tensor, member: torch.Tensor) -> torch.Tensor:
    """The group of a class whose raw rows vary more, bool (M,): rows that come from several classes do.

    Pixels are on one scale. In a table each column counts by its share of what it varies over all rows, whatever its unit;
    categories vary as often as two of them differ.

    Args:
        rows: The rows.
        at: Positions of the class's rows, (M,).
        member: One of its two groups, bool (M,); both hold rows.
    """
    raw = rows.rows(at).double().flatten(1).cpu()
    if rows.is_table:
        categories = [column.kind == "categorical" for column in rows.card.columns]
        over_all = _variation(rows.x.double().cpu(), categories)
        spread = [float((_variation(raw[part], categories) / over_all)[over_all > 0].sum()) for part in (member, ~member)]
    else:
        spread = [float(raw[part].var(0, correction=0).sum()) for part in (member, ~member)]
    return member if spread[0] >= spread[1] else ~member


def _variation(x: torch.Tensor, categories: Sequence[bool]) -> torch.Tensor:
    """Variance of each column of (N, D), of categories the share of pairs that differ, (D,); missing values left out."""
    out = torch.zeros(x.shape[1], dtype=torch.float64)
    for place, categorical in enumerate(categories):
        values = x[:, place][~x[:, place].isnan()]
        if not len(values):
            continue
        if categorical:
            out[place] = 1 - float((values.unique(return_counts=True)[1].double() / len(values)).square().sum())
        else:
            out[place] = values.var(correction=0)
    return out


def best_cut(values: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The two groups of values (N,) that explain most of their variance.

    Returns:
        Which values are in the upper group, bool (N,), and the explained share of the variance: 2 / pi for a normal, 3 / 4 for
        an even distribution, 1 for two points. Equal values stay together; of values that are all equal, no group and 0.
    """
    order = values.argsort(stable=True)
    ordered, count = (values.double() - values.double().mean())[order], len(values)
    total = float((ordered**2).sum())
    upper = torch.zeros(count, dtype=torch.bool)
    if count < 2 or not total > 0:
        return upper, 0.0
    left = torch.arange(1, count)
    explained = ordered.cumsum(0)[:-1] ** 2 * (1 / left + 1 / (count - left))
    explained[ordered[1:] == ordered[:-1]] = -1.0
    cut = int(explained.argmax())
    upper[order[cut + 1 :]] = True
    return upper, float(explained[cut]) / total


def divide_scores(rows: Split, scores: torch.Tensor) -> Divided:
    """Divide each class by the best cut of its scores; the higher group is the suspected one."""
    classes = torch.zeros(rows.num_classes, dtype=torch.float64)
    member, judged = torch.zeros(len(rows), dtype=torch.bool), torch.zeros(rows.num_classes, dtype=torch.bool)
    for k, at in by_class(rows):
        upper, share = best_cut(scores[at])
        if share > 0:
            member[at], classes[k], judged[k] = upper, share, True
    return Divided(classes=classes, member=member, judged=judged)


def outlying(values: torch.Tensor, judged: torch.Tensor) -> torch.Tensor:
    """How many normal-consistent median deviations each judged class lies above the median of them all, float64 (K,)."""
    deviations = torch.zeros(len(values), dtype=torch.float64)
    if int(judged.sum()) < FEWEST_CLASSES:
        return deviations
    figures = values[judged].double()
    middle = figures.quantile(0.5)
    spread = 1.4826 * (figures - middle).abs().quantile(0.5)
    deviations[judged] = (figures - middle) / spread.clamp_min(1e-12)
    return deviations


def names_of(classes: Sequence[str], values: torch.Tensor) -> dict[str, float]:
    """Figures by the name of their class."""
    return {name: round(float(value), 6) for name, value in zip(classes, values, strict=True)}
