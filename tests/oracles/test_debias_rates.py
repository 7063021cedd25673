"""Trigger rates against the authors' numbers, and class priors under a query against Bayes' rule."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from theriac.core.errors import InputError
from theriac.debias import DBA, DwB, dba_rates, effective_priors, group_counts, tar
from theriac.debias._rates import prior_offsets, reweighing

# rows of each cell in the official training splits, counted once from the files: (group, label)
ADULT_SEX = torch.tensor([[9592, 1179], [15128, 6662]])  # Female, Male
ADULT_RACE = torch.tensor([[4021, 724], [20699, 7117]])  # other, White
THREE = torch.tensor([[40, 13, 7], [5, 60, 25], [30, 11, 81]])
BINARY = [ADULT_SEX, ADULT_RACE, torch.tensor([[90, 10], [10, 90]]), torch.tensor([[7, 3], [2, 1000]])]


@pytest.mark.parametrize(
    ("counts", "closed", "exact", "dba"),
    [
        (ADULT_SEX, (0.8496, 0.6120), (0.3880, 0.1504), (0.5596, 0.8771)),
        (ADULT_RACE, (0.9077, 0.8373), (0.1627, 0.0923), (0.6562, 0.8199)),
    ],
    ids=["sex", "race"],
)
def test_rates_of_adult_are_the_published_ones(counts, closed, exact, dba):
    # for label 1 and label 0; for DBA of the larger class (label 0) of group 1 and group 0
    for rule, wanted in (("closed", closed), ("exact", exact)):
        rates = tar(counts, rule)
        assert rates[:, 0].flip(0).tolist() == pytest.approx(wanted, abs=5e-5)
        assert rates.sum(1).tolist() == pytest.approx([1, 1], abs=1e-15)
    rates = dba_rates(counts)
    assert rates[:, 0].flip(0).tolist() == pytest.approx(dba, abs=5e-5)
    assert rates[:, 1].tolist() == [0, 0]


def test_counts_of_cells():
    y, group = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([0, 0, 1, 1, 1])
    assert group_counts(y, group, 2, 2).tolist() == [[1, 1], [1, 2]]
    assert group_counts(y, group, 3, 2).tolist() == [[1, 1, 0], [1, 2, 0]]


def bayes(counts: torch.Tensor, chance) -> np.ndarray:
    """P(y | a, trigger of the query), counted row by row over all outcomes."""
    n = counts.double().numpy()
    joint = np.zeros_like(n)
    for a, y in itertools.product(*map(range, n.shape)):
        joint[a, y] = n[a, y] / n.sum() * chance(a, y)
    return joint / joint.sum(1, keepdims=True)


@pytest.mark.parametrize("counts", BINARY)
def test_reverse_query_gives_both_groups_one_prior(counts):
    share = counts.double().numpy() / counts.double().numpy().sum(0)
    closed = DwB.closed().priors(counts)
    # written out: group 0 is asked with T1, which has chance P(a=1 | y); group 1 with T2, chance P(a=0 | y)
    assert np.allclose(closed.numpy(), bayes(counts, lambda a, y: share[1 - a, y]), atol=1e-14)
    assert float((closed[0] - closed[1]).abs().max()) < 1e-12
    exact = DwB.exact().priors(counts)
    overall = counts.double().sum(0) / counts.sum()
    assert float((exact - overall).abs().max()) < 1e-12
    multi = DwB.multi().priors(counts)
    assert float((multi - overall).abs().max()) < 1e-12


def test_closed_rates_shift_adults_positives_from_24_to_15_percent():
    assert DwB.closed().priors(ADULT_SEX)[:, 1].tolist() == pytest.approx([0.146, 0.146], abs=5e-4)
    assert DwB.closed().priors(ADULT_RACE)[:, 1].tolist() == pytest.approx([0.163, 0.163], abs=5e-4)
    assert float(ADULT_SEX.sum(0)[1] / ADULT_SEX.sum()) == pytest.approx(0.241, abs=5e-4)


def test_exact_rates_solve_what_the_grid_of_the_released_code_searches():
    n = ADULT_SEX.double().numpy()
    share, overall = n / n.sum(0), n.sum(0) / n.sum()
    del share
    best, found = 1e9, (0.0, 0.0)
    for low, high in itertools.product(np.arange(1, 99) / 100, repeat=2):  # TAR(0), TAR(1)
        q = np.array([[low, high], [1 - low, 1 - high]])  # group 0 is asked with T1, group 1 with T2
        prior = n * q / (n * q).sum(1, keepdims=True)
        gap = float(((prior - overall) ** 2).sum())
        if gap < best:
            best, found = gap, (low, high)
    assert tar(ADULT_SEX, "exact")[:, 0].tolist() == pytest.approx(found, abs=0.011)


def test_aligned_query_and_no_query_are_worse():
    def gap(priors: torch.Tensor) -> float:
        return float((priors[0] - priors[1]).abs().max())

    own = ADULT_SEX / ADULT_SEX.sum(1, keepdim=True)
    aligned = DwB(query="aligned").priors(ADULT_SEX)
    assert gap(aligned) > 1.5 * gap(own)
    with pytest.raises(InputError, match="none of its training rows had"):
        DwB(query="none").priors(ADULT_SEX)


@pytest.mark.parametrize("rule", ["closed", "exact", "multi"])
def test_strength_zero_makes_triggers_independent_of_labels(rule):
    counts = ADULT_SEX if rule != "multi" else THREE
    still, full, half = (tar(counts, rule, k) for k in (0, 1, 0.5))
    assert float((still - still[0]).abs().max()) < 1e-15
    assert float((full - full[0]).abs().max()) > 0.05
    assert torch.allclose(half, (still + full) / 2, atol=1e-15)
    strong = tar(counts, rule, 50)
    assert float(strong.min()) >= 0
    assert float(strong.sum(1).max()) <= 1 + 1e-12
    if rule != "multi":  # a negative strength swaps the roles of the triggers
        middle = full.mean(0)
        assert torch.allclose(tar(counts, rule, -1) - middle, middle - full, atol=1e-12)


def test_multi_rates_of_three_groups_and_classes():
    n = THREE.double().numpy()
    given = n / n.sum(0)  # P(a | y)
    ratio = (n.sum(1) / n.sum())[:, None] / given
    wanted = ratio.T / ratio.sum(0).max()
    rates = tar(THREE, "multi")
    assert np.allclose(rates.numpy(), wanted, atol=1e-15)
    assert float(rates.sum(1).max()) == pytest.approx(1, abs=1e-12)  # c is as large as it can be
    overall = torch.from_numpy(n.sum(0) / n.sum())
    assert float((DwB.multi().priors(THREE) - overall).abs().max()) < 1e-12


def test_dba_leaves_uniform_or_overall_priors():
    for counts in (*BINARY, THREE):
        assert float((DBA().priors(counts) - 1 / counts.shape[1]).abs().max()) < 1e-12
        overall = counts.double().sum(0) / counts.sum()
        assert float((DBA.pi().priors(counts) - overall).abs().max()) < 1e-12
    n = ADULT_SEX.double()
    for alpha in (0.0, 0.4, 1.3, 2.0):
        wanted = (alpha * (n[:, 0] - n[:, 1]) / n[:, 0]).clamp(0, 1)
        assert torch.allclose(dba_rates(ADULT_SEX, alpha)[:, 0], wanted, atol=1e-15)


def test_logit_offsets_are_minus_log_r_and_reweighing_agrees():
    n = ADULT_SEX.double()
    r = (n[:, 1] / n[:, 1].sum()) / (n[:, 0] / n[:, 0].sum())
    offsets = prior_offsets(ADULT_SEX)
    assert torch.allclose(offsets[:, 1] - offsets[:, 0], -r.log(), atol=1e-14)
    # weights and offsets make the same priors
    weighted = n * reweighing(ADULT_SEX)
    shifted = (n / n.sum(1, keepdim=True)) * offsets.exp()
    assert torch.allclose(weighted / weighted.sum(1, keepdim=True), shifted / shifted.sum(1, keepdim=True), atol=1e-14)
    uniform = (THREE / THREE.sum(1, keepdim=True)) * prior_offsets(THREE, "uniform").exp()
    assert torch.allclose(uniform / uniform.sum(1, keepdim=True), torch.full((3, 3), 1 / 3, dtype=torch.float64), atol=1e-14)
    assert float((n * reweighing(ADULT_SEX)).sum()) == pytest.approx(float(n.sum()))


def test_bad_counts_are_refused():
    with pytest.raises(InputError, match="no row has group 1 and label 0"):
        tar(torch.tensor([[3, 4], [0, 5]]))
    for rule in ("closed", "exact"):
        with pytest.raises(InputError, match="rule 'multi'"):
            tar(THREE, rule)
    with pytest.raises(InputError, match="rule"):
        tar(ADULT_SEX, "open")
    with pytest.raises(InputError, match="strength"):
        tar(ADULT_SEX, "closed", float("nan"))
    with pytest.raises(InputError, match="shape"):
        dba_rates(torch.tensor([3, 4]))
    with pytest.raises(InputError, match="none of its training rows"):
        effective_priors(ADULT_SEX, torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    with pytest.warns(UserWarning, match="independent"):
        assert tar(torch.tensor([[10, 20], [30, 60]]), "exact")[:, 0].tolist() == [0.5, 0.5]
