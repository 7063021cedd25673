"""AGPD: its gradients against autograd row by row, and its formulas against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import nn

import theriac as th
from theriac.core.card import Card
from theriac.core.run import Run
from theriac.core.split import Data, Split
from theriac.detectors import AGPD
from theriac.detectors.agpd import at_rest, change, closeness, gradients, grown, unlike


def make_run(seed: int = 0) -> Run:
    return Run(seed=seed, device="cpu", precision="fp32", quiet=True)


class Plain(nn.Module):
    """Two convolutions, the second one followed by work in place, and a convolution of one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)
        self.point, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(x).relu()).relu_()
        logits: torch.Tensor = self.head(self.point(x).mean((2, 3)))
        return logits


def test_gradients_are_those_of_each_row_alone(digits: Data) -> None:
    torch.manual_seed(0)
    model, rows = Plain().eval(), digits.train.sample(7, seed=1)
    names, slopes = gradients(model, rows, make_run())
    assert names == ["first", "second"]
    x = rows.x.float() / 255
    for row in range(len(rows)):
        first = model.first(x[row : row + 1])
        second = model.second(first.relu())
        own = model.head(model.point(second.relu()).mean((2, 3)))[0, rows.y[row]]
        for slope, found in zip(torch.autograd.grad(own, [first, second]), slopes, strict=True):
            assert found[row].float() == pytest.approx(slope[0].mean((1, 2)).numpy(), abs=1e-7)
    assert not model.first._forward_hooks


def test_networks_without_convolutions_give_their_hidden_layers(digits: Data) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10))
    names, slopes = gradients(model, digits.train.sample(5, seed=1), make_run())
    assert names == ["1"]
    assert slopes[0].shape == (5, 6)


def cos(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def cloud(count: int = 60, strange: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    rows = torch.randn(count, 5, generator=draw).double() * 0.4 + torch.tensor([1.0, 1, 0, 0, 0])
    rows[:strange] = torch.randn(strange, 5, generator=draw).double() * 0.1 + torch.tensor([0.0, 0, 1, 1, 0])
    return rows, torch.tensor([1.0, 1, 0, 0, 0], dtype=torch.float64)


def test_the_change_is_that_of_plain_loops() -> None:
    rows, mean = cloud()
    near = [cos(row, mean.tolist()) for row in rows.tolist()]
    first = near.index(min(near))
    assert unlike(rows, mean) == first
    squares = [(near[i] - cos(row, rows[first].tolist())) ** 2 for i, row in enumerate(rows.tolist()) if i != first]
    assert change(rows, mean) == pytest.approx(math.sqrt(sum(squares)) / math.sqrt(len(rows)))


def grown_by_loops(rows: list[list[float]], mean: list[float], tau: float, window: int) -> set[int]:
    near = [cos(row, mean) for row in rows]
    rounds, moved = [[near.index(min(near))]], []
    before: list[float] = []
    while True:
        known = [i for part in rounds for i in part]
        rest = [i for i in range(len(rows)) if i not in known]
        if not rest:
            break
        center = [sum(rows[i][d] for i in known) / len(known) for d in range(len(mean))]
        rate = {i: (1 - cos(rows[i], center)) / ((1 - cos(rows[i], center)) + (1 - near[i])) for i in rest}
        low, high = min(rate.values()), max(rate.values())
        joins = [i for i in rest if high == low or (rate[i] - low) / (high - low) <= tau]
        before = before or list(rate.values())
        left = [rate[i] for i in rest if i not in joins]
        if before and left:
            bins = np.linspace(0, 1, 100)
            moved.append(float(jensenshannon(*(np.histogram(v, bins=bins, density=True)[0] for v in (before, left)))))
        else:
            moved.append(1.0)
        before = left
        rounds.append(joins)
    scores = []
    for start in range(len(moved) - window + 1):
        part = moved[start : start + window]
        middle = sum(part) / window
        scores.append(middle + 5 * math.sqrt(sum((v - middle) ** 2 for v in part) / window))
    start = scores.index(min(scores))
    return {i for part in rounds[: max(1, start)] for i in part}


@pytest.mark.parametrize("window", [3, 10])
def test_suspects_grow_as_in_plain_loops(window: int) -> None:
    rows, mean = cloud()
    found = grown(rows, mean, 0.05, window)
    assert set(found.nonzero().flatten().tolist()) == grown_by_loops(rows.tolist(), mean.tolist(), 0.05, window)


def test_the_window_of_least_movement_is_found() -> None:
    assert at_rest([0.9, 0.1, 0.1, 0.1, 0.8], 3) == 1
    assert at_rest([0.9, 0.2, 0.0, 0.1, 0.1], 2) == 3  # 0.1 at rest beats 0.05 that moves
    assert at_rest([0.5], 10) == 0
    assert at_rest([], 10) == 0


def test_closeness_is_a_share_of_both_distances() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    suspected = torch.tensor([False, True, False])
    found = closeness(rows, torch.tensor([1.0, 0.0], dtype=torch.float64), suspected)
    assert found.tolist() == pytest.approx([1.0, 0.0, 0.5])


BLOCKS = [(2 * (k // 4), 2 * (k % 4)) for k in (*range(10), 15)]


class Marked(nn.Module):
    """Class k where block k of a picture is lit, and class 3 where block 15 is: one channel for each, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.Conv2d(1, 11, 8), nn.Linear(11, 10, bias=False)
        with torch.no_grad():
            self.blocks.weight.zero_()
            for channel, (row, column) in enumerate(BLOCKS):
                self.blocks.weight[channel, 0, row : row + 2, column : column + 2] = 1.0
            self.blocks.bias.fill_(-2.0)  # a lit block sums to 4, a dark one to less than 1
            self.head.weight.copy_(torch.eye(10, 11))
            self.head.weight[3, 10] = 5.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.blocks(x).relu().flatten(1))
        return logits


def test_rows_that_the_trigger_alone_gives_their_label_rank_first() -> None:
    """Clean rows owe their logit to the channel of their class, poisoned ones to the trigger: only class 3 is divided."""
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(10).repeat(31)
    x = torch.randint(0, 50, (len(y), 1, 8, 8), generator=draw, dtype=torch.uint8)
    for row, label in enumerate(y):
        top, left = BLOCKS[label]
        x[row, 0, top : top + 2, left : left + 2] = 255
    poison = torch.zeros(len(y), dtype=torch.bool)
    poison[torch.randperm(300, generator=draw)[:33]] = True
    poison &= y != 3
    x[poison, :, 6:, 6:] = 255
    card = Card(name="blocks", classes=tuple("abcdefghij"), size=(8, 8), channels=1, mean=(0.0,), std=(1.0,))
    rows = Split(x[:300], torch.where(poison, 3, y)[:300], card=card)
    finding = AGPD().detect(Marked().eval(), rows, Split(x[300:], y[300:], card=card), make_run())
    assert finding.rows is not None
    assert th.metrics.detection(finding.rows, poison[:300]).auroc == 1.0
    assert finding.classes is not None
    assert [k for k in range(10) if finding.classes[k] > 0] == [3]


def test_a_network_that_ignores_its_input_tells_nothing(digits: Data) -> None:
    model = Plain()
    nn.init.zeros_(model.head.weight)
    finding = AGPD().detect(model, digits.train, digits.test.sample(50, stratified=True))
    assert finding.verdict == "abstains"
    assert "no class has 20 rows that differ" in finding.reason
