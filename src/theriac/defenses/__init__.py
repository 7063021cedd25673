"""Defenses, one a file: repairs of finished models, and ways of training past poisoned rows."""

from theriac.defenses._training import TrainingDefense
from theriac.defenses.age import AGE
from theriac.defenses.base import Repair
from theriac.defenses.cbd import CBD
from theriac.defenses.d3 import D3
from theriac.defenses.fst import FST
from theriac.defenses.ft import FT
from theriac.defenses.sau import SAU

__all__ = ["AGE", "CBD", "D3", "FST", "FT", "SAU", "Repair", "TrainingDefense"]
