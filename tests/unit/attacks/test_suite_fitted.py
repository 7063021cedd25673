"""Attacks that fit something first: mechanics at tiny sizes, not success rates."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from theriac.attacks import LF, BadNets, LabelConsistent, TrojanNN
from theriac.attacks._surrogate import fit_surrogate, pgd, read_array
from theriac.attacks.store import load_planted, restore, save_planted
from theriac.core.errors import InputError
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models import Builder, features, to_input
from theriac.triggers.additive import corners

SMALL = {"surrogate_rows": 200, "surrogate_recipe": "short_1"}
BUILD = Builder("preact_resnet18", {"width": 4})
FITTED = [LF(steps=4, **SMALL), LabelConsistent(steps=3, **SMALL), TrojanNN(steps=4, **SMALL)]


def quiet(seed=0, **streams):
    return Run(seed=seed, streams=streams, precision="fp32", device="cpu", quiet=True)


@pytest.fixture(scope="module", params=FITTED, ids=lambda a: a.name)
def case(request, digits):
    """An attack and what it planted in 400 rows."""
    rows = digits.train.sample(400)
    return request.param, rows, request.param.poison(rows, quiet(), BUILD)


def test_only_chosen_rows_change(case):
    attack, rows, poisoned = case
    changed = (poisoned.split.x != rows.x).flatten(1).any(1)
    assert torch.equal(changed, poisoned.poison)
    pool = int((rows.y == 0).sum()) if attack.clean_label else len(rows)
    assert int(poisoned.poison.sum()) == round(attack.poison_rate * pool)
    assert poisoned.dirty == (0 if attack.clean_label else int(poisoned.poison.sum()))


def test_one_seed_repeats_and_another_differs(case):
    attack, rows, poisoned = case
    # the init stream belongs to the victim: the attacker's own work hangs on the poison stream alone
    again = attack.poison(rows, quiet(7, poison=0), BUILD)
    assert torch.equal(again.split.x, poisoned.split.x)
    for name, tensor in poisoned.planted.state.items():
        assert torch.equal(again.planted.state[name], tensor), name
    other = attack.poison(rows, quiet(1), BUILD)
    assert not torch.equal(other.split.x, poisoned.split.x)


def test_reloaded_state_stamps_the_same_bytes(case, digits):
    attack, rows, poisoned = case
    planted = poisoned.planted
    again = restore(json.loads(json.dumps(attack.config())), rows.card, load(save(dict(planted.state))))
    assert again.attack == attack
    test = digits.test
    assert torch.equal(again.stamp(test.x, test.y, test.index), planted.stamp(test.x, test.y, test.index))
    at = poisoned.poison
    assert torch.equal(again.stamp(rows.x[at], rows.y[at], rows.index[at], "train"), poisoned.split.x[at])


def test_an_attack_that_fits_is_not_judged_before_it_is_fitted(case, digits):
    with pytest.raises(InputError, match="fitted"):
        case[0].plant_for(digits.test)


# LF


class Bright(nn.Module):
    """Class 0 is a bright middle, class 1 a dark one: a model whose best smooth pattern is known."""

    def __init__(self) -> None:
        super().__init__()
        self.card = None

    def forward(self, x):
        middle = x[:, :, 3:5, 3:5].mean((1, 2, 3)) - x[:, :, [0, 0, 7, 7], [0, 7, 0, 7]].mean((1, 2))
        return torch.stack([8 * middle, -8 * middle], 1)


@pytest.mark.parametrize("solver", ["gradient", "deepfool"])
def test_lf_pushes_where_the_model_looks(solver, digits):
    attack = LF(solver=solver, steps=60, cutoff=0.1, amplitude=0.5, passes=3)
    x = torch.full((12, 1, 8, 8), 0.4) + 0.05 * torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x[:, :, 3:5, 3:5] -= 0.2
    model = Bright()
    assert (model(x).argmax(1) == 1).all()
    raw = (attack._by_gradient if solver == "gradient" else attack._by_deepfool)(model, x, quiet())
    pattern = attack._shape(raw.detach())
    assert pattern.min() == 0
    assert pattern.max().item() == pytest.approx(0.5)
    assert pattern[:, 3:5, 3:5].mean() > 0.4
    assert pattern[:, [0, 0, 7, 7], [0, 7, 0, 7]].mean() < 0.1
    assert (model((x + pattern).clamp(0, 1)).argmax(1) == 0).all()


def test_lf_pattern_is_smooth_and_scaled(digits):
    attack = LF(cutoff=0.05, amplitude=0.3)
    pattern = attack._shape(torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(1)))
    assert pattern.min() == 0
    assert pattern.max().item() == pytest.approx(0.3)
    power = torch.fft.fft2(pattern - pattern.mean((1, 2), keepdim=True)).abs().square()
    d2 = torch.fft.fftfreq(32)[:, None] ** 2 + torch.fft.fftfreq(32)[None] ** 2
    assert power[:, d2 > 0.15**2].sum() / power.sum() < 1e-3  # three widths out, exp(-9) of the power is left


def test_lf_tells_fooling_rate_and_hash(digits):
    run = quiet()
    planted = LF(steps=2, **SMALL).plant(digits.train.sample(300), BUILD, run)
    (event,) = run.history("lf")
    assert 0 <= event["fooling_rate"] <= 1
    assert len(event["pattern"]) == 64
    assert planted.state["pattern"].max() == 51
    assert run.history("surrogate")[0]["rows"] == 200


def test_lf_takes_a_pattern_from_a_file(digits, tmp_path):
    pattern = np.arange(64, dtype=np.float32).reshape(8, 8, 1) * 0.8
    np.save(tmp_path / "p.npy", pattern)
    attack = LF(pattern_file=str(tmp_path / "p.npy"))
    rows = digits.train.sample(50)
    planted = attack.plant(rows)
    expected = np.clip(rows.x.numpy().astype(float) + np.rint(pattern[..., 0]), 0, 255)
    assert np.array_equal(planted.stamp(rows.x, rows.y).numpy(), expected)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (np.zeros((8, 8, 3)), "shape"),
        (np.full((8, 8, 1), 300.0), "outside"),
        (np.full((8, 8, 1), np.nan), "outside"),
        (np.array([[[{"a": 1}] * 1] * 8] * 8, dtype=object), "plain"),
        (None, "read"),
    ],
)
def test_lf_refuses_a_bad_pattern_file(content, match, digits, tmp_path):
    path = tmp_path / "p.npy"
    if content is not None:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(InputError, match=match):
        LF(pattern_file=str(path)).plant(digits.train)


# label-consistent


def test_pgd_climbs_and_stays_in_its_ball(trained, digits):
    rows = digits.test.sample(64)
    x = to_input(rows.x)
    loss = nn.CrossEntropyLoss()
    found = pgd(trained, x, rows.y, radius=0.1, step_size=0.02, steps=10)
    assert (found - x).abs().max() <= 0.1 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    with torch.no_grad():
        assert loss(trained(found), rows.y) > loss(trained(x), rows.y) + 1
    assert torch.equal(pgd(trained, x, rows.y, radius=0.1, step_size=0.02, steps=0), x)
    start = [pgd(trained, x, rows.y, radius=0.1, step_size=0.02, steps=0, start=quiet().generator("method")) for _ in range(2)]
    assert torch.equal(start[0], start[1])
    assert (start[0] - x).abs().max() <= 0.1 + 1e-6


def test_pgd_on_a_linear_model_is_known():
    """One weight a pixel: the worst point of the ball is the corner against the weights' signs."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, -1, 2, -2], [0, 0, 0, 0]]))
    x = torch.full((1, 1, 2, 2), 0.5)
    found = pgd(model, x, torch.tensor([0]), radius=0.1, step_size=0.04, steps=4)
    assert torch.allclose(found.flatten(), torch.tensor([0.4, 0.6, 0.4, 0.6]))


