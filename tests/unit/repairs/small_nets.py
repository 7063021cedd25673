"""Networks so small that a formula of a repair can be written out by hand."""

from __future__ import annotations

import torch
from torch import nn

from theriac.core.card import Card
from theriac.core.split import Split


class LinearFeatures(nn.Module):
    """Without a final ReLU, so that features can change their sign, and the head can undo any change of their basis."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.body = nn.Conv2d(1, 6, 8)
            self.side = nn.Linear(6, 6)
            self.head = nn.Linear(6, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.side(self.body(x).flatten(1)))


class Twice(nn.Module):
    """One BatchNorm under two names, or two that share their scales."""

    def __init__(self, *, one: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.other = self.norm if one else nn.BatchNorm2d(8)
        self.other.weight = self.norm.weight
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.other(self.second(self.norm(self.first(x)).relu())).relu()
        out: torch.Tensor = self.head(x.mean((2, 3)))
        return out


def one_norm() -> tuple[nn.Sequential, Split]:
    """A network with one BatchNorm, and twelve rows of two classes."""
    draw = torch.Generator().manual_seed(0)
    card = Card(name="grey", classes=("a", "b"), size=(4, 4), channels=1)
    split = Split(torch.randint(0, 256, (12, 1, 4, 4), generator=draw, dtype=torch.uint8), torch.arange(12) % 2, card=card)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    return net, split


def normalized(net: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """What the BatchNorm of :func:`one_norm` makes of a batch before scale and shift."""
    hidden = net[1](x.flatten(1)).detach()
    return (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + net[2].eps).sqrt()


def only_pruned_scales_changed(before: dict[str, torch.Tensor], fixed: nn.Module, pruned: dict[str, list[int]]) -> bool:
    """Whether the scales of pruned channels are zero, and all else is as it was, shifts and statistics too."""
    for name, value in fixed.state_dict().items():
        wanted = before[name].clone()
        layer, _, kind = name.rpartition(".")
        if kind == "weight" and layer in pruned:
            wanted[pruned[layer]] = 0
        if not torch.equal(value, wanted):
            return False
    return True
