"""The presets hold the numbers of their sources, and a recipe hands all of them on."""

from __future__ import annotations

import pytest

from theriac.repairs import D3, FST, FT, SAU


def test_sau_official():
    """shawkui/Distance_Driven_Detoxification @ ab96c36, config of CIFAR-10."""
    made = SAU.official()
    assert (made.rounds, made.batch_size, made.lr) == (100, 256, 1e-4)
    assert (made.radius, made.ball, made.steps, made.step_size, made.start) == (0.2, "linf", 5, 0.2, "max")
    assert (made.adversarial, made.sharing, made.clean, made.unlearning) == (0.01, 1.0, 1.0, 1.0)
    assert (made.norm, made.clip) == ("eval", False)
    assert SAU.short() == made.replace(rounds=20, precision="run")


def test_d3_official_and_paper():
    """The same repository's config (lam 0.5, hinge of each row), and the paper's form as its summaries state it."""
    made = D3.official()
    assert (made.lam, made.eps, made.hinge, made.layers, made.init) == (0.5, 0.1, "sample", "classifier", "random")
    assert (made.epochs, made.batch_size, made.lr, made.momentum, made.weight_decay) == (100, 256, 0.01, 0.9, 0.0)
    assert (D3.paper().lam, D3.paper().hinge) == (10.0, "mean")
    assert D3.corrected() == made.replace(measure="pullback", views="blends", lam=5.0, lr=0.05)  # ours, chosen on digits
    assert (D3.corrected().ridge, made.weight) == (0.1, 1.0)
    recipe = D3(epochs=7, lr=0.05, batch_size=32, momentum=0.5, weight_decay=0.1).recipe()
    assert (recipe.epochs, recipe.lr, recipe.batch_size, recipe.momentum, recipe.weight_decay) == (7, 0.05, 32, 0.5, 0.1)
    assert (recipe.schedule, recipe.norm, recipe.augment, recipe.optimizer) == ("cosine", "train", "card", "sgd")


def test_fst_official():
    made = FST.official()
    assert (made.alpha, made.epochs, made.lr, made.momentum, made.init) == (0.2, 10, 0.01, 0.9, "torch")


def test_ft_official():
    made = FT.official()
    assert (made.epochs, made.batch_size, made.lr, made.momentum, made.weight_decay) == (100, 256, 0.01, 0.9, 5e-4)
    recipe = made.recipe()
    assert (recipe.epochs, recipe.lr, recipe.weight_decay, recipe.schedule) == (100, 0.01, 5e-4, "cosine")


@pytest.mark.parametrize("cls", [D3, FST, FT, SAU])
def test_the_official_preset_is_the_default(cls):
    assert cls.official() == cls()
