"""Defenses compared over attacks: Wilcoxon's signed ranks with Holm's correction, and ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from theriac.bench.tables import Group, beside_repairs
from theriac.core.errors import InputError

LEVEL = 0.05
TIE = 1e-9  # shares that differ by less are equal: sums in another order differ in their last bits

Cell = str | tuple[str, str]  # an attack, or an attack and a repetition of it
Scores = Mapping[str, Mapping[Cell, float | None]]  # by defense and cell; None where a cell has no result


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
        leaning: Ranks where the first is higher, less those where the second is, as a share of all, in [-1, 1]: what the test
            rests on. The median may be 0, or lean the other way, where attacks are equal or a few changes are large.
        left_out: How many cells were left out, because one of the two has no result there.
    """

    first: str
    second: str
    attacks: int
    difference: float
    p: float
    adjusted: float
    leaning: float
    left_out: int = 0

    @property
    def verdict(self) -> str:
        """In words."""
        if self.adjusted >= LEVEL:
            return "not distinguishable"
        return f"{self.first if self.leaning > 0 else self.second} is higher"


def holm(values: Sequence[float]) -> list[float]:
    """P values after Holm's step-down correction (Scandinavian Journal of Statistics 1979), in their order.

    Examples:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted, highest = [0.0] * len(values), 0.0
    for place, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - place) * values[i]))
        adjusted[i] = highest
    return adjusted


def least_attacks(pairs: int) -> int:
    """Over how many attacks a table of so many pairs could tell one of them apart at the 5 % level, if all of them agree.

    Examples:
        >>> least_attacks(1), least_attacks(10)
        (6, 9)
    """
    attacks = 1
    while pairs * 2.0 ** (1 - attacks) >= LEVEL:  # Wilcoxon's least p value, times what Holm takes the first one by
        attacks += 1
    return attacks


def signed_ranks(changes: Sequence[float]) -> float:
    """Exact two-sided p value of Wilcoxon's signed-rank test; zeros are dropped, equal sizes share their ranks.

    All ways to give signs to the ranks are counted, from the smallest rank on, so ties need no approximation.

    Examples:
        >>> signed_ranks([0.1, 0.2, 0.3, 0.4])
        0.125
    """
    rises, falls = _doubled_ranks(changes)
    positive, every = sum(rises), sum(rises) + sum(falls)
    chance = np.zeros(every + 1)
    chance[0] = 1.0
    for rank in (*rises, *falls):
        chance /= 2
        chance[rank:] += chance[:-rank].copy()
    return min(1.0, 2 * float(min(chance[: positive + 1].sum(), chance[positive:].sum())))


def leaning(changes: Sequence[float]) -> float:
    """Which way Wilcoxon's signed ranks lean, in [-1, 1]: ranks of rises less those of falls, as a share of all; 0 without any.

    Examples:
        >>> leaning([0.0, 0.0, 0.0, 0.1, 0.3, -0.2])  # ranks 1 and 3 against 2
        0.3333333333333333
    """
    rises, falls = _doubled_ranks(changes)
    return (sum(rises) - sum(falls)) / max(1, sum(rises) + sum(falls))


def _doubled_ranks(changes: Sequence[float]) -> tuple[list[int], list[int]]:
    """Ranks of the rises, and of the falls, by their size, twice, so that shared ranks are whole numbers; zeros are dropped."""
    moved = [change for change in changes if abs(change) > TIE]
    ranked = [(round(2 * rank), change) for rank, change in zip(_tied_ranks(np.abs(moved)), moved, strict=True)]
    return [rank for rank, change in ranked if change > 0], [rank for rank, change in ranked if change < 0]


def _tied_ranks(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Ranks from 1 on, where values that are equal but for their last bits share theirs."""
    from scipy.stats import rankdata

    order = np.argsort(values)
    steps = np.zeros(len(order), dtype=int)
    steps[order[1:]] = np.cumsum(np.diff(np.asarray(values)[order]) > TIE)
    return np.asarray(rankdata(steps))


