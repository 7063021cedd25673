"""Theriac: make backdoors in neural networks, find them, train past them, repair models that have them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from theriac.core.version import VERSION

if TYPE_CHECKING:
    from theriac import (
        attacks,
        auditing,
        bench,
        core,
        data,
        debias,
        detectors,
        metrics,
        models,
        repairs,
        report,
        runs,
        training,
        training_defenses,
        triggers,
    )
    from theriac.auditing import audit
    from theriac.bench import zoo
    from theriac.core.card import Augment, Card, Column
    from theriac.core.errors import InputError, TheriacError, UnsafeFileError
    from theriac.core.method import Needs
    from theriac.core.poisoned import Poisoned
    from theriac.core.run import Run
    from theriac.core.split import Data, Split
    from theriac.data import load
    from theriac.metrics import check_wrapping, compare, evaluate, fairness
    from theriac.models import Builder, adapt, build, load_model, load_weights, save
    from theriac.report import export
    from theriac.runs import record
    from theriac.scanning import scan, scan_data
    from theriac.training import recipe, train
    from theriac.triggers.custom import trigger, trigger_pairs

__version__ = VERSION

# public name -> module that holds it; loaded on first use, so that `theriac --help` does not wait for torch
_LAZY = {
    "Augment": "theriac.core.card",
    "Builder": "theriac.models",
    "Card": "theriac.core.card",
    "Column": "theriac.core.card",
    "Data": "theriac.core.split",
    "InputError": "theriac.core.errors",
    "Needs": "theriac.core.method",
    "Poisoned": "theriac.core.poisoned",
    "Run": "theriac.core.run",
    "Split": "theriac.core.split",
    "TheriacError": "theriac.core.errors",
    "UnsafeFileError": "theriac.core.errors",
    "adapt": "theriac.models",
    "audit": "theriac.auditing",
    "build": "theriac.models",
    "check_wrapping": "theriac.metrics",
    "compare": "theriac.metrics",
    "evaluate": "theriac.metrics",
    "export": "theriac.report",
    "fairness": "theriac.metrics",
    "load": "theriac.data",
    "load_model": "theriac.models",
    "load_weights": "theriac.models",
    "recipe": "theriac.training",
    "record": "theriac.runs",
    "save": "theriac.models",
    "scan": "theriac.scanning",
    "scan_data": "theriac.scanning",
    "train": "theriac.training",
    "trigger": "theriac.triggers.custom",
    "trigger_pairs": "theriac.triggers.custom",
    "zoo": "theriac.bench",
}

__all__ = [
    "Augment",
    "Builder",
    "Card",
    "Column",
    "Data",
    "InputError",
    "Needs",
    "Poisoned",
    "Run",
    "Split",
    "TheriacError",
    "UnsafeFileError",
    "adapt",
    "attacks",
    "audit",
    "auditing",
    "bench",
    "build",
    "check_wrapping",
    "compare",
    "core",
    "data",
    "debias",
    "detectors",
    "evaluate",
    "export",
    "fairness",
    "load",
    "load_model",
    "load_weights",
    "metrics",
    "models",
    "recipe",
    "record",
    "repairs",
    "report",
    "runs",
    "save",
    "scan",
    "scan_data",
    "train",
    "training",
    "training_defenses",
    "trigger",
    "trigger_pairs",
    "triggers",
    "zoo",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    if name in __all__:
        return importlib.import_module(f"theriac.{name}")
    raise AttributeError(f"module 'theriac' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, "__all__", "__doc__", "__name__", "__version__"})
