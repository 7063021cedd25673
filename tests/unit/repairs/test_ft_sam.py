"""FT-SAM against a step written by hand in float64, and its schedule against torch's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from theriac.core.card import Card
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models import to_input
from theriac.repairs import FTSAM
from theriac.training import Recipe, loop, train


@pytest.fixture
def split() -> Split:
    draw = torch.Generator().manual_seed(0)
    card = Card(name="grey", classes=("a", "b", "c"), size=(4, 4), channels=1)
    return Split(torch.randint(0, 256, (12, 1, 4, 4), generator=draw, dtype=torch.uint8), torch.arange(12) % 3, card=card)


class Net(nn.Module):
    """In float64, whatever comes in; with BatchNorm, whose statistics must move once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(16, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x.double().flatten(1))).tanh())


def test_one_step_equals_the_formula_by_hand(split, run):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Net()
    before = copy.deepcopy(net)
    method = FTSAM(epochs=1, batch_size=12, rho=0.7, lr=0.3, weight_decay=0.05, smoothing=0.3)
    fixed = method._repair(net, split, run)

    order = torch.randperm(12, generator=run.generator("order", "ft_sam", 0))
    x, y = to_input(split.rows(order)).double().flatten(1), split.y[order]
    wanted = torch.full((12, 3), 0.15, dtype=torch.float64)
    wanted[torch.arange(12), y] = 0.7

    def forward(w: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        first = x @ w[0].T + w[1]
        hat = (first - first.mean(0)) / (first.var(0, unbiased=False) + 1e-5).sqrt()
        logits = (hat * w[2] + w[3]).tanh() @ w[4].T + w[5]
        return -(wanted * logits.log_softmax(1)).sum(1).mean(), first.detach()

    def slopes(w: list[torch.Tensor]) -> list[torch.Tensor]:
        free = [v.detach().requires_grad_(True) for v in w]
        return list(torch.autograd.grad(forward(free)[0], free))

    w = [p.detach() for p in before.parameters()]
    g = slopes(w)
    norm = sum(float(((v.abs() * s) ** 2).sum()) for v, s in zip(w, g, strict=True)) ** 0.5
    there = slopes([v + 0.7 * v**2 * s / norm for v, s in zip(w, g, strict=True)])
    # the climb takes its norm in float32
    for new, v, s in zip(fixed.parameters(), w, there, strict=True):
        torch.testing.assert_close(new.detach(), v - 0.3 * (s + 0.05 * v), rtol=1e-6, atol=1e-8)
    first = forward(w)[1]  # at the weights themselves, and not at those climbed to
    torch.testing.assert_close(fixed.norm.running_mean, 0.1 * first.mean(0))
    torch.testing.assert_close(fixed.norm.running_var, 0.9 + 0.1 * first.var(0))


def test_a_scaled_weight_climbs_with_its_square():
    """The climb of a weight is w^2 g: nothing for a weight of zero, four times as much for one of twice the size."""
    from theriac.training.flat import climb

    w, g = [torch.tensor([0.0, 1.0, 2.0])], [torch.ones(3)]
    before = climb(w, g, 1.0, adaptive=True)
    moved = w[0] - before[0]
    assert moved[0] == 0
    assert float(moved[2] / moved[1]) == pytest.approx(4.0)
    assert float((moved / before[0].clamp_min(1e-9)).norm()) == pytest.approx(1.0)  # rho, in units of each weight


@pytest.mark.parametrize("classes", [2, 10])
def test_smoothing_leaves_one_minus_s_to_the_true_class(classes):
    logits = torch.randn(5, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(5) % classes
    wanted = torch.full((5, classes), 0.1 / (classes - 1), dtype=torch.float64)
    wanted[torch.arange(5), y] = 0.9
    by_hand = -(wanted * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(FTSAM().loss(logits, y), by_hand)


def test_the_ports_schedule_is_torch_s_cosine_moved_once_a_step():
    recipe = FTSAM.official().recipe()
    stepper = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(stepper, T_max=100)
    for step in range(350):
        assert recipe.lr_at(step, 10) == pytest.approx(stepper.param_groups[0]["lr"], abs=1e-9)
        stepper.step()
        cosine.step()
    corrected = FTSAM.corrected().recipe()
    rates = [corrected.lr_at(step, 10) for step in range(1000)]
    assert rates == sorted(rates, reverse=True)  # falls once


def test_the_presets_hold_the_numbers_of_their_sources():
    made = FTSAM.official()
    assert (made.epochs, made.batch_size, made.lr, made.momentum, made.weight_decay) == (100, 256, 0.01, 0.9, 5e-4)
    assert (made.rho, made.smoothing, made.schedule) == (2.0, 0.1, "cosine_by_step")
    assert FTSAM.corrected() == FTSAM() == made.replace(schedule="cosine")
    assert (FTSAM.tiny().rho, FTSAM.tiny().smoothing) == (8.0, 0.0)
    recipe = FTSAM(rho=3.0).recipe()
    assert (recipe.sam_adaptive, recipe.rho_at(0, 10), recipe.norm, recipe.augment) == (True, 3.0, "train", "card")


def test_the_minimum_is_flatter_than_after_plain_fine_tuning(narrow, digits):
    """What sharpness-aware steps are for, measured by the adaptive climb itself.

    Over three networks: of twelve that were tried each was flatter, but by more than half or by a seventh, as it came.
    """
    from theriac.repairs import FT
    from theriac.training.flat import climb

    clean = digits.train.sample(240, seed=3, stratified=True)

    def rise(model: nn.Module) -> float:
        x, y = to_input(clean.x), clean.y
        weights = [p for p in model.parameters() if p.requires_grad]
        low = FTSAM(smoothing=0.0).loss(model(x), y)
        climb(weights, torch.autograd.grad(low, weights), 0.5, adaptive=True)
        with torch.no_grad():
            return float(FTSAM(smoothing=0.0).loss(model(x), y) - low)

    plain, flat = 0.0, 0.0
    recipe = Recipe(epochs=2, batch_size=64, lr=0.1, schedule="one_cycle", nesterov=True, drop_last=True)
    for seed in range(3):
        run = Run(seed=seed, precision="fp32", device="cpu", quiet=True)
        model = train(narrow, digits.train, recipe=recipe, run=run)
        plain += rise(FT(epochs=10, batch_size=64).repair(model, clean, run))
        flat += rise(FTSAM(epochs=10, batch_size=64, smoothing=0.0, rho=4.0).repair(model, clean, run))
    assert flat < 0.85 * plain


def test_the_loop_is_the_house_s_own(trained, digits, run):
    """A radius next to nothing gives plain fine-tuning."""
    clean = digits.train.sample(120, seed=3, stratified=True)
    method = FTSAM(epochs=1, rho=1e-9, smoothing=0.0)
    fixed = method.repair(trained, clean, run)
    plain = loop(copy.deepcopy(trained), clean, run, method.recipe().replace(sam_rho=0.0), label="ft_sam")
    for one, other in zip(fixed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
