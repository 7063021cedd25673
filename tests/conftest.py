"""Data and models that many tests share. Everything is small: the whole suite runs on one CPU thread."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import typer.main
import typer.testing
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from theriac.core._rows import pixel_moments
from theriac.core.card import Augment, Card
from theriac.core.run import Run
from theriac.core.split import Data, Split
from theriac.models import Builder, builder
from theriac.repairs import Antidote
from theriac.scanning import _inversion, behavior
from theriac.training import Recipe, train

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start: threads that wait for a busy core spin
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # they need not compile the package again, a second each

MakeImages = Callable[..., Split]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that a user has in the cache folder is seen, and nothing is left there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THERIAC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def commands_built_once() -> Iterator[None]:
    """The command line's parser, which typer builds anew for every call in a process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", functools.cache(typer.main.get_command))
        yield


@pytest.fixture(autouse=True)
def own_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that a test or a page registers are forgotten after it."""
    monkeypatch.setattr(builder, "_OWN", {rows: dict(makers) for rows, makers in builder._OWN.items()})


@pytest.fixture
def short_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scans of models search for a step each: for tests to which it does not matter what is found."""
    monkeypatch.setattr(behavior, "TWIN", Antidote(epochs=1, steps=1))
    monkeypatch.setattr(behavior, "KINDS", {name: replace(kind, steps=1) for name, kind in behavior.KINDS.items()})
    monkeypatch.setattr(_inversion, "STEPS", 1)
    monkeypatch.setattr(_inversion, "MASK_STEPS", 1)


@pytest.fixture(scope="session")
def digits() -> Data:
    """scikit-learn's 8 x 8 digits as grey uint8 images, cut by class into 1,347 training and 450 test rows."""
    bunch = load_digits()
    pixels = torch.from_numpy(np.round(bunch.images * 255 / 16).astype(np.uint8))[:, None]
    labels = torch.from_numpy(bunch.target).long()
    rows = np.arange(len(labels))
    train_rows, test_rows = train_test_split(rows, test_size=0.25, random_state=0, stratify=bunch.target)
    first, second = torch.from_numpy(train_rows), torch.from_numpy(test_rows)
    mean, std = pixel_moments(pixels[first])
    card = Card(
        name="digits",
        classes=tuple(str(k) for k in range(10)),
        size=(8, 8),
        channels=1,
        mean=mean,
        std=std,
        augment=Augment(crop_pad=1),
    )
    parts = [Split(pixels[at], labels[at], index=at, card=card) for at in (first, second)]
    return Data(parts[0], parts[1])


@pytest.fixture(scope="session")
def images() -> MakeImages:
    """Make random images with random labels, every class among them: ``images(rows, channels, side, classes, seed)``."""

    def make(rows: int = 64, channels: int = 1, side: int = 8, classes: int = 4, seed: int = 0) -> Split:
        draw = torch.Generator().manual_seed(seed)
        x = torch.randint(0, 256, (rows, channels, side, side), generator=draw, dtype=torch.uint8)
        y = torch.arange(rows) % classes
        return Split(x, y[torch.randperm(rows, generator=draw)])

    return make


@pytest.fixture
def run() -> Run:
    """A quiet run in float32, so that numbers can be compared with hand-written torch code."""
    return Run(precision="fp32", device="cpu", quiet=True)


@pytest.fixture(scope="session")
def narrow() -> Builder:
    """The smallest PreAct-ResNet-18 that still learns digits."""
    return Builder("preact_resnet18", {"width": 4})


@pytest.fixture(scope="session")
def trained(digits: Data, narrow: Builder) -> nn.Module:
    """A clean model of digits, good enough to be repaired. Do not change it: copies only."""
    recipe = Recipe(epochs=4, batch_size=64, lr=0.1, schedule="one_cycle", nesterov=True, drop_last=True)
    return train(narrow, digits.train, recipe=recipe, run=Run(precision="fp32", device="cpu", quiet=True))
