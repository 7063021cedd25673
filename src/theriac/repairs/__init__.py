"""Repairs of a finished model, one a file or folder."""

from theriac.repairs.age import AGE
from theriac.repairs.anp import ANP
from theriac.repairs.antidote import Antidote
from theriac.repairs.auto import Auto
from theriac.repairs.base import Repair
from theriac.repairs.btidbf import BTIDBF
from theriac.repairs.clp import CLP
from theriac.repairs.d3 import D3
from theriac.repairs.fp import FinePruning
from theriac.repairs.fst import FST
from theriac.repairs.ft import FT
from theriac.repairs.ft_sam import FTSAM
from theriac.repairs.ibau import IBAU
from theriac.repairs.nad import NAD
from theriac.repairs.npd import NPD
from theriac.repairs.rnp import RNP
from theriac.repairs.sau import SAU

__all__ = [
    "AGE",
    "ANP",
    "BTIDBF",
    "CLP",
    "D3",
    "FST",
    "FT",
    "FTSAM",
    "IBAU",
    "NAD",
    "NPD",
    "RNP",
    "SAU",
    "Antidote",
    "Auto",
    "FinePruning",
    "Repair",
]
