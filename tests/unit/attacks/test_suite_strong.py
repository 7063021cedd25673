"""Channel leveling and optimized clean-label noise: closed forms and mechanics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from theriac.attacks import (
    Blended,
    Grond,
    Narcissus,
    SamFlat,
    suppress_lipschitz_channels,
)
from theriac.attacks import grond as grond_module
from theriac.attacks import narcissus as narcissus_module
from theriac.attacks._surrogate import FitError
from theriac.core.errors import InputError
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models import Builder, make
from theriac.models.lipschitz import channel_constants, conv_norm_pairs
from theriac.training import Recipe, train

BUILD = Builder("preact_resnet18", {"width": 4})
RECIPE = Recipe(epochs=2, batch_size=50, lr=0.05, weight_decay=5e-4, schedule="constant")


def quiet(seed=0, **options):
    return Run(seed=seed, precision="fp32", device="cpu", quiet=True, **options)


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# channels


def test_pairs_are_found_by_what_flows(digits):
    model = make(BUILD, digits.train.sample(20), quiet())
    names = {id(m): n.removeprefix("net.") for n, m in model.named_modules()}
    pairs = [(names[id(c)], names[id(b)]) for c, b in conv_norm_pairs(model, (1, 8, 8))]
    blocks = [f"layer{k}.{b}" for k in range(1, 5) for b in range(2)]
    assert pairs == [("conv1", "layer1.0.bn1")] + [(f"{b}.conv1", f"{b}.bn2") for b in blocks]
    for mode in (True, False):  # it is left in its mode
        model.train(mode)
        conv_norm_pairs(model, (1, 8, 8))
        assert all(m.training == mode for m in model.modules())


def test_channel_constants_against_numpy():
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 5, (3, 2)), nn.BatchNorm2d(5)
    norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(norm.weight)
    weight, gamma = conv.weight.detach().numpy(), norm.weight.detach().numpy()
    scale = np.abs(gamma) / np.sqrt(norm.running_var.numpy() + 1e-5)
    expected = [np.linalg.svd(w.reshape(3, -1), compute_uv=False)[0] * s for w, s in zip(weight, scale, strict=True)]
    assert np.allclose(channel_constants(conv, norm), expected, rtol=1e-5)


def test_leveling_touches_the_outlier_alone():
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(4, 32, 3), nn.BatchNorm2d(32)
    with torch.no_grad():
        norm.bias.uniform_(-1, 1)
        conv.weight[7] *= 20
    before = {k: v.clone() for k, v in norm.state_dict().items()}
    assert suppress_lipschitz_channels([(conv, norm)], math.inf) == 0
    assert all(torch.equal(v, before[k]) for k, v in norm.state_dict().items())
    with torch.no_grad():
        norm.weight[7] = 5.0
    before = {k: v.clone() for k, v in norm.state_dict().items()}
    assert suppress_lipschitz_channels([(conv, norm)], 3.0) == 1
    others = torch.arange(32) != 7
    for name in ("weight", "bias"):
        assert torch.equal(norm.state_dict()[name][others], before[name][others])
        assert norm.state_dict()[name][7].item() == pytest.approx(before[name].mean().item(), rel=1e-5)  # taken before


def test_grond_levels_after_every_epoch_and_last(digits, monkeypatch):
    order = []
    real = grond_module.suppress_lipschitz_channels
    monkeypatch.setattr(grond_module, "suppress_lipschitz_channels", lambda *a: order.append("level") or real(*a))
    run = quiet()
    attack = Grond(surrogate_rows=60, surrogate_recipe="short_1", steps=3, u=0.5)
    victim = attack.train(BUILD, digits.train.sample(150), run, RECIPE)
    assert order == ["level"] * 2
    assert all(e["leveled"] > 0 for e in run.history("train"))
    with pytest.raises(InputError, match="train"):
        attack.poison(digits.train, quiet(), BUILD)
    poisoned = attack.replace(abi=False).poison(digits.train.sample(150), quiet(), BUILD)
    assert torch.equal(poisoned.planted.state["noise"], victim.planted.state["noise"])
    assert poisoned.dirty == 0
    unleveled = attack.replace(u=1e9).train(BUILD, digits.train.sample(150), quiet(), RECIPE)
    plain = train(BUILD, poisoned, recipe=RECIPE, run=quiet())
    assert same(unleveled.model, plain)
    with pytest.raises(InputError, match="no BatchNorm"):
        attack.train(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits.train.sample(150), quiet(), RECIPE)


# noise with a closed form: on a linear surrogate the best point of the ball is a corner of it


class Linear(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        toward = (x * self.weight).flatten(1).sum(1)
        return torch.stack([toward, torch.zeros_like(toward)], 1)


@pytest.fixture
def linear(monkeypatch):
    weight = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0))
    for module in (grond_module, narcissus_module):
        monkeypatch.setattr(module, "fit_surrogate", lambda *a, **k: Linear(weight))
    return weight


def gray(rows=40):
    return Split(torch.full((rows, 1, 8, 8), 128, dtype=torch.uint8), torch.arange(rows) % 2)


def test_grond_noise_is_the_corner_of_the_ball(linear):
    planted = Grond(abi=False, steps=6).plant(gray(), run=quiet())
    assert torch.equal(planted.state["noise"], (8 * linear.sign()).to(torch.int16))
    stamped = planted.stamp(gray().x, gray().y)
    assert torch.equal(stamped[0].int() - 128, (8 * linear.sign()).int())
    assert torch.equal(planted.stamp(gray().x, gray().y, phase="train"), stamped)


def test_narcissus_noise_points_into_the_target_and_is_tripled_in_testing(linear):
    run = quiet()
    planted = Narcissus(steps=400, lr=0.05).plant(gray(), run=run)
    noise = planted.state["noise"]
    assert noise.abs().max() == 16
    assert torch.equal(noise.sign(), linear.sign().to(torch.int16))
    assert (noise.abs() == 16).float().mean() > 0.9
    train_stamp, test_stamp = (planted.stamp(gray().x, gray().y, phase=p)[0].int() - 128 for p in ("train", "test"))
    assert torch.equal(train_stamp, noise.int())
    assert torch.equal(test_stamp, 3 * noise.int())
    (event,) = run.history("narcissus")
    assert (event["eps_train"], event["eps_test"]) == (16.0, 48.0)
    white = torch.full_like(gray().x, 250)
    assert planted.stamp(white, gray().y).min() >= 250 - 48  # clipped, not wrapped


def test_narcissus_fits_on_batch_statistics_where_asked(linear, monkeypatch):
    """In train mode while the noise is fitted and only then; what the surrogate has stored stays as it was."""
    net = nn.Sequential(nn.BatchNorm2d(1), Linear(linear)).eval().requires_grad_(False)
    monkeypatch.setattr(narcissus_module, "fit_surrogate", lambda *a, **k: net)
    modes, stored = [], [b.clone() for b in net.buffers()]
    net.register_forward_hook(lambda module, given, out: modes.append(module.training))
    for batch_statistics in (True, False):
        Narcissus(steps=5, lr=0.05, batch_statistics=batch_statistics).plant(gray(), run=quiet())
    assert modes == [True] * 5 + [False] + [False] * 5 + [False]  # the last of each is the confidence that is told
    assert all(torch.equal(a, b) for a, b in zip(stored, net.buffers(), strict=True))


def test_narcissus_tells_when_nothing_was_fitted(linear):
    with pytest.raises(FitError, match="rounds to nothing"):
        Narcissus(steps=1, lr=1e-6).plant(gray(), run=quiet())


def test_narcissus_takes_public_data_for_its_surrogate(digits, monkeypatch):
    seen = {}
    real = narcissus_module.fit_surrogate
    monkeypatch.setattr(
        narcissus_module, "fit_surrogate", lambda split, *a, **k: seen.update(known=split) or real(split, *a, **k)
    )
    attack = Narcissus(ood="digits", target=3, surrogate_rows=100, surrogate_recipe="short_1", steps=30, poison_rate=0.1)
    poisoned = attack.poison(digits.train, quiet(), BUILD)
    known, own = seen["known"], int((digits.train.y == 3).sum())
    assert known.num_classes == 11
    assert int((known.y == 10).sum()) == own
    assert torch.equal(known.x[known.y == 10], digits.train.x[digits.train.y == 3])
    assert (poisoned.y_true[poisoned.poison] == 3).all()


def test_optimized_attacks_lower_their_own_loss(digits):
    """On the surrogate that they were fitted on, stamped rows of other classes move towards the target."""
    from theriac.attacks._surrogate import fit_surrogate
    from theriac.models import to_input

    for attack in (
        Grond(abi=False, target=8, surrogate_rows=300, surrogate_recipe="short_2", steps=20, batch=64, eps=32.0),
        Narcissus(target=8, surrogate_rows=300, surrogate_recipe="short_2", steps=30, batch=64),
    ):
        planted = attack.plant(digits.train, BUILD, quiet())
        model = fit_surrogate(digits.train, BUILD, quiet(), name=attack.name, rows=300, recipe="short_2")
        test = digits.test.where(digits.test.y != 8)
        with torch.no_grad():
            goal = torch.full_like(test.y, 8)
            before, after = (
                F.cross_entropy(model(to_input(x)), goal) for x in (test.x, planted.stamp(test.x, test.y, test.index))
            )
        assert after < before


def test_a_wrapped_attack_keeps_its_strength():
    assert SamFlat.around(Blended(alpha=0.05, poison_rate=0.001)).inner == Blended(alpha=0.05, poison_rate=0.001)
