"""Records made from live objects, against direct computation."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from theriac.attacks import BadNets, Blended
from theriac.core.errors import InputError
from theriac.core.run import Run
from theriac.core.split import Data, Split
from theriac.report import collect

MakeImages = Callable[..., Split]


class Fixed(nn.Module):
    """Logits that are a fixed linear function of the pixels."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(classes, inputs, generator=draw))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight.T


def _pixels(png: str) -> np.ndarray:
    array: np.ndarray = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))
    return array


@pytest.mark.parametrize("channels", [1, 3])
def test_exhibit_shows_rows_difference_and_guesses(images: MakeImages, run: Run, channels: int) -> None:
    split = images(rows=40, channels=channels, side=8, classes=5, seed=3)
    attack = Blended(target=2, alpha=0.2, trigger="noise")
    model = Fixed(channels * 64, 5)
    shown = collect.exhibit("V", attack.plant_for(split), split, {"m": model}, samples=3, run=run)
    assert [s.label for s in shown.samples] == [0, 1, 3]  # one of each class but the target, in order
    assert {s.target for s in shown.samples} == {2}
    for sample in shown.samples:
        position = int((split.y == sample.label).nonzero()[0])
        row = split.rows(torch.tensor([position]))
        stamped = attack.plant_for(split).stamp(row, split.y[position : position + 1])
        clean = _pixels(sample.clean)
        assert np.array_equal(clean, row[0, 0].numpy() if channels == 1 else row[0].permute(1, 2, 0).numpy())
        change = np.abs(stamped[0].numpy().astype(int) - row[0].numpy().astype(int))
        expected = np.minimum(change * 10, 255)
        assert np.array_equal(_pixels(sample.difference), expected[0] if channels == 1 else expected.transpose(1, 2, 0))
        logits = model(stamped.float() / 255)
        assert sample.guesses[0].stamped == int(logits.argmax())
        assert sample.guesses[0].stamped_share == pytest.approx(float(logits.detach().softmax(1).max()), abs=1e-3)


def test_largest_change_is_of_the_shown_rows(images: MakeImages, run: Run) -> None:
    split = images(rows=20, channels=1, side=8, classes=2)
    shown = collect.exhibit("V", Blended(target=0, alpha=0.1).plant_for(split), split, {"m": Fixed(64, 2)}, run=run)
    assert 0 < shown.largest_change <= 0.1 + 0.5 / 255  # alpha times the range, rounded to a level


def test_exhibit_takes_what_poison_returns(digits: Data, run: Run, trained: nn.Module) -> None:
    poisoned = BadNets(target=3, poison_rate=0.05).poison(digits.train, run)
    shown = collect.exhibit("V", poisoned, digits.test, {"victim": trained}, samples=100, run=run)
    assert [s.label for s in shown.samples] == [0, 1, 2, 4, 5, 6, 7, 8, 9]


def test_exhibit_refuses_tables(run: Run) -> None:
    table = Split(torch.randn(10, 3), torch.arange(10) % 2)
    with pytest.raises(InputError, match="only images can be shown"):
        collect.exhibit("V", None, table, {}, run=run)


def test_exhibit_without_a_counted_row(images: MakeImages, run: Run) -> None:
    split = images(rows=20, classes=2)
    only = split.where(split.y == 0)
    with pytest.raises(InputError, match="nothing to show"):
        collect.exhibit("V", BadNets(target=0).plant_for(split), only, {"m": Fixed(64, 2)}, run=run)


def test_large_pictures_are_shrunk() -> None:
    big = torch.randint(0, 256, (3, 300, 400), dtype=torch.uint8)
    assert _pixels(collect.png(big)).shape == (120, 160, 3)
    small = torch.randint(0, 256, (3, 160, 90), dtype=torch.uint8)
    assert np.array_equal(_pixels(collect.png(small)), small.permute(1, 2, 0).numpy())  # not touched


def test_summary_of_data(digits: Data) -> None:
    told = collect.summarize(digits, clean_rows=7)
    assert (told.train_rows, told.test_rows, told.clean_rows) == (len(digits.train), len(digits.test), 7)
    assert told.shape == [1, 8, 8]
    assert told.classes == [str(k) for k in range(10)]
    assert collect.summarize(digits.card).train_rows == 0


def test_epochs_keep_order_and_digits() -> None:
    run = Run(quiet=True)
    run.event("train", epoch=1, loss=1.23456789)
    run.event("other", epoch=1, loss=9.0)
    run.event("train", note="no epoch")
    run.event("train", epoch=2, loss=0.5)
    assert collect.epochs(run, ["train"]) == [{"epoch": 1, "loss": 1.2346}, {"epoch": 2, "loss": 0.5}]