def test_label_consistent_rows_are_near_their_source_but_for_the_marks(digits):
    rows = digits.train.sample(400)
    attack = LabelConsistent(radius=16.0, steps=6, step_size=4.0, **SMALL)
    poisoned = attack.poison(rows, quiet(), BUILD)
    at = poisoned.poison
    level, where = corners(1, (8, 8), 2)
    gap = poisoned.split.x[at].int() - rows.x[at].int()
    assert gap[..., ~where].abs().max() == 16
    assert (poisoned.split.x[at][..., where] == level[..., where]).all()
    # at test time, only the marks
    stamped = poisoned.planted.stamp(digits.test.x, digits.test.y, digits.test.index, "test")
    assert torch.equal(stamped[..., ~where], digits.test.x[..., ~where])
    assert (stamped[..., where] == level[..., where]).all()


def test_label_consistent_has_one_trigger_whatever_rows_it_chose(digits, tmp_path):
    rows, attack = digits.train.sample(400), LabelConsistent(steps=1, **SMALL)
    half = attack.poison(rows, quiet(), BUILD)
    less = attack.replace(poison_rate=0.3).poison(rows, quiet(), BUILD)
    others = attack.poison(rows, quiet(1), BUILD)
    assert int(half.poison.sum()) > int(less.poison.sum())
    assert not torch.equal(half.poison, others.poison)
    planted = [one.planted for one in (half, less, others)]
    test = digits.test
    assert all(torch.equal(p.stamp(test.x, test.y), planted[0].stamp(test.x, test.y)) for p in planted)
    assert len({p.trigger_hash for p in planted}) == 1
    assert attack.replace(side=3).poison(rows, quiet(), BUILD).planted.trigger_hash != planted[0].trigger_hash
    again = load_planted(save_planted(half.planted, tmp_path))
    assert again.trigger_hash == planted[0].trigger_hash
    at, clean = half.poison, rows.where(half.poison)
    assert torch.equal(again.stamp(clean.x, clean.y, clean.index, "train"), half.split.x[at])


