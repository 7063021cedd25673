"""SCALE-UP: a prediction that stays the same under brighter pixels may depend on a trigger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from theriac.core.method import Needs, register
from theriac.core.outcome import Finding
from theriac.core.ranges import Count, Fraction, NonNegative
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.detectors._rows import agreement, answer, divide_scores, pictures_only, standing
from theriac.detectors.base import Detector
from theriac.models import to_input
from theriac.models.outputs import evaluating

BATCH = 512


@register
@dataclass(frozen=True, kw_only=True)
class ScaleUp(Detector):
    """Multiplies a row's pixels by 2, 3, ...; where the model's prediction stays the same, it may depend on a trigger.

    A row's score is the share of factors at which the model answers as it does for the row itself.

    Paper: Guo et al., "SCALE-UP: An Efficient Black-box Input-level Backdoor Detection via Analyzing Scaled Prediction
    Consistency", ICLR 2023, https://arxiv.org/abs/2302.03251 (grade M: from memory of the paper). **A reconstruction**.

    Threat model: answers of the model, and rows that may be poisoned. The paper's setting without clean data.

    Deviations: the paper asks for the label alone, to judge rows one by one, and takes a threshold on the score. Here a class
    must fall into two groups that explain more than ``divided`` of the variance of its scores, and pass the safeguard of
    :func:`theriac.detectors._rows.standing` (ours).

    Cost: ``factors`` forward passes a row.

    Known limits: on a black background brighter strokes are the same digit; scores are then near 1 for all rows.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> rows = th.attacks.BadNets(poison_rate=0.05).poison(data.train).split
        >>> model = th.train("wrn_16_1", rows, recipe="short_2")
        >>> finding = ScaleUp().detect(model, rows)
    """

    name: ClassVar[str] = "scale_up"
    title: ClassVar[str] = "SCALE-UP"
    source: ClassVar[str] = "arXiv:2302.03251"
    pictures: ClassVar[bool] = True
    needs: ClassVar[Needs] = Needs(model=True, rows=True, labels=False)

    factors: Count = 10  # paper: 2 to 11
    divided: Fraction = 0.85  # ours, on tuning seeds; an even distribution has 0.75
    outlier: NonNegative = 3.5  # ours: deviations above the median class that its explained share must have

    def _detect(self, model: nn.Module | None, rows: Split | None, clean: Split | None, run: Run) -> Finding:
        assert rows is not None
        assert model is not None
        pictures_only(self.title, rows)
        scores = torch.zeros(len(rows), dtype=torch.float64)
        with evaluating(model, run):
            for at in rows.batches(BATCH):
                x = to_input(rows.rows(at).to(run.device))
                first = model(x).argmax(1)
                for factor in range(2, self.factors + 2):
                    scores[at.cpu()] += (model((x * factor).clamp(0, 1)).argmax(1) == first).double().cpu()
        scores /= self.factors
        groups = divide_scores(rows, scores)
        out = standing(groups, rows.y.cpu(), self.divided, agreement(model, rows, run), self.outlier)
        return answer(rows, scores, groups, out, self.divided, unit="explained share", compares=self.outlier > 0)
