"""Recipes: names, schedules against torch's own schedulers and closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from theriac.core.errors import InputError
from theriac.training import Recipe, recipe


def torch_rates(make, epochs: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = make(optimizer)
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_equals_torch():
    mine = Recipe(epochs=13, lr=0.3, schedule="cosine")
    theirs = torch_rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=13), 13)
    assert [mine.lr_at(7 * e, 7) for e in range(13)] == pytest.approx(theirs)
    assert len({mine.lr_at(7 * 3 + i, 7) for i in range(7)}) == 1  # it changes once an epoch


def test_multistep_equals_torch():
    mine = Recipe(epochs=20, lr=0.3, schedule="multistep", milestones=(0.2, 0.7))
    theirs = torch_rates(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [4, 14], gamma=0.1), 20)
    assert [mine.lr_at(5 * e + 4, 5) for e in range(20)] == pytest.approx(theirs)


def test_constant():
    mine = Recipe(epochs=3, lr=0.3, schedule="constant")
    assert {mine.lr_at(i, 5) for i in range(15)} == {0.3}


@pytest.mark.parametrize("warmup", [0.0, 0.25, 1.0])
def test_one_cycle_climbs_to_the_top_and_falls_to_almost_nothing(warmup):
    mine = Recipe(epochs=4, lr=0.1, schedule="one_cycle", warmup=warmup)
    rates = [mine.lr_at(i, 10) for i in range(40)]
    climb = max(1, round(warmup * 40))
    assert rates[0] == pytest.approx(0.1 / climb)
    assert rates[climb - 1] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(0.1)
    assert rates[: climb - 1] == sorted(rates[: climb - 1])
    assert rates[climb - 1 :] == sorted(rates[climb - 1 :], reverse=True)
    if warmup < 1:
        assert rates[climb] == pytest.approx(0.1)
        assert rates[-1] == pytest.approx(0.05 * (1 + math.cos(math.pi * (39 - climb) / (40 - climb))))
        assert 0 < rates[-1] < 0.001


def test_names_carry_the_epochs():
    paper, short, adam = recipe("paper_100"), recipe("short_8"), recipe("adam_30")
    assert (paper.epochs, short.epochs, adam.epochs) == (100, 8, 30)
    assert (paper.lr, paper.momentum, paper.weight_decay, paper.batch_size) == (0.01, 0.9, 5e-4, 128)  # the literature's
    assert paper.schedule == "cosine"
    assert short.schedule == "one_cycle"
    assert adam.optimizer == "adam"
    assert recipe(short) is short
    assert short.replace(lr=0.2).lr == 0.2
    assert short.lr == 0.1
    assert recipe("fast_8") == short  # its former name


@pytest.mark.parametrize(
    "name", ["short", "short_", "short_0", "fast_0", "short_-1", "short_1e3", "short_100000000", "slow_8", "", "SHORT_8"]
)
def test_unknown_names_are_refused(name):
    with pytest.raises(InputError, match="unknown recipe"):
        recipe(name)


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0},
        {"epochs": 1.5},
        {"batch_size": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"lr": -1.0},
        {"weight_decay": -1e-4},
        {"momentum": 1.5},
        {"warmup": -0.1},
        {"schedule": "cosin"},
        {"optimizer": "adamw"},
        {"norm": "frozen"},
        {"augment": "nothing"},
        {"precision": "fp16"},
        {"clip_norm": -1.0},
        {"milestones": (1.5,)},
    ],
)
def test_bad_values_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        Recipe(**{"epochs": 1, **options})