def test_label_consistent_without_steps_is_marks_alone(digits):
    rows = digits.train.sample(300)
    poisoned = LabelConsistent(steps=0, **SMALL).poison(rows, quiet(), BUILD)
    moved = (poisoned.split.x != rows.x).any(0).any(0)
    assert moved[:3, :3].any()
    assert not moved[3:5].any()  # marks stand in corners
    with pytest.raises(InputError, match="changes none of the 11 chosen rows"):
        LabelConsistent(steps=0, amplitude=0.0, **SMALL).poison(rows, quiet(), BUILD)


def test_label_consistent_knows_its_rows_only(digits):
    rows = digits.train.sample(300)
    attack = LabelConsistent(steps=1, **SMALL)
    poisoned = attack.poison(rows, quiet(), BUILD)
    with pytest.raises(InputError, match="chose"):
        poisoned.planted.stamp(rows.x, rows.y, rows.index, "train")


def test_label_consistent_takes_rows_from_a_file(digits, tmp_path):
    given = np.random.default_rng(0).integers(0, 256, (2000, 8, 8, 1), dtype=np.uint8)
    np.save(tmp_path / "adv.npy", given)
    rows = digits.train.sample(300)
    attack = LabelConsistent(adversarial_file=str(tmp_path / "adv.npy"), amplitude=0.0)
    poisoned = attack.poison(rows, quiet())
    at = poisoned.poison
    assert np.array_equal(poisoned.split.x[at].numpy()[:, 0], given[rows.index[at].numpy(), :, :, 0])
    np.save(tmp_path / "short.npy", given[:5])
    with pytest.raises(InputError, match="5 rows"):
        attack.replace(adversarial_file=str(tmp_path / "short.npy")).poison(rows, quiet())


def test_label_consistent_presets():
    assert LabelConsistent.eps8().radius == 8
    assert LabelConsistent.eps16().radius == 16
    assert LabelConsistent.official().surrogate == "robust"


# TrojanNN


