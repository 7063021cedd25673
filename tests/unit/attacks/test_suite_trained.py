"""Attacks with networks of their own (SSBA, input-aware, LIRA): mechanics at tiny sizes, not success rates."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import nn

import theriac.attacks.input_aware as input_aware
from theriac.attacks import LIRA, SSBA, InputAware
from theriac.attacks._generators import DynamicNet, TriggerEncoder, pack, unpack
from theriac.attacks._stego import Encoder, ssim
from theriac.attacks._surrogate import FitError
from theriac.attacks.store import restore
from theriac.core._rows import pixel_moments
from theriac.core.errors import InputError
from theriac.core.planted import Planted
from theriac.core.poisoned import CROSS, POISON
from theriac.core.run import Run
from theriac.metrics import cross_accuracy, evaluate
from theriac.models import Builder
from theriac.training import Recipe

BUILD = Builder("preact_resnet18", {"width": 4})
RECIPE = Recipe(epochs=2, batch_size=50, lr=0.05)
TRAINED = [
    InputAware(width=4, fit_rows=100),
    InputAware(width=4, fit_rows=100, as_released=True, mask_epochs=1),
    LIRA(width=4, first_epochs=1),
    LIRA(width=4, first_epochs=1, quantize=False, space="normalized", as_released=True),
]


def quiet(seed=0, folder=None, **streams):
    return Run(seed=seed, streams=streams, precision="fp32", device="cpu", quiet=True, folder=folder)


def named(attack):
    return f"{attack.name}{'-released' if getattr(attack, 'as_released', False) else ''}"


@pytest.fixture(scope="module", params=TRAINED, ids=named)
def case(request, digits):
    rows = digits.train.sample(200)
    run = quiet()
    return request.param, rows, request.param.train(BUILD, rows, run, RECIPE), run


def test_state_and_weights_repeat(case):
    attack, rows, victim, _ = case
    again = attack.train(BUILD, rows, quiet(), RECIPE)
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), victim.model.parameters(), strict=True))
    assert again.planted.state.keys() == victim.planted.state.keys()
    for name, tensor in victim.planted.state.items():
        assert torch.equal(again.planted.state[name], tensor), name


def test_another_seed_gives_another_trigger(case, digits):
    attack, rows, victim, _ = case
    other = attack.train(BUILD, rows, quiet(1), RECIPE)
    x, y = digits.test.x[:20], digits.test.y[:20]
    assert not torch.equal(other.planted.stamp(x, y), victim.planted.stamp(x, y))


def test_reloaded_state_stamps_the_same_bytes_and_scores_the_same(case, digits):
    attack, rows, victim, run = case
    planted = victim.planted
    again = restore(json.loads(json.dumps(attack.config())), rows.card, load(save(dict(planted.state))))
    assert again.attack == attack
    test = digits.test
    assert torch.equal(again.stamp(test.x, test.y, test.index), planted.stamp(test.x, test.y, test.index))
    assert evaluate(victim.model, test, again, run=run) == evaluate(victim.model, test, planted, run=run)


def test_rows_are_fixed_and_stored(case):
    attack, rows, victim, run = case
    if attack.name == "input_aware" and attack.as_released:
        assert "rows.kind" not in victim.planted.state
        return
    kind, index = victim.planted.state["rows.kind"], victim.planted.state["rows.index"]
    assert torch.equal(index, rows.index)
    assert torch.equal(kind, attack.kinds(rows, run))
    counts = kind.bincount(minlength=3).tolist()
    assert counts == ([160, 20, 20] if attack.name == "input_aware" else [0, 200, 0])


def test_they_name_train_where_there_is_nothing_to_poison(case, digits):
    attack = case[0]
    with pytest.raises(InputError, match="train"):
        attack.poison(digits.train)
    with pytest.raises(InputError, match="train"):
        attack.plant(digits.train)
    with pytest.raises(InputError, match="fitted"):
        attack.plant_for(digits.test)


def test_the_victim_is_ready_and_stamps_leave_the_rows_alone(case, digits):
    _, _, victim, _ = case
    assert not victim.model.training
    x = digits.test.x[:9]
    before = x.clone()
    stamped = victim.planted.stamp(x, digits.test.y[:9])
    assert torch.equal(x, before)
    assert stamped.shape == x.shape
    assert (stamped.float() != x.float()).any()


# input-aware


def test_input_aware_stamps_differ_by_image_and_cross_stamps_take_the_neighbors(digits):
    victim = InputAware(width=4, fit_rows=100).train(BUILD, digits.train.sample(200), quiet(), RECIPE)
    planted = victim.planted
    x, y = digits.test.x[:6], digits.test.y[:6]
    own, cross = planted.stamp(x, y), planted.stamp(x, y, variant="cross")
    assert not torch.equal(own, cross)
    same = x[:1].expand(6, -1, -1, -1).contiguous()  # among equals, the foreign trigger is one's own
    assert torch.equal(planted.stamp(same, y), planted.stamp(same, y, variant="cross"))
    assert cross_accuracy(victim, digits.test, run=quiet()).total == len(digits.test)


def test_input_aware_mixes_by_mask_and_pattern():
    x, pattern = torch.full((1, 1, 2, 2), 0.2), torch.full((1, 1, 2, 2), 0.8)
    mask = torch.tensor([0.0, 1.0, 0.5, 0.25]).view(1, 1, 2, 2)
    assert torch.allclose(input_aware._mix(x, mask, pattern).flatten(), torch.tensor([0.2, 0.8, 0.5, 0.35]))


def test_input_aware_partners_are_never_oneself_and_change_by_epoch():
    of = input_aware._partners(50, quiet())
    one, two = of(0), of(1)
    assert torch.equal(one.sort().values, torch.arange(50))
    assert (one != torch.arange(50)).all()
    assert not torch.equal(one, two)
    assert torch.equal(input_aware._partners(50, quiet())(1), two)


def test_input_aware_trains_the_victim_for_all_its_epochs_unless_as_released(digits):
    rows = digits.train.sample(120)
    run, released = quiet(), quiet()
    recipe = Recipe(epochs=4, batch_size=60, lr=0.05)
    InputAware(width=2, fit_rows=60, mask_epochs=0).train(BUILD, rows, run, recipe)  # a quarter of four
    InputAware(width=2, fit_rows=60, mask_epochs=1, as_released=True).train(BUILD, rows, released, recipe)
    assert (len(run.history("mask")), len(run.history("train"))) == (1, 4)
    assert (len(released.history("mask")), len(released.history("train"))) == (1, 3)
    with pytest.raises(InputError, match="epochs"):
        InputAware.official().train(BUILD, rows, quiet(), "short_8")


def test_input_aware_augments_foreign_images_as_the_batch(digits, monkeypatch):
    """A crop moves digits by a pixel; a foreign image that is never moved would give its trigger away."""
    seen = []
    original = input_aware.augment
    monkeypatch.setattr(input_aware, "augment", lambda x, policy, draw: seen.append(policy) or original(x, policy, draw))
    attack = InputAware(width=2, fit_rows=60, mask_epochs=1)
    attack.train(BUILD, digits.train.sample(120), quiet(), Recipe(epochs=2, batch_size=60, lr=0.05))
    assert seen == [digits.train.card.augment] * (1 + 2 * 2)  # one batch of the mask net, two an epoch of the victim
    seen.clear()
    plain = Recipe(epochs=1, batch_size=60, lr=0.05, augment="none")
    attack.train(BUILD, digits.train.sample(120), quiet(), plain)
    assert seen == []
    rows = digits.train.sample(50)
    foreign = input_aware._foreign(rows, Recipe(epochs=1), quiet())
    batch = input_aware.Batch(rows.x, rows.y, torch.arange(50), 0, 3, quiet(), 1)
    at = torch.arange(50)
    moved = (foreign(batch, at) * 255).round().to(torch.uint8)
    draw = quiet().generator("poison", "foreign", 3)
    assert torch.equal(moved, original(rows.x, digits.train.card.augment, draw))


def test_input_aware_zeroes_the_generators_gradients_unless_as_released(digits, monkeypatch):
    left = []

    class Spy(torch.optim.Adam):
        """Looks for gradients that are left when a step's own ones are about to come."""

        def step(self, *args):
            super().step(*args)
            kept = self.param_groups[0]["params"]
            victim_forward.append(lambda: left.append(all(p.grad is not None for p in kept)))

    victim_forward: list = []
    original = input_aware.F.cross_entropy

    def watched(*args, **kwargs):  # called in the victim's step, before the backward pass
        while victim_forward:
            victim_forward.pop()()
        return original(*args, **kwargs)

    monkeypatch.setattr(input_aware.optimizers, "Adam", Spy)
    monkeypatch.setattr(input_aware.F, "cross_entropy", watched)
    rows = digits.train.sample(40)
    found = []
    for released in (False, True):
        left.clear()
        attack = InputAware(width=2, fit_rows=20, mask_epochs=1, as_released=released)
        attack.train(BUILD, rows, quiet(), Recipe(epochs=3 + released, batch_size=40, lr=1e-3))
        victim_forward.clear()
        found.append(list(left[-2:]))
    assert found == [[False, False], [True, True]]


