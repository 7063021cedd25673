"""Defenses that train the model themselves, on rows that may be poisoned."""

from theriac.training_defenses.base import TrainingDefense
from theriac.training_defenses.cbd import CBD

__all__ = ["CBD", "TrainingDefense"]
