"""Batched augmentation against one image at a time in NumPy, torch and scipy, with the same draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from theriac.core.card import Augment
from theriac.core.errors import InputError
from theriac.data.augment import augment, cutout, flip, pad_and_crop, rotate

SHAPES = [(17, 1, 8, 8), (9, 3, 12, 7)]


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=generator(1), dtype=torch.uint8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pad", [1, 3])
@pytest.mark.parametrize(("mode", "numpy_mode"), [("zero", "constant"), ("reflect", "reflect")])
def test_pad_and_crop(shape, pad, mode, numpy_mode):
    x = batch(shape)
    got = pad_and_crop(x, pad, mode, generator())
    draw = generator()
    top = torch.randint(0, 2 * pad + 1, (len(x), 1), generator=draw).flatten().tolist()
    left = torch.randint(0, 2 * pad + 1, (len(x), 1), generator=draw).flatten().tolist()
    for i, image in enumerate(x.numpy()):
        padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)), mode=numpy_mode)
        expected = padded[:, top[i] : top[i] + shape[2], left[i] : left[i] + shape[3]]
        np.testing.assert_array_equal(got[i].numpy(), expected)
    assert len(set(zip(top, left, strict=True))) > 3  # each image has its own place


def test_every_place_of_the_crop_comes_up():
    x = torch.arange(1, 17, dtype=torch.uint8).view(1, 1, 4, 4).expand(2000, 1, 4, 4)
    got = pad_and_crop(x, 1, "zero", generator())
    assert len(torch.unique(got.flatten(1), dim=0)) == 9


def test_reflection_needs_room():
    with pytest.raises(InputError, match="crop_pad is 7"):
        pad_and_crop(batch((2, 1, 7, 9)), 7, "reflect", generator())
    pad_and_crop(batch((2, 1, 7, 9)), 6, "reflect", generator())


@pytest.mark.parametrize("shape", SHAPES)
def test_flip(shape):
    x = batch(shape)
    got = flip(x, generator())
    mirrored = (torch.rand(len(x), generator=generator()) < 0.5).tolist()
    for i, image in enumerate(x.numpy()):
        np.testing.assert_array_equal(got[i].numpy(), image[:, :, ::-1] if mirrored[i] else image)
    assert 0 < sum(mirrored) < len(mirrored)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [1, 2, 3, 6])
def test_cutout(shape, side):
    x = batch(shape).clamp(min=1)
    got = cutout(x, side, generator())
    draw = generator()
    center_y = torch.randint(0, shape[2], (len(x), 1), generator=draw).flatten().tolist()
    center_x = torch.randint(0, shape[3], (len(x), 1), generator=draw).flatten().tolist()
    for i, image in enumerate(x.numpy()):
        expected = image.copy()
        top, left = center_y[i] - side // 2, center_x[i] - side // 2
        expected[:, max(0, top) : top + side, max(0, left) : left + side] = 0
        np.testing.assert_array_equal(got[i].numpy(), expected)
        assert 0 < int((got[i][0] == 0).sum()) <= side * side


def with_angle(monkeypatch, *degrees: float) -> None:
    """Let the rotation draw these angles; it draws u in [0, 1) and turns by (2 u - 1) times the largest angle, 180."""
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([(d / 180 + 1) / 2 for d in degrees]))


@pytest.mark.parametrize("quarters", [0, 1, 2, -1])
def test_quarter_turns_are_exact(monkeypatch, quarters):
    x = batch((1, 3, 8, 8))
    with_angle(monkeypatch, 90.0 * quarters)
    got = rotate(x, 180, generator())
    assert torch.equal(got, torch.rot90(x, quarters, (2, 3)))


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (127 + 60 * np.sin(x / 3) + 60 * np.cos(y / 4)).astype(np.float32)


@pytest.mark.parametrize("angle", [10.0, -25.0, 60.0])
@pytest.mark.parametrize("size", [(24, 24), (20, 30)])
def test_rotation_agrees_with_scipy(monkeypatch, angle, size):
    image = smooth(*size)
    with_angle(monkeypatch, angle)
    got = rotate(torch.from_numpy(image)[None, None], 180, generator())[0, 0].numpy()
    expected = ndimage.rotate(image, angle, reshape=False, order=1, mode="constant")
    inside = ndimage.rotate(np.ones(size), angle, reshape=False, order=1, mode="constant") > 0.999  # edges blend differently
    inside = ndimage.binary_erosion(inside)
    assert inside.sum() > 100
    assert np.abs(got - expected)[inside].max() < 0.05
    assert np.abs(image - expected)[inside].max() > 20  # it did turn


def test_angles_stay_within_bounds_and_corners_are_zero():
    white = torch.full((400, 1, 16, 16), 255, dtype=torch.uint8)
    small, large = rotate(white, 5, generator()), rotate(white, 90, generator())
    center = large[:, :, 6:10, 6:10]
    assert bool((center == 255).all())
    assert int((small == 0).sum()) < int((large == 0).sum())
    assert int((large[:, :, 0, 0] == 0).sum()) > 100
    u = torch.rand(400, generator=generator()) * 2 - 1
    assert float(u.abs().max()) * math.radians(5) <= math.radians(5)


EVERYTHING = Augment(crop_pad=2, pad_mode="reflect", flip=True, cutout=3, rotation=15.0)


SINGLE = [Augment(crop_pad=2), Augment(flip=True), Augment(cutout=3), Augment(rotation=15.0)]


@pytest.mark.parametrize("policy", [*SINGLE, EVERYTHING])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_policy_keeps_shape_dtype_and_input(policy, shape):
    x = batch(shape)
    before = x.clone()
    got = augment(x, policy, generator())
    assert got.dtype == torch.uint8
    assert got.shape == x.shape
    assert torch.equal(x, before)
    assert not torch.equal(got, x)
    floats = augment(x.float() / 255, policy, generator())
    assert floats.dtype == torch.float32
    assert float((floats * 255 - got.float()).abs().max()) <= 0.51  # the same places, up to rounding
    assert 0 <= float(floats.min()) <= float(floats.max()) <= 1


def test_same_state_same_pictures():
    x = batch(SHAPES[0])
    first, second = generator(), generator()
    assert torch.equal(augment(x, EVERYTHING, first), augment(x, EVERYTHING, second))
    assert torch.equal(first.get_state(), second.get_state())
    assert not torch.equal(augment(x, EVERYTHING, first), augment(x, EVERYTHING, generator()))


def test_nothing_asked_nothing_done():
    x, draw = batch(SHAPES[0]), generator()
    state = draw.get_state()
    assert augment(x, Augment(), draw) is x
    assert torch.equal(draw.get_state(), state)


def test_memory_layout_does_not_matter():
    x = batch((6, 3, 8, 8))
    other = x.to(memory_format=torch.channels_last)
    assert torch.equal(augment(x, EVERYTHING, generator()), augment(other, EVERYTHING, generator()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("policy", SINGLE[:3])
def test_the_device_does_not_matter(policy):
    x = batch(SHAPES[1])
    assert torch.equal(augment(x.cuda(), policy, generator()).cpu(), augment(x, policy, generator()))


@pytest.mark.parametrize(
    "options",
    [{"crop_pad": -1}, {"crop_pad": 1.5}, {"cutout": -1}, {"rotation": math.nan}, {"rotation": 400.0}, {"pad_mode": "wrap"}],
)
def test_bad_policies_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        Augment(**options)
