"""One pass over all rows: the same numbers as a loop by hand, and no trace left in the model."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import theriac as th
from theriac.core.errors import InputError
from theriac.core.run import Run
from theriac.detectors.neural_cleanse import Schedule, invert
from theriac.metrics import flip_rate, predict
from theriac.models import features, over_rows, run_over, to_input
from theriac.training.flat import sharpness
from theriac.triggers.bank import image_bank


def test_logits_equal_a_loop_by_hand(trained, digits, run):
    rows = digits.test.take(torch.arange(100))
    with torch.no_grad():
        by_hand = torch.cat([trained(to_input(rows.x[at : at + 32])) for at in range(0, 100, 32)])
    seen = run_over(trained, rows, run=run, batch_size=32)
    assert torch.equal(seen, by_hand)
    assert torch.equal(predict(trained, rows, run=run, batch_size=32), by_hand)
    assert not seen.is_inference()  # it may be used in a loss later


def test_features_are_the_input_of_the_head_or_of_the_layer_named(trained, digits, run):
    rows = digits.test.take(torch.arange(40))
    seen = run_over(trained, rows, "features", run=run)
    assert torch.equal(seen, run_over(trained, rows, "net.linear", run=run))
    with torch.no_grad():
        assert torch.allclose(trained.net.linear(seen), run_over(trained, rows, run=run), atol=1e-5)
        wanted = features(trained, "net.layer2")(to_input(rows.x))[1]
    assert torch.allclose(run_over(trained, rows, "net.layer2", run=run), wanted, atol=1e-6)


def test_modes_weights_and_statistics_stay(trained, digits, run):
    before = {k: v.clone() for k, v in trained.state_dict().items()}
    trained.train()
    trained.net.layer1.eval()
    try:
        modes = [m.training for m in trained.modules()]
        run_over(trained, digits.test, "features", run=run)
        assert [m.training for m in trained.modules()] == modes
    finally:
        trained.eval()
    assert all(torch.equal(v, before[k]) for k, v in trained.state_dict().items())


def test_precision_is_the_run_s(trained, digits):
    rows = digits.test.take(torch.arange(20))
    seen = []
    tell = trained.net.linear.register_forward_hook(lambda m, x, out: seen.append(out.dtype))
    run = Run(precision="fp32", device="cpu", quiet=True)
    run.dtype = torch.bfloat16
    try:
        out = run_over(trained, rows, run=run)
    finally:
        tell.remove()
    assert seen == [torch.bfloat16]
    assert out.dtype == torch.float32


@pytest.mark.parametrize(
    ("model", "want", "why"),
    [
        ("model", "logits", "model is a str"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), "logits", r"expected \(.*10\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(9, 10)), "features", "can't take"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "2", "unknown layer"),
    ],
)
def test_bad_input_is_refused(model, want, why, digits, run):
    with pytest.raises(InputError, match=why):
        run_over(model, digits.test, want, run=run)


def test_a_function_answers_for_all_rows_as_its_caller_set_it_up(trained, digits, run):
    rows = digits.test.take(torch.arange(20))
    modes = []

    def answer(x, at):
        modes.append((torch.is_grad_enabled(), len(at)))
        return trained(x).argmax(1) * 100 + at

    expected = run_over(trained, rows, run=run).argmax(1) * 100 + torch.arange(20)
    assert torch.equal(over_rows(answer, rows, run=run, batch_size=8), expected)
    assert modes == [(False, 8), (False, 8), (False, 4)]
    assert torch.equal(over_rows(answer, rows), expected)


def test_rows_and_batches_are_checked(trained, digits, run):
    with pytest.raises(InputError, match="split is a Tensor"):
        run_over(trained, digits.test.x, run=run)
    with pytest.raises(InputError, match="batch_size is 0"):
        run_over(trained, digits.test, run=run, batch_size=0)


class FarAway(nn.Module):
    """A model whose caller has it on another device, in name only: it notes where it is sent, and computes on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.home = nn.Parameter(torch.empty(1, device="meta"), requires_grad=False)
        self.head = nn.Linear(64, 10)
        self.sent: list[str] = []

    def to(self, device):
        self.sent.append(str(device))
        return self

    def forward(self, x):
        return self.head(x.flatten(1))


@pytest.mark.parametrize(
    "call",
    [
        lambda model, rows, run: run_over(model, rows, run=run),
        lambda model, rows, run: th.evaluate(model, rows, th.attacks.BadNets(), run=run),
        lambda model, rows, run: flip_rate(model, rows, image_bank(rows.card), run=run),
        lambda model, rows, run: sharpness(model, rows, 0.1, run=run),
        lambda model, rows, run: th.fairness(
            model, rows.replace(group=rows.y % 2, card=dataclasses.replace(rows.card, groups=("even", "odd"))), run=run
        ),
        lambda model, rows, run: th.detectors.ScaleUp().detect(model, rows=rows, run=run),
        lambda model, rows, run: invert(model, rows, run, Schedule.few_samples().replace(rounds=1, confirm=0), (0,)),
    ],
    ids=["run_over", "evaluate", "flip_rate", "sharpness", "fairness", "detect", "invert"],
)
def test_a_model_goes_back_to_the_device_where_its_caller_had_it(call, digits, run, recwarn):
    model, rows = FarAway().eval(), digits.test.take(torch.arange(60))
    call(model, rows, run)
    assert "cpu" in model.sent
    assert model.sent[-1] == "meta"


def test_a_model_goes_back_after_a_failure_too(digits, run):
    model, rows = FarAway().eval(), digits.test.take(torch.arange(60))
    with pytest.raises(InputError, match="no row to count"):
        th.evaluate(model, rows.replace(y=rows.y * 0), th.attacks.BadNets(target=0), run=run)
    model.head = nn.Linear(64, 9)
    for fails in (th.evaluate, run_over):
        with pytest.raises(InputError, match="expected"):
            fails(model, rows, run=run)
        assert model.sent[-1] == "meta"
