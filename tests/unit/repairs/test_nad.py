"""NAD: its maps and its loss against numpy, the layers that it compares, and a teacher that stays."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from theriac.core.errors import InputError
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models import to_input
from theriac.repairs import FT, NAD
from theriac.repairs.nad import attention, distance, stages, watching


def by_numpy(feature: torch.Tensor, power: float = 2.0) -> np.ndarray:
    size = (np.abs(feature.detach().numpy()) ** power).sum(1).reshape(len(feature), -1)
    return size / np.sqrt((size**2).sum(1, keepdims=True))


@pytest.fixture
def clean(digits) -> Split:
    return digits.train.sample(240, seed=3, stratified=True)


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
def test_a_map_equals_numpy_s(power):
    feature = torch.randn(5, 7, 3, 4, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(attention(feature, power).numpy(), by_numpy(feature, power), rtol=1e-5)


def test_tokens_are_positions_and_units_are_where_there_are_none():
    draw = torch.Generator().manual_seed(0)
    tokens, vectors = torch.randn(5, 4, 7, generator=draw), torch.randn(5, 6, generator=draw)
    np.testing.assert_allclose(attention(tokens).numpy(), by_numpy(tokens.transpose(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(attention(vectors).numpy(), by_numpy(vectors[:, None]), rtol=1e-5)


def test_a_map_of_one_position_says_nothing():
    """The fault of the port's third term: constant, whatever the features."""
    feature = torch.randn(5, 7, 1, 1, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.allclose(attention(feature), torch.ones(5, 1))
    attention(feature).sum().backward()
    assert feature.grad is not None
    assert float(feature.grad.abs().max()) < 1e-6


def test_the_distance_equals_numpy_s():
    draw = torch.Generator().manual_seed(0)
    one, two = ({n: torch.randn(5, 7, s, s, generator=draw) for n, s in (("a", 4), ("b", 2))} for _ in range(2))
    by_hand = sum(b * ((by_numpy(one[n]) - by_numpy(two[n])) ** 2).mean() for n, b in (("a", 500.0), ("b", 1000.0)))
    assert float(distance(one, two, ("a", "b"), (500.0, 1000.0))) == pytest.approx(by_hand, rel=1e-5)
    assert float(distance(one, one, ("a", "b"), (500.0, 1000.0))) == 0


def test_one_step_of_the_student_equals_the_formula_by_hand(clean, run):
    """After a teacher of one epoch: cross-entropy plus the distance, one step of SGD; the teacher is what FT makes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Conv2d(5, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 10))
    given = copy.deepcopy(net)
    method = NAD(teacher_epochs=1, epochs=1, batch_size=240, lr=0.05, momentum=0.0, weight_decay=0.0)
    assert stages(net, to_input(clean.x[:1]), 2) == ("1", "3")
    fixed = method._repair(net, clean, run)

    from theriac.data.augment import augment

    def step(model: nn.Module, label: str, teacher: nn.Module | None) -> None:
        order = torch.randperm(240, generator=run.generator("order", label, 0))
        rows = augment(clean.rows(order), clean.card.augment, run.generator("augment", label, 0))
        x, y = to_input(rows), clean.y[order]
        loss = nn.functional.cross_entropy(model(x), y)
        if teacher is not None:
            for k, beta in ((2, 500.0), (4, 1000.0)):
                loss = loss + beta * ((attention(model[:k](x)) - attention(teacher[:k](x).detach())) ** 2).mean()
        slopes = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), slopes, strict=True):
                p -= 0.05 * g

    teacher, student = copy.deepcopy(given), copy.deepcopy(given)
    step(teacher, "nad_teacher", None)
    step(student, "nad", teacher)
    for one, other in zip(fixed.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert run.history("nad")[-1]["gap"] > 0


def test_the_student_starts_at_the_given_model_and_the_teacher_is_frozen(trained, clean, run, monkeypatch):
    import theriac.repairs.nad as module

    seen = []

    def spy(model, *args, **options):
        seen.append((options["label"], copy.deepcopy(model.state_dict()), model))
        return loop(model, *args, **options)

    loop = module.loop
    monkeypatch.setattr(module, "loop", spy)
    fixed = NAD(teacher_epochs=1, epochs=2).repair(trained, clean, run)
    (first, start, teacher), (second, begun, student) = seen
    assert (first, second) == ("nad_teacher", "nad")
    assert all(torch.equal(v, begun[k]) and torch.equal(v, start[k]) for k, v in trained.state_dict().items())
    assert student is fixed
    assert teacher is not student
    # it is plain fine-tuning at a constant rate, and two epochs of the student have not moved it
    again = module.loop(
        copy.deepcopy(trained), clean, Run(precision="fp32", device="cpu", quiet=True), NAD().recipe(1), label="nad_teacher"
    )
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in teacher.state_dict().items())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(m._forward_hooks for m in (*fixed.modules(), *teacher.modules()))


def test_without_weight_on_the_maps_it_is_fine_tuning(trained, clean, run):
    method = NAD(teacher_epochs=1, epochs=2, betas=(0.0, 0.0))
    fixed = method.repair(trained, clean, run)
    other = FT(epochs=2).recipe().replace(schedule="constant")
    from theriac.training import loop

    plain = loop(copy.deepcopy(trained), clean, run, other, label="nad")
    for one, two in zip(fixed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_the_port_s_statistics_take_each_batch_in_four_times(trained, clean, run):
    """Momentum 0.1 four times on the same batch: what is left of the old statistics is 0.9^4."""
    options = {"teacher_epochs": 1, "epochs": 1, "batch_size": 240}
    once, four = (NAD(**options, statistics=n).repair(trained, clean, run) for n in (1, 4))
    for name, old in trained.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            batch = (once.get_buffer(name) - 0.9 * old) / 0.1
            torch.testing.assert_close(four.get_buffer(name), 0.9**4 * old + (1 - 0.9**4) * batch, rtol=1e-3, atol=1e-4)
    assert all(m.momentum == 0.1 for m in four.modules() if isinstance(m, nn.BatchNorm2d))


def test_it_compares_the_last_two_stages_that_have_positions(digits, narrow):
    example = to_input(digits.train.x[:1])
    net = narrow(digits.train)
    assert stages(net, example, 2) == ("net.layer2", "net.layer3")  # layer4 has one position on 8 x 8 pictures
    assert stages(net, torch.rand(1, 1, 32, 32), 2) == ("net.layer3", "net.layer4")


def test_networks_without_maps_are_compared_by_units(digits):
    example = to_input(digits.train.x[:1])
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 10))
    assert stages(net, example, 2) == ("2", "4")
    with pytest.raises(InputError, match="no layer before the logits"):
        stages(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), example, 2)


def test_named_layers_are_taken_and_unknown_ones_refused(trained, clean, run):
    fixed = NAD(teacher_epochs=1, epochs=1, layers=("net.layer1",), betas=(100.0,)).repair(trained, clean, run)
    assert fixed is not trained
    with pytest.raises(InputError, match=r"unknown layer.*net.layer1"):
        NAD(layers=("net.layr1",), betas=(100.0,)).repair(trained, clean, run)
    with pytest.raises(InputError, match="one number for each of the 1 layers"):
        NAD(layers=("net.layer1",))


def test_watching_leaves_no_hook_even_if_the_pass_fails(trained):
    with pytest.raises(RuntimeError), watching(trained, ("net.layer1",)):
        trained(torch.zeros(1, 5, 8, 8))
    assert not trained.net.layer1._forward_hooks


def test_the_presets_hold_the_numbers_of_their_sources():
    made = NAD.official()
    assert (made.teacher_epochs, made.epochs, made.batch_size, made.lr) == (10, 10, 256, 0.01)
    assert (made.betas, made.power, made.statistics) == ((500.0, 1000.0), 2.0, 4)
    assert NAD.corrected() == NAD() == made.replace(statistics=1)


def test_a_named_layer_that_gives_no_rows_is_refused(clean, run):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair, self.unused, self.last = nn.LSTM(8, 6, batch_first=True), nn.Linear(2, 2), nn.Linear(6, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.pair(x[:, 0])[0][:, -1])

    for layer, what in (("pair", "gives a tuple"), ("unused", "does not run")):
        with pytest.raises(InputError, match=f"layer '{layer}' {what}"):
            NAD(layers=(layer,), betas=(1.0,))._repair(Net(), clean, run)
