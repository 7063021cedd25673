"""A small table with a known bias, and pictures with one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from theriac.core.card import Augment, Card
from theriac.core.split import Data, Split

MakeTable = Callable[..., Split]


def _table(rows: int = 600, corr: float = 0.85, seed: int = 0, signal: float = 1.5, base: float = 0.5) -> Split:
    draw = torch.Generator().manual_seed(seed)
    y = (torch.rand(rows, generator=draw) < base).long()
    group = torch.where(torch.rand(rows, generator=draw) < corr, y, 1 - y)
    x = torch.randn(rows, 4, generator=draw)
    x[:, 0] += signal * y
    x[:, 1] += 3.0 * group  # the group can be read from the row
    return Split(x, y, group=group)


@pytest.fixture(scope="session")
def table() -> MakeTable:
    """``table(rows, corr, seed, signal, base)``: labels, and groups that agree with them in a share ``corr`` of the rows."""
    return _table


@pytest.fixture(scope="session")
def pictures(digits: Data) -> Split:
    """200 digits as small or large numbers, with an invisible group, cropped in training."""
    rows = digits.train.sample(200, seed=1)
    draw = torch.Generator().manual_seed(2)
    y = (rows.y > 4).long()
    group = torch.where(torch.rand(len(y), generator=draw) < 0.8, y, 1 - y)
    card = Card(
        name="halves",
        classes=("small", "large"),
        groups=("a", "b"),
        size=(8, 8),
        channels=1,
        mean=rows.card.mean,
        std=rows.card.std,
        augment=Augment(crop_pad=1),
    )
    return Split(rows.x, y, group=group, card=card)
