"""SAU: what must hold whatever the model is."""

from __future__ import annotations

import dataclasses
import math
import sys
import warnings

import pytest
import torch
from torch import nn

from theriac.core.errors import InputError
from theriac.core.split import Split
from theriac.repairs import SAU
from theriac.repairs._shared_perturbation import search
from theriac.training import epochs


class Wavy(nn.Module):
    """A small net with BatchNorm whose classes change readily; ``margin`` makes it deaf to any perturbation."""

    def __init__(self, classes: int = 4, margin: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Conv2d(1, 6, 3, padding=1)
            self.norm = nn.BatchNorm2d(6)
            self.head = nn.Linear(6 * 64, classes)
        nn.init.normal_(self.norm.running_mean, 0, 0.2, generator=torch.Generator().manual_seed(1))
        self.margin = margin

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.head(torch.relu(self.norm(self.conv(x))).flatten(1))
        return logits + self.margin * nn.functional.one_hot(torch.zeros(len(x), dtype=torch.long), logits.shape[1])


class Labelled(Wavy):
    """Wavy, centred so that it is not a constant."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x - 0.5)


@pytest.fixture
def split(images) -> Split:
    return images(rows=40, classes=4)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "none"])
@pytest.mark.parametrize("init", ["max", "min", "zero", "random"])
@pytest.mark.parametrize("clip", [False, True])
def test_perturbations_stay_in_the_ball(norm, init, clip):
    f, g = Labelled().double().eval(), Labelled().double().eval()
    with torch.no_grad():
        f.head.weight += 0.1
    draw = torch.Generator().manual_seed(3)
    x = torch.rand(12, 1, 8, 8, generator=draw, dtype=torch.float64)
    y = torch.arange(12) % 4
    low, high = (torch.tensor(0.0).double(), torch.tensor(1.0).double()) if clip else (None, None)
    order = {"linf": float("inf"), "l2": 2, "l1": 1, "none": float("inf")}[norm]
    seen: list[torch.Tensor] = []
    found = search(
        f, g, x, y, f(x).argmax(1), g(x).argmax(1),
        radius=0.2, steps=5, step_size=0.2, norm=norm, init=init, adversarial=0.01, sharing=1.0, low=low, high=high,
        generator=draw, watch=lambda delta, _: seen.append(delta),
    )  # fmt: skip
    for delta in (*seen, found.delta):
        if norm != "none":
            assert float(delta.flatten(1).norm(p=order, dim=1).max()) <= 0.2 + 1e-12
        if clip:
            assert float((x + delta).min()) >= -1e-12
            assert float((x + delta).max()) <= 1 + 1e-12
    assert not torch.equal(found.delta, seen[0])  # the search did move


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_early_exit_gives_the_same_under_clipping(norm):
    """Two equal models that are fooled at once: the search may stop at its first step, with the result it would have had."""
    f, g = Labelled().double().eval(), Labelled().double().eval()
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clean = torch.full((6,), 99)  # a class that is never predicted: every row counts as fooled, and shared, from the start
    found = [
        search(
            f, g, x, torch.zeros(6, dtype=torch.long), clean, clean,
            radius=0.2, steps=3, step_size=0.2, norm=norm, init="max", adversarial=0.01, sharing=1.0,
            low=torch.tensor(0.0).double(), high=torch.tensor(1.0).double(), early_exit=early,
        )
        for early in (False, True)
    ]  # fmt: skip
    torch.testing.assert_close(found[0].delta, found[1].delta, atol=1e-12, rtol=0)
    assert found[1].passes < found[0].passes


def test_no_active_row_gives_no_loss():
    logits = torch.randn(5, 3, requires_grad=True)
    loss = SAU().unlearning_loss(logits[:0], torch.zeros(0, dtype=torch.long), 5)
    assert float(loss.detach()) == 0.0
    loss.backward()
    assert float(logits.grad.abs().sum()) == 0.0


def test_the_unlearning_loss_in_closed_form():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.0002, 0.9996, 0.0002]], dtype=torch.float64)
    wrong = torch.tensor([1, 0])
    by_hand = -0.5 * (torch.tensor(1e-6 + 0.8).log() + torch.tensor(1 + 1e-6 - 0.2).log())
    by_hand = by_hand - 0.5 * (torch.tensor(1e-6 + 0.999).log() + torch.tensor(1 + 1e-6 - 0.001).log())
    assert float(SAU().unlearning_loss(p.log(), wrong, 10)) == pytest.approx(float(by_hand) / 10, abs=1e-7)


def test_a_row_below_one_in_a_thousand_has_no_gradient():
    logits = torch.tensor([[0.0, 9.0, 0.0]], dtype=torch.float64, requires_grad=True)
    SAU().unlearning_loss(logits, torch.tensor([0]), 1).backward()
    assert float(logits.grad.abs().max()) == 0.0


def test_batchnorm_statistics_stay_with_eval_and_move_with_train(split, run):
    before = Labelled()
    fixed = SAU(rounds=2).repair(before, split, run)
    buffers = dict(before.named_buffers())
    for name, value in fixed.named_buffers():
        assert torch.equal(value, buffers[name]), name
    moved = SAU(rounds=2, norm="train").repair(before, split, run)
    assert not torch.equal(moved.norm.running_mean, before.norm.running_mean)
    assert not torch.equal(fixed.norm.weight, before.norm.weight)  # statistics are frozen, the affine part trains


def test_the_search_changes_no_weight():
    f, g = Labelled().eval(), Labelled().eval()
    kept = [{k: v.clone() for k, v in m.state_dict().items()} for m in (f, g)]
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(8) % 4
    search(
        f, g, x, y, f(x).argmax(1), g(x).argmax(1),
        radius=0.2, steps=5, step_size=0.2, norm="linf", init="max", adversarial=0.01, sharing=1.0,
    )  # fmt: skip
    for model, old in zip((f, g), kept, strict=True):
        assert all(torch.equal(v, old[k]) for k, v in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())


def test_it_logs_what_the_round_did(split, run):
    SAU(rounds=3).repair(Labelled(), split, run)
    events = run.history("sau")
    assert [e["epoch"] for e in events] == [1, 2, 3]
    assert 0 < events[0]["active"] <= 1
    assert events[0]["perturbation"] <= 0.2 + 1e-6
    assert 0 < events[0]["passes_per_row"] <= 28


def test_an_empty_mask_warns_and_only_fine_tunes(split, run):
    deaf = Labelled(margin=1e4)
    with pytest.warns(UserWarning, match="1 of 1 rounds, first in round 1.*only slow fine-tuning"):
        SAU(rounds=1).repair(deaf, split, run)
    assert run.history("sau")[0]["active"] == 0


def test_a_mask_that_empties_later_warns_too(split, run, monkeypatch):
    """From the second round on, the search finds only what leaves the poisoned model as it was."""
    module, rounds = sys.modules["theriac.repairs.sau"], []
    real = module.search

    def tired(net, frozen, x, y, *clean, **options):
        rounds.append(1)
        found = real(net, frozen, x, y, *clean, **options)
        return found if len(rounds) == 1 else dataclasses.replace(found, frozen_class=clean[1])

    monkeypatch.setattr(module, "search", tired)
    with pytest.warns(UserWarning, match="2 of 3 rounds, first in round 2"):
        SAU(rounds=3).repair(Labelled(), split, run)
    active = [e["active"] for e in run.history("sau")]
    assert active[0] > 0
    assert active[1:] == [0, 0]


@pytest.mark.parametrize(("ball", "radius"), [("linf", 0.05), ("linf", 0.3), ("l2", 0.5), ("l1", 3.0)])
@pytest.mark.parametrize("norm", ["eval", "train"])
def test_the_balls_option_holds_what_the_repair_uses(split, run, monkeypatch, ball, radius, norm):
    module, used = sys.modules["theriac.repairs.sau"], []
    real = module.search

    def spy(*args, **options):
        found = real(*args, **options)
        used.append(found.delta)
        return found

    monkeypatch.setattr(module, "search", spy)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*slow fine-tuning")  # a small ball may fool nothing
        SAU(rounds=2, ball=ball, radius=radius, norm=norm).repair(Labelled(), split, run)
    power = {"linf": math.inf, "l2": 2, "l1": 1}[ball]
    for event, delta in zip(run.history("sau"), used, strict=True):  # one batch a round
        size = max(float(torch.linalg.vector_norm(row, power)) for row in delta.flatten(1))
        assert size <= radius * (1 + 1e-5)
        assert event["perturbation_norm"] == pytest.approx(size, rel=1e-5)
        assert event["perturbation"] == pytest.approx(float(delta.abs().max()), rel=1e-5)
        assert event["perturbation_norm"] > 0.5 * radius  # the radius is used, too


def test_perturbations_without_a_ball_warn(split, run):
    with pytest.warns(UserWarning, match=r"reach \d.*radius is 0.1.*'none' does not hold them"):
        SAU(rounds=1, ball="none", radius=0.1).repair(Labelled(), split, run)
    assert run.history("sau")[0]["perturbation_norm"] > 0.1


def test_a_lively_model_does_not_warn(split, run):  # warnings are errors
    SAU(rounds=1).repair(Labelled(), split, run)
    assert run.history("sau")[0]["active"] > 0.01


@pytest.mark.parametrize(
    ("options", "name"),
    [({"radius": 0.0}, "radius"), ({"steps": 0}, "steps"), ({"rounds": 0}, "rounds"), ({"ball": "l3"}, "ball")],
)
def test_bad_options_are_refused(options, name):
    with pytest.raises(InputError, match=name):
        SAU(**options)


def test_its_optimizer_is_the_official_one(split, run, monkeypatch):
    made = []
    adam = epochs.Adam

    def spy(parameters, **options):
        made.append(options)
        return adam(parameters, **options)

    monkeypatch.setattr(epochs, "Adam", spy)
    SAU(rounds=2).repair(Labelled(), split, run)
    (options,) = made
    assert (options["lr"], options["amsgrad"], options["weight_decay"]) == (1e-4, True, 0.0)
    assert options.get("betas", (0.9, 0.999)) == (0.9, 0.999)
    assert [e["lr"] for e in run.history("sau")] == [1e-4, 1e-4]  # constant


def test_a_table_is_refused(run):
    rows = Split(torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2)
    with pytest.raises(InputError, match=r"is a table; SAU's perturbations are of pixels"):
        SAU(rounds=1).repair(nn.Linear(3, 2), rows, run)


@pytest.mark.parametrize(
    ("updates", "rows", "batch", "rounds"),
    [(0, 250, 256, 7), (1000, 2500, 256, 100), (1000, 250, 256, 1000), (1000, 250, 32, 125), (1, 250, 32, 1), (9, 250, 32, 2)],
)
def test_updates_count_steps_whatever_the_rows_are(updates, rows, batch, rounds):
    assert SAU(rounds=7, updates=updates, batch_size=batch).lasts(rows) == rounds
    assert SAU.official().updates == 0 < SAU.corrected().updates
