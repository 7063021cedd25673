"""Triggers against restatements in a few lines of NumPy, SciPy and torch, on gray and color images of two sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from torch.nn import functional as F

from theriac.attacks import SIG, Blended, BppAttack, FTrojan, WaNet
from theriac.attacks._generators import DynamicNet
from theriac.core.errors import InputError
from theriac.core.planted import Planted
from theriac.triggers.additive import add, corners, sinusoid
from theriac.triggers.frequency import (
    cosine_pattern,
    dct2,
    idct2,
    lowpass,
    rgb_to_ycrcb,
    rgb_to_ycrcb_bytes,
    ycrcb_bytes_to_rgb,
    ycrcb_to_rgb,
)
from theriac.triggers.patterns import picture
from theriac.triggers.per_row import pick, uniform
from theriac.triggers.quantize import dither, levels, quantize
from theriac.triggers.warp import identity_grid, smooth_field, warp

SHAPES = [(1, 8), (3, 8), (1, 32), (3, 32)]


@pytest.fixture(params=SHAPES, ids=lambda s: f"{s[0]}x{s[1]}x{s[1]}")
def split(request, images):
    channels, side = request.param
    return images(12, channels, side, 4)


def stamp(attack, split, x=None, **how):
    planted: Planted = attack.plant(split)
    return planted.stamp(split.x if x is None else x, split.y, split.index, **how)


def clip(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def test_many_rows_are_stamped_as_each_one_alone(images):
    """Large batches are worked through in pieces; rows on both sides of every border must come out the same."""
    split = images(401, 3, 32, 4)
    for attack in (Blended(), SIG(), FTrojan(), WaNet(), BppAttack(), BppAttack(dithering=True)):
        planted = attack.plant(split)
        whole = planted.stamp(split.x, split.y, split.index)
        for at in (0, 169, 170, 171, 340, 341, 400):
            one = slice(at, at + 1)
            assert torch.equal(planted.stamp(split.x[one], split.y[one], split.index[one]), whole[one]), (attack.name, at)


# SIG


def test_sig_is_the_sinusoid_of_its_paper(split):
    x = split.x.numpy().astype(float)
    columns = np.arange(x.shape[3])
    wave = np.rint(40 * np.sin(2 * np.pi * columns * 6 / x.shape[3]))
    assert np.array_equal(stamp(SIG(), split).numpy(), clip(x + wave))


def test_sig_keeps_within_delta_and_does_not_wrap(split):
    for level in (0, 255):
        flat = torch.full_like(split.x, level)
        change = stamp(SIG(), split, flat).int() - flat.int()
        assert change.abs().max() <= 40
        assert (change >= 0).all() if level == 0 else (change <= 0).all()
        assert change.abs().max() >= 38  # and uses the delta that it has


@pytest.mark.parametrize("attack", [SIG(delta=0.0), FTrojan(magnitude=0.0), WaNet(strength=0.0)], ids=lambda a: a.name)
def test_no_strength_is_the_identity(attack, split):
    assert torch.equal(stamp(attack, split), split.x)


def test_sinusoid_has_its_frequency_and_nothing_else():
    power = np.abs(np.fft.rfft(sinusoid(1, (4, 48), 10.0, 6.0)[0, 0].numpy())) ** 2
    assert power[6] == pytest.approx((10 * 48 / 2) ** 2, rel=1e-5)
    assert np.delete(power, 6).max() < 1e-4


# adding


def test_add_clips_or_wraps():
    x = torch.tensor([0, 5, 250, 255], dtype=torch.uint8).view(1, 1, 2, 2)
    pattern = torch.tensor([-10.0, 10.4, 10.6, 1.0]).view(1, 2, 2)
    assert add(x, pattern).flatten().tolist() == [0, 15, 255, 255]
    assert add(x, pattern, "wrap").flatten().tolist() == [246, 15, 5, 0]


def test_add_refuses_a_pattern_of_another_shape():
    with pytest.raises(InputError, match="pattern"):
        add(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(3, 8, 9))


# DCT, color, FTrojan


@pytest.mark.parametrize(("size", "window"), [((8, 8), None), ((6, 10), None), ((32, 64), (16, 16)), ((12, 8), (4, 2))])
def test_dct_equals_scipy(size, window):
    x = np.random.default_rng(0).normal(size=(2, 3, *size))
    h, w = window or size
    expected = np.empty_like(x)
    for top in range(0, size[0], h):
        for left in range(0, size[1], w):
            block = (..., slice(top, top + h), slice(left, left + w))
            expected[block] = dctn(x[block], axes=(-2, -1), norm="ortho")
    got = dct2(torch.from_numpy(x), window)
    assert np.allclose(got.numpy(), expected, atol=1e-12)
    assert np.allclose(idct2(got, window).numpy(), x, atol=1e-12)


def test_dct_refuses_a_window_that_does_not_tile():
    with pytest.raises(InputError, match="tile"):
        dct2(torch.zeros(8, 8), (3, 3))


def test_luma_and_chroma():
    color = torch.tensor([[255.0, 0, 0], [0, 0, 255.0], [90, 90, 90]], dtype=torch.float64)[:, :, None, None]
    got = rgb_to_ycrcb(color)[:, :, 0, 0]
    # red: Y = 0.299 * 255, Cr = 128 + 127.5; blue: Y = 0.114 * 255, Cb = 128 + 127.5; gray: no chroma
    assert np.allclose(got[0, :2], [76.245, 255.5])
    assert np.allclose(got[1, [0, 2]], [29.07, 255.5])
    assert np.allclose(got[2], [90, 128, 128])
    assert torch.allclose(ycrcb_to_rgb(rgb_to_ycrcb(color)), color)


def ftrojan_by_scipy(x: np.ndarray, window: int, places: list[tuple[int, int]], magnitude: float) -> np.ndarray:
    """The whole chain for color images, one block at a time, in float64: to YCrCb, DCT, raise, back."""
    red, green, blue = x[:, 0], x[:, 1], x[:, 2]
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    planes = [(red - luma) * 0.5 / 0.701, (blue - luma) * 0.5 / 0.886]
    for plane in planes:
        for top in range(0, x.shape[2], window):
            for left in range(0, x.shape[3], window):
                block = (slice(None), slice(top, top + window), slice(left, left + window))
                freq = dctn(plane[block], axes=(1, 2), norm="ortho")
                for row, column in places:
                    freq[:, row, column] += magnitude
                plane[block] = idctn(freq, axes=(1, 2), norm="ortho")
    cr, cb = planes
    red, blue = luma + cr * 0.701 / 0.5, luma + cb * 0.886 / 0.5
    return np.stack([red, (luma - 0.299 * red - 0.114 * blue) / 0.587, blue], 1)


@pytest.mark.parametrize(("side", "window", "places"), [(8, 8, [(3, 3), (7, 7)]), (32, 32, [(15, 15), (31, 31)])])
def test_ftrojan_equals_the_chain_by_scipy(images, side, window, places):
    split = images(6, 3, side, 3)
    expected = ftrojan_by_scipy(split.x.numpy().astype(float), window, places, 30.0)
    got = stamp(FTrojan(), split).numpy()
    # where the sum lies within 1e-3 of a half, either neighbor is right
    sure = np.abs(expected - np.floor(expected) - 0.5) > 1e-3
    assert sure.mean() > 0.99
    assert np.array_equal(got[sure], clip(expected)[sure])


def test_ftrojan_in_blocks_equals_the_chain_by_scipy(images):
    split = images(2, 3, 64, 2)
    expected = ftrojan_by_scipy(split.x.numpy().astype(float), 32, [(15, 15), (31, 31)], 30.0)
    got = stamp(FTrojan(), split).numpy()
    assert np.abs(got - np.clip(expected, 0, 255)).max() <= 0.5 + 1e-3
    assert not np.array_equal(got, stamp(FTrojan(window=0), split).numpy())


def test_ftrojan_moves_only_the_chosen_coefficients(split):
    channels, size = split.x.shape[1], tuple(split.x.shape[2:])
    pattern = cosine_pattern(channels, size, size, ((2, 3), (5, 1)), 30.0)
    moved = rgb_to_ycrcb(pattern[None].double())[0, 1:] - 128 if channels == 3 else pattern.double()
    freq = dct2(moved)
    assert torch.allclose(freq[:, 2, 3], torch.tensor(30.0, dtype=torch.float64), atol=1e-4)
    assert torch.allclose(freq[:, 5, 1], torch.tensor(30.0, dtype=torch.float64), atol=1e-4)
    freq[:, 2, 3] = freq[:, 5, 1] = 0
    assert freq.abs().max() < 1e-4
    if channels == 3:  # luma stays
        assert (rgb_to_ycrcb(pattern[None].double())[0, 0]).abs().max() < 1e-4


def test_ftrojan_official_wraps_strong_chroma_and_corrected_does_not(images):
    split = images(4, 3, 32, 4)
    red = torch.zeros_like(split.x)
    red[:, 0] = 255  # Cr is 255.5 there, next to the edge of a byte
    wrapped = stamp(FTrojan.official(), split, red).int()
    kept = stamp(FTrojan(), split, red).int()
    assert (wrapped[:, 0] < 128).any()
    assert (kept - red.int()).abs().max() <= 12
    dark = torch.zeros_like(split.x)
    assert stamp(FTrojan(), split, dark).max() <= 12


def test_ftrojan_official_agrees_with_corrected_away_from_the_edges(images):
    split = images(4, 3, 32, 4)
    middle = 96 + split.x // 4
    gap = stamp(FTrojan.official(), split, middle).int() - stamp(FTrojan(), split, middle).int()
    assert gap.abs().max() <= 4  # three planes rounded or cut to bytes on the way
    assert gap.float().abs().mean() < 1.5


def test_lowpass_equals_numpy_and_keeps_the_mean():
    x = np.random.default_rng(1).normal(size=(3, 8, 10))
    d2 = np.fft.fftfreq(8)[:, None] ** 2 + np.fft.fftfreq(10)[None] ** 2
    expected = np.fft.ifft2(np.fft.fft2(x) * np.exp(-d2 / (2 * 0.1**2))).real
    got = lowpass(torch.from_numpy(x), 0.1).numpy()
    assert np.allclose(got, expected, atol=1e-12)
    assert np.allclose(got.mean((1, 2)), x.mean((1, 2)))


# corners


def test_corners_are_the_published_blocks():
    level, where = corners(1, (8, 8), 3)
    art = ["#..  ..#", ".#.  .#.", "#.#  #.#", "        ", "        ", "#..  ..#", ".#.  .#.", "#.#  #.#"]
    expected = np.array([[{"#": 255, ".": 0, " ": -1}[c] for c in line] for line in art])
    assert np.array_equal(where.numpy(), expected >= 0)
    assert np.array_equal(level[0].numpy()[expected >= 0], expected[expected >= 0])


def test_corners_refuse_blocks_that_overlap():
    with pytest.raises(InputError, match="side"):
        corners(1, (8, 8), 5)


# WaNet


def test_wanet_equals_its_formula_by_grid_sample(split):
    size = split.x.shape[2]
    attack = WaNet(strength=0.7, lattice=4, seed=5)
    ins = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(5)) * 2 - 1
    ins = ins / ins.abs().mean()
    field = F.interpolate(ins, size=size, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    axis = torch.linspace(-1, 1, steps=size)
    down, across = torch.meshgrid(axis, axis, indexing="ij")
    grid = (torch.stack([across, down], 2)[None] + 0.7 * field / size).clamp(-1, 1)
    warped = F.grid_sample(split.x.float(), grid.repeat(len(split), 1, 1, 1), align_corners=True)
    assert torch.equal(stamp(attack, split), warped.round().clamp(0, 255).to(torch.uint8))


def test_warping_the_pixels_is_warping_the_normalized_image(images):
    """The benchmark warps normalized tensors; bilinear sampling is affine, so it is the same thing."""
    x = images(3, 3, 16, 3).x.float()
    mean, std = torch.tensor([120.0, 110, 100]).view(3, 1, 1), torch.tensor([60.0, 50, 70]).view(3, 1, 1)
    grid = identity_grid((16, 16)) + 0.5 * smooth_field(4, (16, 16), 0) / 16
    assert torch.allclose(warp((x - mean) / std, grid) * std + mean, warp(x, grid), atol=1e-3)


def test_the_smooth_field_has_mean_size_one_at_its_control_points():
    field = smooth_field(4, (10, 10), 3)[::3, ::3]  # with ten places, every third one is a control point
    assert field.shape == (4, 4, 2)
    assert field.abs().mean().item() == pytest.approx(1.0, abs=1e-5)


def test_warp_shifts_by_whole_pixels(images):
    x = images(2, 1, 8, 2).x
    right = identity_grid((8, 8)) + torch.tensor([2 / 7, 0.0])  # one pixel in x
    assert torch.equal(warp(x, right)[..., :-1], x[..., 1:])
    down = identity_grid((8, 8)) + torch.tensor([0.0, 2 / 7])
    assert torch.equal(warp(x, down)[..., :-1, :], x[..., 1:, :])
    assert torch.equal(warp(x, down)[..., -1, :], x[..., -1, :])  # beyond the edge, the edge


def test_wanet_cross_noise_is_bounded_by_half_a_pixel_and_differs_by_row(images):
    split = images(6, 1, 16, 3)
    same = split.x[:1].expand(6, -1, -1, -1).contiguous()
    noisy = stamp(WaNet(), split, same, variant="cross")
    assert len({row.numpy().tobytes() for row in noisy}) == 6
    ramp = (torch.arange(16) * 16).expand(1, 1, 16, 16).to(torch.uint8).expand(6, -1, -1, -1).contiguous()
    gap = stamp(WaNet(), split, ramp, variant="cross").int() - stamp(WaNet(), split, ramp).int()
    assert gap.abs().max() <= 16 * 15 / 16 / 2 + 1  # the noise is up to 1 / 16 of the half image of 15 pixels, 16 levels each
    assert gap.abs().max() > 4


# BppAttack


def test_levels_and_quantization_equal_numpy_for_every_pixel_and_count():
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    for count in range(2, 257):
        table = np.rint(np.arange(count) * 255 / (count - 1))
        assert np.array_equal(levels(count).numpy(), table)
        expected = table[np.rint(np.arange(256) / 255 * (count - 1)).astype(int)]
        assert np.array_equal(quantize(ramp, count).numpy().ravel(), expected)


def floyd_steinberg(plane: np.ndarray, count: int) -> np.ndarray:
    table = np.rint(np.arange(count) * 255 / (count - 1))
    work = np.pad(plane.astype(float), ((0, 1), (1, 1)))
    for row in range(plane.shape[0]):
        for column in range(1, plane.shape[1] + 1):
            old = work[row, column]
            new = table[int(np.clip(np.rint(old / 255 * (count - 1)), 0, count - 1))]
            work[row, column] = new
            for down, right, share in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                work[row + down, column + right] += (old - new) * share / 16
    return work[:-1, 1:-1].astype(np.uint8)


@pytest.mark.parametrize(("shape", "count"), [((4, 3, 8, 8), 8), ((2, 1, 32, 32), 8), ((3, 1, 5, 9), 2), ((2, 1, 9, 4), 5)])
def test_dithering_equals_the_sequential_algorithm(shape, count):
    x = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = np.stack([np.stack([floyd_steinberg(plane, count) for plane in image]) for image in x.numpy()])
    assert np.array_equal(dither(x, count).numpy(), expected)


@pytest.mark.parametrize("dithering", [False, True])
def test_bpp_leaves_eight_levels_and_is_idempotent(split, dithering):
    attack = BppAttack(dithering=dithering)
    once = stamp(attack, split)
    assert set(once.unique().tolist()) <= {0, 36, 73, 109, 146, 182, 219, 255}
    assert torch.equal(stamp(attack, split, once), once)
    for level in (0, 255):
        flat = torch.full_like(split.x, level)
        assert torch.equal(stamp(attack, split, flat), flat)


def test_dithering_keeps_the_mean_and_quantization_does_not():
    flat = torch.full((1, 1, 32, 32), 50, dtype=torch.uint8)
    assert dither(flat, 8).float().mean().item() == pytest.approx(50, abs=1.5)
    assert quantize(flat, 8).float().mean().item() == 36


def test_bpp_negative_rows_carry_the_error_of_another_row(split):
    planted = BppAttack().plant(split)
    errors = {e.numpy().tobytes(): int(of) for e, of in zip(planted.state["errors"], planted.state["of"], strict=True)}
    middle = torch.full_like(split.x, 128)  # far from the ends, so that nothing is clipped
    change = planted.stamp(middle, split.y, split.index, "train", "cross").short() - 128
    for row, index in zip(change, split.index.tolist(), strict=True):
        assert errors[row.numpy().tobytes()] != index


# numbers that belong to a row


def test_per_row_numbers_do_not_depend_on_batch_or_order():
    index = torch.tensor([5, 0, 7, 1 << 40])
    table = uniform(index, (3, 4), 9)
    assert torch.equal(uniform(index.flip(0), (3, 4), 9), table.flip(0))
    assert torch.equal(uniform(index[2:3], (3, 4), 9), table[2:3])
    assert not torch.equal(uniform(index, (3, 4), 10), table)


def test_per_row_numbers_are_uniform_and_uncorrelated():
    table = uniform(torch.arange(2000), (50,), 1).double()
    assert 0 <= table.min() < 1e-3
    assert 1 - 1e-3 < table.max() < 1
    counts = torch.histc(table.float(), 20, 0, 1).double()
    assert ((counts - 5000) ** 2 / 5000).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001
    centered = table - 0.5
    assert (centered[:-1] * centered[1:]).mean().abs() < 4 / 12 / np.sqrt(99950)  # next row
    assert (centered[:, :-1] * centered[:, 1:]).mean().abs() < 4 / 12 / np.sqrt(98000)  # next place
    assert set(pick(torch.arange(500), 7, 0).tolist()) == set(range(7))


# released arithmetic


def test_bytes_to_ycrcb_and_back_by_hand():
    """The 8-bit conversion in units of 1/16384; values counted by hand, as image libraries count."""
    color = torch.tensor([[255, 0, 0], [0, 0, 255], [90, 90, 90], [12, 200, 77]])[:, :, None, None]
    got = rgb_to_ycrcb_bytes(color)[:, :, 0, 0].tolist()
    # red: (255 * 4899 + 8192) // 16384 = 76, ((255 - 76) * 11682 + 8192) // 16384 + 128 = 256, clipped to 255
    assert got[0] == [76, 255, 85]
    assert got[1] == [29, 107, 255]
    assert got[2] == [90, 128, 128]
    assert got[3] == [130, 44, 98]
    back = ycrcb_bytes_to_rgb(torch.tensor(got[2])[None, :, None, None])[0, :, 0, 0]
    assert back.tolist() == [90, 90, 90]


def test_blended_official_cuts_fractions_off_as_the_released_code_does(images):
    split = images(rows=16, channels=3, side=16)
    drawn = picture(3, (16, 16), 0).numpy().astype(np.float64)
    exact = split.x.numpy() * (1 - 0.2) + drawn * 0.2
    official, ours = (stamp(a, split).numpy().astype(int) for a in (Blended.official(), Blended()))
    assert np.array_equal(official, np.floor(exact + 1e-9))
    assert np.abs(ours - exact).max() <= 0.5 + 1e-4
    assert 0.3 < (official != ours).mean() < 0.6  # about every second value has a fraction of a half or more
    assert (ours - official).min() >= 0


def test_sig_official_cuts_fractions_off_as_the_released_code_does(images):
    split = images(rows=8, channels=3, side=32)
    wave = 40 * np.sin(2 * np.pi * np.arange(32) * 6 / 32)
    exact = np.clip(split.x.numpy() + wave, 0, 255)
    official = stamp(SIG.official(), split).numpy().astype(int)
    off = np.abs(official - np.floor(exact))
    assert off.max() <= 1  # whole levels of the wave (0, 40) are whole in floats only nearly
    assert (off > 0).mean() < 0.3
    steps = ~np.isclose(exact, np.round(exact), atol=1e-4)
    assert np.array_equal(official[steps], np.floor(exact)[steps])


def test_the_released_input_aware_nets_squash_twice():
    torch.manual_seed(0)
    plain, released = (DynamicNet((3, 16, 16), 3, 8, (0.5,) * 3, (0.25,) * 3, as_released=old) for old in (False, True))
    released.load_state_dict(plain.state_dict())
    with torch.no_grad():
        for net in (plain, released):
            last = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)][-1]
            last.weight.fill_(50.0)  # far into both ends of tanh
        x = torch.rand(16, 3, 16, 16)
        ours, theirs = plain(x), released(x)
    assert ours.min() < 0.01
    assert ours.max() > 0.99
    low, high = 0.5 - np.tanh(1) / 2, 0.5 + np.tanh(1) / 2
    assert theirs.min() == pytest.approx(low, abs=1e-3)
    assert theirs.max() == pytest.approx(high, abs=1e-3)
    assert (round(low, 3), round(high, 3)) == (0.119, 0.881)
