"""Defenses compared over attacks: Wilcoxon's signed ranks with Holm's correction, and ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from theriac.bench.tables import Group
from theriac.core.errors import InputError

LEVEL = 0.05


@dataclass(frozen=True)
class Pair:
    """Two defenses over the attacks that both were tried on.

    Args:
        first: One defense.
        second: The other.
        attacks: How many attacks were compared.
        difference: Median of first minus second.
        p: Two-sided p value of Wilcoxon's signed-rank test.
        adjusted: The same after Holm's correction for all pairs of the table.
    """

    first: str
    second: str
    attacks: int
    difference: float
    p: float
    adjusted: float

    @property
    def verdict(self) -> str:
        """In words."""
        if self.adjusted >= LEVEL:
            return "not distinguishable"
        return f"{self.first if self.difference > 0 else self.second} is higher"


def holm(values: Sequence[float]) -> list[float]:
    """P values after Holm's step-down correction (Scandinavian Journal of Statistics 1979), in their order.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted, highest = [0.0] * len(values), 0.0
    for place, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - place) * values[i]))
        adjusted[i] = highest
    return adjusted


def compare(scores: Mapping[str, Mapping[str, float]]) -> list[Pair]:
    """Every pair of defenses over the attacks that both have a score for.

    Args:
        scores: For each defense, its mean over seeds for each attack.

    Returns:
        Pairs in the order of ``scores``; pairs without an attack in common are left out.
    """
    from scipy.stats import wilcoxon

    pairs = []
    for first, second in combinations(scores, 2):
        shared = [attack for attack in scores[first] if attack in scores[second]]
        if not shared:
            continue
        changes = sorted(scores[first][attack] - scores[second][attack] for attack in shared)
        moved = [change for change in changes if change]
        p = float(wilcoxon(moved).pvalue) if moved else 1.0
        median = (changes[(len(changes) - 1) // 2] + changes[len(changes) // 2]) / 2
        pairs.append((first, second, len(shared), median, p))
    adjusted = holm([pair[-1] for pair in pairs])
    return [Pair(*pair, value) for pair, value in zip(pairs, adjusted, strict=True)]


def ranks(scores: Mapping[str, Mapping[str, float]], *, high: bool = True) -> dict[str, float]:
    """Mean rank of each defense over the attacks that all of them have a score for; 1 is best, ties share their ranks.

    Raises:
        InputError: If there is no such attack.
    """
    from scipy.stats import rankdata

    shared = [attack for attack in next(iter(scores.values()), {}) if all(attack in row for row in scores.values())]
    if not shared:
        raise InputError("there is no attack that all defenses have a score for; ranks need at least one")
    sign = -1 if high else 1
    table = [rankdata([sign * row[attack] for row in scores.values()]) for attack in shared]
    return {name: float(sum(line[i] for line in table) / len(table)) for i, name in enumerate(scores)}


def scores_of(groups: Sequence[Group], name: str) -> dict[str, dict[str, float]]:
    """Means over seeds of one number, for each defense and setting of attack (data, model, recipe and attack)."""
    scores: dict[str, dict[str, float]] = {}
    for group in groups:
        value = group.over(name)
        if group.role == "defended" and value is not None:
            defense = " ".join(part for part in (group.defense, group.labels[5]) if part)
            scores.setdefault(defense, {})[" / ".join(group.labels[:4])] = value.mean
    return scores
