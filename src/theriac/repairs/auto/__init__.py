"""Auto: try several repairs, judge them by backdoors of its own, and say how sure it is."""

from theriac.repairs.auto.method import Auto

__all__ = ["Auto"]
