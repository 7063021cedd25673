"""Blended against its formula in NumPy, and the pictures that it mixes in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from theriac.attacks import Blended
from theriac.core.split import Split
from theriac.triggers.patterns import noise, picture
from theriac.triggers.static import blend

DRAW = {"picture": picture, "noise": noise}


@pytest.fixture(params=[(1, 8), (3, 32)], ids=["grey8", "colour32"])
def split(request, images) -> Split:
    channels, side = request.param
    return images(rows=20, channels=channels, side=side)


@pytest.mark.parametrize("trigger", DRAW)
@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5, 1.0])
def test_it_equals_numpy(split, trigger, alpha):
    got = Blended(trigger=trigger, alpha=alpha, seed=3).plant(split).stamp(split.x, split.y)
    mark = DRAW[trigger](split.x.shape[1], tuple(split.x.shape[2:]), 3).numpy().astype(np.float64)
    exact = (1 - alpha) * split.x.numpy().astype(np.float64) + alpha * mark
    assert np.abs(got.numpy() - exact).max() <= 0.5 + 1e-4
    clear = np.abs(exact - np.floor(exact) - 0.5) > 1e-3  # away from ties, rounding is certain
    np.testing.assert_array_equal(got.numpy()[clear], np.round(exact)[clear].astype(np.uint8))


def test_nothing_mixed_in_changes_nothing(split):
    assert torch.equal(Blended(alpha=0.0).plant(split).stamp(split.x, split.y), split.x)


def test_everything_mixed_in_is_the_picture(split):
    got = Blended(alpha=1.0).plant(split).stamp(split.x, split.y)
    assert bool((got == got[0]).all())


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("mark", [0, 255])
@pytest.mark.parametrize("alpha", [0.1, 0.2, 1 / 3, 0.999])
def test_extremes_do_not_wrap(value, mark, alpha):
    x = torch.full((1, 1, 4, 4), value, dtype=torch.uint8)
    got = blend(x, torch.full((1, 4, 4), mark, dtype=torch.uint8), alpha)
    assert abs(int(got[0, 0, 0, 0]) - ((1 - alpha) * value + alpha * mark)) <= 0.5


@pytest.mark.parametrize("trigger", DRAW)
def test_the_seed_decides_on_the_picture_only(split, trigger):
    first, again, other = (Blended(trigger=trigger, seed=s).plant(split).stamp(split.x, split.y) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("draw", DRAW.values())
@pytest.mark.parametrize(("channels", "size"), [(1, (8, 8)), (3, (32, 32)), (3, (20, 48))])
def test_pictures_fit_and_fill_the_range(draw, channels, size):
    got = draw(channels, size, 0)
    assert got.shape == (channels, *size)
    assert got.dtype == torch.uint8
    assert int(got.max()) - int(got.min()) > 100


def test_a_picture_is_smooth_and_noise_is_not():
    def roughness(x: torch.Tensor) -> float:
        return float((x[:, :, 1:].float() - x[:, :, :-1].float()).abs().mean())

    assert roughness(picture(3, (32, 32), 0)) < 0.5 * roughness(noise(3, (32, 32), 0))


def test_drawing_leaves_torch_s_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    picture(3, (8, 8), 5)
    noise(3, (8, 8), 5)
    assert torch.equal(torch.rand(2), expected)
