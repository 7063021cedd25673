"""Debiasing, one method a file: backdoors that reduce bias, and the baselines that they must be compared with."""

from typing import TYPE_CHECKING, Any

from theriac.debias._rates import dba_rates, effective_priors, group_counts, tar
from theriac.debias._teacher import AskedTeacher, query_map
from theriac.debias.base import Debiasing, cells
from theriac.debias.dba import DBA
from theriac.debias.dwb import DwB
from theriac.debias.group_dro import GroupDRO
from theriac.debias.last_layer import LastLayer
from theriac.debias.logit_adjust import GroupLogitAdjust
from theriac.debias.resampling import Resampling
from theriac.debias.reweighing import Reweighing

if TYPE_CHECKING:
    from theriac.debias.estimator import DwBClassifier

__all__ = [
    "DBA",
    "AskedTeacher",
    "Debiasing",
    "DwB",
    "DwBClassifier",
    "GroupDRO",
    "GroupLogitAdjust",
    "LastLayer",
    "Resampling",
    "Reweighing",
    "cells",
    "dba_rates",
    "effective_priors",
    "group_counts",
    "query_map",
    "tar",
]


def __getattr__(name: str) -> Any:
    if name == "DwBClassifier":  # imported on use, since scikit-learn is slow to import
        from theriac.debias.estimator import DwBClassifier

        return DwBClassifier
    raise AttributeError(f"module 'theriac.debias' has no attribute {name!r}")
