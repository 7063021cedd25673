"""Repairs of finished models, one a file."""

from theriac.defenses.base import Repair
from theriac.defenses.d3 import D3
from theriac.defenses.fst import FST
from theriac.defenses.ft import FT
from theriac.defenses.sau import SAU

__all__ = ["D3", "FST", "FT", "SAU", "Repair"]