def test_input_aware_resumes(digits, tmp_path):
    rows = digits.train.sample(120)
    attack = InputAware(width=2, fit_rows=60)
    whole = attack.train(BUILD, rows, quiet(), RECIPE)
    attack.train(BUILD, rows, quiet(folder=tmp_path), RECIPE)
    again = attack.train(BUILD, rows, quiet(folder=tmp_path), RECIPE)  # everything is in the checkpoints already
    for name, tensor in whole.planted.state.items():
        assert torch.equal(again.planted.state[name], tensor), name
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True))


@pytest.mark.parametrize("attack", [InputAware(width=4, fit_rows=50), LIRA(width=4, first_epochs=1)], ids=named)
def test_a_card_without_moments_gets_those_of_the_rows(attack, digits):
    rows = digits.train.sample(100)
    mean, std = pixel_moments(rows.x)
    bare = rows.replace(card=rows.card.replace(mean=(), std=()))
    told = rows.replace(card=rows.card.replace(mean=mean, std=std))
    first, second = (attack.train(BUILD, s, quiet(), RECIPE).model.state_dict() for s in (bare, told))
    assert all(torch.equal(first[k], second[k]) for k in second)


# LIRA


def test_lira_stays_within_its_strength(digits):
    rows = digits.train.sample(100)
    victim = LIRA(width=4, strength=0.1, first_epochs=1).train(BUILD, rows, quiet(), RECIPE)
    stamped = victim.planted.stamp(digits.test.x, digits.test.y)
    assert stamped.dtype == torch.uint8
    assert (stamped.int() - digits.test.x.int()).abs().max() <= 26  # 0.1 * 255, rounded up
    faint = LIRA(width=4, first_epochs=1, strength=0.01, quantize=False).train(BUILD, rows, quiet(), RECIPE)
    stamped = faint.planted.stamp(digits.test.x, digits.test.y)
    assert stamped.dtype == torch.float32
    assert (stamped - digits.test.x / 255).abs().max() <= 0.01 + 1e-6
    assert stamped.min() >= 0
    assert stamped.max() <= 1


