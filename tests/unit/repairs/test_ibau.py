"""i-BAU: its hypergradient against closed forms and finite differences, one round by hand, and what it does to a shortcut."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from theriac.core.card import Card, Column
from theriac.core.errors import InputError
from theriac.core.split import Split
from theriac.models import make, to_input
from theriac.models.builder import Builder
from theriac.repairs import IBAU
from theriac.repairs.ibau import hypergradient


@pytest.fixture
def clean(digits) -> Split:
    return digits.train.sample(120, seed=3, stratified=True)


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("iterations", [1, 2, 5, 200])
def test_the_hypergradient_of_a_quadratic_is_the_closed_form(iterations):
    """inner = |d - A w|^2 / 2, outer = b d + w w / 2: the series sums to (1 - (1 - s)^K) / s, and A^T comes out of it."""
    a, b, w = draws(4, 3), draws(4, seed=1), draws(3, seed=2).requires_grad_(True)
    at, size = draws(4, seed=3), 0.1
    loss, (slope,) = hypergradient(
        lambda d: 0.5 * (d - a @ w).square().sum(), lambda d: b @ d + 0.5 * w @ w, at, [w], size, iterations
    )
    torch.testing.assert_close(slope, w.detach() + (1 - (1 - size) ** iterations) * a.T @ b)
    assert float(loss) == pytest.approx(float(b @ at + 0.5 * w.detach() @ w.detach()))


def test_many_iterations_give_the_slope_of_the_solved_problem():
    """By finite differences: the inner problem, strongly convex and not quadratic, is solved anew at each weight."""
    a, w = draws(5, 4), 0.3 * draws(4, seed=1)

    def inner(delta: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return 0.5 * delta.square().sum() + torch.log(torch.cosh(a.T @ delta - weight)).sum()

    def outer(delta: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return (delta.sin() * torch.arange(1.0, 6.0, dtype=torch.float64)).sum() * weight.square().sum()

    def solved(weight: torch.Tensor) -> torch.Tensor:
        delta = torch.zeros(5, dtype=torch.float64)
        for _ in range(600):  # the distance falls by 0.95 a step or more
            free = delta.requires_grad_(True)
            delta = (free - 0.05 * torch.autograd.grad(inner(free, weight), free)[0]).detach()
        return delta

    free = w.clone().requires_grad_(True)
    _, (slope,) = hypergradient(lambda d: inner(d, free), lambda d: outer(d, free), solved(w), [free], 0.05, 600)
    for k in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[k] = 1e-5
        rise = (outer(solved(w + step), w + step) - outer(solved(w - step), w - step)) / 2e-5
        assert float(slope[k]) == pytest.approx(float(rise), rel=1e-5)


def test_weights_that_play_no_part_get_zeros():
    w, other = draws(3).requires_grad_(True), draws(2).requires_grad_(True)
    _, slopes = hypergradient(lambda d: (d - w).square().sum(), lambda d: d.sum(), draws(3, seed=1), [w, other], 0.1, 3)
    assert not slopes[1].any()
    assert slopes[0].abs().min() > 0


def test_one_round_equals_the_formulas_by_hand(run):
    """A linear network, one batch: the search, its perturbed rows, the hypergradient by second derivatives in closed form."""
    draw = torch.Generator().manual_seed(0)
    card = Card(name="grey", classes=("a", "b", "c"), size=(2, 2), channels=1, mean=(0.4,), std=(0.25,))
    split = Split(torch.randint(0, 256, (12, 1, 2, 2), generator=draw, dtype=torch.uint8), torch.arange(12) % 3, card=card)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(draws(3, 4))
    given = net[1].weight.detach().double()
    method = IBAU(rounds=1, batch_size=12, portion=0.25, lr=1e-3, search_lr=2.0)
    fixed = method._repair(copy.deepcopy(net), split, run)

    # the search: from zero, one step away from the own predictions, in units of the card's deviation
    unit, x = 0.25, to_input(split.x).double().flatten(1)
    own = (x @ given.T).argmax(1)

    def slope_by_delta(w: torch.Tensor, delta: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        p = ((x + unit * delta) @ w.T).softmax(1) - F.one_hot(y, 3)
        return 2 * 0.001 * delta - unit * (p @ w).mean(0)

    delta = -2.0 * slope_by_delta(given, torch.zeros(4, dtype=torch.float64), own)
    assert run.history("ibau")[0]["perturbation_norm"] == pytest.approx(float(delta.norm()), rel=1e-5)

    order = torch.randperm(12, generator=run.generator("order", "ibau", 0))
    hit = torch.zeros(12, dtype=torch.float64)
    hit[torch.randperm(12, generator=run.generator("method", "ibau", 0))[:3]] = 1.0
    hit = hit[torch.argsort(order)]  # by row of the split
    y = split.y

    def total(w: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy((x + unit * hit[:, None] * d) @ w.T, y)

    w, d = given.clone().requires_grad_(True), delta.clone().requires_grad_(True)
    by_w, pull = torch.autograd.grad(total(w, d), (w, d))
    jacobian = torch.autograd.functional.jacobian(lambda a, b: b - 0.1 * slope_by_delta(a, b, y), (given, delta))
    v = sum(torch.linalg.matrix_power(jacobian[1].T, k) @ pull for k in range(5))
    slope = by_w + torch.einsum("i,ijk->jk", v, jacobian[0])
    step = 1e-3 * slope / (slope.abs() + 1e-8)  # Adam's first
    torch.testing.assert_close(fixed[1].weight.detach().double(), given - step, rtol=1e-4, atol=1e-5)


def test_the_indirect_part_is_felt(trained, clean, run):
    """With another inner step the same batches give other weights, so the gradient is not only the direct one."""
    plain, far = (IBAU(rounds=1, batch_size=60, lr=1e-3, inner_step=s).repair(trained, clean, run) for s in (1e-6, 10.0))
    gaps = [float((a - b).abs().max().detach()) for a, b in zip(plain.parameters(), far.parameters(), strict=True)]
    assert max(gaps) > 1e-5


def test_statistics_and_the_mode_stay(trained, clean, run):
    fixed = IBAU(rounds=2, batch_size=60).repair(trained, clean, run)
    for name, value in trained.named_buffers():
        assert torch.equal(fixed.get_buffer(name), value), name
    assert len(run.history("ibau")) == 2
    assert all(e["perturbation_norm"] > 0 for e in run.history("ibau"))


def test_a_search_finds_the_shortcut_and_rounds_close_it(run):
    """One pixel is worth more than all others together, and clean rows never light it: as a trigger's pixel."""
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(200) % 2
    pixels = torch.randint(0, 60, (200, 9), generator=draw, dtype=torch.uint8)
    pixels[:, :4] += torch.where(y[:, None] == 1, 150, 0).to(torch.uint8)
    pixels[:, 8] = 0
    card = Card(name="pixels", classes=("a", "b"), size=(3, 3), channels=1)
    split = Split(pixels.view(200, 1, 3, 3), y, card=card)
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
    with torch.no_grad():
        net[1].weight.zero_()
        net[1].weight[1, :4] = 4.0
        net[1].weight[1, 8] = 12.0
        net[1].bias.copy_(torch.tensor([6.0, 0.0]))
    method = IBAU(rounds=60, batch_size=50, lr=0.1, portion=0.5, search_lr=0.1, augmented=False, space="pixels")
    delta = method.search(net.eval(), split, method.unit(split), run, 0).flatten()
    assert int(delta.abs().argmax()) == 8
    lit = to_input(split.x)
    lit[:, 0, 2, 2] = 1.0
    fixed = method.repair(net, split, run)

    def right(model: nn.Module, x: torch.Tensor) -> float:
        with torch.no_grad():
            return float((model(x).argmax(1) == y).float().mean())

    assert right(net, lit) == 0.5  # all go to class 1
    assert right(fixed, lit) > 0.95
    assert right(fixed, to_input(split.x)) > 0.95


