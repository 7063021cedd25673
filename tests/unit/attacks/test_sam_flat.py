"""Flat victims: the sharpness-aware step's closed forms, and wrapping of other attacks."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch
from torch import nn

from theriac.attacks import (
    LIRA,
    AdaptivePatch,
    BadNets,
    Grond,
    InputAware,
    LabelConsistent,
    MultiBackdoor,
    MultiTarget,
    SamFlat,
    TabularValue,
    Untargeted,
    WaNet,
    load_planted,
    save_planted,
)
from theriac.core.errors import InputError
from theriac.core.method import create
from theriac.core.planted import Planted
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.metrics import evaluate
from theriac.models import Builder, make
from theriac.training import Batch, Recipe, loop
from theriac.training.flat import climb, sam_step, sharpness

BUILD = Builder("preact_resnet18", {"width": 4})
RECIPE = Recipe(epochs=2, batch_size=50, lr=0.05, weight_decay=5e-4, schedule="constant")


def quiet(seed=0, **options):
    return Run(seed=seed, precision="fp32", device="cpu", quiet=True, **options)


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


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


@pytest.mark.parametrize("on", ["all", "poison"])
def test_the_radius_climbs_over_the_first_steps(digits, monkeypatch, on):
    seen = []

    def spy(rho, **options):
        seen.extend(round(rho(number), 6) for number in range(12))
        return sam_step(rho, **options)

    taken_in = {"all": "theriac.training.epochs", "poison": "theriac.attacks.sam_flat"}[on]
    monkeypatch.setattr(sys.modules[taken_in], "sam_step", spy)
    SamFlat(rho=1.0, ramp=0.5, on=on).train(BUILD, digits.train.sample(100), quiet(), RECIPE)  # 4 steps, of which 2 climb
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
    assert attack.full_title == f"{inner.title}, flat"


def test_options_of_the_attack_inside_may_be_a_mapping():
    made = create("attack", "sam_flat", attack="wanet", options={"rows": "per_batch", "strength": 0.7})
    assert made.inner == WaNet(rows="per_batch", strength=0.7)
    assert not made.must_fit
    assert SamFlat(attack="lira").must_fit


def test_sam_flat_wraps_fitted_attacks_and_tables(digits):
    fitted = SamFlat.around(LabelConsistent(surrogate_rows=60, surrogate_recipe="short_1", steps=1))
    victim = fitted.train(BUILD, digits.train.sample(150), quiet(), RECIPE)
    assert victim.planted.state["rows.x"].shape[1:] == (1, 8, 8)
    with pytest.raises(InputError, match="fitted"):
        fitted.plant_for(digits.test)
    table = Split(torch.randn(120, 4, generator=torch.Generator().manual_seed(0)), torch.arange(120) % 2)
    victim = SamFlat.around(TabularValue(poison_rate=0.1)).train("mlp", table, quiet(), RECIPE)
    assert evaluate(victim.model, table, victim.planted, run=quiet()).asr.total == 60


@pytest.mark.parametrize(
    "inner",
    [
        InputAware(poison_rate=0.2, mask_epochs=1, width=2, fit_rows=50),
        InputAware(poison_rate=0.2, mask_epochs=1, width=2, fit_rows=50, as_released=True),
        LIRA(first_epochs=1, width=2),
        LIRA(first_epochs=1, width=2, as_released=True),
        WaNet.official().replace(poison_rate=0.2),
        Grond(surrogate_rows=60, surrogate_recipe="short_1", steps=1, poison_rate=0.2),
    ],
    ids=["input_aware", "input_aware_as_released", "lira", "lira_as_released", "wanet_per_batch", "grond"],
)
def test_sam_flat_wraps_attacks_that_train_their_victim(digits, inner):
    """With a radius too small to move a weight, each batch is taken twice and all must be as after taking it once."""
    rows = digits.train.sample(100)
    plain = inner.train(BUILD, rows, quiet(), RECIPE)
    still, moved = (SamFlat.around(inner, rho=rho).train(BUILD, rows, quiet(), RECIPE) for rho in (1e-30, 0.1))
    assert same(plain.model, still.model)
    assert not same(plain.model, moved.model)
    assert plain.planted.state.keys() == still.planted.state.keys()
    for name, value in plain.planted.state.items():
        assert torch.equal(value, still.planted.state[name]), name
    test = digits.test.sample(60)
    stamped = moved.planted.stamp(test.x, test.y, test.index)
    assert torch.equal(stamped, Planted(inner, test.card, moved.planted.state).stamp(test.x, test.y, test.index))
    learnt = [n for n in plain.planted.state if n.startswith(("generator.", "trigger."))]
    changed = [n for n in learnt if not torch.equal(plain.planted.state[n], moved.planted.state[n])]
    assert bool(changed) == bool(learnt)  # a network beside the victim learns where the victim has climbed to


def test_a_network_beside_the_model_gets_its_slope_where_the_model_climbed_to():
    """Loss w v: the climb moves w by rho, v's slope is the moved w, and w's slope is v."""
    model, beside = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(2.0)
        beside.weight.fill_(3.0)

    def step(net, batch):
        return (net.weight * beside.weight).sum()

    batch = Batch(torch.zeros(1, 1), torch.zeros(1), torch.zeros(1), 0, 0, quiet(), 1)
    loss, _ = sam_step(lambda _: 0.5, step=step, beside=[beside])(model, batch)
    loss.backward()
    assert model.weight.grad.item() == 3.0
    assert beside.weight.grad.item() == 2.5
    assert model.weight.item() == 2.0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"attack": "sam_flat"}, "another attack"),
        ({"attack": "blended:official"}, "another attack"),
        ({"attack": "blendet"}, "did you mean 'blended'"),
        ({"attack": "lira", "on": "poison"}, "trains its victim itself"),
        ({"options": (("target", 3),)}, "'target', which is an option of sam_flat"),
        ({"options": (("alfa", 0.3),), "attack": "blended"}, "alpha"),
        ({"rho": -0.1}, "rho"),
    ],
)
def test_sam_flat_refuses(options, match):
    with pytest.raises(InputError, match=match):
        SamFlat(**options)


def test_what_counts_as_a_success_is_the_inner_attacks(digits, trained):
    """An untargeted attack inside: every wrong label counts, so attack success and the true labels make up all rows."""
    inside = Untargeted()
    around = SamFlat.around(inside)
    alone, wrapped = (evaluate(trained, digits.test, attack, run=quiet()) for attack in (inside, around))
    assert (wrapped.asr.hits, wrapped.ra.hits) == (alone.asr.hits, alone.ra.hits)
    assert wrapped.asr.hits + wrapped.ra.hits == wrapped.asr.total
    with pytest.raises(InputError, match="untargeted"):
        MultiBackdoor(attacks=("badnets", "untargeted"))
