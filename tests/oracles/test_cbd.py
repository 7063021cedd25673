"""CBD against golden vectors of the released code: weights, loss, one step of f_C, of f_B and of the critic."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from theriac.core.run import Run
from theriac.models import features
from theriac.training_defenses import CBD
from theriac.training_defenses.cbd.critic import Adversary, Critic

_CRITIC = {"in_w": "inner.weight", "in_b": "inner.bias", "out_w": "outer.weight", "out_b": "outer.bias"}


@pytest.fixture
def vectors(golden):
    return golden("cbd")


@pytest.fixture
def models(vectors, tiny):
    return tiny(vectors, "f_B_"), tiny(vectors, "f_C_")


def optimizer(model, lr):
    """As the training loop makes it from the recipe, in the first epoch of stage 2."""
    method = CBD.official()
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=method.momentum, nesterov=True, weight_decay=method.weight_decay)


@pytest.fixture
def adversary(vectors):
    """The given critic with the released code's optimizer and normalization; dropout off, as in the vectors."""
    method = CBD.official_mi()
    made = Adversary(
        4,
        Run(device="cpu"),
        scale=method.mi,
        lr=method.critic_lr,
        drop_every=method.critic_drop_every,
        quirk=method.critic_norm == "root",
        dropout=0.0,
    )
    made.critic.double().load_state_dict({full: vectors[f"E_{short}"] for short, full in _CRITIC.items()})
    return made


def forward(models, vectors):
    """Embeddings and losses of both models, f_B without gradients; logits and z of f_C keep theirs."""
    f_b, f_c = models
    with torch.no_grad():
        logits_b, r = features(f_b, example=vectors["x"])(vectors["x"])
    logits, z = features(f_c, example=vectors["x"])(vectors["x"])
    logits.retain_grad()
    z.retain_grad()
    ce = [F.cross_entropy(values, vectors["y"], reduction="none") for values in (logits_b, logits)]
    return logits_b, logits, r, z, *ce


def test_outputs_and_losses(models, vectors, assert_near):
    logits_b, logits, r, z, ce_b, ce_c = forward(models, vectors)
    assert_near(logits_b, vectors["logits_f_B"])
    assert_near(logits, vectors["logits_f_C"])
    assert_near(r, vectors["hidden_r_f_B"])
    assert_near(z, vectors["hidden_z_f_C"])
    assert_near(ce_b, vectors["ce_f_B"])
    assert_near(ce_c, vectors["ce_f_C"])


def test_weights(models, vectors, assert_near):
    *_, ce_b, ce_c = forward(models, vectors)
    weight = CBD().weights(ce_b, ce_c)
    assert_near(weight, vectors["weight_raw"])
    assert not weight.requires_grad
    assert_near(weight * 8 / weight.sum(), vectors["weight_norm"])
    assert_near((vectors["weight_norm"] * ce_c).mean(), vectors["loss"])


def test_step_of_f_c(models, vectors, assert_near, assert_same_weights):
    f_c = models[1]
    _, logits, _, _, ce_b, ce_c = forward(models, vectors)
    method = CBD.official()
    loss = method.loss(method.weights(ce_b, ce_c), ce_c)
    assert_near(loss, vectors["loss"])
    steps = optimizer(f_c, method.lr)
    loss.backward()
    assert_near(logits.grad, vectors["grad_logits_f_C"])
    assert_same_weights(f_c, vectors, "grad_f_C_", grad=True)
    steps.step()
    assert_same_weights(f_c, vectors, "f_C_after_")


def test_critic_value_and_gradients(models, vectors, adversary):
    _, _, r, z, _, _ = forward(models, vectors)
    value = adversary.value(r, z)
    value.backward()

    def relative(got, name):  # E is about 4e-5, so an absolute tolerance would say little
        torch.testing.assert_close(got.detach(), vectors[name], rtol=1e-10, atol=1e-14)

    relative(value, "E_value")
    relative(z.grad, "E_grad_z")
    own = dict(adversary.critic.named_parameters())
    for short, full in _CRITIC.items():
        relative(own[full].grad, f"E_grad_{short}")


def test_critic_step_with_the_official_root(models, vectors, assert_near, adversary):
    _, _, r, z, _, _ = forward(models, vectors)
    adversary.ascend(r, z, 0)
    own = dict(adversary.critic.named_parameters())
    for short, full in _CRITIC.items():
        assert_near(own[full], vectors[f"dis_E_after_{short}"])


def test_the_corrected_normalization_differs(models, vectors, adversary):
    _, _, r, z, _, _ = forward(models, vectors)
    adversary.quirk = False
    adversary.ascend(r, z, 0)
    norm = torch.linalg.matrix_norm(adversary.critic.inner.weight, 2)
    torch.testing.assert_close(norm, torch.ones_like(norm), rtol=1e-6, atol=0)
    assert not torch.allclose(adversary.critic.inner.weight, vectors["dis_E_after_in_w"], atol=1e-3)


def test_step_of_f_c_with_the_critic(models, vectors, assert_near, assert_same_weights, adversary):
    f_b, f_c = models
    _, logits, r, z, ce_b, ce_c = forward(models, vectors)
    adversary.ascend(r, z, 0)
    method = CBD.official_mi()
    weight = method.weights(ce_b, ce_c)
    assert_near(weight * 8 / weight.sum(), vectors["dis_weight_norm"])
    e = adversary.penalty(r, z)
    torch.testing.assert_close(e.detach(), vectors["dis_E_value"], rtol=1e-8, atol=0)
    total = method.loss(weight, ce_c) + e
    assert_near(total, vectors["dis_total"])
    steps = optimizer(f_c, method.lr)
    critic = {name: value.clone() for name, value in adversary.critic.state_dict().items()}
    total.backward()
    assert_near(logits.grad, vectors["dis_grad_logits_f_C"])
    assert_near(z.grad, vectors["dis_grad_z"])
    assert_same_weights(f_c, vectors, "dis_grad_f_C_", grad=True)
    steps.step()
    assert_same_weights(f_c, vectors, "dis_f_C_after_")
    assert all(torch.equal(value, critic[name]) for name, value in adversary.critic.state_dict().items())
    assert all(p.grad is None for p in f_b.parameters())


def test_step_of_f_b(models, vectors, assert_near, assert_same_weights):
    f_b = models[0]
    steps = optimizer(f_b, CBD.official().stage1_lr)
    loss = CBD.official().biased_objective(f_b(vectors["x"]), vectors["y"])
    assert_near(loss, vectors["f_B_step_loss"])
    loss.backward()
    assert_same_weights(f_b, vectors, "f_B_step_grad_", grad=True)
    steps.step()
    assert_same_weights(f_b, vectors, "f_B_step_after_")


def test_the_critic_has_the_published_size():
    assert sum(p.numel() for p in Critic(64).parameters()) == 8321