def test_lira_without_strength_is_the_identity(digits):
    victim = LIRA(width=4, strength=0.0, first_epochs=1).train(BUILD, digits.train.sample(100), quiet(), RECIPE)
    assert torch.equal(victim.planted.stamp(digits.test.x, digits.test.y), digits.test.x)


def test_lira_returns_the_second_stage_unless_as_released(digits):
    rows = digits.train.sample(100)
    run, released = quiet(), quiet()
    LIRA(width=2, first_epochs=1).train(BUILD, rows, run, RECIPE)
    LIRA(width=2, first_epochs=1, as_released=True).train(BUILD, rows, released, RECIPE)
    assert (len(run.history("lira-stage1")), len(run.history("train"))) == (1, 2)
    assert (len(released.history("lira-stage1")), len(released.history("train"))) == (1, 0)


def test_lira_triggers_gradient_reaches_the_victim_only_as_released(digits):
    """With the loss all on clean rows, the victim's first step is plain training unless something leaks in."""
    rows = digits.train.sample(60)
    recipe = Recipe(epochs=1, batch_size=60, lr=0.01, schedule="constant")
    weights = []
    for released, rate in ((False, 0.0), (False, 1.0), (True, 1.0)):
        attack = LIRA(width=2, first_epochs=1, alpha=1.0, poison_rate=rate, as_released=released)
        build = Builder("preact_resnet18", {"width": 4})
        attack = attack.replace(as_released=True) if released else attack
        first = {}

        def spy(model, split, run, plan, *, step, about, extra_state=None, label="train", first=first):
            from theriac.training.step import Batch

            model.eval()
            batch = Batch(split.x.float() / 255, split.y, torch.arange(len(split)), 0, 0, run, 1)
            model.zero_grad()
            step(model, batch)[0].backward()
            first.setdefault("grad", torch.cat([p.grad.flatten() for p in model.parameters()]).clone())
            return model

        import theriac.attacks.lira as module

        original, module.loop = module.loop, spy
        keep, module.set_mode = module.set_mode, lambda net, norm: net.eval()
        try:
            attack.train(build, rows, quiet(), recipe)
        finally:
            module.loop, module.set_mode = original, keep
        weights.append(first["grad"])
    assert torch.allclose(weights[0], weights[1], atol=1e-6)
    assert not torch.allclose(weights[0], weights[2], atol=1e-4)


