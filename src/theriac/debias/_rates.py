"""Which share of which rows gets which trigger: closed forms of counts, and the class priors that follow."""

from __future__ import annotations

import warnings
from typing import Literal, get_args

import torch

from theriac.core import check
from theriac.core.errors import InputError
from theriac.core.ranges import Count, typed

Rule = Literal["closed", "exact", "multi"]
Prior = Literal["uniform", "marginal"]


@typed()
def group_counts(y: torch.Tensor, group: torch.Tensor, classes: Count, groups: Count) -> torch.Tensor:
    """Rows in each cell, int64 (groups, classes), from labels and groups int64 (N,)."""
    return torch.bincount(group * classes + y, minlength=groups * classes).view(groups, classes).cpu()


@typed()
def tar(counts: torch.Tensor, rule: Rule = "closed", strength: float = 1.0) -> torch.Tensor:
    """Chance of each trigger given the label only, float64 (K, T); what a row lacks to 1 is the chance of no trigger.

    Trigger t is the reverse query's trigger for group t. In the binary case column 0 is TAR(y), the chance
    of T1, which plays group 1; column 1 is that of T2.

    Args:
        counts: Rows in each cell, (G, K).
        rule: "closed": TAR(y) = P(a=1|y), the rule active in the released code; it shifts both groups' priors by one common
            constant. "exact": both priors become P(y). "multi": any number of groups and classes, with P(y) as prior, a
            trigger for each group and rows without a trigger.
        strength: k in m + k (TAR(y) - m), m being the mean over labels: 0 makes triggers independent of labels, 1 is the
            rule, more over-corrects.

    Raises:
        InputError: On an empty cell, or a binary rule with more than two groups or classes.
    """
    check.one_of("rule", rule, get_args(Rule))
    n = _checked(counts)
    if rule != "multi" and n.shape != (2, 2):
        raise InputError(
            f"rule {rule!r} is for two groups and two classes; these rows have {n.shape[0]} and {n.shape[1]} (rule 'multi' "
            "takes any number)"
        )
    given_label = n / n.sum(0)  # P(a | y), (G, K)
    if rule == "closed":
        first = given_label[1]
    elif rule == "exact":
        first = _exact(given_label)
    else:
        ratio = (n.sum(1) / n.sum())[:, None] / given_label  # P(a) / P(a | y)
        return _strengthened((ratio / ratio.sum(0).max()).T.contiguous(), strength)
    first = _strengthened(first[:, None], strength)[:, 0]
    return torch.stack([first, 1 - first], 1)


def _exact(given_label: torch.Tensor) -> torch.Tensor:
    r0, r1 = (given_label[:, 1] / given_label[:, 0]).tolist()
    if abs(r1 - r0) < 1e-12:
        warnings.warn("group and label are independent in these rows: there is no bias to correct", stacklevel=3)
        return torch.full((2,), 0.5, dtype=torch.float64)
    low = (1 / r1 - 1) / (1 / r1 - 1 / r0)
    return torch.tensor([low, low / r0], dtype=torch.float64)


def _strengthened(rates: torch.Tensor, strength: float) -> torch.Tensor:
    if not isinstance(strength, (int, float)) or isinstance(strength, bool) or not abs(strength) <= 1e6:
        raise InputError(f"strength is {strength!r}; expected a finite number (1 is the rule itself)")
    if strength == 1:
        return rates
    middle = rates.mean(0)
    moved = (middle + strength * (rates - middle)).clamp(0, 1)
    return moved / moved.sum(1).max().clamp_min(1.0)


@typed()
def dba_rates(counts: torch.Tensor, alpha: float = 1.0, prior: Prior = "uniform") -> torch.Tensor:
    """Share of each cell that gets its group's trigger, float64 (G, K).

    Args:
        counts: Rows in each cell, (G, K).
        alpha: Factor, clipped to [0, 1] after multiplication. 1 is the method.
        prior: What the rows without trigger hold in each group: "uniform", every class as often (of two classes only the
            larger is stamped, as published), or "marginal", the classes of all rows together ("DBA-pi", ours).

    Raises:
        InputError: On an empty cell.
    """
    check.one_of("prior", prior, get_args(Prior))
    check.positive("alpha", alpha, zero=True)
    n = _checked(counts)
    target = torch.ones(n.shape[1], dtype=n.dtype) if prior == "uniform" else n.sum(0) / n.sum()
    left = target / n  # in proportion to the share that stays clean
    rate: torch.Tensor = (alpha * (1 - left / left.max(1, keepdim=True).values)).clamp(0, 1)
    return rate


@typed()
def effective_priors(counts: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
    """Class priors of each group as a Bayes-optimal model applies them under a query, float64 (G, K).

    Args:
        counts: Rows in each cell, (G, K).
        chance: Chance in training that a row of a cell carries the trigger of its group's query, (G, K).

    Raises:
        InputError: If a group is queried with a trigger that none of its rows carried.
    """
    weight = _checked(counts) * chance
    if bool((weight.sum(1) <= 0).any()):
        raise InputError("a group is asked with a trigger (or none) that none of its training rows had; no prior follows")
    prior: torch.Tensor = weight / weight.sum(1, keepdim=True)
    return prior


def reweighing(counts: torch.Tensor) -> torch.Tensor:
    """Weights P(a) P(y) / P(a, y) of each cell, float64 (G, K) (Kamiran and Calders 2012)."""
    n = _checked(counts)
    weight: torch.Tensor = n.sum(1, keepdim=True) * n.sum(0) / (n.sum() * n)
    return weight


def prior_offsets(counts: torch.Tensor, prior: Prior = "marginal") -> torch.Tensor:
    """What is added to the logits of each group so that its class prior becomes the target prior, float64 (G, K).

    ``log target(y) - log P(y | a)``. For two classes and "marginal" this is ``z1 - z0 += -log r_a``.
    """
    check.one_of("prior", prior, get_args(Prior))
    n = _checked(counts)
    target = n.sum(0) / n.sum() if prior == "marginal" else torch.full((n.shape[1],), 1 / n.shape[1], dtype=n.dtype)
    offsets: torch.Tensor = target.log() - (n / n.sum(1, keepdim=True)).log()
    return offsets


def _checked(counts: torch.Tensor) -> torch.Tensor:
    n = counts.double().cpu()
    if n.dim() != 2 or min(n.shape) < 2:
        raise InputError(f"counts has shape {tuple(n.shape)}; expected (groups, classes), at least 2 of each")
    if not bool((n > 0).all()):
        a, y = (n <= 0).nonzero()[0].tolist()
        raise InputError(f"no row has group {a} and label {y}; every cell of group and label needs at least one")
    return n
