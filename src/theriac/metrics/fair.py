"""How a model treats groups: rates of each cell and group with counts, and the gaps between groups, each with its formula.

One definition for any number of groups and classes: a gap is the largest minus the smallest rate over groups, and where there
is a gap for each class, the mean over classes (so that two groups and two classes give the usual numbers). Every gap has an
interval that holds for any number of groups, and a noise floor: what it would be if groups meant nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from theriac.core import check
from theriac.core._rows import check_labels
from theriac.core.errors import InputError, shortened
from theriac.metrics import gaps
from theriac.metrics._degenerate import ClassCount, how_many, one_class, short
from theriac.metrics.gaps import Measure
from theriac.metrics.intervals import Rate

FORMULAS = {
    "acc": "share of rows classified as their label",
    "bacc": "mean over (group, label) cells of the cell's accuracy",
    "worst_cell": "smallest accuracy of a (group, label) cell",
    "worst_group": "smallest accuracy of a group",
    "dp_gap": "demographic parity difference: max - min over groups of P(predicted = c); mean over classes c",
    "dp_ratio": "demographic parity ratio: min / max over groups of P(predicted = positive); 1 if nobody is predicted so",
    "opportunity_gap": "equal opportunity difference: max - min over groups of P(predicted = positive | label = positive)",
    "odds_gap": "mean odds difference ('Bias'): mean over labels c of max - min over groups of P(predicted = c | label = c)",
    "worst_odds_gap": "worst-case odds difference: max over labels c of max - min over groups of P(predicted = c | label = c)",
}
"""What each number means. "EOD" stands for several of them in the literature; these names do not."""

GAPS = ("dp_gap", "dp_ratio", "opportunity_gap", "odds_gap", "worst_odds_gap")
MEASURES = ("bacc", *GAPS)
NO_ROWS = "no rows"  # what is shown for a figure that the rows do not give


@dataclass(frozen=True)
class Fairness:
    """Predictions of one model on rows with groups, counted; every number follows from the counts.

    A cell of group and label without rows has no accuracy: it is left out of what is computed over cells and groups, and a
    figure that needs it is None ("no rows" where figures are shown). A gap of a label needs two groups with rows of it; the
    odds gaps need that of every label that has rows.

    Args:
        counts: Rows by group, label and prediction, (G, K, K).
        groups: Names of the groups.
        classes: Names of the classes.
        positive: The class that "positive" means, by number.
        data: Of the rows, in words.

    Raises:
        InputError: On counts that do not fit the names, a group without any row, or two groups of one name.
    """

    counts: tuple[tuple[tuple[int, ...], ...], ...]
    groups: tuple[str, ...]
    classes: tuple[str, ...]
    positive: int = 1
    data: str = ""

    def __post_init__(self) -> None:
        n = self.table
        if tuple(n.shape) != (len(self.groups), len(self.classes), len(self.classes)) or min(n.shape) < 2:
            raise InputError(
                f"counts has shape {tuple(n.shape)} for {len(self.groups)} groups and {len(self.classes)} classes; expected "
                "(groups, classes, classes), at least 2 of each"
            )
        check.integer("positive", self.positive, 0, len(self.classes) - 1)
        if bool((n < 0).any()):
            raise InputError(f"counts holds {int(n.min())}; expected numbers of rows")
        if len(set(self.groups)) < len(self.groups):
            raise InputError(f"groups is {self.groups}; expected different names")
        bare = (n.sum((1, 2)) == 0).nonzero().flatten().tolist()
        if bare:
            raise InputError(f"no row has group {self.groups[bare[0]]!r}; leave the group out")

    @cached_property
    def table(self) -> torch.Tensor:
        """The counts, int64 (G, K, K)."""
        return torch.tensor(self.counts, dtype=torch.int64)

    @property
    def empty(self) -> tuple[tuple[str, str], ...]:
        """Cells without rows, by names of group and label, of labels that other groups have."""
        size = self.table.sum(2)
        bare = ((size == 0) & (size.sum(0) > 0)).nonzero().tolist()
        return tuple((self.groups[a], self.classes[k]) for a, k in bare)

    # plain rates

    @property
    def acc(self) -> Rate:
        """Accuracy over all rows."""
        n = self.table
        return Rate(int(n.diagonal(dim1=1, dim2=2).sum()), int(n.sum()), "all rows")

    @cached_property
    def cells(self) -> dict[tuple[str, str], Rate]:
        """Accuracy of each cell with rows, by names of group and label: of two classes, TPR and TNR of each group."""
        n, out = self.table, {}
        for a, k in n.sum(2).nonzero().tolist():
            group, name = self.groups[a], self.classes[k]
            out[group, name] = Rate(int(n[a, k, k]), int(n[a, k].sum()), f"rows of group {group} with label {name}")
        return out

    @cached_property
    def group_acc(self) -> dict[str, Rate]:
        """Accuracy of each group."""
        n = self.table
        right = n.diagonal(dim1=1, dim2=2).sum(1)
        return {g: Rate(int(right[a]), int(n[a].sum()), f"rows of group {g}") for a, g in enumerate(self.groups)}

    @cached_property
    def positive_rate(self) -> dict[str, Rate]:
        """Share of each group that is predicted as the positive class."""
        hits, total = self.table.sum(1)[:, self.positive], self.table.sum((1, 2))
        return {g: Rate(int(hits[a]), int(total[a]), f"rows of group {g}") for a, g in enumerate(self.groups)}

    @property
    def worst_cell(self) -> tuple[tuple[str, str], Rate]:
        """The cell with the smallest accuracy."""
        return min(self.cells.items(), key=lambda item: item[1].value)

    @property
    def worst_group(self) -> tuple[str, Rate]:
        """The group with the smallest accuracy."""
        return min(self.group_acc.items(), key=lambda item: item[1].value)

    # what follows from them; FORMULAS says how

    @property
    def bacc(self) -> float:
        """Mean accuracy over cells, in [0, 1]; with two classes and groups the authors' bACC and EACC."""
        return self._sure("bacc")

    @property
    def dp_gap(self) -> float:
        """Demographic parity difference, in [0, 1]."""
        return self._sure("dp_gap")

    @property
    def dp_ratio(self) -> float:
        """Demographic parity ratio of the positive class, in [0, 1]; 1 is equality."""
        return self._sure("dp_ratio")

    @property
    def opportunity_gap(self) -> float | None:
        """Equal opportunity difference of the positive class, in [0, 1]."""
        return self._values["opportunity_gap"]

    @property
    def odds_gap(self) -> float | None:
        """Mean odds difference, the authors' Bias and Odd, in [0, 1]."""
        return self._values["odds_gap"]

    @property
    def worst_odds_gap(self) -> float | None:
        """Worst-case odds difference, in [0, 1]."""
        return self._values["worst_odds_gap"]

    def measure(self, name: str) -> Measure | None:
        """A gap, or bACC, with its 95 % interval and, of a gap, its noise floor; None where the rows do not give it.

        Intervals of gaps are simultaneous over all pairs of groups (and over labels where the largest counts), so that they
        hold although the extreme groups are chosen after looking. That of a mean of gaps is the mean of their ends.

        Args:
            name: "bacc", "dp_gap", "dp_ratio", "opportunity_gap", "odds_gap", "worst_odds_gap", "worst_cell" or "worst_group".
        """
        check.one_of("name", name, (*MEASURES, "worst_cell", "worst_group"))
        value, interval = self._values[name], self._intervals[name]
        return None if value is None or interval is None else Measure(name, value, interval, self.noise.get(name))

    difference = measure

    @property
    def noise(self) -> dict[str, gaps.Noise]:
        """What each gap would be if groups meant nothing, by name: over shuffles of the group labels, seeded."""
        return gaps.noise_floor(self.counts, self.positive)

    def _sure(self, name: str) -> float:
        value = self._values[name]
        assert value is not None  # every group has rows
        return value

    @cached_property
    def _values(self) -> dict[str, float | None]:
        n = self.table.numpy()
        values = {k: float(v) for k, v in gaps.measured(gaps.recall(n), gaps.shares(n), self.positive).items()}
        values |= {"worst_cell": self.worst_cell[1].value, "worst_group": self.worst_group[1].value}
        return {name: None if np.isnan(value) else value for name, value in values.items()}

    @cached_property
    def _intervals(self) -> dict[str, tuple[float, float] | None]:
        n = self.table.numpy().astype(np.float64)
        hits, size = n.diagonal(axis1=1, axis2=2), n.sum(2)
        predicted, rows = n.sum(1), n.sum((1, 2))
        there = size > 0
        used = [k for k in range(len(self.classes)) if there[:, k].any()]

        def of(k: int, level: float) -> tuple[Any, Any] | None:
            at = there[:, k]
            return gaps.gap_interval(hits[at, k], size[at, k], level) if at.sum() > 1 else None

        by_label = [of(k, gaps.LEVEL) for k in used]
        at_once = [of(k, gaps.LEVEL / len(used)) for k in used]
        by_class = [gaps.gap_interval(predicted[:, c], rows) for c in range(len(self.classes))]
        right = n.diagonal(axis1=1, axis2=2).sum(1)
        intervals = {
            "bacc": gaps.mean_interval(hits[there], size[there]),
            "dp_gap": _ends(by_class, np.mean),
            "dp_ratio": gaps.ratio_interval(predicted[:, self.positive], rows),
            "opportunity_gap": of(self.positive, gaps.LEVEL),
            "odds_gap": _ends(by_label, np.mean),
            "worst_odds_gap": _ends(at_once, np.max),
            "worst_cell": gaps.smallest_interval(hits[there], size[there]),
            "worst_group": gaps.smallest_interval(right, rows),
        }
        return {name: None if ends is None else gaps.clipped(ends) for name, ends in intervals.items()}

    @property
    def degenerate(self) -> tuple[str, ...]:
        """What makes the figures mean nothing, in a sentence: gaps near 0 that come with one answer for nearly all rows."""
        one = self.one_class
        if one is None:
            return ()
        return (f"It predicts {short(one.name)} for {how_many(one.predicted, self.acc.total)}; its gaps mean nothing.",)

    @property
    def one_class(self) -> ClassCount | None:
        """The class that nearly every row is predicted as, as :func:`theriac.evaluate` judges it; None if there is none.

        One answer for all rows counts where there are too few rows, or rows of no other class, to judge by.
        """
        n = self.table.sum(0)
        counted = zip(self.classes, n.diagonal().tolist(), n.sum(1).tolist(), n.sum(0).tolist(), strict=True)
        classes = [ClassCount(*values) for values in counted]
        alone = [c for c in classes if c.predicted]
        return alone[0] if len(alone) == 1 else one_class(classes)

    def __str__(self) -> str:
        positive = self.classes[self.positive]
        (group, label), cell = self.worst_cell
        lines = [*self.degenerate, f"{self.data}; positive = {positive!r}" if self.data else f"positive = {positive!r}"]
        for g in self.groups:
            lines.append(f"group {g}: ACC {self.group_acc[g]}, predicted {positive!r} {self.positive_rate[g]}")
            lines += [f"  label {k}: right {self.cells.get((g, k), NO_ROWS)}" for k in self.classes]
        lines.append(f"ACC              {self.acc}")
        lines.append(f"worst cell       {cell} in group {group}, label {label}")
        lines.append(f"worst group      {self.worst_group[1]} in group {self.worst_group[0]}")
        for name in MEASURES:
            shown = "bACC" if name == "bacc" else name
            lines.append(f"{shown:<16} {self.measure(name) or NO_ROWS}  {FORMULAS[name]}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a record, with the computed values beside the counts; a value that the rows do not give is null."""
        (group, label), cell = self.worst_cell
        cells, accs = self.cells, self.group_acc
        listed = {(g, k): cells.get((g, k)) for g in self.groups for k in self.classes}
        none = {"hits": 0, "total": 0, "of": NO_ROWS, "value": None, "interval": None}
        extremes = {name: {"simultaneous": _plain(self.measure(name))["interval"]} for name in ("worst_cell", "worst_group")}
        return {
            "counts": [[list(row) for row in cell] for cell in self.counts],
            "groups": list(self.groups),
            "classes": list(self.classes),
            "positive": self.positive,
            "data": self.data,
            "degenerate": list(self.degenerate),
            "acc": self.acc.to_dict(),
            "cells": [
                {"group": g, "label": k, **(none if rate is None else rate.to_dict())} for (g, k), rate in listed.items()
            ],
            "group_acc": {g: rate.to_dict() for g, rate in accs.items()},
            "positive_rate": {g: rate.to_dict() for g, rate in self.positive_rate.items()},
            "worst_cell": {"group": group, "label": label, **cell.to_dict(), **extremes["worst_cell"]},
            "worst_group": {"group": self.worst_group[0], **self.worst_group[1].to_dict(), **extremes["worst_group"]},
            **{name: {**_plain(self.measure(name)), "formula": FORMULAS[name]} for name in MEASURES},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Fairness:
        """The inverse of :meth:`to_dict`; only the counts and names are read."""
        try:
            counts = tuple(tuple(tuple(int(v) for v in row) for row in cell) for cell in data["counts"])
            return cls(counts, tuple(data["groups"]), tuple(data["classes"]), int(data["positive"]), str(data["data"]))
        except (KeyError, TypeError) as error:
            raise InputError(f"the record of a fairness evaluation is incomplete: {error}") from None

    @classmethod
    def count(
        cls,
        predicted: torch.Tensor,
        y: torch.Tensor,
        group: torch.Tensor,
        *,
        groups: tuple[str, ...] = (),
        classes: tuple[str, ...] = (),
        positive: int | str | None = None,
        data: str = "",
    ) -> Fairness:
        """From predictions, labels and groups, int64 (N,) each; names are numbers if left out, groups without rows are dropped.

        Args:
            predicted: Predicted class of each row.
            y: Its label.
            group: Its group.
            groups: Names of the groups.
            classes: Names of the classes.
            positive: Name or number of the positive class; None is the second one.
            data: Of the rows, in words.

        Raises:
            InputError: On lengths or values that do not fit, or one group only.
        """
        y = check_labels("y", y, len(y), len(classes) or None).cpu()
        predicted = check_labels("predicted", predicted, len(y), len(classes) or None).cpu()
        group = check_labels("group", group, len(y), len(groups) or None).cpu()
        classes = classes or tuple(str(k) for k in range(max(2, int(y.max()) + 1, int(predicted.max()) + 1)))
        groups = groups or tuple(str(a) for a in range(int(group.max()) + 1))
        k, number = len(classes), len(groups)
        n = torch.bincount((group * k + y) * k + predicted, minlength=number * k * k).view(number, k, k)
        there = [a for a in range(number) if int(n[a].sum())]
        if len(there) < 2:
            raise InputError(f"the rows hold {len(there)} group; a comparison needs at least two")
        counts = tuple(tuple(tuple(row) for row in n[a].tolist()) for a in there)
        return cls(counts, tuple(groups[a] for a in there), classes, positive_class(positive, classes), data)


def positive_class(positive: int | str | None, classes: Sequence[str]) -> int:
    """Number of the class that counts as positive, from its name or number; None is the second class.

    Names are tried before numbers: of classes "2" and "1", 1 is the class of that name.

    Raises:
        InputError: If there is no such class, listing their names.
    """
    if positive is None:
        return min(1, len(classes) - 1)
    text = str(positive) if not isinstance(positive, int) or abs(positive) < 10**20 else ""  # Python prints no endless number
    if text in classes:
        return list(classes).index(text)
    plain = isinstance(positive, (int, str)) and not isinstance(positive, bool)
    number = int(text) if plain and text.isdecimal() and len(text) < 20 else -1
    if not 0 <= number < len(classes):
        names = ", ".join(map(repr, classes[:20])) + (", ..." if len(classes) > 20 else "")
        shown = str(number) if number >= 0 else shortened(positive)
        raise InputError(f"positive is {shown}; expected one of the classes {names}, or its number, 0 to {len(classes) - 1}")
    return number


Figure = Rate | Measure | None
"""A rate, a gap, or nothing to count."""


def side_by_side(before: Fairness, after: Fairness) -> list[tuple[str, Figure, Figure, str]]:
    """Two models by group, line by line: name, a rate or a gap of either, and what it is of or how it is computed."""
    positive = before.classes[before.positive]
    lines: list[tuple[str, Figure, Figure, str]] = [("ACC", before.acc, after.acc, FORMULAS["acc"])]
    for group in before.groups:
        for k in before.classes:
            pair = (before.cells.get((group, k)), after.cells.get((group, k)))
            lines.append((f"{group}, {k}", *pair, "rows of this group and label classified right"))
        shares = (before.positive_rate[group], after.positive_rate[group])
        lines.append((group, *shares, f"rows of this group classified as {positive!r}"))
    for name in ("bacc", "odds_gap", "worst_odds_gap", "opportunity_gap", "dp_gap", "dp_ratio"):
        lines.append((name.replace("_", " "), before.measure(name), after.measure(name), FORMULAS[name]))
    return lines


def _ends(parts: Sequence[tuple[Any, Any] | None], by: Any) -> tuple[Any, Any] | None:
    """Mean, or largest, of the lower and of the upper ends; None if one is missing."""
    known = [ends for ends in parts if ends is not None]
    return (by([low for low, _ in known]), by([high for _, high in known])) if known and len(known) == len(parts) else None


def _plain(measure: Measure | None) -> dict[str, Any]:
    return {"value": None, "interval": None} if measure is None else measure.to_dict()