def test_lira_refuses_bytes_for_normalized_strength():
    with pytest.raises(InputError, match="quantize"):
        LIRA(space="normalized")


# SSBA

QUICK = {"bits": 2, "width": 4, "epochs": 1, "fit_rows": 100, "bit_accuracy": 0.0}


def test_ssba_stamps_differ_by_image_and_keep_their_energy(digits):
    rows = digits.train.sample(300)
    poisoned = SSBA(**QUICK, level=4.0).poison(rows, quiet())
    at = poisoned.poison
    change = poisoned.split.x[at].int() - rows.x[at].int()
    assert change.abs().max() <= 12
    assert len({c.numpy().tobytes() for c in change}) > 0.9 * len(change)
    assert torch.equal(poisoned.split.x[~at], rows.x[~at])
    gray = torch.full((4, 1, 8, 8), 128, dtype=torch.uint8)  # nothing is clipped here
    moved = poisoned.planted.stamp(gray, torch.zeros(4, dtype=torch.int64)).float() - 128
    assert 3.0 < moved.square().mean().sqrt() < 4.3


def test_ssba_repeats_and_reloads(digits):
    rows = digits.train.sample(300)
    attack = SSBA(**QUICK)
    one, two, other = attack.poison(rows, quiet()), attack.poison(rows, quiet(5, poison=0)), attack.poison(rows, quiet(1))
    assert torch.equal(one.split.x, two.split.x)
    assert not torch.equal(one.split.x, other.split.x)
    again = restore(json.loads(json.dumps(attack.config())), rows.card, load(save(dict(one.planted.state))))
    assert torch.equal(again.stamp(digits.test.x, digits.test.y), one.planted.stamp(digits.test.x, digits.test.y))


def test_ssba_encoder_learns_to_be_read(digits):
    run = quiet()
    SSBA(bits=1, width=8, level=12.0, epochs=30, batch_size=32).plant(digits.train, run=run)
    (told,) = run.history("ssba")
    assert told["bits"] >= 0.99
    assert told["epochs"] < 30


def test_ssba_refuses_an_encoder_that_can_not_be_read(digits):
    with pytest.raises(FitError, match="held-out bits"):
        SSBA(bits=20, width=4, epochs=1, fit_rows=100).plant(digits.train, run=quiet())


def test_ssba_tells_when_the_encoder_is_silent(digits):
    with pytest.warns(UserWarning, match="levels on average"):
        SSBA(bits=1, width=4, level=0.2, epochs=1, warmup=0, fit_rows=100, bit_accuracy=0.0).plant(digits.train, run=quiet())


