"""Defenses that train the model themselves, on rows that may be poisoned."""

from theriac.training_defenses.abl import ABL
from theriac.training_defenses.base import TrainingDefense
from theriac.training_defenses.cbd import CBD
from theriac.training_defenses.filtering import Filtering
from theriac.training_defenses.pdb import PDB

__all__ = ["ABL", "CBD", "PDB", "Filtering", "TrainingDefense"]
