"""The measures of D3 that are ours: what no change of basis may buy, the controls that it does buy, and the estimate itself."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn
from torch.nn import functional as F

from theriac.core.card import Card, Column
from theriac.core.errors import InputError
from theriac.core.split import Split
from theriac.models.preact_resnet import PreActResNet18
from theriac.repairs import D3
from theriac.repairs._pullback import Pullback, blends, center, effective_head
from theriac.repairs._repulsion import MEASURES, Repulsion

sys.path.insert(0, str(Path(__file__).parent))
from small_nets import LinearFeatures


def value(tensor: torch.Tensor) -> float:
    return float(tensor.detach())


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = normal(40, 1, 8, 8, seed=9)
EXAMPLE = X[:1]


def moved(seed: int = 1) -> LinearFeatures:
    """Net with all weights changed at random."""
    net = LinearFeatures().double()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p += 0.3 * normal(*p.shape, seed=100 * seed + i)
    return net


def change_basis(net: LinearFeatures, basis: torch.Tensor) -> LinearFeatures:
    """Features times ``basis``, head times its inverse: the same function."""
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.side.weight.copy_(basis @ net.side.weight)
        other.side.bias.copy_(basis @ net.side.bias)
        other.head.weight.copy_(net.head.weight @ torch.linalg.inv(basis))
    torch.testing.assert_close(other(X), net(X), rtol=1e-9, atol=1e-9)
    return other


# the invariance, and what has none

SIGNS = torch.diag(torch.tensor([1.0, -1, -1, 1, -1, 1]).double())
ROTATION = torch.linalg.qr(normal(6, 6, seed=4))[0]
GENERAL = normal(6, 6, seed=5) + 2 * torch.eye(6).double()


@pytest.mark.parametrize(
    "basis", [SIGNS, -torch.eye(6).double(), ROTATION, GENERAL], ids=["signs", "antipode", "rotation", "any"]
)
def test_no_joint_change_of_head_and_features_buys_pullback_distance(basis):
    old, new = LinearFeatures().double(), moved()
    pull = Pullback(old, "head", ridge=0.1)
    other = change_basis(new, basis)
    torch.testing.assert_close(pull.cosine(other(X), X), pull.cosine(new(X), X), rtol=1e-9, atol=1e-12)
    still = change_basis(old, basis)  # the old function in another basis is no distance away at all
    assert value(pull.distance(pull.cosine(still(X), X))) < 1e-5
    pushed = Repulsion(old, "classifier", example=EXAMPLE)
    pushed.modules["head"] = still.head
    assert value(pushed.distance()) > 1  # the control: there the head alone has bought a distance


def test_all_of_the_plain_distance_can_be_bought_and_none_of_this_one():
    old = LinearFeatures().double()
    pushed, pull = Repulsion(old, "classifier", example=EXAMPLE), Pullback(old, "head", ridge=0.1)
    pushed.modules["head"] = change_basis(old, -torch.eye(6).double()).head
    assert value(pushed.distance()) == pytest.approx(2 * value(pushed.norms["head"]))
    assert value(pull.cosine(change_basis(old, -torch.eye(6).double())(X), X)) == pytest.approx(1.0, abs=1e-12)


def test_gram_ignores_rotations_and_signs_but_not_any_change_of_basis():
    new, old = normal(4, 6, seed=1), normal(4, 6, seed=2)
    gram = MEASURES["gram"]
    for basis in (SIGNS, ROTATION):
        torch.testing.assert_close(gram(new @ basis, old), gram(new, old))
        assert value(gram(old @ basis, old)) < 1e-12
        assert value(MEASURES["euclidean"](old @ basis, old)) > 1
    assert value(gram(old @ GENERAL, old)) > 0.1
    assert value(gram(2 * old, old)) == pytest.approx(3 * value((old @ old.T).norm() / old.norm()))


def test_only_what_decides_between_classes_counts():
    old, new = LinearFeatures().double(), moved()
    pull = Pullback(old, "head", ridge=0.1)
    expected = pull.cosine(new(X), X)
    # scale, bias, a shift of all logits of a row
    for same in (5 * new(X), new(X) + normal(4, seed=7), new(X) + normal(40, 1, seed=8)):
        torch.testing.assert_close(pull.cosine(same, X), expected, rtol=1e-9, atol=1e-12)
    assert value(pull.cosine(-new(X), X)) == pytest.approx(-value(expected))
    assert value(pull.distance(pull.cosine(-old(X), X))) == pytest.approx(2 * pull.scale)  # the function's own antipode
    assert abs(value(pull.cosine(new(X)[:, [1, 0, 2, 3]], X)) - value(expected)) > 0.01  # classes exchanged: another function


# on a real network: the plain one has the symmetry, the one with a final norm has not


def trained_like(final_norm: bool) -> PreActResNet18:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PreActResNet18(4, 1, 4, final_norm=final_norm).double()
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                nn.init.uniform_(m.weight, 0.5, 1.5)
                nn.init.normal_(m.bias, 0, 0.3)
                m.running_mean.normal_(0, 0.1)
                m.running_var.uniform_(0.5, 1.5)
    return model


def negate_features(model: PreActResNet18) -> None:
    """Turn the sign of what the last stage puts out, and of everything that reads it but the classifier."""
    first, last = model.layer4
    readers = [last.bn1] + ([model.bn] if model.bn is not None else [])
    with torch.no_grad():
        for weight in (first.conv2.weight, first.shortcut[0].weight, last.conv2.weight):
            weight.neg_()
        for norm in readers:
            norm.weight.neg_()
            norm.running_mean.neg_()


@pytest.mark.parametrize("training", [False, True])
def test_a_plain_network_has_the_symmetry(training):
    old = trained_like(final_norm=False)
    pull, new = Pullback(old, "linear", ridge=0.1), copy.deepcopy(old)
    negate_features(new)
    with torch.no_grad():
        new.linear.weight.neg_()
    assert value(pull.cosine(new.eval()(X), X)) == pytest.approx(1.0, abs=1e-9)
    torch.testing.assert_close(new.train(training)(X), old.train(training)(X), rtol=1e-9, atol=1e-9)
    pushed = Repulsion(old, "linear")
    pushed.modules["linear"] = new.linear
    assert value(pushed.distance()) == pytest.approx(2 * value(pushed.norms["linear"]))


def test_a_final_norm_forbids_the_sign_and_leaves_the_scale():
    old = trained_like(final_norm=True).eval()
    pull, new = Pullback(old, "linear", ridge=0.1), copy.deepcopy(old)
    negate_features(new)
    torch.testing.assert_close(new(X), old(X), rtol=1e-9, atol=1e-9)  # the norm puts the sign right: features never notice
    with torch.no_grad():
        new.linear.weight.neg_()
    assert not torch.allclose(new(X), old(X), atol=1e-2)
    # a head at the antipode is the opposite function here
    assert value(pull.cosine(new(X), X)) == pytest.approx(-1.0, abs=1e-9)

    scale, other = torch.linspace(0.2, 3, 32).double(), copy.deepcopy(old)
    with torch.no_grad():
        other.bn.weight.mul_(scale)
        other.bn.bias.mul_(scale)
        other.linear.weight.div_(scale)
    torch.testing.assert_close(other(X), old(X), rtol=1e-9, atol=1e-9)
    cosine = F.cosine_similarity(other.linear.weight.flatten(), old.linear.weight.flatten(), dim=0)
    assert value(cosine) < 0.9  # distance on the sphere, bought without changing the function
    assert value(pull.cosine(other(X), X)) == pytest.approx(1.0, abs=1e-9)


# the estimate


def test_the_effective_head_equals_ridge_regression():
    f0, z = normal(50, 7, seed=1) + 3, normal(50, 4, seed=2)
    ours = effective_head(z, f0, 0.2)
    alpha = 0.2 * float(np.var(f0.numpy(), axis=0).mean()) * 50
    expected = Ridge(alpha=alpha).fit(f0.numpy(), (z - z.mean(1, keepdim=True)).numpy()).coef_
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_a_head_on_the_old_features_is_found_again():
    f0, head, bias = normal(50, 7, seed=1), normal(4, 7, seed=2), normal(4, seed=3)
    found = effective_head(f0 @ head.T + bias, f0, 1e-12)
    torch.testing.assert_close(found, head - head.mean(0), rtol=1e-8, atol=1e-8)
    assert value(center(f0 @ head.T + bias).mean(0).abs().max()) < 1e-12


def test_few_rows_are_no_distance_by_themselves():
    """Both networks are estimated on the same rows, so that neither the ridge nor a small batch looks like a change."""
    old = LinearFeatures().double()
    pull = Pullback(old, "head", ridge=1.0)
    for rows in (2, 3, 40):
        assert value(pull.cosine(old(X[:rows]), X[:rows])) == pytest.approx(1.0, abs=1e-9)


def test_its_gradient_reaches_the_features():
    old, new = LinearFeatures().double(), moved()
    pull = Pullback(old, "head", ridge=0.1)
    pull.distance(pull.cosine(new(X), X)).backward()
    for name, parameter in new.named_parameters():
        size = float(parameter.grad.abs().max())
        # all layers are linear here, so that biases only shift the logits, and a shift is no distance
        assert size < 1e-12 if name.endswith("bias") else size > 1e-4, name
    assert all(p.grad is None for p in old.parameters())


def test_half_precision_logits_are_widened():
    old = LinearFeatures()
    pull = Pullback(old, "head", ridge=0.1)
    x = X.float()
    assert pull.cosine(old(x).bfloat16(), x).dtype == torch.float32
    assert value(pull.cosine(old(x).bfloat16(), x)) == pytest.approx(1.0, abs=1e-3)


# blends


def test_blends_lie_between_two_rows():
    x = torch.eye(6)[:, None, None, :].expand(6, 1, 2, 6)  # each row marks its own place
    mixed = blends(x, torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixed.sum(-1), torch.ones(6, 1, 2))
    assert int((mixed > 0).sum(-1).max()) <= 2
    assert bool((mixed >= 0).all())
    assert torch.equal(mixed[:, :, 0], mixed[:, :, 1])  # one share a row
    assert torch.equal(mixed, blends(x, torch.Generator().manual_seed(0)))
    assert not torch.equal(mixed, blends(x, torch.Generator().manual_seed(1)))


# the method


@pytest.fixture
def split(images) -> Split:
    return images(rows=48, classes=4)


@pytest.mark.parametrize("options", [{"measure": "pullback"}, {"measure": "pullback", "views": "blends"}, {"measure": "gram"}])
def test_every_measure_repairs_and_pushes(split, run, options):
    model = LinearFeatures()
    model.card = split.card
    before = {k: v.clone() for k, v in model.state_dict().items()}
    method = D3(epochs=6, batch_size=16, lam=0.1, lr=0.05, init="noise", **options)
    fixed = method.repair(model, split, run)
    events = run.history("d3")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert value(fixed.head.weight.norm()) == pytest.approx(value(model.head.weight.norm()), rel=1e-5)
    if "pullback" in options.values():
        assert events[-1]["cosine_pullback"] < events[0]["cosine_pullback"] - 0.1
        assert set(fixed.state_dict()) == set(before)  # the frozen copy is not part of what comes back
    cosines = F.cosine_similarity(fixed.head.weight, model.head.weight, dim=1)
    assert events[-1]["cosine_rows"] == pytest.approx(cosines.tolist(), abs=1e-3)
    assert all("cosine_rows" not in e for e in events[:-1])


def test_without_weight_nothing_pushes(split, run):
    """The control: the measure is computed and logged, and the weights are those of plain fine-tuning of a new head."""
    model = LinearFeatures()  # without BatchNorm, whose statistics the blends would enter
    model.card = split.card
    method = D3(epochs=2, batch_size=16, weight=0.0)
    plain = method.repair(model, split, run)
    other = method.replace(measure="pullback", views="blends").repair(model, split, run)
    pushed = method.replace(measure="pullback", views="blends", weight=1.0).repair(model, split, run)
    for name, parameter in plain.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], parameter, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(pushed.head.weight, plain.head.weight, atol=1e-4)


def test_options_that_do_not_fit_are_refused(run):
    for options, named in (
        ({"measure": "pullback", "layers": "all"}, "layers"),
        ({"views": "blends"}, "views"),
        ({"ridge": 0.0}, "ridge"),
        ({"weight": -1.0}, "weight"),
        ({"measure": "manhattan"}, "measure"),
    ):
        with pytest.raises(InputError, match=named):
            D3(**options)
    card = Card(kind="table", classes=("a", "b"), columns=(Column(name="a"),))
    table = Split(torch.rand(8, 1), torch.arange(8) % 2, card=card)
    with pytest.raises(InputError, match="table"):
        D3(measure="pullback", views="blends").check(table)
