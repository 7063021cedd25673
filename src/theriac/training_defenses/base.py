"""What all training-time defenses share: checks, refusals, timing. A defense's own file holds only its idea."""

from __future__ import annotations

import time
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import nn

from theriac.core.errors import InputError, UnfairPairingError
from theriac.core.method import Method
from theriac.core.poisoned import Poisoned, as_clean
from theriac.core.run import Run, as_run, own_terms
from theriac.core.split import Data, Split
from theriac.data.alignment import align, align_to
from theriac.models import Buildable
from theriac.training.epochs import refuse_diverged


@dataclass(frozen=True, kw_only=True)
class TrainingDefense(Method):
    """Base of all defenses that train the model themselves, on rows that may be poisoned.

    A subclass writes :meth:`_fit`. It gets rows and labels and nothing else: neither which rows an attack changed nor their
    true labels.
    """

    kind: ClassVar[str] = "training"

    @final
    def fit(self, build: Buildable, split: Split, run: Run | None = None, *, clean: Split | None = None) -> nn.Module:
        """Train a fresh model on rows that may be poisoned.

        Args:
            build: An architecture's name, a Builder, a module (copied), or a function of (split, run).
            split: Training rows as they came. Of a Poisoned, hand in its ``split``: a defense must not see the rest.
            run: Device, precision, seeds, checkpoint folder.
            clean: Rows that no attack has touched, with labels, for methods whose ``needs`` name them.

        Returns:
            The model in eval mode, last iterate: exactly what is to be scored and saved.

        Raises:
            UnfairPairingError: If clean rows came that the method's ``needs`` do not name, or they are missing.
            InputError: On a Poisoned or anything else that is not a Split, rows of a single class, or a model that does not
                fit the rows.
            DivergedError: If a loss stops being finite.
        """
        if isinstance(split, Poisoned):
            raise InputError(
                "split is a Poisoned set, which knows the poisoned rows and the true labels, and a training-time defense must "
                "see neither; hand in poisoned.split"
            )
        if isinstance(split, Data):
            raise InputError("split is a whole Data; hand in its training rows, data.train")
        if not isinstance(split, Split):
            raise InputError(f"split is a {type(split).__name__}; expected a Split (theriac.Split(x, y) makes one)")
        if int((split.count() > 0).sum()) < 2:
            raise InputError(f"the {len(split)} training rows hold one class only; a classifier needs at least two")
        if clean is not None and not self.needs.takes("clean_rows"):
            raise UnfairPairingError(f"clean is given, but {self.title} has no clean rows by its threat model (needs)")
        if clean is None and self.needs.clean_rows:
            raise UnfairPairingError(f"clean is missing; {self.title} needs clean rows with labels")
        split = align_to(split, build)
        self.check(split)
        known: dict[str, Any] = {}
        if clean is not None:
            known["clean"] = align(as_clean(clean), split.card, "the training set")
        run = as_run(run)
        began = time.perf_counter()
        with own_terms(), run.progress(self.title):
            model = self._fit(build, split, run, **known)
            if not isinstance(model, nn.Module):
                raise InputError(f"_fit of {self.title} returned a {type(model).__name__}; expected the trained nn.Module")
            refuse_diverged(model, split, self.name)
        run.event("fitted", method=self.name, seconds=round(time.perf_counter() - began, 3), rows=len(split))
        return model.eval()

    def check(self, split: Split) -> None:
        """Refuse training rows that this method can't work with; ``train`` does it before any work, and a sweep's plan.

        Raises:
            InputError: If it can't, such as a table where pixels are changed.
        """

    @abstractmethod
    def _fit(self, build: Buildable, split: Split, run: Run) -> nn.Module:
        """Train and return the model that is to be scored.

        A method whose ``needs`` name clean rows has a last argument ``clean``; None where it is optional and none came.
        """