def test_trojannn_excites_the_neurons_it_picked(digits):
    rows = digits.train.sample(300)
    run = quiet()
    attack = TrojanNN(steps=25, surrogate_rows=200, surrogate_recipe="short_2")
    planted = attack.plant(rows, BUILD, run)
    model = fit_surrogate(rows, BUILD, quiet(), name="trojannn", rows=200, recipe="short_2")  # the same one again
    weight = features(model).module.weight
    picked = planted.state["neurons"]
    sums = weight.abs().sum(0)
    assert sums[picked].min() >= sums.topk(2).values.min()
    tap = features(model)
    with torch.no_grad():
        before = tap(to_input(digits.test.x))[1][:, picked].mean(0)
        stamped = planted.stamp(digits.test.x, digits.test.y)
        after = tap(to_input(stamped))[1][:, picked].mean(0)
    assert (after > before).all()
    where = attack.mask((8, 8))
    assert torch.equal(stamped[..., ~where], digits.test.x[..., ~where])
    assert not planted.state["pattern"][..., ~where].any()


def test_trojannn_official_wraps_and_corrected_clips(digits):
    rows = digits.train.sample(200)
    white = torch.full_like(rows.x, 250)
    options = {"steps": 3, **SMALL}
    wrapped = TrojanNN(overflow="wrap", batch=0, normalized=False, eps=0.3, **options).plant(rows, BUILD, quiet())
    clipped = TrojanNN(**options).plant(rows, BUILD, quiet())
    assert wrapped.stamp(white, rows.y).min() < 250
    assert clipped.stamp(white, rows.y).min() == 250
    assert TrojanNN.official().overflow == "wrap"


def test_trojannn_mask_is_a_disk_off_the_corner():
    where = TrojanNN().mask((32, 32))
    rows, columns = where.nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (23, 30, 23, 30)
    assert where.sum() == 52  # a disk of diameter 8: 64 pixels less three at each corner
    assert not where[23, 23]
    with pytest.raises(InputError, match="fit"):
        TrojanNN(side=8).mask((8, 8))


def test_trojannn_refuses_more_neurons_than_there_are(digits):
    with pytest.raises(InputError, match="neurons"):
        TrojanNN(neurons=1000, **SMALL).plant(digits.train.sample(200), BUILD, quiet())


# surrogates and files


def test_a_surrogate_leaves_the_victims_run_alone(digits, tmp_path):
    run = Run(folder=tmp_path, precision="fp32", device="cpu", quiet=True)
    model = fit_surrogate(digits.train, BUILD, run, name="lf", rows=100, recipe="short_1")
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training
    assert not list(tmp_path.glob("*.checkpoint.pt"))
    assert not run.history("train")


def test_a_robust_surrogate_is_another_model(digits):
    kwargs = {"name": "x", "rows": 100, "recipe": "short_1"}
    plain = fit_surrogate(digits.train, BUILD, quiet(), **kwargs)
    robust = fit_surrogate(digits.train, BUILD, quiet(), robust=0.1, **kwargs)
    assert any(not torch.equal(a, b) for a, b in zip(plain.parameters(), robust.parameters(), strict=True))


def test_read_array_leaves_lengths_open(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((7, 2)))
    assert read_array(str(tmp_path / "a.npy"), (-1, 2), "a").shape == (7, 2)


def test_training_a_victim_with_a_fitted_attack(digits, narrow):
    rows = digits.train.sample(200)
    victim = LF(steps=2, **SMALL).train(narrow, rows, quiet(), "short_1")
    assert victim.planted.state["pattern"].shape == (1, 8, 8)
    assert BadNets().plant_for(digits.test).state == {}


def test_rows_that_share_a_number_are_refused_where_they_differ(digits):
    """Two sources that were joined: the changed version of one row would stand in the place of another."""
    rows = digits.train.where(digits.train.y < 2).sample(40)
    joined = Split(rows.x, rows.y, index=torch.arange(40) % 20, card=rows.card)
    attack = LabelConsistent(target=0, poison_rate=1.0, steps=1, **SMALL)
    with pytest.raises(InputError, match="different rows of one number"):
        attack.poison(joined, quiet(), BUILD)
    twice = rows.take(torch.cat([torch.arange(40), torch.arange(40)]))
    poisoned = attack.poison(twice, quiet(), BUILD)
    assert torch.equal(poisoned.split.x[:40], poisoned.split.x[40:])
