"""The golden vectors: numbers that the authors' released code computed on one tiny problem (see README.md here)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

Golden = Mapping[str, torch.Tensor]

_NAMES = {"conv_w": "conv.weight", "conv_b": "conv.bias", "lin_w": "lin.weight", "lin_b": "lin.bias"}


class Tiny(nn.Module):
    """The network of the golden vectors: convolution 3 to 4 with stride 2, ReLU, mean over places, linear 4 to 5."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.lin = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin(torch.relu(self.conv(x)).mean((2, 3)))


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    """Read one file of golden vectors as float64, int64 and bool tensors."""

    def read(name: str) -> Golden:
        with np.load(Path(__file__).parent / "data" / f"{name}.npz", allow_pickle=False) as file:
            return {key: torch.from_numpy(file[key]) for key in file.files}

    return read


@pytest.fixture
def tiny() -> Callable[[Golden, str], Tiny]:
    """The tiny network with the weights of one prefix, such as ``tiny(vectors, "h_bd_")``."""

    def make(vectors: Golden, prefix: str) -> Tiny:
        model = Tiny().double()
        model.load_state_dict({full: vectors[prefix + short] for short, full in _NAMES.items()})
        return model.eval()

    return make


@pytest.fixture(scope="session")
def assert_near() -> Callable[..., None]:
    """Compare with the golden tolerance: 1e-10 absolute, relative above 1."""

    def check(got: torch.Tensor | float, expected: torch.Tensor, tolerance: float = 1e-10) -> None:
        got = torch.as_tensor(got, dtype=torch.float64)
        torch.testing.assert_close(got.detach(), expected, rtol=tolerance, atol=tolerance)

    return check


@pytest.fixture(scope="session")
def assert_same_weights(assert_near: Callable[..., None]) -> Callable[..., None]:
    """Compare weights, or with ``grad=True`` gradients, of a tiny network with those of one prefix."""

    def check(model: nn.Module, vectors: Golden, prefix: str, *, grad: bool = False, tolerance: float = 1e-10) -> None:
        own = dict(model.named_parameters())
        for short, full in _NAMES.items():
            assert_near(own[full].grad if grad else own[full], vectors[prefix + short], tolerance)

    return check
