"""ANP: what is masked, what is pruned, and on which rows its threshold is chosen."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from theriac.core.errors import InputError
from theriac.models import run_over, to_input
from theriac.repairs import ANP
from theriac.repairs._masks import THRESHOLDS, choose, prune
from theriac.training.step import BatchNorm

sys.path.insert(0, str(Path(__file__).parent))
from small_nets import Twice, normalized, one_norm, only_pruned_scales_changed


@pytest.fixture
def clean(digits):
    return digits.train.sample(120, seed=3, stratified=True)


def test_only_scales_below_the_threshold_change(trained, clean, run):
    fixed = ANP(iterations=15, threshold=0.95).repair(trained, clean, run)
    assert run.outcome is not None
    told = run.outcome.figures
    assert told["channels"] > 0
    assert only_pruned_scales_changed(trained.state_dict(), fixed, told["pruned"])


def test_one_update_of_the_masks_equals_the_formula_by_hand(run):
    """One BatchNorm, one batch of all rows, no augmentation: noise, its sign step, the two losses and the step on the masks."""
    net, split = one_norm()
    method = ANP(iterations=1, batch_size=12, threshold=0.0, momentum=0.0)
    norms = {"2": net[2]}
    masks = method._masks(net, norms, split, run)["2"]

    order = torch.randperm(12, generator=run.generator("order", "anp", 0))
    x, y = to_input(split.rows(order)), split.y[order]
    hat = normalized(net, x)

    def loss(mask: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        scale, shift = net[2].weight.detach() * (mask + noise[0]), net[2].bias.detach() * (1 + noise[1])
        return F.cross_entropy(net[4]((hat * scale + shift).relu()), y)

    noise = 0.4 * (2 * torch.rand(2, 6, generator=run.generator("method", "anp", 0)) - 1)
    noise.requires_grad_(True)
    (slope,) = torch.autograd.grad(loss(torch.ones(6), noise), noise)
    worst = noise.detach() + 0.4 * slope.sign()
    mask = torch.ones(6, requires_grad=True)
    (slope,) = torch.autograd.grad(0.2 * loss(mask, torch.zeros(2, 6)) + 0.8 * loss(mask, worst), mask)
    assert torch.allclose(masks, (1 - 0.2 * slope).clamp(0, 1), atol=1e-6)


def test_masks_stay_between_0_and_1(trained, clean, run):
    norms = {n: m for n, m in trained.named_modules() if isinstance(m, BatchNorm)}
    before = copy.deepcopy(trained.state_dict())
    masks = torch.cat(list(ANP(lr=5.0, iterations=5)._masks(trained, norms, clean, run).values()))
    assert float(masks.min()) == 0.0
    assert float(masks.max()) == 1.0
    assert all(torch.equal(v, before[k]) for k, v in trained.state_dict().items())


def test_the_threshold_is_the_largest_that_held_out_rows_allow(trained, clean, run):
    draw = torch.Generator().manual_seed(0)
    norms = {n: m for n, m in trained.named_modules() if isinstance(m, BatchNorm)}
    masks = {n: torch.rand(m.num_features, generator=draw) for n, m in norms.items()}
    best, told = choose(trained, masks, clean, 0.1, run)
    allowed = []
    for threshold, counted in zip(THRESHOLDS, told["right_by_threshold"], strict=True):
        trial = copy.deepcopy(trained)
        prune(trial, masks, threshold)
        right = int((run_over(trial, clean, run=run).argmax(1) == clean.y).sum())
        assert right == counted
        if told["right_before"] - right <= 0.1 * len(clean):
            allowed.append(threshold)
    assert best == max(allowed)
    assert best < 0.9


def test_masks_at_the_threshold_go_too():
    layers = nn.ModuleDict({"n": nn.BatchNorm1d(3)})
    assert prune(layers, {"n": torch.tensor([0.0, 0.2, 0.21])}, 0.2) == {"n": [0, 1]}
    assert layers["n"].weight.tolist() == [0.0, 0.0, 1.0]


def test_unmoved_masks_are_reported(trained, clean, run):
    ANP(iterations=1, lr=1e-6, threshold=0.2).repair(trained, clean, run)
    assert run.outcome is not None
    assert run.outcome.status == "unchanged"
    assert "smallest mask is 1.00 after 1 iterations" in run.outcome.reason


def test_networks_without_batchnorm_and_too_few_rows_are_refused(trained, images, digits, run):
    with pytest.raises(InputError, match="no BatchNorm"):
        ANP().repair(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), images(rows=8), run)
    with pytest.raises(InputError, match="needs at least 4"):
        ANP().repair(trained, digits.train.take(torch.arange(3)), run)


@pytest.mark.filterwarnings("ignore:the model gets", "ignore:ANP")
@pytest.mark.parametrize("one", [True, False])
def test_a_batchnorm_of_two_names_or_two_that_share_scales_are_masked(clean, run, one):
    net = Twice(one=one)
    fixed = ANP(iterations=3, batch_size=40, threshold=0.999).repair(net, clean, run)
    assert run.outcome is not None
    assert run.outcome.figures["channels"] > 0
    assert fixed.norm.weight.isfinite().all()
