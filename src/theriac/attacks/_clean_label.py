"""What clean-label attacks share: they change rows of the target class and leave every label alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from theriac.attacks.base import Attack
from theriac.core.errors import InputError
from theriac.core.ranges import Fraction


@dataclass(frozen=True, kw_only=True)
class CleanLabel(Attack):
    """Base of attacks that poison only rows of the target class, with their true label."""

    clean_label: ClassVar[bool] = True

    # share of the target class (ours); 0.5 is 5 % of ten balanced classes. BackdoorBench @ f02e353: 0.1 of the whole set
    poison_rate: Fraction = 0.5
    # what the rate is a share of: "target_class" (ours), or "all", as BackdoorBench counts, where 10 % of ten balanced
    # classes is the whole target class and more than that can't be supplied (grade A: read in code)
    rate_of: Literal["target_class", "all"] = "target_class"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode != "all_to_one":
            raise InputError(f"mode is {self.mode!r}; {self.name} keeps labels, so it knows 'all_to_one' only")

    @property
    def own_rows(self) -> bool:
        """Rows of the target class."""
        return True

    def _count(self, rows: int, pool: int) -> int:
        return round(self.poison_rate * (pool if self.rate_of == "target_class" else rows))
