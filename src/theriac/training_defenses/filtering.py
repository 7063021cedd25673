"""Filter, then train: drop the rows that a detector suspects, and train anew on the rest."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from theriac.core.errors import InputError
from theriac.core.method import Method, Needs, create, register
from theriac.core.ranges import Share
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models import Buildable, make
from theriac.training import loop, recipe, train
from theriac.training_defenses.base import TrainingDefense


@register
@dataclass(frozen=True, kw_only=True)
class Filtering(TrainingDefense):
    """Trains a model on all rows, drops the rows that a detector suspects with it, and trains a fresh model on the rest.

    Source: the frame of Spectral Signatures (Tran et al., NeurIPS 2018, https://arxiv.org/abs/1811.00636) and Activation
    Clustering (https://arxiv.org/abs/1811.03728), for any detector of rows.

    Threat model: nothing but the rows as they came.

    Deviations: the papers drop a fixed share of every class; here what the detector flags, which may be nothing. Without a
    suspect the first model is the answer, and a warning says so.

    Cost: two trainings, and the detector.

    Known limits: those of the detector. What it does not suspect is trained on.

    Examples:
        >>> import theriac as th
        >>> rows = th.attacks.BadNets().poison(th.load("digits").train).split
        >>> build = th.Builder("preact_resnet18", {"width": 4})
        >>> method = Filtering(detector="loss_isolation:official", train_recipe="short_1")
        >>> model = method.fit(build, rows, th.Run(quiet=True))
    """

    name: ClassVar[str] = "filtering"
    title: ClassVar[str] = "Filtering"
    needs: ClassVar[Needs] = Needs(training_control=True)

    detector: str = "strip"  # NAME or NAME:PRESET of a detector of rows; ours; none is best on all attacks
    train_recipe: str = "short_15"  # of both trainings; ours, for small sets
    most: Share = 0.5  # most of the rows that may be dropped; ours

    def __post_init__(self) -> None:
        super().__post_init__()
        recipe(self.train_recipe)
        needs = create("detector", self.detector).needs
        if not needs.rows or needs.clean_rows:
            raise InputError(f"detector is {self.detector!r}; expected one that looks through rows and needs no clean ones")

    def inside(self) -> tuple[Method, ...]:
        """The detector."""
        return (create("detector", self.detector),)

    def check(self, split: Split) -> None:
        """Refuse tables where the detector changes pixels."""
        if split.is_table and create("detector", self.detector).pictures:
            raise InputError(
                f"detector is {self.detector!r}, which changes pixels, and these are rows of a table; take another one"
            )

    def _fit(self, build: Buildable, split: Split, run: Run) -> nn.Module:
        detector = create("detector", self.detector)
        first = train(build, split, recipe=self.train_recipe, run=run)
        finding = detector.detect(first if detector.needs.model else None, split, run=run)
        flagged = finding.flagged[: int(self.most * len(split))]
        run.event("filtered", detector=self.detector, verdict=finding.verdict, rows=len(flagged))
        if not flagged:
            warnings.warn(
                f"{detector.title} suspects no row ({finding.reason}); the model is trained on all of them", stacklevel=4
            )
            return first
        keep = split.index.new_ones(len(split)).bool()
        keep[list(flagged)] = False
        rest = split.where(keep)
        return loop(make(build, rest, run), rest, run, recipe(self.train_recipe), label="filtering", about=self)