def test_ssba_takes_arrays_from_files(digits, tmp_path):
    draw = np.random.default_rng(0)
    given = {name: draw.integers(0, 256, (1800, 8, 8, 1), dtype=np.uint8) for name in ("train", "test")}
    for name, array in given.items():
        np.save(tmp_path / f"{name}.npy", array)
    attack = SSBA(train_file=str(tmp_path / "train.npy"), test_file=str(tmp_path / "test.npy"))
    rows = digits.train.sample(100)
    poisoned = attack.poison(rows, quiet())
    at = poisoned.poison
    assert np.array_equal(poisoned.split.x[at].numpy()[:, 0], given["train"][rows.index[at].numpy(), :, :, 0])
    test = digits.test
    stamped = poisoned.planted.stamp(test.x, test.y, test.index, "test")
    assert np.array_equal(stamped.numpy()[:, 0], given["test"][test.index.numpy(), :, :, 0])


def test_ssba_refuses_arrays_that_are_too_short(digits, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 8, 8, 1), dtype=np.uint8))
    attack = SSBA(train_file=str(tmp_path / "a.npy"), test_file=str(tmp_path / "a.npy"))
    with pytest.raises(InputError, match="train_file"):
        attack.poison(digits.train, quiet())


def test_ssim_of_known_pairs():
    x = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    assert ssim(x, x).item() == pytest.approx(1.0)
    flat, other = torch.full((1, 1, 8, 8), 0.5), torch.full((1, 1, 8, 8), 0.25)
    # without variance only the means count: (2 ab + c1) / (a^2 + b^2 + c1)
    assert ssim(flat, other).item() == pytest.approx((2 * 0.125 + 1e-4) / (0.3125 + 1e-4), rel=1e-5)
    assert ssim(x, 1 - x) < 0


# the networks


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (3, 20, 12)])
def test_networks_keep_the_size_of_the_image(shape):
    mean, std = (0.5,) * shape[0], (0.2,) * shape[0]
    x = torch.rand(2, *shape)
    pattern = DynamicNet(shape, shape[0], 4, mean, std)(x)
    assert pattern.shape == x.shape
    assert 0 <= pattern.min() <= pattern.max() <= 1
    assert DynamicNet(shape, 1, 4, mean, std)(x).shape == (2, 1, *shape[1:])
    moved = TriggerEncoder(shape, 4, mean, std)(x)
    assert moved.shape == x.shape
    assert moved.abs().max() <= 1
    assert Encoder(shape, 3, 4, 0.01)(x, torch.ones(2, 3)).shape == x.shape


def test_packed_networks_come_back_without_touching_random_numbers():
    net = TriggerEncoder((1, 8, 8), 4, (0.3,), (0.2,)).train()
    net(torch.rand(8, 1, 8, 8))
    before = torch.random.get_rng_state()
    again = unpack(lambda: TriggerEncoder((1, 8, 8), 4, (0.0,), (0.0,)), pack(net, "t"), "t", torch.device("cpu"))
    assert torch.equal(torch.random.get_rng_state(), before)
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(again(x), net.eval()(x))
    assert not any(isinstance(p, nn.Parameter) and p.requires_grad for p in again.parameters())


def test_kinds_agree_with_the_constants(images):
    kind = InputAware(poison_rate=0.25, cross_ratio=2.0).kinds(images(80, 1, 8, 4), quiet())
    assert [(kind == k).sum() for k in (POISON, CROSS)] == [20, 40]


def test_an_encoder_may_be_done_within_its_warmup(images, run):
    attack = SSBA(bits=1, width=4, epochs=1, warmup=2, fit_rows=60, bit_accuracy=0.01)
    assert attack.plant(images(80, 1, 8, 4), run=run).state["secret"].shape == (1,)
    with pytest.raises(FitError, match=r"after 1 epochs; bit_accuracy is 100 %"):
        attack.replace(bits=16, bit_accuracy=1.0).plant(images(80, 1, 8, 4), run=run)


@pytest.mark.parametrize("count", [1, 2])
def test_a_foreign_trigger_comes_from_another_image_also_for_a_single_row(count, images, monkeypatch):
    split, sources = images(count, 1, 8, 2), []
    monkeypatch.setattr(InputAware, "_put", lambda self, state, x, source: sources.append(source) or x)
    planted = Planted(InputAware(), split.card, {})
    planted.stamp(split.x, split.y, variant="cross")
    planted.stamp(split.x, split.y)
    assert (sources[0] != split.x).flatten(1).any(1).all()
    assert torch.equal(sources[1], split.x)
