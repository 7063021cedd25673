"""RandAugment's operations against Pillow's, one picture at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from theriac.core.card import Augment
from theriac.core.errors import InputError
from theriac.data import randaugment as ra
from theriac.data.augment import augment

SHAPES = [(6, 3, 12, 9), (6, 1, 8, 8)]


def pictures(shape: tuple[int, ...]) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    made = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)
    made[0] = 77  # flat
    made[1] = made[1] // 4 + 40  # low contrast
    made[2, :, : shape[2] // 2] = 0
    return made


def by_pillow(change, x: torch.Tensor) -> torch.Tensor:
    """A change of Pillow's pictures, for each of a batch."""
    out = []
    for one in x.permute(0, 2, 3, 1).numpy():
        image = Image.fromarray(one[..., 0] if one.shape[2] == 1 else one)
        out.append(np.asarray(change(image)).reshape(one.shape))
    return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2)


def off(got: torch.Tensor, want: torch.Tensor) -> int:
    return int((got.clamp(0, 255).round() - want.float()).abs().max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("operation", "change", "most"),
    [
        (ra.autocontrast, ImageOps.autocontrast, 1),
        (ra.equalize, ImageOps.equalize, 0),
        (ra.solarize, lambda im: ImageOps.solarize(im, math.ceil(256 * 0.7)), 0),
        (ra.posterize, lambda im: ImageOps.posterize(im, 8 - round(4 * 0.3)), 0),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_levels(shape, operation, change, most):
    x = pictures(shape)
    got = operation(x.float(), 0.3, torch.ones(len(x)))
    assert off(got, by_pillow(change, x)) <= most


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("operation", "enhance"),
    [
        (ra.brightness, ImageEnhance.Brightness),
        (ra.contrast, ImageEnhance.Contrast),
        (ra.color, ImageEnhance.Color),
        (ra.sharpness, ImageEnhance.Sharpness),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_factors(shape, sign, operation, enhance):
    x = pictures(shape)
    got = operation(x.float(), 0.4, torch.full((len(x),), float(sign)))
    assert off(got, by_pillow(lambda im: enhance(im).enhance(1 + 0.9 * 0.4 * sign), x)) <= 1


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("operation", [ra.rotate, ra.shear_x, ra.shear_y])
def test_maps(operation, sign):
    x = pictures((4, 3, 15, 11))
    share = 0.6
    got = operation(x.float(), share, torch.full((len(x),), float(sign)))
    height, width = x.shape[2:]
    angle, shear = sign * share * math.radians(30), 0.3 * share * sign
    (a, b), (c, d) = {
        "rotate": ((math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle))),
        "shear_x": ((1, shear), (0, 1)),
        "shear_y": ((1, 0), (shear, 1)),
    }[operation.__name__]
    wrong = 0
    for row in range(height):
        for column in range(width):
            u, v = column - (width - 1) / 2, row - (height - 1) / 2
            at = (c * u + d * v + (height - 1) / 2, a * u + b * v + (width - 1) / 2)
            near = [round(p) for p in at]
            if any(abs(p - math.floor(p) - 0.5) < 0.02 for p in at):
                continue  # halfway between two pixels
            inside = 0 <= near[0] < height and 0 <= near[1] < width
            want = x[:, :, near[0], near[1]].float() if inside else torch.zeros(4, 3)
            wrong += int((got[:, :, row, column] != want).any())
    assert wrong == 0


@pytest.mark.parametrize("sign", [1, -1])
def test_shifts_are_by_whole_pixels(sign):
    x = pictures((4, 3, 20, 10)).float()
    got = ra.translate_x(x, 1.0, torch.full((4,), float(sign)))
    amount = int(150 / 331 * 10)
    assert amount == 4
    if sign > 0:
        assert torch.equal(got[..., 4:], x[..., :-4])
        assert not got[..., :4].any()
    else:
        assert torch.equal(got[..., :-4], x[..., 4:])
        assert not got[..., -4:].any()
    down = ra.translate_y(x, 0.5, torch.full((4,), float(sign)))
    assert torch.equal(down[:, :, 4:], x[:, :, :-4]) if sign > 0 else torch.equal(down[:, :, :-4], x[:, :, 4:])


def test_every_picture_draws_its_own_operations_and_batches_do_not_matter():
    x = pictures((3, 3, 12, 12))[1:2].expand(4000, -1, -1, -1)
    policy = Augment(randaugment=1, magnitude=15)
    got = augment(x, policy, torch.Generator().manual_seed(0))
    assert got.dtype == torch.uint8
    assert got.shape == x.shape
    kinds = torch.randint(0, 14, (4000,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(got[kinds == 0], x[kinds == 0])  # the first operation leaves pictures as they are
    shares = torch.bincount(kinds, minlength=14) / 4000
    assert float((shares - 1 / 14).abs().max()) < 0.02
    again = augment(x, policy, torch.Generator().manual_seed(0))
    assert torch.equal(got, again)
    floats = augment(x.float() / 255, policy, torch.Generator().manual_seed(0))
    assert float((floats * 255 - got.float()).abs().max()) <= 1


def test_magnitude_zero_moves_nothing_but_contrast():
    x = pictures((8, 3, 20, 20))
    moved = [op.__name__ for op in ra.OPERATIONS if not torch.equal(op(x.float(), 0.0, torch.ones(8)).round(), x.float())]
    assert moved == ["autocontrast", "equalize"]


def test_what_can_not_be_is_refused():
    with pytest.raises(InputError, match="magnitude is 31"):
        Augment(magnitude=31)
    with pytest.raises(InputError, match="randaugment is -1"):
        Augment(randaugment=-1)
