from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from theriac.core.card import Card, Column
from theriac.core.split import Data, Split


class MyNet(nn.Module):
    """A user's network, with BatchNorm and dropout, that expects pixels in [-1, 1] and has three outputs."""

    def __init__(self, tuple_output: bool = False) -> None:
        super().__init__()
        self.tuple_output = tuple_output
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.drop = nn.Dropout(0.1)
        self.out = nn.Linear(16 * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        h = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2).flatten(1)
        logits = self.out(self.drop(h))
        return (h, logits) if self.tuple_output else logits


@pytest.fixture
def my_net() -> type[MyNet]:
    return MyNet


@pytest.fixture(scope="session")
def _trained(digits: Data) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MyNet()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        x, y = digits.train.x[:500].float() / 255 * 2 - 1, digits.train.y[:500]
        for _ in range(30):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
    return {k: v.clone() for k, v in net.state_dict().items()}


@pytest.fixture
def trained_net(_trained: dict[str, torch.Tensor]) -> MyNet:
    """A user's network that knows the digits (about 90 % right), in eval mode."""
    net = MyNet()
    net.load_state_dict(_trained)
    return net.eval()


@pytest.fixture
def table() -> Split:
    """A small table: two numeric columns with a hole in each, and one category of three."""
    x = torch.tensor([[1.0, 10.0, 0], [2.0, float("nan"), 1], [float("nan"), 30.0, 2], [5.0, 50.0, float("nan")]])
    columns = (
        Column(name="age"),
        Column(name="pay"),
        Column(name="color", kind="categorical", categories=("red", "green", "blue")),
    )
    card = Card(kind="table", name="toy", classes=("no", "yes"), columns=columns)
    return Split(x, torch.tensor([0, 1, 0, 1]), card=card)
