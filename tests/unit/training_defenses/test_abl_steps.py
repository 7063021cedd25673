"""ABL against its description: isolation, tuning on the rest and unlearning, recomputed here by hand with torch alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import theriac as th
from theriac.core.card import Augment
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.training_defenses import ABL

Loss = Callable[[torch.Tensor], torch.Tensor]
"""What is minimized, made of a batch's mean cross-entropy."""

ROWS = 61


class Net(nn.Module):
    """A small network in float64 with BatchNorm, for pictures in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(64, 3)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.norm(self.conv(x.double())).relu().flatten(1))
        return logits


@dataclass(frozen=True)
class Outcome:
    """What the stages by hand end with."""

    net: Net
    isolated: list[int]
    means: list[float]  # cross-entropy of each batch of the isolation


@pytest.fixture(scope="module")
def rows() -> Split:
    """61 pictures of three classes that are hard to tell apart."""
    draw = torch.Generator().manual_seed(0)
    faces = torch.randint(90, 160, (3, 1, 8, 8), generator=draw)
    y = torch.arange(ROWS) % 3
    x = (faces[y] + torch.randint(-80, 80, (ROWS, 1, 8, 8), generator=draw)).to(torch.uint8)
    card = th.Card(name="faces", classes=("a", "b", "c"), size=(8, 8), channels=1, mean=(0.5,), std=(0.2,), augment=Augment())
    return Split(x, y, card=card)


@pytest.fixture
def fresh() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Net()


def quiet(seed: int = 3) -> Run:
    return Run(seed=seed, precision="fp32", device="cpu", quiet=True)


class Steps:
    """Nesterov's momentum with weight decay, written out."""

    def __init__(self, net: Net, momentum: float, decay: float) -> None:
        self.values = list(net.parameters())
        self.speed = [torch.zeros_like(value) for value in self.values]
        self.momentum, self.decay = momentum, decay

    def take(self, loss: torch.Tensor, lr: float) -> None:
        slopes = torch.autograd.grad(loss, self.values)
        with torch.no_grad():
            for value, speed, slope in zip(self.values, self.speed, slopes, strict=True):
                slope = slope + self.decay * value
                speed.mul_(self.momentum).add_(slope)
                value.sub_(lr * (slope + self.momentum * speed))


def orders(run: Run, label: str, epoch: int, count: int, size: int, *, train: bool) -> list[torch.Tensor]:
    """The batches of an epoch; where BatchNorm needs two rows, a single last row is left out."""
    order = torch.randperm(count, generator=run.generator("order", label, epoch))
    parts = list(order.split(size))
    return parts[:-1] if train and len(parts[-1]) == 1 else parts


def pass_over(
    net: Net, x: torch.Tensor, y: torch.Tensor, batches: list[torch.Tensor], steps: Steps, lr: float, loss: Loss
) -> list[float]:
    """One epoch; returns the cross-entropy of each batch before its step."""
    means = []
    for batch in batches:
        mean = F.cross_entropy(net(x[batch]), y[batch])
        means.append(float(mean.detach()))
        steps.take(loss(mean), lr)
    return means


def by_hand(method: ABL, net: Net, split: Split, run: Run, isolating: Loss) -> Outcome:
    """The method's three stages, as its description has them."""
    net = copy.deepcopy(net)
    x, y = split.x.float() / 255, split.y
    size, count = method.batch_size, round(method.share * len(split))

    net.train()
    steps, means = Steps(net, method.momentum, method.weight_decay), []
    for epoch in range(method.epochs):
        batches = orders(run, "abl_isolation", epoch, len(split), size, train=True)
        means += pass_over(net, x, y, batches, steps, method.lr, isolating)

    net.eval()
    with torch.no_grad():
        losses = F.cross_entropy(net(x), y, reduction="none")
    ranked, order = losses.sort()
    assert ranked[count] - ranked[count - 1] > 1e-5  # else rounding to float32 could decide which rows are isolated
    isolated = order[:count].sort().values
    rest = order[count:].sort().values

    net.train()
    steps = Steps(net, method.momentum, method.weight_decay)
    for epoch in range(method.tuning_epochs):
        batches = orders(run, "abl_tuning", epoch, len(rest), size, train=True)
        lr = method.lr if epoch < round(method.tuning_epochs * 2 / 3) else method.lr / 10
        pass_over(net, x[rest], y[rest], batches, steps, lr, lambda mean: mean)

    net.eval()  # BatchNorm's statistics stay, its weights are learned on
    steps = Steps(net, method.momentum, method.weight_decay)
    for epoch in range(method.unlearning_epochs):
        batches = orders(run, "abl_unlearning", epoch, count, min(size, count), train=False)
        pass_over(net, x[isolated], y[isolated], batches, steps, method.unlearning_lr, lambda mean: -mean)
    return Outcome(net, isolated.tolist(), means)


