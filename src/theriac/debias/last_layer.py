"""Last-layer retraining: a plain network's features, and a new linear layer fitted on balanced rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Interval
from torch import nn

from theriac.core.errors import InputError
from theriac.core.method import Needs, preset, register
from theriac.core.ranges import Count, Positive
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.debias._adam import OneStage
from theriac.debias._lasso import lasso
from theriac.debias._select import cut_validation
from theriac.debias._training import build_with, fit_stamped
from theriac.debias.base import cell_numbers, named_cell
from theriac.models import Buildable, classifier, run_over
from theriac.models.editing import editable
from theriac.models.network import to_input
from theriac.models.taps import class_outputs

LEAST = 2  # rows of a cell on either side: one to fit and one to choose the strength by


@register
@dataclass(frozen=True, kw_only=True)
class LastLayer(OneStage):
    """Train plainly, then fit the last layer anew on held-back rows in which all cells of group and label are alike.

    Paper: Kirichenko, Izmailov, Wilson, "Last layer re-training is sufficient for robustness to spurious correlations" (deep
    feature reweighting, DFR), ICLR 2023, https://arxiv.org/abs/2204.02937; released code PolinaKirichenko/
    deep_feature_reweighting (grade A: its tuning and its fit were read). A network that leans on a shortcut has often learned
    the real features too; only the last layer has to change.

    Threat model: controls training; needs the sensitive group of every training row, none at inference.

    What it does: a share of every cell is held back, and the network learns from the rest. Its penultimate features are
    standardized by those of the training rows. On half of the held-back rows a logistic regression with an L1 penalty is fitted
    for each of ``strengths``, with all cells cut to the size of the smallest, and the strength is kept whose worst cell is best
    on the other half. The new layer is the mean of ``retrains`` fits, each with a cut of its own, on all held-back rows.

    Deviations: the released code has validation rows beside its training rows; here they are cut from the training rows, so the
    network learns from fewer. The intercept has no penalty (the released code's solver shrinks it), and more than two classes
    are fitted together.

    Cost: as plain training; the fits take seconds, with some hundred features and thousands of rows a minute.

    Examples:
        >>> import theriac as th
        >>> rows = th.load("digits").train.sample(200)
        >>> biased = th.Split(rows.x, (rows.y > 4).long(), group=rows.index % 2)
        >>> model = LastLayer(epochs=1).fit("wrn_16_1", biased)
        >>> print(len(th.fairness(model, biased).cells))
        4
    """

    name: ClassVar[str] = "last_layer"
    title: ClassVar[str] = "Last-layer retraining"
    source: ClassVar[str] = "arXiv:2204.02937"
    needs: ClassVar[Needs] = Needs(training_control=True, groups=True)

    held_back: Annotated[float, Interval(gt=0, le=0.9)] = 0.2  # of each cell; ours, see the deviations
    fit_on: Literal["held_back", "training"] = "held_back"  # "training": rows that the network learned from, as DFR-Tr
    strengths: tuple[Positive, ...] = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)  # C of the released code
    retrains: Count = 20  # released code; 10 there for fit_on="training"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.strengths:
            raise InputError("strengths is empty; expected at least one strength of the fit")

    @classmethod
    @preset
    def official(cls) -> LastLayer:
        """Fitted on held-back rows: the released code's main variant (grade A)."""
        return cls()

    @classmethod
    @preset
    def training(cls) -> LastLayer:
        """Fitted on the training rows, the strength chosen on the held-back ones: its other variant (grade A)."""
        return cls(fit_on="training", retrains=10)

    def check(self, split: Split) -> torch.Tensor:
        """As of all methods, and every cell needs :data:`LEAST` rows on either side of the cut."""
        counts = super().check(split)
        group, label = divmod(int(counts.argmin()), counts.shape[1])
        rows = int(counts.min())
        if min(round(self.held_back * rows), rows - round(self.held_back * rows)) < LEAST:
            raise InputError(
                f"{rows} training rows have {named_cell(split, group, label)}, and held_back {self.held_back} leaves fewer "
                f"than {LEAST} of them on one side; bring more rows of this cell, or change held_back"
            )
        return counts

    def _fit(self, build: Buildable, split: Split, counts: torch.Tensor, run: Run) -> nn.Module:
        rest, held = cut_validation(split, self.held_back, run)
        model = build_with(build, split, None, run)
        rows = to_input(rest.rows(torch.arange(2, device=rest.device)))
        name, head = classifier(model, example=rows)
        if class_outputs(model, head, rows) != list(range(split.num_classes)):
            raise InputError(
                f"the outputs of the last layer of {type(model).__name__}, {name!r}, are not its logits in their order: they "
                "are renumbered, negated or mixed behind it, so a new fit of this layer would not be one of the logits"
            )
        if head.bias is None:
            raise InputError(f"the last layer of {type(model).__name__}, {name!r}, has no bias, which the new fit needs")
        model = fit_stamped(model, rest, run, self.recipe(len(rest)), label="last_layer", about=self)
        known, new = (Embedded.of(model, rows, run) for rows in (rest, held))
        scale = known.x.std(0, correction=0)
        scale, center = torch.where(scale > 0, scale, 1.0), known.x.mean(0)
        known, new = known.scaled(center, scale), new.scaled(center, scale)
        draw = run.generator("method", "last_layer")
        if self.fit_on == "training":
            fit, tune, judge = known, known, new
        else:
            half = torch.randperm(len(new.y), generator=draw)
            tune, judge = new.take(_halves(new.cell, half)), new.take(~_halves(new.cell, half))
            fit = new
        strength = self._chosen(tune, judge, split.num_classes, draw, run)
        cuts = [fit.take(_cut(fit.cell, draw)) for _ in range(self.retrains)]
        made = _lines(cuts, torch.full((self.retrains,), strength), split.num_classes)
        weight, bias = (part.mean(0) for part in made)
        editable(model, name).write((weight / scale).float().to(run.device))
        editable(model, name, "bias").write((bias - (weight / scale) @ center).float().to(run.device))
        return model

    def _chosen(self, tune: Embedded, judge: Embedded, classes: int, draw: torch.Generator, run: Run) -> float:
        """The strength whose worst cell of ``judge`` is best; the largest of equals, as in the released code."""
        cut = tune.take(_cut(tune.cell, draw))
        weight, bias = _lines([cut] * len(self.strengths), torch.tensor(self.strengths), classes)
        right = (judge.x @ weight.mT + bias[:, None]).argmax(2) == judge.y
        cells = judge.cell.unique()
        worst = torch.stack([right[:, judge.cell == c].double().mean(1) for c in cells]).amin(0)
        chosen = float(self.strengths[int(worst.argmax())])
        run.event("last_layer_strength", chosen=chosen, strengths=list(self.strengths), worst_cells=worst.tolist())
        return chosen


@dataclass(frozen=True)
class Embedded:
    """Features (N, D) in float64, classes (N,) and cells (N,) of rows, on the CPU."""

    x: torch.Tensor
    y: torch.Tensor
    cell: torch.Tensor

    @classmethod
    def of(cls, model: nn.Module, rows: Split, run: Run) -> Embedded:
        """Of a model's rows."""
        return cls(run_over(model, rows, "features", run=run).double(), rows.y.cpu(), cell_numbers(rows).cpu())

    def take(self, at: torch.Tensor) -> Embedded:
        """Some of the rows."""
        return Embedded(self.x[at], self.y[at], self.cell[at])

    def scaled(self, center: torch.Tensor, scale: torch.Tensor) -> Embedded:
        """With standardized features."""
        return Embedded((self.x - center) / scale, self.y, self.cell)


def _lines(rows: list[Embedded], strengths: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A fit for each set of as many rows: weights (P, K, D) and intercepts (P, K)."""
    return lasso(torch.stack([r.x for r in rows]), torch.stack([r.y for r in rows]), strengths, classes)


def _cut(cell: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Positions of rows drawn so that every cell has as many as the smallest."""
    order = torch.randperm(len(cell), generator=draw)
    least = int(cell.unique(return_counts=True)[1].min())
    return torch.cat([order[cell[order] == c][:least] for c in cell.unique()])


def _halves(cell: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """A mask of half of each cell's rows, taken in ``order``."""
    first = torch.zeros(len(cell), dtype=torch.bool)
    for c in cell.unique():
        mine = order[cell[order] == c]
        first[mine[: len(mine) // 2]] = True
    return first
