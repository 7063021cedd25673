"""D3 and FST against golden vectors of the released codes: losses, gradients, two projected steps."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from theriac.repairs import D3, FST
from theriac.repairs._repulsion import Repulsion


@pytest.fixture
def vectors(golden):
    return golden("d3")


@pytest.fixture
def setting(vectors, tiny):
    """The model at the given new head, the repulsion from the old head, and the optimizer of both codes."""
    model = tiny(vectors, "w0_")
    pushed = Repulsion(model, "classifier", example=vectors["x"])
    with torch.no_grad():
        model.lin.weight.copy_(vectors["w_reinit"])
    return model, pushed, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def test_only_the_head_is_selected(setting, assert_near, vectors):
    model, pushed, _ = setting
    assert list(pushed.modules) == ["lin"]
    assert_near(pushed.w0["lin"], vectors["w0_lin_w"])
    assert_near(model.lin.weight.norm(), vectors["w0_lin_w"].norm())  # the given head lies on the sphere already


def test_values_at_the_new_head(setting, assert_near, vectors):
    model, pushed, _ = setting
    logits = model(vectors["x"])
    assert_near(logits, vectors["logits"])
    ce = F.cross_entropy(logits, vectors["y"], reduction="none")
    assert_near(ce, vectors["ce_per_sample"])
    assert_near(pushed.distance(), vectors["distance"])
    assert_near(pushed.inner_product(), vectors["fst_inner_product"])
    assert int((ce < 0.1).sum()) == 5  # the hinge is active for some rows and not for others


@pytest.mark.parametrize(("lam", "key"), [(0.5, "lam05"), (10.0, "lam10")])
def test_d3(setting, vectors, assert_near, assert_same_weights, lam, key):
    model, pushed, optimizer = setting
    method = D3(lam=lam)

    def backward() -> torch.Tensor:
        optimizer.zero_grad()
        total, clean = method.loss(model(vectors["x"]), vectors["y"], pushed.distance())
        total.backward()
        return total, clean

    total, clean = backward()
    assert_near(total, vectors[f"{key}_total"])
    assert_near(clean, vectors["clean_hinge"])
    assert_same_weights(model, vectors, f"{key}_grad_", grad=True)
    optimizer.step()
    assert_same_weights(model, vectors, f"{key}_step1_unprojected_")
    pushed.project()
    assert_same_weights(model, vectors, f"{key}_step1_")
    total, _ = backward()
    assert_near(total, vectors[f"{key}_step2_total"], 1e-9)
    assert_same_weights(model, vectors, f"{key}_step2_grad_", grad=True, tolerance=1e-9)
    optimizer.step()
    pushed.project()
    assert_same_weights(model, vectors, f"{key}_step2_", tolerance=1e-9)


def test_fst(setting, vectors, assert_near, assert_same_weights):
    model, pushed, optimizer = setting
    method = FST(alpha=0.2)

    def backward() -> torch.Tensor:
        optimizer.zero_grad()
        total = method.loss(model(vectors["x"]), vectors["y"], pushed.inner_product())
        total.backward()
        return total

    assert_near(F.cross_entropy(model(vectors["x"]), vectors["y"]), vectors["fst_clean_ce"])
    assert_near(backward(), vectors["fst_total"])
    assert_same_weights(model, vectors, "fst_grad_", grad=True)
    optimizer.step()
    assert_same_weights(model, vectors, "fst_step1_unprojected_")
    pushed.project()
    assert_same_weights(model, vectors, "fst_step1_")
    assert_near(backward(), vectors["fst_step2_total"], 1e-9)
    optimizer.step()
    pushed.project()
    assert_same_weights(model, vectors, "fst_step2_", tolerance=1e-9)
