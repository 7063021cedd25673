"""Optimizers without the wrappers that load torch's compiler: the same numbers, the same state."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from theriac.training import optimizers

OPTIONS = [
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
    ("Adam", {"lr": 0.01, "betas": (0.5, 0.9), "weight_decay": 0.01, "amsgrad": True}),
    ("RAdam", {"lr": 0.01}),
]


def _steps(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], count: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for _ in range(count):
        optimizer.zero_grad()
        sum((w * torch.randn(w.shape, generator=draw)).sum() for w in weights).backward()
        optimizer.step()


def _weights() -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=draw)) for shape in ((3, 4), (5,))]


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=[name for name, _ in OPTIONS])
def test_bits_and_state_are_torch_s_own(name, options):
    ours, theirs = _weights(), _weights()
    made, known = getattr(optimizers, name)(ours, **options), getattr(torch.optim, name)(theirs, **options)
    assert isinstance(made, getattr(torch.optim, name))
    _steps(made, ours, 7, seed=1)
    _steps(known, theirs, 7, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))

    third = _weights()  # a state of torch's class goes on in ours
    resumed = getattr(optimizers, name)(third, **options)
    resumed.load_state_dict(copy.deepcopy(known.state_dict()))
    with torch.no_grad():
        for weight, value in zip(third, theirs, strict=True):
            weight.copy_(value)
    _steps(resumed, third, 3, seed=2)
    _steps(known, theirs, 3, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(third, theirs, strict=True))


def test_training_repairs_and_scans_do_not_load_torch_s_compiler():
    code = """
import sys, warnings
import theriac as th
from theriac.scanning import _inversion, behavior
warnings.simplefilter("ignore")
data = th.load("digits")
rows, run = data.train.sample(64), th.Run(quiet=True)
model = th.train(th.Builder("preact_resnet18", {"width": 8}), rows, recipe="short_1", run=run)
th.repairs.FT(epochs=1).repair(model, rows, run)
_inversion.STEPS = _inversion.MASK_STEPS = 1  # as short as they can be
behavior.TWIN = th.repairs.Antidote(epochs=1, steps=1)
th.scan(model, rows, run=run)
print("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
