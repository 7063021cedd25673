"""Detectors of rows: where a class is divided, what counts, and nothing where nothing is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import theriac as th
from theriac.core.errors import InputError
from theriac.core.split import Split
from theriac.detectors import STRIP, ActivationClustering, LossIsolation, ScaleUp, SCAn
from theriac.detectors._rows import Divided, best_cut, divide_scores, outlying, standing
from theriac.metrics import detection
from theriac.training.isolation import isolating_loss

EACH, WIDTH = 120, 8


class Head(nn.Module):
    """The features are the columns; answers class 0 or 1 by the first of them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 4)
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.bias.copy_(torch.tensor([0.0, 0, 0, 0]))
            for k in range(4):
                self.linear.weight[k, k] = 8.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def made(planted: int) -> tuple[Split, torch.Tensor]:
    """Four classes around unit vectors; ``planted`` rows of class 0 are shifted far along a column of their own."""
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(4).repeat_interleave(EACH)
    x = 0.1 * torch.randn(len(y), WIDTH, generator=draw)
    x[torch.arange(len(y)), y] += 1
    poison = torch.zeros(len(y), dtype=torch.bool)
    poison[:planted] = True
    x[poison] += 0.1 * torch.randn(planted, WIDTH, generator=draw)  # they come from several classes, so they vary more
    x[poison, 6] += 3
    card = th.Card(
        name="four", classes=tuple("abcd"), kind="table", columns=tuple(th.Column(name=f"f{i}") for i in range(WIDTH))
    )
    return Split(x, y, card=card), poison


@pytest.mark.parametrize("detector", [SCAn(), ActivationClustering(silhouette=0.5)])
def test_a_planted_group_is_found_and_nothing_is_where_there_is_none(detector, run):
    rows, poison = made(40)
    finding = detector.detect(Head(), rows, run=run)
    assert finding.verdict == "suspicious"
    assert set(finding.flagged) == set(poison.nonzero().flatten().tolist())
    assert detection(finding.rows, poison).auroc > 0.99
    none = detector.detect(Head(), made(0)[0], run=run)
    assert none.verdict == "clean"
    assert none.flagged == ()
    assert "nothing stands out" in none.reason


def test_the_best_cut_is_the_one_that_can_be_counted():
    upper, share = best_cut(torch.tensor([0.0, 0, 10, 10, 10]))
    assert upper.tolist() == [False, False, True, True, True]
    assert share == pytest.approx(1.0)
    # 0, 1, 5: cut before 5 explains 2/3 (4.5)^2 = 13.5 of 14
    upper, share = best_cut(torch.tensor([5.0, 0, 1]))
    assert upper.tolist() == [True, False, False]
    assert share == pytest.approx(13.5 / 14)
    assert best_cut(torch.ones(4))[1] == 0.0
    even = best_cut(torch.linspace(0, 1, 10_001))[1]
    assert even == pytest.approx(0.75, abs=1e-3)
    normal = best_cut(torch.randn(20_000, generator=torch.Generator().manual_seed(1)))[1]
    assert normal == pytest.approx(2 / math.pi, abs=0.01)


def test_a_group_counts_only_if_the_model_answers_with_its_label():
    y = torch.arange(2).repeat_interleave(100)
    member = torch.zeros(200, dtype=torch.bool)
    member[:30] = True
    divided = Divided(classes=torch.tensor([0.9, 0.1]), member=member, judged=torch.ones(2, dtype=torch.bool))
    agrees = torch.ones(200, dtype=torch.bool)
    assert standing(divided, y, 0.8, agrees).tolist() == [True, False]
    agrees[:20] = False  # of the group of 30, 10 are answered with their label
    assert standing(divided, y, 0.8, agrees).tolist() == [False, False]
    few = Divided(classes=divided.classes, member=torch.arange(200) < 2, judged=divided.judged)
    assert standing(few, y, 0.8, torch.ones(200, dtype=torch.bool)).tolist() == [False, False]  # mere outliers


def test_outlying_counts_deviations_from_the_median():
    values = torch.tensor([1.0, 2, 3, 4, 100])
    out = outlying(values, torch.ones(5, dtype=torch.bool))
    assert float(out[2]) == 0
    assert float(out[4]) == pytest.approx(97 / 1.4826)
    assert outlying(values[:2], torch.ones(2, dtype=torch.bool)).tolist() == [0, 0]


def test_small_classes_are_not_judged():
    rows, _ = made(0)
    y = torch.cat([torch.zeros(10), torch.ones(len(rows) - 10)]).long()
    divided = divide_scores(rows.replace(y=y), torch.arange(len(rows)).double())
    assert divided.judged.tolist() == [False, True, False, False]


def test_the_isolating_losses_by_hand():
    for value, flooded, ascended in ((2.0, 2.0, 2.0), (0.1, 0.9, -0.1)):
        mean = torch.tensor(value)
        assert float(isolating_loss(mean, 0.5, "flooding")) == pytest.approx(flooded)
        assert float(isolating_loss(mean, 0.5, "ascent")) == pytest.approx(ascended)


@pytest.fixture(scope="module")
def poisoned(digits, narrow):
    run = th.Run(seed=1, precision="fp32", device="cpu", quiet=True)
    made = th.attacks.BadNets(poison_rate=0.1).poison(digits.train, run)
    return th.train(narrow, made, recipe="short_8", run=run), made


@pytest.mark.parametrize("detector", [STRIP(overlays=8), ScaleUp(factors=4), LossIsolation(epochs=3), SCAn()])
def test_poisoned_digits_rank_above_guessing(detector, poisoned, run):
    model, rows = poisoned
    finding = detector.detect(model if detector.needs.model else None, rows.split, run=run)
    assert detection(finding.rows, rows.poison).auroc > (0.5 if detector.name == "scale_up" else 0.7)
    assert finding.origin.startswith("uncalibrated")


def test_pictures_are_asked_for(run):
    rows, _ = made(0)
    for detector in (STRIP(overlays=1), ScaleUp()):
        with pytest.raises(InputError, match="needs pictures"):
            detector.detect(Head(), rows, run=run)


def test_abl_and_filtering_train_models(digits, narrow):
    rows = th.attacks.BadNets(poison_rate=0.1).poison(digits.train.sample(500, seed=0)).split
    runs = [th.Run(seed=0, precision="fp32", device="cpu", quiet=True) for _ in range(2)]
    short = th.training_defenses.ABL(epochs=1, tuning_epochs=1, unlearning_epochs=1, lr=0.05)
    first, second = (short.fit(narrow, rows, run) for run in runs)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert runs[0].history("abl_isolated")[0]["rows"] == 5  # 1 % of 500
    drop = th.training_defenses.Filtering(detector="loss_isolation:official", train_recipe="short_1")
    run = th.Run(seed=0, precision="fp32", device="cpu", quiet=True)
    drop.fit(narrow, rows, run)
    assert run.history("filtered")[0]["rows"] == 5
    with pytest.raises(InputError, match="looks through rows"):
        th.training_defenses.Filtering(detector="neural_cleanse")


def test_filtering_says_so_where_nothing_is_suspected(run):
    rows, _ = made(0)
    with pytest.warns(UserWarning, match="suspects no row"):
        th.training_defenses.Filtering(detector="scan", train_recipe="adam_3").fit("mlp", rows, run)
