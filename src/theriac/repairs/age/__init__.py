"""AGE: activation-guided editing of weights."""

from theriac.repairs.age.method import AGE

__all__ = ["AGE"]
