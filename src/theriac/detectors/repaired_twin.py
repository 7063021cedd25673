"""Repaired twin: rows that lose their label once a copy of the model is repaired, where a class lost them to all others."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from theriac.core.errors import ClassWarning
from theriac.core.method import Method, Needs, create, register
from theriac.core.outcome import Finding
from theriac.core.ranges import Count, Fraction
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.detectors._rows import FEWEST_ROWS, SMALLEST_SHARE, Divided, agreement, answer, names_of, pictures_only
from theriac.detectors.base import Detector
from theriac.metrics import wilson
from theriac.models import run_over
from theriac.models.editing import duplicate

FEWEST_CLASSES = 4  # ours: a class is judged by how many of the others its lost rows go to, which fewer can't show
SOUND = 0.8  # ours: least share of the clean rows that the model gets right which its twin, fitted to them, must get right too
FEWEST_CLEAN = 3  # ours: clean rows of a class; the twin forgets a class that it is shown less of


@register
@dataclass(frozen=True, kw_only=True)
class RepairedTwin(Detector):
    """Repairs a copy of the model with a few clean rows, and asks which rows lose the label that they came with.

    A row that was poisoned under a wrong label keeps it as long as the model has the backdoor. The copy, its twin, is repaired
    by Antidote, knows neither trigger nor target, and gives most of these rows their true label. It also loses rows that are
    hard to tell; those of one class go to the one or two classes that look like it. Poisoned rows of a target class come from
    all classes. So the lost rows of each class are counted by the class that the twin gives them, those alone that it is sure
    of; the class's figure is the median over the other classes. It stands out where so many of its counts reach that
    figure as would hardly, one time in a thousand, if each reached it as often as the counts of all other classes do.

    Source: ours, not published. That a repaired copy is the reference is also how a scan judges a model.

    Threat model: the model trained on the rows, the rows with the labels that they came with, and clean rows with true labels,
    ten a class or more.

    A row's score is the log probability of its label by the model, less that by the twin; flagged rows rank first.

    Measured (benchmarks/results/rows.md, seeds that nothing was chosen on): with ten clean rows a class it named 97 % of the
    poisoned digits, with twenty 94 % of Fashion-MNIST's and 91 % of CIFAR-10's; 2, 17 and 25 % of what it suspected was clean.

    Cost: one repair by Antidote, and two forward passes a row.

    Known limits: rows that were poisoned under their true label (SIG, Label-consistent, Narcissus) lose nothing. An attack on
    one source class, or from each class to the next, can't be told from classes that look alike. The more classes are
    targets, the less any of them stands out. What the repair leaves of a backdoor stays unseen. A class that is far harder than
    the others for the twin, and for no single other class, may be taken for a target.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> rows = th.attacks.BadNets(poison_rate=0.1).poison(data.train).split
        >>> model = th.train("wrn_16_1", rows, recipe="short_2")
        >>> finding = RepairedTwin(steps=20).detect(model, rows, data.test.sample(100, stratified=True))
    """

    name: ClassVar[str] = "repaired_twin"
    title: ClassVar[str] = "Repaired twin"
    source: ClassVar[str] = "ours"
    version: ClassVar[int] = 2  # 2: abstains where the model knows nothing of the clean rows, takes frozen networks
    pictures: ClassVar[bool] = True
    needs: ClassVar[Needs] = Needs(model=True, rows=True, clean_rows=True, usual_clean_share=0.02)

    sure: Fraction = 0.05  # a row counts where the twin gives its label less than this; ours, by a look at seeds 11 and 12
    chance: Fraction = 0.001  # of a false alarm, over all classes, were they alike; ours: a benign set of the look had 0.008
    least: Count = 2  # figure of a class from which on it can stand out; ours, by the same look
    steps: Count = 200  # least number of updates of the twin's repair; Antidote's own default

    def inside(self) -> tuple[Method, ...]:
        """The repair of the twin."""
        return (self._repair(),)

    def _repair(self) -> Any:
        return create("repair", "antidote", steps=self.steps)

    def _detect(self, model: nn.Module | None, rows: Split | None, clean: Split | None, run: Run) -> Finding:
        assert model is not None
        assert rows is not None
        assert clean is not None
        pictures_only(self.title, rows)
        known, largest = int(agreement(model, clean, run).sum()), int(clean.count().max())
        if wilson(known, len(clean))[0] <= largest / len(clean):  # a row is lost only by a model that knew it
            reason = f"the model gets {known} of the {len(clean)} clean rows right, which can't be told from guessing"
            return Finding(verdict="abstains", reason=f"{reason} (check its wrapping)")
        base = model
        if not any(p.requires_grad for p in model.parameters()):  # frozen for its owner's use; the twin is another network
            base = duplicate(model)
            base.requires_grad_(True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ClassWarning)  # what the twin forgets is allowed for
            twin = self._repair().repair(base, clean, run.apart(self.name))
        right = [known, int(agreement(twin, clean, run).sum())]
        if right[1] < SOUND * right[0]:
            reason = f"the repaired copy gets {right[1]} of the {len(clean)} clean rows right, the model {right[0]}"
            return Finding(verdict="abstains", reason=reason)
        before, after = (run_over(net, rows, run=run).double().cpu().log_softmax(1) for net in (model, twin))
        y = rows.y.cpu()
        label_before, label_after = (logs.gather(1, y[:, None]).squeeze(1) for logs in (before, after))
        answers = after.argmax(1)
        lost = (before.argmax(1) == y) & (answers != y)
        sizes = rows.count().cpu()
        judged = (sizes >= FEWEST_ROWS) & (clean.count().cpu() >= FEWEST_CLEAN)
        if int(judged.sum()) < FEWEST_CLASSES:
            reason = (
                f"{int(judged.sum())} classes have {FEWEST_ROWS} rows and {FEWEST_CLEAN} clean ones; it needs {FEWEST_CLASSES}"
            )
            return Finding(verdict="abstains", reason=reason)
        surely = lost & (label_after < math.log(self.sure))
        counts = torch.bincount(y[surely] * len(sizes) + answers[surely], minlength=len(sizes) ** 2).view(len(sizes), -1)
        figures, chances = stand_out(counts, judged)
        enough = (figures >= self.least) & (figures * (len(sizes) - 1) >= SMALLEST_SHARE * sizes)
        out = judged & enough & (chances < self.chance)
        scores = label_before - label_after
        flagged = lost & out[y]
        scores = torch.where(flagged, scores + (scores.max() - scores.min()), scores)
        divided = Divided(classes=torch.where(judged, figures, 0.0), member=lost, judged=judged)
        evidence = {"chance": names_of(rows.card.classes, chances)}
        origin = "ours: by a look at digits and Fashion-MNIST, seeds 11 and 12"
        unit = "rows lost to the median other class"
        return answer(
            rows, scores, divided, out, float(self.least), unit=unit, compares=False, evidence=evidence, origin=origin
        )


def stand_out(counts: torch.Tensor, judged: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The figure of each class, and how likely one as unlike the other classes' counts is by chance.

    Args:
        counts: Lost rows of each class by the class that they go to, int64 (K, K); the diagonal is left out.
        judged: Which classes are looked at, bool (K,).

    Returns:
        Medians over the other classes (of an even number the lower one), float64 (K,), and the chance that so many of a class's
        counts reach its figure, times the number of judged classes, at most 1, float64 (K,): each does by itself, as often as
        the counts of the other judged classes do, and once more.
    """
    count = len(counts)
    figures, chances = torch.zeros(count, dtype=torch.float64), torch.ones(count, dtype=torch.float64)
    apart = ~torch.eye(count, dtype=torch.bool)
    for k in judged.nonzero().flatten().tolist():
        own = counts[k][apart[k]]
        figures[k] = float(own.median())
        others = judged & apart[k]
        reference = counts[others][apart[others]]
        each = (1 + int((reference >= figures[k]).sum())) / (1 + len(reference))
        chances[k] = min(1.0, int(judged.sum()) * tail(len(own), int((own >= figures[k]).sum()), min(1.0, each)))
    return figures, chances


def tail(trials: int, hits: int, each: float) -> float:
    """Chance of that many hits or more among independent trials."""
    return math.fsum(math.comb(trials, n) * each**n * (1 - each) ** (trials - n) for n in range(hits, trials + 1))
