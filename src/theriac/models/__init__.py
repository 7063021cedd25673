"""Networks, and the wrapper that gives every model the same inputs (pixels in [0, 1], raw table rows) and outputs (logits)."""

from theriac.models.adapter import Adapted, adapt
from theriac.models.builder import (
    Architecture,
    Buildable,
    Builder,
    architecture,
    architectures,
    build,
    make,
    register_architecture,
)
from theriac.models.grouped import GroupAware
from theriac.models.network import Classifier, Normalize, TablePrep, parameter_count, to_input
from theriac.models.outputs import batch_rows, over_rows, run_over
from theriac.models.own import factory, is_own, make_own, open_found, open_own
from theriac.models.state import check_savable
from theriac.models.store import load_model, save
from theriac.models.taps import Tap, classifier, features
from theriac.models.weights import load_weights
from theriac.models.wrapped import Patch, Polarizer, Shift, countersign, polarize

__all__ = [
    "Adapted",
    "Architecture",
    "Buildable",
    "Builder",
    "Classifier",
    "GroupAware",
    "Normalize",
    "Patch",
    "Polarizer",
    "Shift",
    "TablePrep",
    "Tap",
    "adapt",
    "architecture",
    "architectures",
    "batch_rows",
    "build",
    "check_savable",
    "classifier",
    "countersign",
    "factory",
    "features",
    "is_own",
    "load_model",
    "load_weights",
    "make",
    "make_own",
    "open_found",
    "open_own",
    "over_rows",
    "parameter_count",
    "polarize",
    "register_architecture",
    "run_over",
    "save",
    "to_input",
]
