"""How a model treats groups: rates of each cell and group with counts, and the gaps between groups, each with its formula.

One definition for any number of groups and classes: a gap is the largest minus the smallest rate over groups, and where there
is a gap for each class, the mean over classes (so that two groups and two classes give the usual numbers).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from theriac.core import check
from theriac.core._rows import check_labels
from theriac.core.errors import InputError
from theriac.metrics.intervals import Difference, Rate

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

_GAPS = ("dp_gap", "dp_ratio", "opportunity_gap", "odds_gap", "worst_odds_gap")


@dataclass(frozen=True)
class Fairness:
    """Predictions of one model on rows with groups, counted; every number follows from the counts.

    Args:
        counts: Rows by group, label and prediction, (G, K, K).
        groups: Names of the groups.
        classes: Names of the classes.
        positive: The class that "positive" means.
        data: Of the rows, in words.

    Raises:
        InputError: On an empty cell of group and label: a rate over nothing is an error, not NaN.
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
        check.whole("positive", self.positive, 0, len(self.classes) - 1)
        empty = (n.sum(2) == 0).nonzero()
        if len(empty):
            a, k = empty[0].tolist()
            raise InputError(
                f"no row has group {self.groups[a]!r} and label {self.classes[k]!r}, so its rates do not exist; merge groups "
                "or leave some out (theriac.data.regroup)"
            )

    @property
    def table(self) -> torch.Tensor:
        """The counts, int64 (G, K, K)."""
        return torch.tensor(self.counts, dtype=torch.int64)

    # plain rates

    @property
    def acc(self) -> Rate:
        """Accuracy over all rows."""
        n = self.table
        return Rate(int(n.diagonal(dim1=1, dim2=2).sum()), int(n.sum()), "all rows")

    @property
    def cells(self) -> dict[tuple[str, str], Rate]:
        """Accuracy of each cell, by names of group and label: of two classes, TPR and TNR of each group."""
        n, out = self.table, {}
        for a, group in enumerate(self.groups):
            for k, name in enumerate(self.classes):
                out[group, name] = Rate(int(n[a, k, k]), int(n[a, k].sum()), f"rows of group {group} with label {name}")
        return out

    @property
    def group_acc(self) -> dict[str, Rate]:
        """Accuracy of each group."""
        n = self.table
        right = n.diagonal(dim1=1, dim2=2).sum(1)
        return {g: Rate(int(right[a]), int(n[a].sum()), f"rows of group {g}") for a, g in enumerate(self.groups)}

    @property
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
        return float(self._recall().mean())

    @property
    def dp_gap(self) -> float:
        """Demographic parity difference, in [0, 1]."""
        n = self.table.double()
        return float(_gap(n.sum(1) / n.sum((1, 2))[:, None]).mean())

    @property
    def dp_ratio(self) -> float:
        """Demographic parity ratio of the positive class, in [0, 1]; 1 is equality."""
        rates = [rate.value for rate in self.positive_rate.values()]
        return min(rates) / max(rates) if max(rates) > 0 else 1.0

    @property
    def opportunity_gap(self) -> float:
        """Equal opportunity difference of the positive class, in [0, 1]."""
        return float(_gap(self._recall())[self.positive])

    @property
    def odds_gap(self) -> float:
        """Mean odds difference, the authors' Bias and Odd, in [0, 1]."""
        return float(_gap(self._recall()).mean())

    @property
    def worst_odds_gap(self) -> float:
        """Worst-case odds difference, in [0, 1]."""
        return float(_gap(self._recall()).max())

    def difference(self, name: str) -> Difference:
        """A gap that is a difference of two plain rates, with its interval (conditional on which groups are the extremes).

        Args:
            name: "dp_gap" (two classes only) or "opportunity_gap".

        Raises:
            InputError: On another name, or "dp_gap" of more than two classes.
        """
        check.one_of("name", name, ("dp_gap", "opportunity_gap"))
        if name == "dp_gap" and len(self.classes) > 2:
            raise InputError(f"dp_gap of {len(self.classes)} classes is a mean of gaps, which is no difference of two rates")
        wanted = self.classes[self.positive]
        rates = self.positive_rate if name == "dp_gap" else {g: self.cells[g, wanted] for g in self.groups}
        ordered = sorted(rates.values(), key=lambda rate: rate.value)
        return Difference(ordered[0], ordered[-1])

    def _recall(self) -> torch.Tensor:
        n = self.table.double()
        recall: torch.Tensor = n.diagonal(dim1=1, dim2=2) / n.sum(2)
        return recall

    def __str__(self) -> str:
        wanted = self.classes[self.positive]
        (group, label), cell = self.worst_cell
        lines = [f"{self.data}; positive = {wanted!r}" if self.data else f"positive = {wanted!r}"]
        for g in self.groups:
            lines.append(f"group {g}: ACC {self.group_acc[g]}, predicted {wanted!r} {self.positive_rate[g]}")
            lines += [f"  label {k}: right {self.cells[g, k]}" for k in self.classes]
        lines.append(f"ACC              {self.acc}")
        lines.append(f"worst cell       {cell} in group {group}, label {label}")
        lines.append(f"worst group      {self.worst_group[1]} in group {self.worst_group[0]}")
        lines.append(f"bACC             {100 * self.bacc:5.1f} %  {FORMULAS['bacc']}")
        for name in _GAPS:
            value = getattr(self, name)
            shown = f"{value:7.3f}" if name == "dp_ratio" else f"{100 * value:5.1f} %"
            lines.append(f"{name:<16} {shown}  {FORMULAS[name]}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a record, with values for readers that do not compute."""
        (group, label), cell = self.worst_cell
        return {
            "counts": [[list(row) for row in cell] for cell in self.counts],
            "groups": list(self.groups),
            "classes": list(self.classes),
            "positive": self.positive,
            "data": self.data,
            "acc": self.acc.to_dict(),
            "cells": [{"group": g, "label": k, **rate.to_dict()} for (g, k), rate in self.cells.items()],
            "group_acc": {g: rate.to_dict() for g, rate in self.group_acc.items()},
            "positive_rate": {g: rate.to_dict() for g, rate in self.positive_rate.items()},
            "worst_cell": {"group": group, "label": label, **cell.to_dict()},
            "worst_group": {"group": self.worst_group[0], **self.worst_group[1].to_dict()},
            **{name: {"value": round(getattr(self, name), 6), "formula": FORMULAS[name]} for name in ("bacc", *_GAPS)},
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
        positive: int = 1,
        data: str = "",
    ) -> Fairness:
        """From predictions, labels and groups, int64 (N,) each; names are numbers if left out, groups without rows are dropped.

        Raises:
            InputError: On lengths or values that do not fit, one group only, or an empty cell.
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
        return cls(counts, tuple(groups[a] for a in there), classes, positive, data)


def side_by_side(before: Fairness, after: Fairness) -> list[tuple[str, Rate | float, Rate | float, str]]:
    """Two models by group, line by line: name, a rate or a gap of either, and what it is of or how it is computed."""
    wanted = before.classes[before.positive]
    lines: list[tuple[str, Rate | float, Rate | float, str]] = [("ACC", before.acc, after.acc, FORMULAS["acc"])]
    for group in before.groups:
        for k in before.classes:
            pair = (before.cells[group, k], after.cells[group, k])
            lines.append((f"{group}, {k}", *pair, "rows of this group and label classified right"))
        shares = (before.positive_rate[group], after.positive_rate[group])
        lines.append((group, *shares, f"rows of this group classified as {wanted!r}"))
    for name in ("bacc", "odds_gap", "worst_odds_gap", "opportunity_gap", "dp_gap", "dp_ratio"):
        lines.append((name.replace("_", " "), getattr(before, name), getattr(after, name), FORMULAS[name]))
    return lines


def _gap(rates: torch.Tensor) -> torch.Tensor:
    """Largest minus smallest over groups, (G, K) to (K,)."""
    return rates.amax(0) - rates.amin(0)
