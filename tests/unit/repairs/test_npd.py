"""NPD: where its layer goes, its perturbation and its objective by hand, and that nothing but the layer learns."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from theriac.core.errors import InputError
from theriac.core.split import Split
from theriac.models import load_model, save, to_input
from theriac.repairs import NPD
from theriac.repairs.npd import ball, place


@pytest.fixture
def clean(digits) -> Split:
    return digits.train.sample(200, seed=3, stratified=True)


def test_it_goes_before_the_second_to_last_convolution(trained, clean):
    example = to_input(clean.x[:2])
    assert place(trained, example) == ("net.layer4.1.conv1", 32, True)
    assert place(trained, example, "net.layer2.0.bn1") == ("net.layer2.0.bn1", 4, True)
    only = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(108, 10))
    assert place(only, example) == ("0", 1, True)
    vectors = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
    assert place(vectors, example) == ("1", 64, False)
    with pytest.raises(InputError, match="no layer that NPD knows"):
        place(nn.Flatten(), example)
    with pytest.raises(InputError, match="unknown layer"):
        place(trained, example, "net.layer7")
    assert place(trained, example, "net.linear") == ("net.linear", 32, False)


def test_the_objective_by_hand():
    """Clean logits say class 0 with 1/2, 1/4, 1/4; perturbed ones say 1/4, 1/2, 1/4. True class 0, target 1."""
    clean, moved = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.5, 0.25]]).log()
    y, target = torch.tensor([0]), torch.tensor([1])
    parts = [math.log(2), math.log(4), -math.log(1.0001 - 0.5), -math.log(1.0001 - 0.5)]
    weights = [2.0, 3.0, 5.0, 7.0]
    method = NPD(**dict(zip(("clean", "stable", "wrong", "targeted"), weights, strict=True)))
    wanted = sum(w * p for w, p in zip(weights, parts, strict=True))
    assert float(method.loss(clean, moved, y, target)) == pytest.approx(wanted, rel=1e-6)
    # the strongest wrong class need not be the target
    other = NPD(clean=0, stable=0, wrong=1, targeted=0).loss(clean, moved, y, torch.tensor([2]))
    assert float(other) == pytest.approx(-math.log(1.0001 - 0.5), rel=1e-6)


def test_the_ball_and_the_perturbation():
    delta = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    assert torch.allclose(ball(delta, 1.0), torch.tensor([[0.6, 0.8], [0.3, 0.4]]))

    class Slope(nn.Module):
        """Class 1 wins where the sum of a row is large."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            s = x.flatten(1).sum(1)
            return torch.stack([torch.zeros_like(s), s - 3], 1)

    x = torch.full((2, 1, 2, 2), 0.5)
    ones = torch.ones(2, dtype=torch.long)
    # two steps of 0.1 up in each of four pixels: 2.0 becomes 2.8, within a ball of 3
    assert torch.allclose(NPD().attack(Slope(), x, ones), torch.full_like(x, 0.7))
    # a ball of 0.1 leaves 0.05 a pixel
    assert torch.allclose(NPD(radius=0.1).attack(Slope(), x, ones), torch.full_like(x, 0.55))
    # with steps of 0.3 the first one is enough: 3.2 > 3
    assert torch.allclose(NPD(step_size=0.3, steps=5).attack(Slope(), x, ones), torch.full_like(x, 0.8))
    assert float(NPD(step_size=9.0).attack(Slope(), x, ones).max()) == 1


@pytest.mark.filterwarnings("ignore:1 of the model")
def test_nothing_but_the_new_layer_learns(trained, clean, run, tmp_path):
    given = copy.deepcopy(trained)
    given.net.conv1.weight.requires_grad_(False)
    fixed = NPD(warm_epochs=1, epochs=2, batch_size=60).repair(given, clean, run)
    old, new = trained.state_dict(), fixed.state_dict()
    layer = "net.layer4.1.conv1"
    for name, value in old.items():
        there = f"{layer}.1{name.removeprefix(layer)}" if name.startswith(layer) else name
        assert torch.equal(new.pop(there), value), name
    assert {name.removeprefix(f"{layer}.0.") for name in new} == {
        "0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked",
    }  # fmt: skip
    assert not torch.equal(new[f"{layer}.0.0.weight"][:, :, 0, 0], torch.eye(32))
    wants = {name: p.requires_grad for name, p in fixed.named_parameters()}
    assert [name for name, value in wants.items() if not value] == ["net.conv1.weight"]
    save(fixed, tmp_path)
    x = to_input(clean.x)
    assert torch.equal(load_model(tmp_path)(x), fixed(x))
    again = NPD(warm_epochs=0, epochs=1).repair(fixed, clean, run)  # one layer before another
    assert again.spec["options"]["inside"] == fixed.spec


def test_the_presets_hold_the_numbers_of_their_sources():
    made = NPD.official()
    assert (made.warm_epochs, made.warm_lr, made.epochs, made.batch_size, made.lr) == (5, 1e-4, 50, 128, 0.01)
    assert (made.steps, made.step_size, made.radius, made.enough) == (2, 0.1, 3.0, 0.6)
    assert (made.clean, made.stable, made.wrong, made.targeted) == (1, 0.4, 0.4, 0.4)
    assert NPD.tiny().radius == 6
