"""What all debiasing methods share: checks, refusals, timing. A method's own file holds only its idea."""

from __future__ import annotations

import dataclasses
import time
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import nn

from theriac.core.errors import InputError
from theriac.core.method import Method, Needs
from theriac.core.poisoned import Poisoned
from theriac.core.ranges import typed
from theriac.core.run import Run, as_run, own_terms
from theriac.core.split import Data, Split
from theriac.data.alignment import align_to
from theriac.debias._rates import group_counts
from theriac.models import Buildable
from theriac.training import Recipe


@dataclass(frozen=True, kw_only=True)
class Debiasing(Method):
    """Base of all methods that train a model whose errors and decisions depend less on a sensitive attribute.

    A subclass writes :meth:`_fit`.
    """

    kind: ClassVar[str] = "debiasing"
    needs: ClassVar[Needs] = Needs(training_control=True, groups=True)

    @property
    def group_at_inference(self) -> bool:
        """Whether the returned model needs each row's group: ``model(x, group)`` instead of ``model(x)``."""
        return False

    @property
    def demands(self) -> Needs:
        """What this method needs with its options; the class's ``needs`` holds for the defaults."""
        return dataclasses.replace(self.needs, group_at_inference=self.group_at_inference)

    @final
    def fit(self, build: Buildable, split: Split, run: Run | None = None) -> nn.Module:
        """Train a fresh model on rows with groups.

        Args:
            build: An architecture's name, a Builder, a module (copied), or a function of (split, run).
            split: Training rows with labels and ``group``.
            run: Device, precision, seeds, checkpoint folder.

        Returns:
            The model in eval mode: exactly what is to be scored and saved. With ``group_at_inference`` it is a
            :class:`theriac.models.GroupAware`, called as ``model(x, group)``.

        Raises:
            InputError: If groups are missing, a cell of group and label has no row, or the model does not fit the rows.
            DivergedError: If a loss stops being finite.
        """
        self.check(split)
        split = align_to(split, build)
        counts = cells(split)
        run = as_run(run)
        began = time.perf_counter()
        with own_terms(), run.progress(self.title):
            model = self._fit(build, split.to(run.device), counts, run)
        seconds = round(time.perf_counter() - began, 3)
        run.event("debiased", method=self.name, seconds=seconds, rows=len(split), counts=counts.tolist())
        return model.eval()

    def check(self, split: Split) -> torch.Tensor:
        """Refuse training rows that this method can't work with; ``fit`` does it first of all.

        Returns:
            Rows of each cell of group and label, int64 (G, K).

        Raises:
            InputError: As ``fit``.
        """
        if isinstance(split, Poisoned):
            raise InputError("split is a Poisoned set; debiasing trains on ordinary rows (hand in a Split)")
        if isinstance(split, Data):
            raise InputError("split is a whole Data; hand in its training rows, data.train")
        if not isinstance(split, Split):
            raise InputError(f"split is a {type(split).__name__}; expected a Split (theriac.Split(x, y, group=g) makes one)")
        counts = cells(split)
        self._refuse(counts)
        return counts

    def _refuse(self, counts: torch.Tensor) -> None:
        """Refuse numbers of groups or classes that a method was not made for."""

    @abstractmethod
    def recipe(self, rows: int) -> Recipe:
        """How the deployed network trains on ``rows`` rows; plain training with this recipe is the control to compare with."""

    @abstractmethod
    def _fit(self, build: Buildable, split: Split, counts: torch.Tensor, run: Run) -> nn.Module:
        """Train and return the model that is to be scored; ``counts`` are the rows of each cell, (G, K)."""


def groups_of(split: Split) -> torch.Tensor:
    """The groups of a split, int64 (N,).

    Raises:
        InputError: If it has none.
    """
    if split.group is None:
        raise InputError(
            "split.group is None; this needs a sensitive group for each row (theriac.load(..., sensitive='column'), or "
            "theriac.Split(x, y, group=g))"
        )
    return split.group


def cell_numbers(split: Split) -> torch.Tensor:
    """The cell of each row, group * K + label, int64 (N,)."""
    return groups_of(split) * split.num_classes + split.y


@typed()
def cells(split: Split) -> torch.Tensor:
    """Rows of each cell, int64 (G, K).

    Raises:
        InputError: Without groups, with one group only, or naming the first empty cell.
    """
    group = groups_of(split)
    number = len(split.card.groups) or int(group.max()) + 1
    if number < 2:
        raise InputError(f"split.group holds one group only, in all {len(split)} rows; there is nothing to compare")
    counts = group_counts(split.y, group, split.num_classes, number)
    if not bool((counts > 0).all()):
        a, k = (counts == 0).nonzero()[0].tolist()
        raise InputError(
            f"no training row has {named_cell(split, a, k)}; each of the {number} groups needs rows of every label (--against "
            "compares one group with all others, theriac.data.regroup merges groups or leaves some out)"
        )
    return counts


def named_cell(split: Split, group: int, label: int) -> str:
    """A cell of group and label in words."""
    name = split.card.groups[group] if split.card.groups else str(group)
    return f"group {name!r} and label {split.card.classes[label]!r}"


def stored(run: Run, name: str, **tensors: Any) -> None:
    """Keep what was drawn once beside the checkpoints, if there is a folder."""
    if run.folder is None:
        return
    from safetensors.torch import save_file

    from theriac.core.files import write_atomically

    ready = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    write_atomically(run.folder / f"{name}.safetensors", lambda path: save_file(ready, path))
