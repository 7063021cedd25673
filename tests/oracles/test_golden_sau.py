"""SAU against golden vectors of the released code: five inner steps, the outer losses, one Adam step."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.nn import functional as F

from theriac.core.card import Card
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.repairs import SAU
from theriac.repairs._shared_perturbation import inner_loss, search

SETTINGS = {"radius": 0.2, "steps": 5, "step_size": 0.2, "norm": "linf", "init": "max", "adversarial": 0.01, "sharing": 1.0}


@pytest.fixture
def vectors(golden):
    return golden("sau")


@pytest.fixture
def pair(vectors, tiny):
    model, frozen = tiny(vectors, "h_"), tiny(vectors, "h_bd_")
    x = vectors["x"]
    with torch.no_grad():
        return model, frozen, model(x).argmax(1), frozen(x).argmax(1)


def test_clean_logits(vectors, pair, assert_near):
    model, frozen, clean, frozen_clean = pair
    assert_near(model(vectors["x"]), vectors["logits_h_clean"])
    assert_near(frozen(vectors["x"]), vectors["logits_h_bd_clean"])
    assert not torch.equal(clean, frozen_clean) or not torch.equal(clean, vectors["y"])  # the problem is not trivial


@pytest.mark.parametrize("step", range(5))
def test_inner_losses_and_masks(vectors, pair, assert_near, step):
    model, frozen, clean, frozen_clean = pair
    delta = vectors["pert_start"] if step == 0 else vectors["pert_steps"][step - 1]
    logits, frozen_logits = model(vectors["x"] + delta), frozen(vectors["x"] + delta)

    def loss(adversarial: float, sharing: float):
        return inner_loss(logits, frozen_logits, vectors["y"], clean, frozen_clean, adversarial, sharing, 8)

    assert_near(loss(1.0, 0.0)[0], vectors["inner_L_adv"][step])
    assert_near(loss(0.0, 1.0)[0], vectors["inner_L_share"][step])
    total, shared = loss(0.01, 1.0)
    assert_near(total, vectors["inner_total"][step])
    assert torch.equal(shared, vectors["inner_shared"][step])
    assert torch.equal(logits.argmax(1) != clean, vectors["inner_fooled_h"][step])
    assert torch.equal(frozen_logits.argmax(1) != frozen_clean, vectors["inner_fooled_h_bd"][step])


@pytest.mark.parametrize("drop_shared", [False, True])
@pytest.mark.parametrize("early_exit", [False, True])
def test_perturbations(vectors, pair, assert_near, drop_shared, early_exit):
    model, frozen, clean, frozen_clean = pair
    seen = []
    found = search(
        model,
        frozen,
        vectors["x"],
        vectors["y"],
        clean,
        frozen_clean,
        drop_shared=drop_shared,
        bucket=1,
        early_exit=early_exit,
        watch=lambda delta, shared: seen.append((delta.clone(), shared)),
        **SETTINGS,
    )
    starts = torch.stack([vectors["pert_start"], *vectors["pert_steps"][:-1]])
    assert len(seen) == 5  # not all rows of this problem become shared, so nothing ends early
    for step, (delta, shared) in enumerate(seen):
        assert_near(delta, starts[step])
        expected = vectors["inner_shared"][step]
        if drop_shared:  # only rows that were not shared a step ago are still looked at
            expected = expected[~vectors["inner_shared"][step - 1]] if step else expected
        assert torch.equal(shared, expected)
    assert_near(found.delta, vectors["pert_steps"][-1])
    assert torch.equal(found.frozen_class, vectors["outer_h_bd_pred_adv"])


def test_dropping_rows_saves_passes_here(vectors, pair):
    model, frozen, clean, frozen_clean = pair
    passes = [
        search(
            model,
            frozen,
            vectors["x"],
            vectors["y"],
            clean,
            frozen_clean,
            drop_shared=d,
            early_exit=False,
            bucket=1,
            **SETTINGS,
        ).passes
        for d in (False, True)
    ]
    live = [8, *(int((~m).sum()) for m in vectors["inner_shared"])]
    assert passes == [8 * 5 * 4 + 8, 4 * sum(live[:5]) + live[5]]
    assert passes[1] < passes[0]


def test_outer_losses_and_gradients(vectors, pair, assert_near, assert_same_weights):
    model, frozen, _, frozen_clean = pair
    x, y, delta = vectors["x"], vectors["y"], vectors["pert_steps"][-1]
    with torch.no_grad():
        frozen_logits = frozen(x + delta)
    assert_near(frozen_logits, vectors["logits_h_bd_adv"])
    wrong = frozen_logits.argmax(1)
    active = (wrong != y) & (wrong != frozen_clean)
    assert torch.equal(active, vectors["outer_active"])
    logits = model(x + delta)
    assert_near(logits, vectors["logits_h_adv"])
    clean_loss = F.cross_entropy(model(x), y)
    unlearning = SAU().unlearning_loss(logits[active], wrong[active], 8)
    assert_near(clean_loss, vectors["outer_L_cl"])
    assert_near(unlearning, vectors["outer_L_sar"])
    assert_near(clean_loss + unlearning, vectors["outer_total"])
    (clean_loss + unlearning).backward()
    assert_same_weights(model, vectors, "grad_h_", grad=True)
    torch.optim.Adam(model.parameters(), lr=1e-4, amsgrad=True).step()
    assert_same_weights(model, vectors, "h_after_")


def test_one_round_of_the_method_itself(vectors, pair, assert_near, assert_same_weights, monkeypatch):
    """The whole path: SAU's own loop, batch, masks and optimizer. Rows carry their number; inputs come from the vectors."""
    model, frozen, _, _ = pair
    ids = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1).expand(8, 3, 8, 8).contiguous()
    card = Card(classes=tuple("abcde"), size=(8, 8), channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    split = Split(ids, vectors["y"], card=card)

    def to_input(rows: torch.Tensor) -> torch.Tensor:
        return vectors["x"][rows[:, 0, 0, 0].long()]

    for module in ("theriac.training.epochs", "theriac.models.outputs"):
        monkeypatch.setattr(sys.modules[module], "to_input", to_input)
    # in a real run both start from the same weights; the vectors have two different models on purpose
    monkeypatch.setattr(sys.modules["theriac.repairs.sau"], "duplicate", lambda _: frozen)
    run = Run(precision="fp32", device="cpu", quiet=True)
    fixed = SAU(rounds=1)._repair(model, split, run)
    assert_same_weights(fixed, vectors, "h_after_")
    (event,) = run.history("sau")
    assert_near(event["loss"], vectors["outer_total"])
    assert event["active"] == pytest.approx(5 / 8)
    assert event["perturbation"] == pytest.approx(0.2)
