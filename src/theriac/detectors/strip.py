"""STRIP: a prediction that stays sure when other pictures are mixed in may depend on a trigger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from theriac.core.method import Needs, register
from theriac.core.outcome import Finding
from theriac.core.ranges import Count, Fraction, NonNegative, Positive
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.detectors._rows import agreement, answer, divide_scores, pictures_only, standing
from theriac.detectors.base import Detector
from theriac.models import to_input
from theriac.models.outputs import evaluating

BATCH = 512
FEWEST_MIXED = 10  # ours: one picture mixed into all rows again and again says nothing of others


@register
@dataclass(frozen=True, kw_only=True)
class STRIP(Detector):
    """Adds clean pictures to each row; where the model stays sure of its prediction, it may depend on a trigger.

    A row's score is minus the mean entropy, in nats, of the model's answers to the row plus each of some clean pictures.

    Paper: Gao et al., "STRIP: A Defence Against Trojan Attacks on Deep Neural Networks", ACSAC 2019,
    https://arxiv.org/abs/1902.06531 (grade M). Facts from SCLBD/BackdoorBench @ f02e353: rows are added with weight 1, and 100
    of them (grade A: read in code).

    Threat model: the model, rows that may be poisoned, and clean rows to mix in, where there are some; else the rows themselves
    are mixed (ours), a few poisoned ones among them.

    Deviations: BackdoorBench mixes in test rows; clean rows here. The paper's threshold is a quantile of clean rows' entropies,
    which flags its share of any set; here a class must fall into two groups that explain more than ``divided`` of the variance
    of its scores, and pass the safeguard of :func:`theriac.detectors._rows.standing` (ours).

    Cost: ``overlays`` forward passes a row.

    Known limits: a trigger over the full picture is mixed away as the picture is. A class of which all rows look alike, such
    as one that is recognized by a single stroke, stays sure too.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> rows = th.attacks.BadNets(poison_rate=0.05).poison(data.train).split
        >>> model = th.train("wrn_16_1", rows, recipe="short_2")
        >>> finding = STRIP(overlays=4).detect(model, rows, data.test)
    """

    name: ClassVar[str] = "strip"
    title: ClassVar[str] = "STRIP"
    source: ClassVar[str] = "arXiv:1902.06531"
    pictures: ClassVar[bool] = True
    needs: ClassVar[Needs] = Needs(model=True, rows=True, labels=False, optional=("clean_rows",))

    overlays: Count = 100  # paper and BackdoorBench
    weight: Positive = 1.0  # BackdoorBench; of a clean picture beside the row's own weight of 1
    divided: Fraction = 0.85  # ours, on tuning seeds; an even distribution has 0.75
    outlier: NonNegative = 3.5  # ours: deviations above the median class that its explained share must have

    def _detect(self, model: nn.Module | None, rows: Split | None, clean: Split | None, run: Run) -> Finding:
        assert rows is not None
        assert model is not None
        mixed_in = rows if clean is None else clean
        pictures_only(self.title, rows, clean)
        if len(mixed_in) < FEWEST_MIXED:
            return Finding(verdict="abstains", reason=f"{len(mixed_in)} rows are too few to mix in; it needs {FEWEST_MIXED}")
        draw = run.generator("method", self.name)
        chosen = torch.randint(len(mixed_in), (self.overlays,), generator=draw)
        total = torch.zeros(len(rows), dtype=torch.float64)
        with evaluating(model, run):
            layers = to_input(mixed_in.rows(chosen).to(run.device))
            for at in rows.batches(BATCH):
                x = to_input(rows.rows(at).to(run.device))
                for layer in layers:
                    mixed = (x + self.weight * layer).clamp(0, 1)
                    log = model(mixed).float().log_softmax(1)
                    total[at.cpu()] -= (log.exp() * log).sum(1).double().cpu()
        scores = -total / self.overlays
        groups = divide_scores(rows, scores)
        out = standing(groups, rows.y.cpu(), self.divided, agreement(model, rows, run), self.outlier)
        return answer(rows, scores, groups, out, self.divided, unit="explained share", compares=self.outlier > 0)
