"""Networks of the sweeps that the package does not come with: ``THERIAC_METHODS=benchmarks/networks.py theriac bench ...``."""

from __future__ import annotations

from torch import nn

from theriac.core.card import Card
from theriac.models import register_architecture


@register_architecture()
def plain_cnn(card: Card, width: int = 16) -> nn.Module:
    """Three convolutions and a head, without normalization."""
    layers: list[nn.Module] = []
    before = card.channels
    for step in range(3):
        layers += [nn.Conv2d(before, width << step, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
        before = width << step
    sides = [-(-side // 8) for side in card.size]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * sides[0] * sides[1], card.num_classes))