@pytest.mark.parametrize(("preset", "rows"), [("corrected", 1), ("official", 0)])
def test_small_batches_carry_at_least_one_perturbed_row_unless_it_is_the_port(preset, rows, trained, clean, run):
    """Without a perturbed row, it does not matter what the perturbation is."""
    start = getattr(IBAU, preset)().replace(rounds=1, batch_size=40)
    one, other = (start.replace(search_lr=s).repair(trained, clean, run) for s in (10.0, 1.0))
    same = all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert same == (rows == 0)


def test_units_are_those_of_the_space(clean):
    assert torch.allclose(IBAU().unit(clean).flatten(), torch.tensor(clean.card.std))
    assert IBAU.release().unit(clean).flatten().tolist() == [1.0]


def test_rows_are_augmented_once(trained, clean, run):
    same = [IBAU(rounds=1, augmented=a).repair(trained, clean, run) for a in (False, True)]
    assert not all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in same), strict=True))


def test_attention_has_its_second_derivative(clean, run):
    net = make(Builder("vit_small", {"dim": 16, "depth": 1, "patch": 4}), clean, run)
    before = net.state_dict()["net.head.weight"].clone()
    fixed = IBAU(rounds=1, batch_size=60)._repair(net, clean, run)
    assert not torch.equal(fixed.net.head.weight, before)


def test_tables_are_refused(run):
    columns = (Column(name="age"), Column(name="hours"))
    card = Card(name="people", kind="table", classes=("a", "b"), columns=columns)
    with pytest.raises(InputError, match="'people' is a table"):
        IBAU().repair(nn.Linear(2, 2), Split(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]), card=card), run)


def test_the_presets_hold_the_numbers_of_their_sources():
    made = IBAU.official()
    assert (made.rounds, made.batch_size, made.lr, made.amsgrad) == (5, 256, 1e-4, True)
    assert (made.search_lr, made.decay, made.inner_step, made.iterations, made.portion) == (10.0, 0.001, 0.1, 5, 0.01)
    assert (made.at_least, made.space, made.augmented) == (0, "normalized", True)
    assert IBAU.corrected() == IBAU() == made.replace(at_least=1)
    released = IBAU.release()
    assert (released.rounds, released.batch_size, released.lr, released.amsgrad) == (5, 100, 1e-3, False)
    assert (released.space, released.augmented, released.at_least) == ("pixels", False, 0)
