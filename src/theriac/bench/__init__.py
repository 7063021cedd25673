"""Sweeps: specs, plans, the store, engines, and tables of results."""

from theriac.bench import leaderboard, zoo
from theriac.bench.events import read_events
from theriac.bench.plans import Plan, make_plan
from theriac.bench.specs import Spec, read_spec
from theriac.bench.statistics import Pair, compare, ranks, scores_of
from theriac.bench.store import Store
from theriac.bench.sweep import Forecast, Sweep, forecast, run
from theriac.bench.tables import Group, export, grouped, rows

__all__ = [
    "Forecast",
    "Group",
    "Pair",
    "Plan",
    "Spec",
    "Store",
    "Sweep",
    "compare",
    "export",
    "forecast",
    "grouped",
    "leaderboard",
    "make_plan",
    "ranks",
    "read_events",
    "read_spec",
    "rows",
    "run",
    "scores_of",
    "zoo",
]
