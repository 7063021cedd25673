"""D3 and FST: sphere, distance, selection, the identity between the two, and the sign symmetry that defeats distance."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from theriac.core.errors import InputError
from theriac.repairs import D3, FST
from theriac.repairs._repulsion import MEASURES, Repulsion

sys.path.insert(0, str(Path(__file__).parent))
from small_nets import LinearFeatures


def value(tensor: torch.Tensor) -> float:
    return float(tensor.detach())


EXAMPLE = torch.zeros(1, 1, 8, 8)
EVERY = {"d3": D3(epochs=3, batch_size=16), "fst": FST(epochs=3, batch_size=16)}


def pushed_from(model: nn.Module, layers="classifier") -> Repulsion:
    return Repulsion(model, layers, example=EXAMPLE.to(next(model.parameters()).dtype))


def repaired(method, model, split, run):
    model.card = split.card
    return method.repair(model, split, run)


@pytest.fixture
def split(images):
    return images(rows=48, classes=4)


# the sphere, the distance, the selection


@pytest.mark.parametrize("name", EVERY)
def test_every_step_ends_on_the_sphere(name, split, run, monkeypatch):
    model = LinearFeatures()
    radius, seen = model.head.weight.norm(), []
    project = Repulsion.project

    def spy(self, step=0):
        project(self, step)
        weight = self.modules["head"].weight
        seen.append((value(weight.norm()), value((weight - self.w0["head"]).norm())))

    monkeypatch.setattr(Repulsion, "project", spy)
    repaired(EVERY[name], model, split, run)
    assert len(seen) == 3 * 3
    for norm, distance in seen:
        assert norm == pytest.approx(value(radius), rel=1e-5)
        assert 0 < distance <= 2 * value(radius) * (1 + 1e-6)


def test_biases_and_other_layers_are_outside():
    model = LinearFeatures().double()
    pushed = pushed_from(model)
    pushed.start("random", torch.Generator().manual_seed(0))
    distance = pushed.distance()
    distance.backward()
    assert model.head.weight.grad is not None
    assert all(p.grad is None for n, p in model.named_parameters() if n != "head.weight")
    with torch.no_grad():
        model.head.bias += 1
        model.side.weight *= 3
    assert value(pushed.distance()) == value(distance)
    others = {n: p.detach().clone() for n, p in model.named_parameters() if n != "head.weight"}
    pushed.project()
    assert all(torch.equal(p, others[n]) for n, p in model.named_parameters() if n != "head.weight")


def test_layers_by_name_all_and_nested():
    model = nn.Module()
    model.first, model.rest = nn.Conv2d(1, 2, 3), nn.Sequential(nn.ReLU(), nn.Linear(2, 2), nn.Linear(2, 2))
    assert list(Repulsion(model, "all").modules) == ["first", "rest.1", "rest.2"]
    assert list(Repulsion(model, "rest").modules) == ["rest.1", "rest.2"]
    assert list(Repulsion(model, ("rest.2", "first")).modules) == ["rest.2", "first"]
    with pytest.raises(InputError, match=r"'rst'.*did you mean.*'rest'"):
        Repulsion(model, "rst")
    with pytest.raises(InputError, match=r"rest\.0.*no Linear or Conv2d"):
        Repulsion(model, "rest.0")


def test_the_distance_sums_over_layers():
    model = LinearFeatures().double()
    pushed = pushed_from(model, ("head", "body"))
    with torch.no_grad():
        model.head.weight += 1
        model.body.weight -= 2
    expected = (4 * 6) ** 0.5 + 2 * (6 * 64) ** 0.5
    assert value(pushed.distance()) == pytest.approx(expected)
    inner = (pushed.w0["head"] + 1).mul(pushed.w0["head"]).sum() + (pushed.w0["body"] - 2).mul(pushed.w0["body"]).sum()
    assert value(pushed.inner_product()) == pytest.approx(value(inner))


def test_starting_points():
    def start(init: str, seed: int = 0) -> tuple[nn.Module, Repulsion]:
        model = LinearFeatures().double()
        pushed = pushed_from(model)
        pushed.start(init, torch.Generator().manual_seed(seed))
        return model, pushed

    old = LinearFeatures().double().head
    assert torch.equal(start("near")[0].head.weight, old.weight)
    assert torch.equal(start("far")[0].head.weight, -old.weight)
    assert value(start("middle")[0].head.weight.abs().sum()) == 0
    model, pushed = start("random")
    assert value(model.head.weight.norm()) == pytest.approx(value(old.weight.norm()))
    assert not torch.equal(model.head.weight, start("random", 1)[0].head.weight)
    assert torch.equal(model.head.weight, start("random", 0)[0].head.weight)
    assert torch.equal(model.head.bias, old.bias)
    noise = start("noise")[0].head.weight - old.weight
    assert value(noise.std()) == pytest.approx(value(old.weight.std()), rel=0.5)
    fresh = start("torch")[0].head
    assert value(fresh.weight.abs().max()) <= 6**-0.5
    assert not torch.equal(fresh.bias, old.bias)
    assert pushed.report()["distance"] == pytest.approx(value(pushed.distance()))


def test_report_counts_cosines_by_row():
    model = LinearFeatures().double()
    pushed = pushed_from(model)
    with torch.no_grad():
        model.head.weight[0] *= -1  # one class flipped, the others as they were
    report = pushed.report()
    whole = F.cosine_similarity(model.head.weight.flatten(), pushed.w0["head"].flatten(), dim=0)
    assert report["cosine_row_min"] == pytest.approx(-1)
    assert report["cosine_row_max"] == pytest.approx(1)
    assert report["cosine"] == pytest.approx(value(whole))
    assert pushed.report(rows_too=True)["cosine_rows"] == pytest.approx([-1, 1, 1, 1])
    assert "cosine_rows" not in pushed_from(model, "all").report(rows_too=True)  # rows of a convolution are no classes


# the loss


def test_the_hinge_pulls_only_rows_above_eps():
    logits = torch.tensor([[9.0, 0.0], [0.0, 0.0], [0.0, 9.0]], dtype=torch.float64, requires_grad=True)
    total, clean = D3(lam=0.5, eps=0.1).loss(logits, torch.tensor([0, 0, 0]), torch.zeros((), dtype=torch.float64))
    total.backward()
    ce = F.cross_entropy(logits.detach(), torch.tensor([0, 0, 0]), reduction="none")
    assert value(ce[0]) < 0.1 < value(ce[1])
    assert value(logits.grad[0].abs().sum()) == 0
    assert value(logits.grad[1:].abs().min()) > 0
    assert value(clean) == pytest.approx(value((ce[1:] - 0.1).sum() / 3))
    assert value(total) == pytest.approx(0.5 * value(clean))


def test_the_hinge_of_the_mean_and_the_rescaling():
    logits = torch.tensor([[9.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    y, distance = torch.tensor([0, 0]), torch.tensor(2.0, dtype=torch.float64)
    ce = F.cross_entropy(logits, y)
    total, clean = D3(lam=10.0, hinge="mean").loss(logits, y, distance)
    assert value(clean) == pytest.approx(value(ce) - 0.1)
    assert value(total) == pytest.approx((10 * (value(ce) - 0.1) - 2) / 11)
    total, _ = D3(lam=0.5, hinge="mean").loss(logits, y, distance)
    assert value(total) == pytest.approx(0.5 * (value(ce) - 0.1) - 2)
    assert value(D3(eps=5.0, hinge="mean").loss(logits, y, distance)[1]) == 0


@pytest.mark.parametrize("lam", [0.5, 3.0, 10.0])
def test_d3_is_fst_in_the_tangent_space(lam):
    """With eps = 0 and alpha = 1 / (lam ||W - W0||), the first steps agree along the sphere (and differ across it)."""
    model = LinearFeatures().double()
    pushed = pushed_from(model)
    pushed.start("random", torch.Generator().manual_seed(2))
    draw = torch.Generator().manual_seed(0)
    x, y = torch.rand(16, 1, 8, 8, generator=draw, dtype=torch.float64), torch.arange(16) % 4
    weight = model.head.weight

    def tangent(loss: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (g,) = torch.autograd.grad(loss, weight)
        radial = (g * weight).sum() * weight / (weight * weight).sum()
        return (g - radial).detach(), g

    alpha = 1 / (lam * value(pushed.distance()))
    total, _ = D3(lam=lam, eps=0.0).loss(model(x), y, pushed.distance())
    scale = lam / (lam + 1) if lam > 1 else lam  # what D3's total multiplies the cross-entropy with
    ours, full = tangent(total / scale)
    theirs, other = tangent(FST(alpha=alpha).loss(model(x), y, pushed.inner_product()))
    torch.testing.assert_close(ours, theirs, atol=1e-14, rtol=1e-12)
    assert not torch.allclose(full, other)


# the sign symmetry


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3, 3)])
def test_the_unsigned_measure_ignores_flipped_inputs(shape):
    draw = torch.Generator().manual_seed(0)
    new, old = (torch.randn(shape, generator=draw, dtype=torch.float64) for _ in range(2))
    unsigned, euclidean = MEASURES["unsigned"], MEASURES["euclidean"]
    flips = torch.tensor([1, -1, 1, 1, -1, -1, 1.0]).double().view(1, 7, *([1] * (len(shape) - 2)))
    torch.testing.assert_close(unsigned(new * flips, old), unsigned(new, old))
    torch.testing.assert_close(unsigned(new, old * flips), unsigned(new, old))
    assert value(unsigned(old * flips, old)) < 1e-5
    assert value(euclidean(old * flips, old)) > 1  # the control: plain distance is bought by the flip
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 7)
    best = min(value(euclidean(new * s.view_as(flips), old)) for s in signs)
    assert value(unsigned(new, old)) == pytest.approx(best)  # it is the distance to the nearest of all flips


def test_the_antipode_of_head_and_features_is_the_same_function():
    model = LinearFeatures().double()
    pushed = pushed_from(model)
    x = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = model(x)
    with torch.no_grad():
        model.head.weight.neg_()
        model.side.weight.neg_()
        model.side.bias.neg_()
    torch.testing.assert_close(model(x), before)  # nothing has been repaired, yet
    assert value(pushed.distance()) == pytest.approx(2 * value(pushed.norms["head"]))  # the distance is the largest there is
    assert value(pushed.distance("unsigned")) < 1e-5  # and this measure is not fooled
    assert pushed.report()["cosine"] == pytest.approx(-1)
    assert pushed.report()["cosine_unsigned"] == pytest.approx(1)


def test_the_antipode_warns(split, run):
    model = LinearFeatures()
    model.card = split.card
    with pytest.warns(UserWarning, match="antipode"):
        D3(init="far", epochs=1, lr=1e-4).repair(model, split, run)
    assert run.history("d3")[-1]["cosine"] < -0.95
    D3(init="random", epochs=1, lr=1e-4).repair(model, split, run)  # a warning here would be an error
    assert run.history("d3")[-1]["cosine"] > -0.95


def test_near_starts_without_a_pull():
    model = LinearFeatures()
    pushed = pushed_from(model)
    pushed.start("near", torch.Generator())
    pushed.distance().backward()
    assert value(model.head.weight.grad.abs().sum()) == 0  # not NaN


@pytest.mark.parametrize("name", EVERY)
def test_the_log_holds_cosines_of_every_epoch(name, split, run):
    repaired(EVERY[name], LinearFeatures(), split, run)
    events = run.history(name)
    assert [e["epoch"] for e in events] == [1, 2, 3]
    assert all(-1.001 <= e["cosine_row_min"] <= e["cosine_row_max"] <= 1.001 for e in events)


@pytest.mark.parametrize("options", [{"lam": 0.0}, {"lam": float("nan")}, {"eps": -1.0}, {"hinge": "median"}, {"init": "fra"}])
def test_bad_options_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        D3(**options)
