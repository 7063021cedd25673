"""Plain fine-tuning: the baseline of every repair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from theriac.core.method import Needs, preset, register
from theriac.core.ranges import Count, Fraction, NonNegative, Positive
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.repairs._sgd import by_sgd
from theriac.repairs.base import Repair
from theriac.training import Recipe, loop


@register
@dataclass(frozen=True, kw_only=True)
class FT(Repair):
    """Trains all weights on the clean rows, with the data's augmentation and BatchNorm in train mode.

    Source: the baseline of SCLBD/BackdoorBench @ f02e353 (grade A: read in code); no paper of its own.

    Threat model: clean rows with labels; knows neither trigger nor target.

    Deviations: float32 or bf16 after the hardware instead of fp16; no evaluation on test rows between epochs.

    Cost: one forward and one backward pass a row and epoch.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> model = th.train("wrn_16_1", data.train, recipe="short_2")
        >>> fixed = FT(epochs=1).repair(model, data.train.sample(0.2))
    """

    name: ClassVar[str] = "ft"
    title: ClassVar[str] = "FT"
    needs: ClassVar[Needs] = Needs(clean_rows=True, usual_clean_share=0.05)

    epochs: Count = 100  # BackdoorBench @ f02e353, config/defense/ft
    batch_size: Count = 256  # same
    lr: Positive = 0.01  # same
    momentum: Fraction = 0.9  # same
    weight_decay: NonNegative = 5e-4  # same

    @classmethod
    @preset
    def official(cls) -> FT:
        """BackdoorBench: 100 epochs at 0.01, cosine."""
        return cls()

    @classmethod
    @preset
    def strong(cls) -> FT:
        """Ours: a step size five times larger, for 20 epochs."""
        return cls(epochs=20, lr=0.05)

    def recipe(self) -> Recipe:
        """Its hyperparameters as a training recipe."""
        return by_sgd(self)

    def _repair(self, model: nn.Module, clean: Split, run: Run) -> nn.Module:
        return loop(model, clean, run, self.recipe(), label="ft", about=self)
