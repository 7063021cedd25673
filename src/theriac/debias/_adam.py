"""What debiasing methods share: Adam at a constant rate, one stage or several, and a student of a model with groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from theriac.core.errors import InputError
from theriac.core.ranges import Count, NonNegative, Positive, Whole
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.debias._training import adam, by_group, distill
from theriac.debias.base import Debiasing, groups_of
from theriac.models.grouped import GroupAware
from theriac.training import Recipe


@dataclass(frozen=True, kw_only=True)
class AdamTrained(Debiasing):
    """Base of methods whose networks are trained with Adam."""

    batch_size: Count = 256  # released code of DBA and DwB (DBA: 128 for tables); the baselines take the same
    lr: Positive = 1e-3  # the same code: Adam's default
    augment: Literal["card", "none"] = "card"  # ours; the same code augments nothing
    min_steps: Whole = 0  # ours, for small sets: optimizer steps at least, of a teacher half as many; 0 = epochs alone

    def _adam(self, name: str, epochs: int, steps: int, rows: int, *, teacher: bool = False) -> Recipe:
        floor = self.min_steps // 2 if teacher else self.min_steps
        size, lr, augment = self.batch_size, self.lr, self.augment
        return adam(name, epochs=epochs, steps=steps, floor=floor, rows=rows, batch_size=size, lr=lr, augment=augment)


@dataclass(frozen=True, kw_only=True)
class OneStage(AdamTrained):
    """Base of methods that train one network before anything else."""

    epochs: Count = 10  # released code of DBA; the baselines take the same, for comparison
    steps: Whole = 0  # ours, for small sets: optimizer steps, rounded up to whole passes; 0 = epochs and min_steps

    def recipe(self, rows: int) -> Recipe:
        """Adam at a constant rate."""
        return self._adam(self.name, self.epochs, self.steps, rows)


@dataclass(frozen=True, kw_only=True)
class Distilled(AdamTrained):
    """Base of methods whose model needs the group at inference, and which can distill it into a student that does not.

    The student's hyperparameters are those of the released code of DwB.
    """

    student: bool = True  # False deploys the model that needs the group
    soft: NonNegative = 0.9  # released code of DwB: weight of the teacher's answers
    hard: NonNegative = 0.1  # the same code: weight of the labels
    temperature: Positive = 1.0  # the same code
    student_epochs: Count = 10  # the same code
    # ours, for small sets: optimizer steps, rounded up to whole passes; 0 = student_epochs and min_steps
    student_steps: Whole = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.soft + self.hard == 0:
            raise InputError("soft and hard are both 0; the student would learn nothing")

    @property
    def group_at_inference(self) -> bool:
        """True without a student."""
        return not self.student

    def _student_recipe(self, rows: int) -> Recipe:
        return self._adam(f"{self.name}_student", self.student_epochs, self.student_steps, rows)

    def _teach(self, student: nn.Module, teacher: GroupAware, split: Split, run: Run, mark: str = "", **more: Any) -> nn.Module:
        """The student, taught on clean rows by a model that gets each row's group; ``mark`` ends the name of its events."""
        return distill(
            student,
            by_group(teacher, groups_of(split), run),
            split,
            run,
            self._student_recipe(len(split)),
            soft=self.soft,
            hard=self.hard,
            temperature=self.temperature,
            label=f"{self.name}_student{mark}",
            about=self,
            **more,
        )
