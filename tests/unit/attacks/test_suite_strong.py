"""SAM training, channel leveling, and optimized clean-label noise: closed forms and mechanics."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from theriac.attacks import (
    AdaptivePatch,
    BadNets,
    Blended,
    Grond,
    LabelConsistent,
    MultiTarget,
    Narcissus,
    SamFlat,
    TabularValue,
    load_planted,
    save_planted,
    suppress_lipschitz_channels,
)
from theriac.attacks import grond as grond_module
from theriac.attacks import narcissus as narcissus_module
from theriac.attacks._surrogate import FitError
from theriac.core.errors import InputError
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.metrics import evaluate
from theriac.models import Builder, make
from theriac.models.lipschitz import channel_constants, conv_norm_pairs
from theriac.training import Batch, Recipe, loop, train
from theriac.training.flat import climb, sam_step, sharpness

BUILD = Builder("preact_resnet18", {"width": 4})
RECIPE = Recipe(epochs=2, batch_size=50, lr=0.05, weight_decay=5e-4, schedule="constant")


def quiet(seed=0, **options):
    return Run(seed=seed, precision="fp32", device="cpu", quiet=True, **options)


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# SAM


def quadratic(weights):
    """Mean of (w - x)^2 c / 2, with slope c (w - mean x)."""
    model = nn.Linear(len(weights), 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([weights]))
    return model


CURVE = torch.tensor([[3.0, 1.0]])


def bowl(model, batch):
    return (CURVE * model.weight.square()).sum() / 2


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_sam_step_is_the_closed_form_of_a_quadratic(adaptive):
    model, rho = quadratic([1.0, -2.0]), 0.5
    w, c = np.array([1.0, -2.0]), np.array([3.0, 1.0])
    g = c * w
    e = rho * w**2 * g / np.linalg.norm(np.abs(w) * g) if adaptive else rho * g / np.linalg.norm(g)
    batch = Batch(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1), 0, 0, quiet(), 1)
    loss, told = sam_step(lambda _: rho, step=bowl, adaptive=adaptive)(model, batch)
    assert torch.equal(model.weight.detach(), torch.tensor([[1.0, -2.0]]))  # put back before the optimizer's step
    loss.backward()
    assert np.allclose(model.weight.grad[0], c * (w + e), rtol=1e-6)
    assert loss.item() == pytest.approx((c * w**2).sum() / 2)
    assert told["climbed_loss"].item() == pytest.approx((c * (w + e) ** 2).sum() / 2)


def test_climbing_goes_as_far_as_rho():
    weights = [torch.tensor([1.0, 2.0]), torch.tensor([[0.5]])]
    slopes = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    before = climb(weights, slopes, 0.1)
    moved = torch.cat([(w - b).flatten() for w, b in zip(weights, before, strict=True)])
    assert torch.allclose(moved, torch.tensor([0.06, 0.0, 0.08]))
    there = [w.clone() for w in weights]
    climb(weights, [torch.zeros_like(w) for w in weights], 0.1)  # no slope, no way to go, and no NaN
    assert all(torch.equal(w, t) for w, t in zip(weights, there, strict=True))


def test_sam_with_radius_zero_is_plain_training_bit_for_bit(digits):
    rows, brief = digits.train.sample(80), RECIPE.replace(batch_size=40)
    plain = BadNets().train(BUILD, rows, quiet(), brief)
    for on in ("all", "poison"):
        flat = SamFlat(rho=0.0, on=on).train(BUILD, rows, quiet(), brief)
        assert same(plain.model, flat.model)
    other = SamFlat(rho=0.05).train(BUILD, rows, quiet(), brief)
    assert not same(plain.model, other.model)
    assert same(other.model, SamFlat(rho=0.05).train(BUILD, rows, quiet(), brief).model)


def test_the_radius_climbs_over_the_first_steps(digits, monkeypatch):
    from theriac.attacks import sam_flat

    seen = []

    def spy(rho, **options):
        seen.extend(round(rho(number), 6) for number in range(12))
        return sam_step(rho, **options)

    monkeypatch.setattr(sam_flat, "sam_step", spy)
    SamFlat(rho=1.0, ramp=0.5).train(BUILD, digits.train.sample(100), quiet(), RECIPE)  # 4 steps, of which 2 climb
    assert seen == [0.5] + [1.0] * 11


def test_statistics_are_those_of_the_weights_themselves(digits):
    """One step: BatchNorm has seen the batch once, at the weights before the climb."""
    rows = digits.train.sample(50)
    once = RECIPE.replace(epochs=1)
    models = []
    for step in (None, sam_step(lambda _: 0.5)):
        model = make(BUILD, rows, quiet())
        models.append(loop(model, rows, quiet(), once, **({"step": step} if step else {})))
    for (name, a), b in zip(models[0].named_buffers(), models[1].buffers(), strict=True):
        assert torch.equal(a, b), name


def test_mixed_precision_sees_the_climbed_weights(monkeypatch):
    """Autocast keeps casts of the weights; without clearing them the second pass would see those of before."""
    torch.manual_seed(0)
    model, batch = nn.Linear(8, 3), Batch(torch.randn(16, 8), torch.arange(16) % 3, torch.arange(16), 0, 0, quiet(), 1)

    def rise():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, told = sam_step(lambda _: 0.5)(model, batch)
        return (told["climbed_loss"] - loss).item()

    assert rise() > 0.05
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: None)
    assert rise() == 0


def test_a_climb_on_the_poisoned_rows_alone(digits):
    """A batch without poisoned rows is a plain step."""
    rows = digits.train.sample(100)
    nothing = SamFlat(rho=0.5, poison_rate=0.0, on="poison").train(BUILD, rows, quiet(), RECIPE)
    assert same(nothing.model, BadNets(poison_rate=0.0).train(BUILD, rows, quiet(), RECIPE).model)
    some = SamFlat(rho=0.5, on="poison").train(BUILD, rows, quiet(), RECIPE)
    assert not same(some.model, SamFlat(rho=0.5).train(BUILD, rows, quiet(), RECIPE).model)


def test_sharpness_of_a_quadratic():
    class Slope(nn.Module):
        """Two logits, w and -w, for every row."""

        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor(0.3))

        def forward(self, x):
            return torch.stack([self.w, -self.w]).expand(len(x), 2)

    model = Slope().train()
    split = Split(torch.zeros(5, 3), torch.tensor([0, 0, 0, 0, 1]))
    measured = sharpness(model, split, 0.25, run=quiet())

    def loss(w):
        return (4 * math.log(1 + math.exp(-2 * w)) + math.log(1 + math.exp(2 * w))) / 5

    slope = loss(0.3 + 1e-4) - loss(0.3 - 1e-4)
    assert measured == pytest.approx(loss(0.3 + math.copysign(0.25, slope)) - loss(0.3), rel=1e-4)
    assert model.w.item() == pytest.approx(0.3)
    assert model.training


@pytest.mark.parametrize(("name", "rate"), [("badnets", 0.1), ("adaptive_blend", 0.003), ("sig", 0.5)])
def test_sam_flat_keeps_the_rate_of_the_attack_inside(name, rate):
    assert SamFlat(attack=name).inner.poison_rate == rate
    assert SamFlat(attack=name, poison_rate=0.2).inner.poison_rate == 0.2
    assert SamFlat.around(SamFlat(attack=name).inner.replace(poison_rate=0.04)).inner.poison_rate == 0.04


def test_the_radius_is_no_part_of_the_trigger(digits):
    rows = digits.train.sample(50)
    one, two = (SamFlat(rho=rho).plant(rows).trigger_hash for rho in (0.1, 1.0))
    assert one == two == BadNets().plant(rows).trigger_hash
    assert SamFlat(target=1).plant(rows).trigger_hash != one


def test_sam_flat_wraps_rows_stamps_labels_and_population(digits, tmp_path):
    rows = digits.train.sample(150)
    inner = MultiTarget(goals=(3, 5), poison_rate=0.2)
    attack = SamFlat.around(inner, rho=0.01)
    assert attack.inner == inner
    victim = attack.train(BUILD, rows, quiet(), RECIPE)
    direct = inner.poison(rows, quiet()).planted
    test = digits.test
    assert torch.equal(victim.planted.stamp(test.x, test.y, test.index), direct.stamp(test.x, test.y, test.index))
    judged, other = (evaluate(victim.model, test, planted, run=quiet()) for planted in (victim.planted, direct))
    assert judged.asr.value == other.asr.value
    assert judged.asr.total == len(test)
    again = load_planted(save_planted(victim.planted, tmp_path))
    assert again.attack == attack
    assert torch.equal(again.stamp(test.x, test.y, test.index), direct.stamp(test.x, test.y, test.index))
    patches = SamFlat.around(AdaptivePatch(opacities=(1.0, 0.5, 0.25, 0.0)))
    config = json.loads(json.dumps(patches.config()))
    assert SamFlat.from_config(config) == patches
    assert hash(SamFlat.from_config(config)) == hash(patches)
    assert SamFlat.from_config(config).inner.opacities == (1.0, 0.5, 0.25, 0.0)


def test_sam_flat_wraps_fitted_attacks_and_tables(digits):
    fitted = SamFlat.around(LabelConsistent(surrogate_rows=60, surrogate_recipe="fast_1", steps=1))
    victim = fitted.train(BUILD, digits.train.sample(150), quiet(), RECIPE)
    assert victim.planted.state["rows"].shape[1:] == (1, 8, 8)
    with pytest.raises(InputError, match="fitted"):
        fitted.plant_for(digits.test)
    table = Split(torch.randn(120, 4, generator=torch.Generator().manual_seed(0)), torch.arange(120) % 2)
    victim = SamFlat.around(TabularValue(poison_rate=0.1)).train("mlp", table, quiet(), RECIPE)
    assert evaluate(victim.model, table, victim.planted, run=quiet()).asr.total == 60


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"attack": "sam_flat"}, "another attack"),
        ({"attack": "blended:official"}, "another attack"),
        ({"attack": "blendet"}, "did you mean 'blended'"),
        ({"attack": "lira"}, "trains its victim itself"),
        ({"options": (("target", 3),)}, "'target', which is an option of sam_flat"),
        ({"options": (("alfa", 0.3),), "attack": "blended"}, "alpha"),
        ({"rho": -0.1}, "rho"),
    ],
)
def test_sam_flat_refuses(options, match):
    with pytest.raises(InputError, match=match):
        SamFlat(**options)


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
    attack = Grond(surrogate_rows=60, surrogate_recipe="fast_1", steps=3, u=0.5)
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


def test_narcissus_tells_when_nothing_was_fitted(linear):
    with pytest.raises(FitError, match="rounds to nothing"):
        Narcissus(steps=1, lr=1e-6).plant(gray(), run=quiet())


def test_narcissus_takes_public_data_for_its_surrogate(digits, monkeypatch):
    seen = {}
    real = narcissus_module.fit_surrogate
    monkeypatch.setattr(
        narcissus_module, "fit_surrogate", lambda split, *a, **k: seen.update(known=split) or real(split, *a, **k)
    )
    attack = Narcissus(ood="digits", target=3, surrogate_rows=100, surrogate_recipe="fast_1", steps=30, poison_rate=0.1)
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
        Grond(abi=False, target=8, surrogate_rows=300, surrogate_recipe="fast_2", steps=20, batch=64, eps=32.0),
        Narcissus(target=8, surrogate_rows=300, surrogate_recipe="fast_2", steps=30, batch=64),
    ):
        planted = attack.plant(digits.train, BUILD, quiet())
        model = fit_surrogate(digits.train, BUILD, quiet(), name=attack.name, rows=300, recipe="fast_2")
        test = digits.test.where(digits.test.y != 8)
        with torch.no_grad():
            goal = torch.full_like(test.y, 8)
            before, after = (
                F.cross_entropy(model(to_input(x)), goal) for x in (test.x, planted.stamp(test.x, test.y, test.index))
            )
        assert after < before


def test_a_wrapped_attack_keeps_its_strength():
    assert SamFlat.around(Blended(alpha=0.05, poison_rate=0.001)).inner == Blended(alpha=0.05, poison_rate=0.001)