def compare(scores: Scores) -> list[Pair]:
    """Every pair of defenses over the cells that both have a score for; cells of one attack count once, by their mean.

    Args:
        scores: For each defense, its score in each cell.

    Returns:
        Pairs in the order of ``scores``; pairs without a cell in common are left out.
    """
    for defense, cells in scores.items():
        for cell, score in cells.items():
            if score is not None and not math.isfinite(score):
                raise InputError(f"the score of {defense} under {cell} is {score}; expected a number, or None for no result")
    pairs = []
    for first, second in combinations(scores, 2):
        mine, other = scores[first], scores[second]
        shared = [cell for cell in mine if mine[cell] is not None and other.get(cell) is not None]
        if not shared:
            continue
        one, two = _by_attack(mine, shared), _by_attack(other, shared)
        changes = sorted(one[attack] - two[attack] for attack in one)
        median = round((changes[(len(changes) - 1) // 2] + changes[len(changes) // 2]) / 2, 12)  # what is 0 is no -1e-17
        p, left_out = signed_ranks(changes), len({*mine, *other}) - len(shared)
        pairs.append(Pair(first, second, len(changes), median, p, p, leaning(changes), left_out))
    return [replace(pair, adjusted=value) for pair, value in zip(pairs, holm([pair.p for pair in pairs]), strict=True)]


def ranks(scores: Scores, *, high: bool = True) -> dict[str, float]:
    """Mean rank of each defense over the attacks that all of them have a score for; 1 is best, ties share their ranks.

    Raises:
        InputError: If there is no such attack.
    """
    shared = common_cells(scores)
    if not shared:
        raise InputError("there is no attack that all defenses have a score for; ranks need at least one")
    sign = -1 if high else 1
    means = [_by_attack(cells, shared) for cells in scores.values()]
    table = [_tied_ranks([sign * mean[attack] for mean in means]) for attack in means[0]]
    return {name: float(sum(line[i] for line in table) / len(table)) for i, name in enumerate(scores)}


def common_cells(scores: Scores) -> list[Cell]:
    """Cells that all defenses have a score for."""
    first = next(iter(scores.values()), {})
    return [cell for cell in first if all(cells.get(cell) is not None for cells in scores.values())]


def attacks_of(cells: Iterable[Cell]) -> list[str]:
    """The attacks of some cells, each once."""
    return list(dict.fromkeys(cell if isinstance(cell, str) else cell[0] for cell in cells))


def _by_attack(scores: Mapping[Cell, float | None], cells: Sequence[Cell]) -> dict[str, float]:
    """Mean of each attack over some of its cells."""
    values: dict[str, list[float]] = {}
    for cell in cells:
        score = scores[cell]
        assert score is not None  # the caller takes cells that have one
        values.setdefault(cell if isinstance(cell, str) else cell[0], []).append(score)
    return {attack: math.fsum(numbers) / len(numbers) for attack, numbers in values.items()}


def scores_of(groups: Sequence[Group], name: str) -> dict[str, dict[Cell, float | None]]:
    """One number of each defended cell: by defense, and by setting of attack (data, model, recipe and attack) and victim.

    Repetitions of a defense on one victim count once, with their mean. A training-time defense has no recipe of its own, and
    stands beside the repairs of the one recipe that there is. A defense without any such number is left out.
    """
    scores: dict[str, dict[Cell, float | None]] = {}
    for group in beside_repairs(groups):
        if group.role != "defended":
            continue
        place = " / ".join(group.labels[:4])
        repeated: dict[str, list[float]] = {}
        for row in group.rows:
            value = row.get(name) if row["status"] == "done" else None
            repeated.setdefault(str(row["seed"]), []).extend([] if value is None else [float(value)])
        for seed, values in repeated.items():
            scores.setdefault(group.full_defense, {})[place, seed] = sum(values) / len(values) if values else None
    return {defense: cells for defense, cells in scores.items() if any(v is not None for v in cells.values())}
