"""Audit a repaired model: is the backdoor reduced, or only hidden? The victim and a benign model stand beside it."""

from theriac.auditing.course import audit
from theriac.auditing.existence import centered_alignment
from theriac.auditing.options import Options
from theriac.auditing.result import Audit, Coefficient, Line

__all__ = ["Audit", "Coefficient", "Line", "Options", "audit", "centered_alignment"]
