"""Backdoor attacks, one a file."""

from theriac.attacks.badnets import BadNets
from theriac.attacks.base import Attack, Planted, Victim
from theriac.attacks.blended import Blended
from theriac.attacks.bpp import BppAttack
from theriac.attacks.cross import cross_accuracy
from theriac.attacks.ftrojan import FTrojan
from theriac.attacks.input_aware import InputAware
from theriac.attacks.label_consistent import LabelConsistent
from theriac.attacks.lf import LF
from theriac.attacks.lira import LIRA
from theriac.attacks.sig import SIG
from theriac.attacks.ssba import SSBA
from theriac.attacks.store import load_planted, save_planted
from theriac.attacks.trojannn import TrojanNN
from theriac.attacks.wanet import WaNet

__all__ = [
    "LF",
    "LIRA",
    "SIG",
    "SSBA",
    "Attack",
    "BadNets",
    "Blended",
    "BppAttack",
    "FTrojan",
    "InputAware",
    "LabelConsistent",
    "Planted",
    "TrojanNN",
    "Victim",
    "WaNet",
    "cross_accuracy",
    "load_planted",
    "save_planted",
]
