"""Detection metrics against scikit-learn, counts by hand, and a simulation of the interval."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score, roc_curve

from theriac.core.errors import InputError
from theriac.metrics import brier, detection
from theriac.metrics.roc import FALSE_ALARMS, auroc_interval


@pytest.mark.parametrize("levels", [0, 3, 10])  # 0: no ties
@pytest.mark.parametrize("seed", range(4))
def test_it_equals_scikit_learn(levels: int, seed: int):
    draw = np.random.default_rng(seed)
    truth = draw.random(150) < 0.2
    scores = draw.normal(size=150) + truth
    scores = np.round(scores * levels / 3) if levels else scores
    found = detection(torch.from_numpy(scores), torch.from_numpy(truth))
    assert found.auroc == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert found.average_precision == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    for share, rate in zip(FALSE_ALARMS, found.tpr, strict=True):
        assert rate.value == pytest.approx(tpr[fpr <= share + 1e-12].max())
    chances = draw.random(150)
    assert brier(chances, truth) == pytest.approx(brier_score_loss(truth, chances))


def test_counts_by_hand():
    # clean: 0, 1, 1; poisoned: 1, 2. Pairs won: (1: one win, two ties), (2: three wins) = 5 of 6
    found = detection([0, 1, 1, 1, 2], [False, False, False, True, True])
    assert found.auroc == pytest.approx(5 / 6)
    assert [r.hits for r in found.tpr] == [1, 1]
    assert (found.poisoned, found.clean) == (2, 3)
    assert json.loads(json.dumps(found.to_dict()))["tpr"]["0.05"]["hits"] == 1
    assert "AUROC 0.833" in str(found)


def test_all_scores_equal_are_guessing():
    found = detection(torch.ones(40), torch.arange(40) < 10)
    assert (found.auroc, found.average_precision) == (0.5, 0.25)
    assert [r.hits for r in found.tpr] == [0, 0]


def test_turning_the_scores_round_mirrors_value_and_interval():
    draw = torch.Generator().manual_seed(0)
    scores, truth = torch.randn(60, generator=draw), torch.arange(60) < 20
    there, back = detection(scores + truth, truth), detection(-(scores + truth), truth)
    assert there.auroc + back.auroc == pytest.approx(1)
    assert there.interval[0] + back.interval[1] == pytest.approx(1)


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0])
@pytest.mark.parametrize(("many", "few"), [(10, 10), (10, 90), (50, 50)])
def test_the_interval_covers_the_truth_in_about_95_of_100_draws(shift: float, many: int, few: int):
    truth = 0.5 * (1 + math.erf(shift / 2))  # of two normal distributions of variance one
    draw = torch.Generator().manual_seed(1)
    rounds = 600
    ones, others = torch.randn((rounds, many), generator=draw) + shift, torch.randn((rounds, few), generator=draw)
    won = (ones[:, :, None] > others[:, None, :]).double().mean((1, 2))
    ends = [auroc_interval(float(v), many, few) for v in won]
    covered = sum(low <= truth <= high for low, high in ends) / rounds
    assert 0.92 <= covered <= 0.995


def test_a_perfect_score_has_an_interval():
    low, high = detection([0.0, 1.0, 2.0, 3.0], [False, False, True, True]).interval
    assert high == 1.0
    assert 0.2 < low < 0.8


@pytest.mark.parametrize(
    ("scores", "truth", "why"),
    [
        ([1.0, 2.0], [True, True], "some of both"),
        ([1.0, 2.0], [False, False], "some of both"),
        ([1.0, float("nan")], [True, False], "NaN"),
        ([1.0, 2.0], [True], r"bool \(2,\)"),
        ([1.0, 2.0], [1, 0], "bool"),
        ([], [], "one number each"),
        ([[1.0]], [[True]], "one number each"),
    ],
)
def test_bad_input_is_refused(scores, truth, why):
    with pytest.raises(InputError, match=why):
        detection(scores, truth)


def test_chances_outside_0_and_1_are_refused():
    with pytest.raises(InputError, match="chances go from"):
        brier([0.5, 1.5], [True, False])
