"""Backdoor attacks, one a file."""

from theriac.attacks.adaptive_blend import AdaptiveBlend
from theriac.attacks.adaptive_patch import AdaptivePatch
from theriac.attacks.antidote_aware import AntidoteAware
from theriac.attacks.badnets import BadNets
from theriac.attacks.base import Attack
from theriac.attacks.blended import Blended
from theriac.attacks.bpp import BppAttack
from theriac.attacks.composite import Composite
from theriac.attacks.ftrojan import FTrojan
from theriac.attacks.grond import Grond, suppress_lipschitz_channels
from theriac.attacks.group_trojan import GroupTrojan
from theriac.attacks.input_aware import InputAware
from theriac.attacks.label_consistent import LabelConsistent
from theriac.attacks.lf import LF
from theriac.attacks.lira import LIRA
from theriac.attacks.multi_backdoor import MultiBackdoor
from theriac.attacks.multi_target import MultiTarget
from theriac.attacks.narcissus import Narcissus
from theriac.attacks.rounding_triggered import RoundingTriggered
from theriac.attacks.sam_flat import SamFlat
from theriac.attacks.sig import SIG
from theriac.attacks.ssba import SSBA
from theriac.attacks.store import load_planted, load_poisoned, save_planted, save_poisoned
from theriac.attacks.tabular_blend import TabularBlend
from theriac.attacks.tabular_value import TabularValue
from theriac.attacks.tact import TaCT
from theriac.attacks.trojannn import TrojanNN
from theriac.attacks.untargeted import Untargeted
from theriac.attacks.wanet import WaNet
from theriac.core.planted import Planted, Victim

__all__ = [
    "LF",
    "LIRA",
    "SIG",
    "SSBA",
    "AdaptiveBlend",
    "AdaptivePatch",
    "AntidoteAware",
    "Attack",
    "BadNets",
    "Blended",
    "BppAttack",
    "Composite",
    "FTrojan",
    "Grond",
    "GroupTrojan",
    "InputAware",
    "LabelConsistent",
    "MultiBackdoor",
    "MultiTarget",
    "Narcissus",
    "Planted",
    "RoundingTriggered",
    "SamFlat",
    "TaCT",
    "TabularBlend",
    "TabularValue",
    "TrojanNN",
    "Untargeted",
    "Victim",
    "WaNet",
    "load_planted",
    "load_poisoned",
    "save_planted",
    "save_poisoned",
    "suppress_lipschitz_channels",
]
