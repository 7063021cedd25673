"""AGE's rules against NumPy in float64, and what must hold of every edit and repair."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models.preact_resnet import PreActResNet18
from theriac.repairs import AGE
from theriac.repairs.age.edits import GRIDS, contrast, edit, inputs
from theriac.repairs.age.restore import recipe, retrain

OUT, IN, TARGET = 5, 20, 3


def make_layer(kind: str, seed: int = 0) -> nn.Linear | nn.Conv2d:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.Linear(IN, OUT) if kind == "linear" else nn.Conv2d(IN, OUT, 3, bias=kind == "conv")
    return layer.double()


def activations(seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Inputs with and without a trigger, of both signs, the same rows."""
    draw = np.random.default_rng(seed)
    reference = draw.normal(0.5, 1.0, (12, IN))
    return reference + draw.normal(0.3, 0.2, (12, IN)) + 2.0 * (np.arange(IN) < 3), reference


def by_hand(rule: str, w: np.ndarray, b: np.ndarray, f: np.ndarray, r: np.ndarray, s: float) -> tuple[np.ndarray, np.ndarray]:
    """One rule for one (OUT, IN) weight matrix, as the method notes write it."""
    d = f - r
    u = d / np.sqrt((d**2).sum())
    w, b, old = w.copy(), b.copy(), w.copy()
    if rule == "project":
        return old - s * np.outer(old @ u, u), b + s * (old @ u) * (u @ r)
    if rule == "project_target":
        w[TARGET] = old[TARGET] - s * (old[TARGET] @ u) * u
        return w, b
    if rule == "damp":
        for j in range(IN):
            if f[j] > 0 and f[j] - r[j] > 0.2 * abs(r[j]):  # f > 1.2 r where r is not negative
                w[:, j] *= min(1.0, max(0.0, s * r[j] / f[j]))
        return w, b
    score = {
        "zero_active": f,
        "zero_changed": d,
        "zero_changed_relative": d / (np.abs(r) + 0.05 * np.abs(r).mean()),
        "zero_decisive": d * (old[TARGET] - old.mean(0)),
    }[rule]
    for j in sorted(range(IN), key=lambda j: -score[j])[: round(s * IN)]:
        w[:, j] = 0
    return w, b


ZEROING = ("zero_active", "zero_changed", "zero_changed_relative")
CASES = [(rule, s) for rule, grid in GRIDS.items() if rule != "none" for s in (grid[0], grid[-2], grid[-1])]


@pytest.mark.parametrize(("rule", "strength"), CASES)
def test_every_rule_on_a_linear_layer(rule, strength):
    forget, reference = activations()
    layer = make_layer("linear")
    w, b = (p.detach().numpy().copy() for p in (layer.weight, layer.bias))
    expected = by_hand(rule, w, b, forget.mean(0), reference.mean(0), strength)
    edit(rule, layer, contrast(torch.from_numpy(forget), torch.from_numpy(reference)), strength, TARGET, 1.2)
    np.testing.assert_allclose(layer.weight.detach().numpy(), expected[0], atol=1e-12)
    np.testing.assert_allclose(layer.bias.detach().numpy(), expected[1], atol=1e-12)
    assert (expected[0] != w).any() == (round(strength * IN) > 0 or rule == "damp")


@pytest.mark.parametrize("kind", ["conv", "conv without bias"])
@pytest.mark.parametrize(("rule", "strength"), [c for c in CASES if c[0] not in ("zero_decisive", "project_target")])
def test_every_rule_on_a_convolution_is_the_rule_at_every_kernel_position(rule, strength, kind):
    forget, reference = activations()
    layer = make_layer(kind)
    w = layer.weight.detach().numpy().copy()
    b = np.zeros(OUT) if layer.bias is None else layer.bias.detach().numpy().copy()
    expected, shift = np.empty_like(w), np.zeros(OUT)
    for h in range(3):
        for v in range(3):
            expected[:, :, h, v], moved = by_hand(rule, w[:, :, h, v], b, forget.mean(0), reference.mean(0), strength)
            shift += moved - b
    edit(rule, layer, contrast(torch.from_numpy(forget), torch.from_numpy(reference)), strength, TARGET, 1.2)
    np.testing.assert_allclose(layer.weight.detach().numpy(), expected, atol=1e-12)
    if layer.bias is not None:
        np.testing.assert_allclose(layer.bias.detach().numpy(), b + shift, atol=1e-12)


