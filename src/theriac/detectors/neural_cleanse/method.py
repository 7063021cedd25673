"""Neural Cleanse: test whether one class is reached by a far smaller patch than the others."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from theriac.core.method import Needs, preset, register
from theriac.core.outcome import Finding
from theriac.core.ranges import Count, Whole
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.detectors.base import Detector
from theriac.detectors.neural_cleanse.inversion import Inverted, invert
from theriac.detectors.neural_cleanse.search import Schedule


@register
@dataclass(frozen=True, kw_only=True)
class NeuralCleanse(Detector):
    """Searches the smallest patch that sends all rows to a class, for every class, and flags classes whose patch is an outlier.

    A class's score is its anomaly index: how far its patch is below the median size, in robust standard deviations; negative
    above the median, and never above zero where no patch was found that works.

    Paper: Wang et al., "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks", IEEE S&P 2019,
    https://doi.org/10.1109/SP.2019.00031. Official code: bolunwang/backdoor, and the port in SCLBD/BackdoorBench @ f02e353
    (both read in code: grade A).

    Threat model: the model and a few clean images; no labels, neither trigger nor target.

    Deviations: all classes are searched in one pass, which changes no result. The default schedule and its rule for outliers
    (``screen``) are ours: a short search of all classes on 20 rows picks those with small patches, a second one on 100 rows
    judges them beside a spread of others with as many rows and rounds. The answer is "abstains" with fewer than five classes,
    where no search works, or where most patches are equally large.

    Cost: two passes a row, class and round; classes that have settled drop out. ``screen`` takes 50 rounds on 20 rows, and 18
    on 100 rows for 5 to 7 classes if a patch is small; ``few_samples`` takes 300 on all rows.

    Known limits: it finds patches. Triggers that cover the image (Blended, WaNet), depend on the row, or fire for some classes
    only are outside of what it searches. The thresholds are uncalibrated: on benign models false alarms happen.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> model = th.train("wrn_16_1", data.train, recipe="short_2")
        >>> finding = NeuralCleanse(rounds=5).detect(model, clean=data.train.sample(30))
    """

    name: ClassVar[str] = "neural_cleanse"
    title: ClassVar[str] = "Neural Cleanse"
    source: ClassVar[str] = "IEEE S&P 2019"
    needs: ClassVar[Needs] = Needs(model=True, clean_rows=True, labels=False, usual_clean_share=0.05)

    search: Literal["screen", "few_samples", "official", "bench"] = "screen"  # ours; which schedule the search follows
    rounds: Whole = 0  # ours: 0 = the schedule's own
    restarts: Count = 1  # both codes: one search a class; of several the smallest patch that works counts

    @classmethod
    @preset
    def few_samples(cls) -> NeuralCleanse:
        """Ours, for 1 to 10 rows a class: 300 rounds over all rows; an index above 1.5 and at most half the median size."""
        return cls(search="few_samples")

    @classmethod
    @preset
    def official(cls) -> NeuralCleanse:
        """The authors' code: 1000 rounds of 31 batches of 32 rows, and an index above 2."""
        return cls(search="official")

    @classmethod
    @preset
    def bench(cls) -> NeuralCleanse:
        """BackdoorBench: 80 passes in batches of 256, and an index above 2."""
        return cls(search="bench")

    def schedule(self) -> Schedule:
        """How it searches."""
        made: Schedule = getattr(Schedule, self.search)()
        return made.replace(rounds=self.rounds or made.rounds, restarts=self.restarts)

    def _detect(self, model: nn.Module | None, rows: Split | None, clean: Split | None, run: Run) -> Finding:
        assert model is not None
        assert clean is not None
        schedule = self.schedule()
        inverted = invert(model, clean, run, schedule)
        scores, works = class_scores(inverted), inverted.success >= inverted.threshold
        undecided = not bool(works.any()) or not bool(inverted.index.any())
        if inverted.flagged:
            verdict: Literal["backdoored", "abstains", "clean"] = "backdoored"
            names = ", ".join(clean.card.classes[k] for k in inverted.flagged)
            reason = f"an unusually small patch sends the rows to {names}"
        else:
            verdict, reason = "abstains" if undecided else "clean", inverted.reason
        return Finding(
            verdict=verdict,
            reason=reason,
            score=float(scores.max()),
            classes=scores,
            flagged=inverted.flagged,
            threshold=schedule.outlier,
            origin=f"uncalibrated: fixed by the schedule {self.search!r}, whatever the data and the network",
            evidence={
                "masks": {k: inverted.trigger(k).mask for k in inverted.flagged},
                "patterns": {k: inverted.trigger(k).pattern for k in inverted.flagged},
                "norms": inverted.norms.tolist(),
                "success": inverted.success.tolist(),
                "second": [dataclasses.asdict(one) for one in inverted.confirmed],
            },
        )


def class_scores(inverted: Inverted) -> torch.Tensor:
    """The anomaly index with a sign, float (K,): positive for patches below the median size that work."""
    small = inverted.norms.double() < inverted.norms.double().quantile(0.5)
    signed = torch.where(small, inverted.index, -inverted.index)
    return torch.where(inverted.success >= inverted.threshold, signed, signed.clamp(max=0)) + 0.0
