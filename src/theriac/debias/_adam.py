"""Hyperparameters that debiasing methods share: Adam at a constant rate, in one stage or several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from theriac.core import check
from theriac.debias._training import adam
from theriac.debias.base import Debiasing
from theriac.training import Recipe


@dataclass(frozen=True, kw_only=True)
class AdamTrained(Debiasing):
    """Base of methods whose networks are trained with Adam."""

    batch_size: int = 256  # released code of DBA and DwB (DBA: 128 for tables); the baselines take the same
    lr: float = 1e-3  # the same code: Adam's default
    augment: Literal["card", "none"] = "card"  # ours; the same code augments nothing

    def __post_init__(self) -> None:
        super().__post_init__()
        check.whole("batch_size", self.batch_size, 1)
        check.positive("lr", self.lr)

    def _adam(self, name: str, epochs: int, steps: int, rows: int) -> Recipe:
        return adam(name, epochs=epochs, steps=steps, rows=rows, batch_size=self.batch_size, lr=self.lr, augment=self.augment)


@dataclass(frozen=True, kw_only=True)
class OneStage(AdamTrained):
    """Base of methods that train one network before anything else."""

    epochs: int = 10  # released code of DBA; the baselines take the same, for comparison
    steps: int = 0  # ours, for small sets: optimizer steps, rounded up to whole passes; 0 = epochs

    def __post_init__(self) -> None:
        super().__post_init__()
        check.whole("epochs", self.epochs, 1)
        check.whole("steps", self.steps, 0)

    def recipe(self, rows: int) -> Recipe:
        """Adam at a constant rate."""
        return self._adam(self.name, self.epochs, self.steps, rows)
