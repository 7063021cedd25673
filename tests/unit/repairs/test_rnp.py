"""RNP: the bound of unlearning, the step on the masks by hand, and a planted channel that stands in the way."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models import run_over, to_input
from theriac.repairs import RNP
from theriac.repairs._masks import choose, prune
from theriac.training.step import BatchNorm

sys.path.insert(0, str(Path(__file__).parent))
from small_nets import Twice, normalized, one_norm, only_pruned_scales_changed


@pytest.fixture
def clean(digits) -> Split:
    return digits.train.sample(240, seed=3, stratified=True)


@pytest.mark.parametrize("bound", [0.2, 0.6])
def test_unlearning_ends_with_the_epoch_that_reaches_the_bound(trained, clean, run, bound):
    model, right = RNP(unlearned=bound, batch_size=40, clip_norm=0.0).unlearn(copy.deepcopy(trained), clean, run)
    events = run.history("rnp_unlearn")
    assert right <= bound
    assert [e["accuracy"] <= bound for e in events] == [False] * (len(events) - 1) + [True]  # batches are of one size
    assert events[-1]["accuracy"] == pytest.approx(right)
    assert events[-1]["stopped"] == 6 * len(events)
    assert [e["loss"] for e in events] == sorted((e["loss"] for e in events), reverse=True)  # minus the loss that climbs
    before, after = (float((run_over(m, clean, run=run).argmax(1) == clean.y).float().mean()) for m in (trained, model))
    assert before > 0.9
    assert after < before


def test_unlearning_gives_up_after_its_epochs(trained, clean, run):
    """Steps too small to unlearn anything: it ends with its epochs, far from the bound, and the weights are where they were."""
    method = RNP(unlearn_epochs=2, unlearn_lr=1e-9)
    model, right = method.unlearn(copy.deepcopy(trained), clean, run)
    assert len(run.history("rnp_unlearn")) == 2
    assert right > 0.5 > method.unlearned  # rows are augmented, and BatchNorm counts by batches
    for after, before in zip(model.parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(after, before)


def test_gradients_are_clipped_where_it_says_so(trained, clean, run):
    def moved(clip: float) -> float:
        options = {"unlearn_epochs": 1, "batch_size": 240, "weight_decay": 0.0, "momentum": 0.0}
        model, _ = RNP(clip_norm=clip, **options).unlearn(copy.deepcopy(trained), clean, run)
        pairs = zip(model.parameters(), trained.parameters(), strict=True)
        return float(torch.stack([(a - b).norm() for a, b in pairs]).norm().detach())

    free = moved(0.0) / 0.01  # one step at this learning rate: the norm of the gradient
    assert moved(free / 4) == pytest.approx(0.01 * free / 4, rel=1e-3)
    assert moved(free * 4) == pytest.approx(0.01 * free, rel=1e-5)


def test_one_update_of_the_masks_equals_the_formula_by_hand(run):
    net, split = one_norm()
    given = copy.deepcopy(net)
    masks = RNP(recover_epochs=1, batch_size=12, recover_lr=0.9).recover(net, split, run)["2"]

    order = torch.randperm(12, generator=run.generator("order", "rnp", 0))
    x, y = to_input(split.rows(order)), split.y[order]
    hat = normalized(given, x)
    mask = torch.ones(6, requires_grad=True)
    out = given[4]((hat * (given[2].weight.detach() * mask) + given[2].bias.detach()).relu())
    (slope,) = torch.autograd.grad(0.2 * F.cross_entropy(out, y), mask)
    assert torch.allclose(masks, (1 - 0.9 * slope).clamp(0, 1), atol=1e-6)
    assert float(slope.max()) > 0  # some mask fell
    for one, other in zip(net.parameters(), given.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_planted_bad_channel_gets_the_smallest_mask_and_is_pruned(run):
    """Seven channels tell the class; the eighth is noise that shouts another one, and no clean row needs it."""
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(160) % 2
    pixels = torch.randint(0, 256, (160, 8), generator=draw, dtype=torch.uint8)
    pixels[:, :7] = torch.where(y[:, None] == 1, 200, 50).to(torch.uint8) + pixels[:, :7] // 8
    card = Card(name="pixels", classes=("a", "b"), size=(2, 4), channels=1)
    split = Split(pixels.view(160, 1, 2, 4), y, card=card)
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, 2))
    with torch.no_grad():
        x = to_input(split.x).flatten(1)
        net[1].running_mean.copy_(x.mean(0))
        net[1].running_var.copy_(x.var(0))
        net[2].bias.zero_()
        net[2].weight[1] = torch.tensor([1.0] * 7 + [4.0])
        net[2].weight[0] = -net[2].weight[1]
    masks = RNP(recover_epochs=20, batch_size=40).recover(copy.deepcopy(net), split, run)["1"]
    assert int(masks.argmin()) == 7
    assert float(masks[7]) < 0.5 < float(masks[:7].min())

    before = copy.deepcopy(net.state_dict())
    fixed = RNP(batch_size=40, unlearn_lr=1e-6, unlearn_epochs=1).repair(net.eval(), split, run)  # as if not unlearned
    assert run.outcome is not None
    assert 7 in run.outcome.figures["pruned"]["1"]
    assert float(fixed[1].weight.detach()[7]) == 0
    assert torch.equal(fixed[1].running_mean, before["1.running_mean"])


def test_only_scales_below_the_threshold_change(trained, clean, run):
    fixed = RNP.official().replace(recover_epochs=8, batch_size=40, threshold=0.97).repair(trained, clean, run)
    assert run.outcome is not None
    told = run.outcome.figures
    assert told["channels"] > 0
    assert only_pruned_scales_changed(trained.state_dict(), fixed, told["pruned"])


def test_the_threshold_is_chosen_on_rows_that_neither_stage_saw(trained, clean, run, monkeypatch):
    seen: dict[str, set[int]] = {}
    method = RNP(batch_size=40, unlearn_epochs=2, recover_epochs=2)

    def spied(name, at):
        real = getattr(RNP, name)

        def call(self, model, rows, run):
            seen[name] = set(rows.index.tolist())
            return real(self, model, rows, run)

        monkeypatch.setattr(RNP, name, call)

    spied("unlearn", 1)
    spied("recover", 1)
    method.repair(trained, clean, run)
    assert run.outcome is not None
    held, learn = clean.cut(48, seed=run.stream_seed("method", "rnp", "held out"), stratified=True)
    assert seen["unlearn"] == seen["recover"] == set(learn.index.tolist())
    told = run.outcome.figures
    assert told["held_out_rows"] == 48 == len(held)
    norms = {n: m for n, m in trained.named_modules() if isinstance(m, BatchNorm)}
    masks = {n: torch.ones(m.num_features) for n, m in norms.items()}
    for layer, channels in told["pruned"].items():
        masks[layer][channels] = 0.0
    trial = copy.deepcopy(trained)
    prune(trial, masks, 0.5)  # what it pruned costs what it counted
    right = int((run_over(trial, held, run=run).argmax(1) == held.y).sum())
    assert told["right_before"] - right <= 0.05 * 48
    assert choose(trained, masks, held, 1.0, run)[0] == 0.9


def test_unmoved_masks_are_reported(trained, clean, run):
    RNP(unlearn_epochs=1, recover_epochs=1, recover_lr=1e-6, threshold=0.2).repair(trained, clean, run)
    assert run.outcome is not None
    assert run.outcome.status == "unchanged"
    assert "smallest mask is 1.00 after 1 epochs" in run.outcome.reason


def test_a_resumed_repair_tells_the_same(trained, clean, tmp_path):
    method = RNP(batch_size=40, unlearn_epochs=3, recover_epochs=1)
    told = []
    for _ in range(2):
        run = Run(precision="fp32", device="cpu", quiet=True, folder=tmp_path)
        method.repair(trained, clean, run)
        assert run.outcome is not None
        told.append(run.outcome.figures)
    assert told[0] == told[1]


def test_networks_without_batchnorm_and_too_few_rows_are_refused(trained, images, digits, run):
    with pytest.raises(InputError, match="no BatchNorm"):
        RNP().repair(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), images(rows=8), run)
    with pytest.raises(InputError, match="needs at least 4"):
        RNP().repair(trained, digits.train.take(torch.arange(3)), run)


@pytest.mark.filterwarnings("ignore:the model gets")
@pytest.mark.parametrize("one", [True, False])
def test_a_batchnorm_of_two_names_is_masked_once(clean, run, one):
    net = Twice(one=one)
    masks = RNP(recover_epochs=2, recover_lr=0.1, batch_size=60).recover(copy.deepcopy(net), clean, run)
    assert list(masks) == (["norm"] if one else ["norm", "other"])
    assert all(bool((mask < 1).any()) for mask in masks.values())


def test_the_presets_hold_the_numbers_of_their_sources():
    made = RNP.official()
    assert (made.unlearn_epochs, made.unlearned, made.unlearn_lr, made.weight_decay) == (20, 0.2, 0.01, 5e-4)
    assert (made.recover_epochs, made.recover_lr, made.alpha, made.momentum) == (20, 0.2, 0.2, 0.9)
    assert (made.threshold, made.clip_norm) == (0.7, 0.0)
    assert RNP.corrected() == RNP() == made.replace(threshold=None, clip_norm=20.0)