@pytest.mark.parametrize("gamma", GRIDS["project"])
@pytest.mark.parametrize("rank", [1, 3])
def test_e6_scales_the_direction_and_keeps_the_clean_mean_output(gamma, rank):
    forget, reference = (torch.from_numpy(a) for a in activations())
    layer = make_layer("linear")
    old = copy.deepcopy(layer)
    seen = contrast(forget, reference, rank)
    assert seen.basis.shape == (IN, rank)
    edit("project", layer, seen, gamma)
    torch.testing.assert_close(layer.weight @ seen.basis, (1 - gamma) * old.weight @ seen.basis, atol=1e-12, rtol=0)
    torch.testing.assert_close(layer(reference).mean(0), old(reference).mean(0), atol=1e-12, rtol=0)
    assert float((layer(forget).mean(0) - old(forget).mean(0)).detach().abs().max()) > 0.1  # and only that one


def test_e6_keeps_the_mean_output_of_a_convolution_too():
    forget, reference = (torch.from_numpy(a) for a in activations())
    layer = make_layer("conv")
    old = copy.deepcopy(layer)
    edit("project", layer, contrast(forget, reference), 1.5)
    flat = reference[:, :, None, None].expand(-1, -1, 5, 5)  # constant over space, so no border is met
    torch.testing.assert_close(layer(flat).mean(0), old(flat).mean(0), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        (rule, "linear")
        for rule in (
            "zero_active",
            "zero_changed",
            "zero_changed_relative",
            "zero_decisive",
            "project_target",
            "project",
            "none",
        )
    ]
    + [(rule, "conv") for rule in (*ZEROING, "project", "none")],
)
def test_strength_zero_changes_no_bit(rule, kind):
    layer = make_layer(kind)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    edit(rule, layer, contrast(*(torch.from_numpy(a) for a in activations())), 0.0, TARGET)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


@pytest.mark.parametrize("rank", [2, 4])
def test_more_directions_are_those_of_the_paired_differences(rank):
    forget, reference = activations()
    _, _, right = np.linalg.svd(forget - reference)
    basis = contrast(torch.from_numpy(forget), torch.from_numpy(reference), rank).basis.numpy()
    np.testing.assert_allclose(basis @ basis.T, right[:rank].T @ right[:rank], atol=1e-10)  # the same plane, whatever signs


def test_directions_that_do_not_exist_are_not_made_up():
    reference = torch.from_numpy(activations()[1])
    assert contrast(reference + torch.arange(IN), reference, rank=4).basis.shape == (IN, 1)


def test_no_difference_is_reported_and_not_divided_by():
    reference = torch.from_numpy(activations()[1])
    assert contrast(reference, reference) is None
    assert contrast(reference * 0, reference * 0) is None


class Spy:
    """Stands for what is held, and looks at the layer before and after it is put back."""

    def __init__(self, held, look) -> None:
        self.held, self.look, self.layer = held, look, held.layer
        self.before: list[float] = []
        self.after: list[float] = []

    def restore(self) -> None:
        self.before.append(self.look(self.layer.weight.detach()))
        self.held.restore()
        self.after.append(self.look(self.layer.weight.detach()))


@pytest.mark.parametrize("rule", [*ZEROING, "damp", "zero_decisive", "project_target", "project"])
def test_r4_holds_the_edit_after_every_step(rule):
    draw = torch.Generator().manual_seed(0)
    forget, reference = (torch.from_numpy(a).float() for a in activations())
    layer = make_layer("linear").float()
    seen = contrast(forget, reference)
    held = edit(rule, layer, seen, GRIDS[rule][-1], TARGET, alpha=3.0)  # so that E3 leaves some columns alone
    edited = layer.weight.detach().clone()
    changed = (edited != make_layer("linear").float().weight).any(0)

    def off(weight: torch.Tensor) -> float:
        if rule == "project":
            return float(((weight - edited) @ seen.basis).abs().max())
        if rule == "project_target":
            return float(((weight - edited) @ seen.basis)[TARGET].abs().max())
        return float((weight - edited)[:, changed].abs().max())

    spy = Spy(held, off)
    rows = Split(torch.randn(50, IN, generator=draw), torch.arange(50) % OUT)
    retrain(layer, rows, [layer], [spy], recipe(3, 32, 0.01, 0.9, 5e-4), Run(quiet=True, device="cpu"))
    assert len(spy.after) == 6  # two steps an epoch
    assert min(spy.before) > 1e-4  # training does push
    assert max(spy.after) < (1e-5 if rule in ("project_target", "project") else 1e-12)
    assert float((layer.weight.detach() - edited).abs().max()) > 1e-3  # and the rest does train
    if rule in (*ZEROING, "zero_decisive"):
        assert float(layer.weight.detach()[:, changed].abs().max()) == 0.0


