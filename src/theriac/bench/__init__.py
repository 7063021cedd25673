"""Sweeps: a spec, its plan, its store, who does the work, and what is shown of it."""

from theriac.bench.plans import Plan, make_plan
from theriac.bench.specs import Spec, read_spec
from theriac.bench.store import Store
from theriac.bench.sweep import Forecast, Sweep, forecast, run
from theriac.bench.tables import Group, export, grouped, rows

__all__ = [
    "Forecast",
    "Group",
    "Plan",
    "Spec",
    "Store",
    "Sweep",
    "export",
    "forecast",
    "grouped",
    "make_plan",
    "read_spec",
    "rows",
    "run",
]
