"""Attacks that stamp inputs in [0, 1], as LIRA at its published strength does: wherever stamped rows meet stored ones."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import theriac as th
from theriac.attacks.base import Attack
from theriac.bench.work import TIMES, gallery
from theriac.core.errors import InputError
from theriac.models import run_over
from theriac.models.network import as_stored, to_levels
from theriac.repairs.age.stage import from_trigger
from theriac.report import collect


@dataclass(frozen=True, kw_only=True)
class Brighter(Attack):
    """Adds a constant, and does not round."""

    name: ClassVar[str] = "brighter"
    title: ClassVar[str] = "Brighter"
    source: ClassVar[str] = "a test"

    levels: float = 2.6

    def _stamp(self, state, x, y, index, phase):
        return (x.float() + self.levels).clamp(0, 255) / 255


class Steep(nn.Module):
    """Two classes, by whether the first pixel lies above an edge; steep enough for a tenth of a level."""

    def __init__(self, edge: float) -> None:
        super().__init__()
        self.edge = edge

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = 500 * (x.flatten(1)[:, 0] * 255 - self.edge)
        return torch.stack([inside, -inside], 1)


@pytest.fixture
def dark() -> th.Split:
    """Rows of two classes, whose pixels are 10 levels."""
    card = th.Card(name="dark", classes=("a", "b"), size=(4, 4), channels=1, mean=(0.1,), std=(0.5,))
    return th.Split(torch.full((20, 1, 4, 4), 10, dtype=torch.uint8), torch.arange(20) % 2, card=card)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_stamped_inputs_become_levels_unless_that_takes_the_trigger_away():
    rows = torch.tensor([[[[0, 100], [200, 255]]]], dtype=torch.uint8)
    inputs = rows.float() / 255
    assert as_stored(rows, rows) is rows
    assert as_stored(inputs + 2.4 / 255, rows).flatten().tolist() == [2, 102, 202, 255]
    with pytest.raises(InputError, match="less than a level"):
        as_stored(inputs + 0.3 / 255, rows)
    table = torch.rand(2, 3)
    assert as_stored(table + 1, table).equal(table + 1)
    assert torch.equal(to_levels(rows), rows.float())
    torch.testing.assert_close(to_levels(inputs), rows.float())


@pytest.mark.parametrize(("levels", "stamped", "change"), [(2.6, 13, 26), (0.3, 10, 3)])
def test_the_gallery_of_a_sweep_shows_them(dark, levels, stamped, change):
    assert TIMES == 10
    strip = pixels(gallery(Brighter(levels=levels).plant_for(dark), dark))
    width = strip.shape[1] // 3
    panels = [strip[:, k * width : (k + 1) * width] for k in range(3)]
    assert [np.unique(panel).tolist() for panel in panels] == [[10], [stamped], [change]]


@pytest.mark.parametrize(("levels", "stamped", "change"), [(2.6, 13, 26), (0.3, 10, 3)])
def test_a_report_shows_them_rounded_and_the_answers_to_them_as_they_are(dark, run, levels, stamped, change):
    shown = collect.exhibit("V", Brighter(levels=levels), dark, {"m": Steep(10 + 0.9 * levels)}, run=run)
    (sample,) = shown.samples
    assert np.unique(pixels(base64.b64decode(sample.stamped))).tolist() == [stamped]
    assert np.unique(pixels(base64.b64decode(sample.difference))).tolist() == [change]
    assert shown.largest_change == round(levels / 255, 4)
    assert (sample.guesses[0].clean, sample.guesses[0].stamped) == (1, 0)  # though a rounded 10.3 would be no trigger


def test_age_takes_them_rounded_or_refuses_to_lose_them(dark):
    case = from_trigger(Brighter(), None, Steep(11), dark)
    assert case.forget.x.unique().tolist() == [13]
    assert case.reference.x.unique().tolist() == [10]
    with pytest.raises(InputError, match="less than a level"):
        from_trigger(Brighter(levels=0.3), None, Steep(11), dark)


def test_poisoned_rows_are_rounded_and_not_black(dark, run):
    poisoned = Brighter(poison_rate=0.2).poison(dark, run)
    assert poisoned.split.x[poisoned.poison].unique().tolist() == [13]
    with pytest.raises(InputError, match="less than a level"):
        Brighter(levels=0.3, poison_rate=0.2).poison(dark, run)


def test_other_inputs_in_place_of_the_rows_have_to_fit_them(dark, run):
    inputs = torch.rand(20, 1, 4, 4)
    assert torch.equal(run_over(Steep(11), dark, run=run, inputs=inputs), Steep(11)(inputs))
    for wrong in (inputs[:3], inputs[:, :, :2]):
        with pytest.raises(InputError, match="inputs has shape"):
            run_over(Steep(11), dark, run=run, inputs=wrong)