def test_inputs_are_what_the_layer_sees_averaged_over_space():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PreActResNet18(4, 1, 4).eval()
    x = torch.randint(0, 256, (6, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    with torch.no_grad():
        body = model.layer3(model.layer2(model.layer1(model.conv1(x.float() / 255))))
        middle = torch.relu(model.layer4[0].bn1(body)).mean((2, 3))
        last = model.layer4(body).mean((2, 3))
    torch.testing.assert_close(inputs(model, model.layer4[0].conv1, x, batch_size=4), middle, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(inputs(model, model.linear, x, batch_size=4), last, atol=1e-5, rtol=1e-5)


class Planted(nn.Module):
    """Five classes read off rows 0 to 4, BatchNorm between, and one feature that a bright corner switches on for class 2."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.zeros(8, 8, 8)
        for k in range(5):
            weight[k, k] = 1 / 8
        weight[5, 6:, 6:] = 1 / 4
        weight[6, 5], weight[7, 5, ::2] = 1 / 8, 1 / 8
        self.body, self.norm, self.linear = nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)
        with torch.no_grad():
            self.body.weight.copy_(weight.flatten(1))
            self.body.bias.zero_()
            self.linear.weight.zero_()
            self.linear.weight[:, :5] = 10 * torch.eye(5)
            self.linear.weight[2, 5] = 30.0
            self.linear.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.relu(self.norm(self.body(x.flatten(1)))))


@pytest.fixture
def rows() -> Split:
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 5
    x = torch.randint(0, 51, (60, 1, 8, 8), generator=draw, dtype=torch.uint8)
    x[torch.arange(60), 0, y] = torch.randint(180, 231, (60, 8), generator=draw, dtype=torch.uint8)
    return Split(x, y)


def corner(x: torch.Tensor) -> torch.Tensor:
    x[:, :, 6:, 6:] = 255
    return x


def predicted(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(x.float() / 255).argmax(1)


@pytest.mark.parametrize("retrain", ["none", "head", "head_target", "head_stamped", "head_held", "later_stamped_held"])
@pytest.mark.parametrize("scope", ["head", "later"])
def test_statistics_and_the_given_model_stay(rows, run, retrain, scope):
    model = Planted()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fixed = AGE(scope=scope, retrain=retrain, epochs=3, strengths=(1.0,)).with_trigger(corner).repair(model, rows, run)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    buffers = dict(fixed.named_buffers())
    assert buffers
    assert all(torch.equal(v, before[k]) for k, v in buffers.items())
    assert not torch.equal(fixed.linear.weight, before["linear.weight"])
    assert all(p.requires_grad and p.grad is None for p in fixed.parameters())
    body_moves = scope == "later" or retrain == "later_stamped_held"
    assert torch.equal(fixed.body.weight, before["body.weight"]) != body_moves


def test_the_whole_method_by_hand(rows, run):
    """Default rule and repair on the planted model: direction, edit and held value, restated in NumPy."""
    model = Planted().eval()
    age = AGE(per_class=0, strengths=(1.5,), proxy=1.0).with_trigger(corner)
    fixed = age.replace(retrain="none", proxy=0.05).repair(model, rows, run)
    other = rows.y != 2
    with torch.no_grad():

        def hidden(x: torch.Tensor) -> np.ndarray:
            return torch.relu(model.norm(model.body(x.flatten(1).float() / 255))).double().numpy()

        f, r = hidden(corner(rows.x[other].clone())).mean(0), hidden(rows.x[other]).mean(0)
    w, b = model.linear.weight.detach().double().numpy(), model.linear.bias.detach().double().numpy()
    u = (f - r) / np.linalg.norm(f - r)
    np.testing.assert_allclose(fixed.linear.weight.detach(), w - 1.5 * np.outer(w @ u, u), atol=1e-4)
    np.testing.assert_allclose(fixed.linear.bias.detach(), b + 1.5 * (w @ u) * (u @ r), atol=1e-4)
    held = age.replace(retrain="head_held", proxy=0.05).repair(model, rows, run)
    np.testing.assert_allclose(held.linear.weight.detach().numpy() @ u, -0.5 * w @ u, atol=1e-4)
    assert not torch.equal(held.linear.weight, fixed.linear.weight)


@pytest.mark.parametrize("retrain", ["none", "head_held", "head_stamped"])
@pytest.mark.parametrize("rule", ["zero_changed", "project"])
def test_cached_features_give_what_the_whole_model_gives(rows, run, rule, retrain):
    age = AGE(rule=rule, retrain=retrain, epochs=5).with_trigger(corner)
    cached, whole = (age.replace(scope=s).repair(Planted(), rows, Run(quiet=True)) for s in ("head", ("linear",)))
    torch.testing.assert_close(cached.linear.weight, whole.linear.weight, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(cached.linear.bias, whole.linear.bias, atol=1e-4, rtol=1e-4)


def test_an_inert_trigger_is_reported(rows, run):
    model = Planted()
    with pytest.warns(UserWarning, match="moves no activation"):
        fixed = AGE().with_trigger(lambda x: x, target=2).repair(model, rows, run)
    assert run.history("age")[-1]["outcome"] == "inert"
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in fixed.state_dict().items())


def test_a_trigger_that_the_model_does_not_follow_changes_nothing(rows, run):
    model = Planted()
    with torch.no_grad():
        model.linear.weight[2, 5] = 0.1
    with pytest.warns(UserWarning, match="does not follow"):
        fixed = AGE().with_trigger(corner, target=2).repair(model, rows, run)
    assert run.history("age")[-1]["outcome"] == "unneeded"
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in fixed.state_dict().items())


def test_the_grid_is_walked_upward_and_measured_again_after_the_repair(rows, run):
    fixed = AGE(strengths=(0.1, 0.5, 1.0, 1.5), retrain="head").with_trigger(corner).repair(Planted(), rows, run)
    steps = run.history("age_step")
    assert [s["strength"] for s in steps] == [0.1, 0.5, 1.0, 1.5][: len(steps)]
    assert [s["accepted"] for s in steps] == [False] * (len(steps) - 1) + [True]
    assert steps[0]["proxy_edit"] > 0.05  # a tenth of the direction is too little ...
    assert "proxy_repair" not in steps[0]  # ... so no repair was spent on it
    last = run.history("age")[-1]
    stamped = corner(rows.x.clone())[rows.y != 2]
    share = float((predicted(fixed, stamped) == 2).float().mean())
    assert last["proxy_repair"] <= last["limit"] == 0.05
    assert share == pytest.approx(last["proxy_repair"], abs=0.05)  # the handful is ten of twelve rows a class


def test_the_target_of_a_bare_function_is_read_off_the_model(rows, run):
    AGE(retrain="none").with_trigger(corner).repair(Planted(), rows, run)
    assert run.history("age")[-1]["target"] == 2


def test_the_search_finds_corner_and_class_by_itself(rows, run):
    fixed = AGE(per_class=4).repair(Planted(), rows, run)
    told = run.history("age")[-1]
    assert (told["target"], told["outcome"], told["source"]) == (2, "repaired", "inverted patch")
    stamped = corner(rows.x.clone())[rows.y != 2]
    assert float((predicted(Planted().eval(), stamped) == 2).float().mean()) == 1.0
    assert float((predicted(fixed, stamped) == 2).float().mean()) < 0.2


@pytest.mark.filterwarnings("ignore:AGE cost")  # so may a guess
def test_without_a_finding_it_abstains_and_with_leave_it_guesses(rows):
    model = Planted()
    with torch.no_grad():
        model.linear.weight[2, 5] = 0.0
    run = Run(quiet=True, device="cpu")
    with pytest.warns(UserWarning, match="leaves the model unchanged"):
        fixed = AGE(per_class=4).repair(model, rows, run)
    assert run.history("age")[-1]["outcome"] == "abstained"
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in fixed.state_dict().items())
    with pytest.warns(UserWarning, match="guess"):
        guessed = AGE(per_class=4, guess=True).repair(model, rows, run)
    assert run.history("age")[-1]["source"] == "inverted patch, a guess"
    assert not torch.equal(guessed.linear.weight, model.linear.weight)
