"""CBD: a clean model from poisoned rows, beside a deliberately backdoored twin."""

from theriac.training_defenses.cbd.method import CBD

__all__ = ["CBD"]
