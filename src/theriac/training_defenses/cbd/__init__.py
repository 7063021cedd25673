"""CBD: a clean model from poisoned rows, trained beside a deliberately backdoored one."""

from theriac.training_defenses.cbd.method import CBD

__all__ = ["CBD"]