LOSSES: dict[str, Callable[[float], Loss]] = {
    "flooding": lambda bound: lambda mean: (mean - bound).abs() + bound,
    "ascent": lambda bound: lambda mean: mean if float(mean.detach()) > bound else -mean,
}
OPTIONS = {
    "batches of several sizes": ABL(
        epochs=4, tuning_epochs=4, unlearning_epochs=3, share=0.1, bound=0.7, lr=0.05, unlearning_lr=0.004, batch_size=16
    ),
    "single rows at the end": ABL(
        epochs=5, tuning_epochs=3, unlearning_epochs=2, share=0.085, bound=0.7, lr=0.05, unlearning_lr=0.01, batch_size=4
    ),
}
"""Of 61 rows, 55 are tuned on in the first, in batches of 16, 16, 16 and 7; the second isolates 5, in batches of 4 and 1."""


def difference(one: nn.Module, other: nn.Module) -> float:
    """The largest difference in weights and BatchNorm statistics."""
    first, second = one.state_dict(), other.state_dict()
    assert list(first) == list(second)
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


@pytest.mark.parametrize("loss", ["flooding", "ascent"])
@pytest.mark.parametrize("options", OPTIONS)
def test_the_three_stages_by_hand_end_in_the_same_weights(options: str, loss: str, rows: Split, fresh: Net) -> None:
    method, run = OPTIONS[options].replace(loss=loss), quiet()
    start = copy.deepcopy(fresh)
    model = method.fit(fresh, rows, run)
    expected = by_hand(method, start, rows, quiet(), LOSSES[loss](method.bound))
    assert min(expected.means) < method.bound < max(expected.means)  # both branches of the loss were taken
    (event,) = run.history("abl_isolated")
    assert event["rows"] == len(expected.isolated) == round(method.share * ROWS)
    assert event["classes"] == torch.bincount(rows.y[expected.isolated], minlength=3).tolist()
    assert [len(run.history(f"abl_{stage}")) for stage in ("isolation", "tuning", "unlearning")] == [
        method.epochs,
        method.tuning_epochs,
        method.unlearning_epochs,
    ]
    assert difference(model, expected.net) < 1e-11
    assert difference(fresh, start) == 0
    assert not model.training


def test_the_loss_of_the_isolated_rows_rises_at_the_end(rows: Split, fresh: Net) -> None:
    method = OPTIONS["batches of several sizes"]
    before = by_hand(method.replace(unlearning_epochs=1, unlearning_lr=1e-12), fresh, rows, quiet(), LOSSES["flooding"](0.7))
    after = method.fit(fresh, rows, quiet())
    x, y = rows.x[before.isolated].float() / 255, rows.y[before.isolated]
    with torch.no_grad():
        losses = [float(F.cross_entropy(net.eval()(x), y)) for net in (before.net, after)]
    assert losses[1] > losses[0] + 0.05


def test_another_seed_draws_other_batches(rows: Split, fresh: Net) -> None:
    method = OPTIONS["batches of several sizes"]
    one, same, other = (method.fit(copy.deepcopy(fresh), rows, quiet(seed)) for seed in (3, 3, 4))
    assert difference(one, same) == 0
    assert difference(one, other) > 1e-3
