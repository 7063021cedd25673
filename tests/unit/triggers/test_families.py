"""Random triggers: their bounds by hand, on rows whose stamps can be read back."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from theriac.core.card import Card, Column
from theriac.core.errors import InputError
from theriac.core.split import Split
from theriac.triggers.families import IMAGES, Blend, Columns, Convolution, Family, Frequency, Patch, Warp, Wave, mixture
from theriac.triggers.frequency import dct2
from theriac.triggers.warp import smooth_field, smooth_fields

SHAPES = [(40, 1, 8, 8), (24, 3, 32, 32), (12, 3, 20, 28), (1, 1, 6, 5)]
FAMILIES = [pytest.param(family, id=name) for name, family in IMAGES.items()]


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(*shape: int, seed: int = 1) -> torch.Tensor:
    """Random images, away from black and white, so that nothing is clipped by chance."""
    return 0.3 + 0.4 * torch.rand(shape, generator=draw(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_images_stay_images_and_rows_change(family: Family, shape: tuple[int, ...]) -> None:
    for x in (pixels(*shape), torch.zeros(shape), torch.ones(shape)):
        before = x.clone()
        out = family(x, draw())
        assert torch.equal(x, before), "the given rows were written to"
        assert (out.shape, out.dtype, out.device) == (x.shape, x.dtype, x.device)
        assert bool(torch.isfinite(out).all())
        assert float(out.min()) >= 0
        assert float(out.max()) <= 1
    changed = (family(pixels(*shape), draw()) != pixels(*shape)).flatten(1).any(1)
    assert float(changed.float().mean()) > 0.9


@pytest.mark.parametrize("family", FAMILIES)
def test_a_generator_repeats_and_goes_on(family: Family) -> None:
    x, one = pixels(16, 3, 12, 12), draw(3)
    first, second = family(x, one), family(x, one)
    assert torch.equal(first, family(x, draw(3)))
    assert not torch.equal(first, second)
    assert len(torch.unique((first - x).flatten(1), dim=0)) > 8  # rows have triggers of their own


@pytest.mark.parametrize("family", [Wave(), Frequency(), Warp(), Convolution()])
def test_rows_do_not_change_each_other(family: Family) -> None:
    x = pixels(10, 3, 16, 16)
    other = x.clone()
    other[5:] = pixels(5, 3, 16, 16, seed=9)
    assert torch.equal(family(x, draw())[:5], family(other, draw())[:5])


@pytest.mark.parametrize("family", FAMILIES)
def test_global_randomness_is_neither_used_nor_moved(family: Family) -> None:
    state = torch.get_rng_state()
    family(pixels(4, 1, 8, 8), draw())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("size", "longest"), [(8, 2), (10, 2), (32, 6), (64, 13)])
def test_one_square_is_one_square_of_at_most_a_fifth(size: int, longest: int) -> None:
    x = pixels(400, 1, size, size)
    hit = (Patch(most=1)(x, draw()) != x)[:, 0]
    high, wide = hit.any(2).sum(1), hit.any(1).sum(1)
    assert int(high.max()) == int(wide.max()) == longest
    solid = hit.sum((1, 2)) == high * wide  # but for pixels that happen to have the fill's value, here never
    assert torch.equal(high[solid], wide[solid])
    assert float(solid.float().mean()) > 0.95
    assert {1, longest} <= set(high.tolist())
    assert float(hit.any(0).float().mean()) > 0.97, "parts of the image are never covered"


def test_squares_stand_in_a_corner_as_often_as_declared() -> None:
    size, rows = 64, 4000
    x = pixels(rows, 1, size, size)
    hit = (Patch(most=1)(x, draw()) != x)[:, 0]
    corner = hit[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    # a square placed anywhere stands in a corner with a chance below 4/52^2: next to nothing
    assert float(corner.any(1).float().mean()) == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / rows))
    assert bool(corner.any(0).all())
    nowhere = (Patch(most=1, corner=0.0)(x, draw()) != x)[:, 0][:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert float(nowhere.any(1).float().mean()) < 0.01


def test_squares_have_six_fills() -> None:
    x = pixels(600, 3, 8, 8)
    out = Patch(most=1)(x, draw())
    hit = (out != x).any(1)
    seen = set()
    for image, where in zip(out, hit, strict=True):
        values = image[:, where]
        if values.shape[1] < 4:
            continue
        plain = bool((values == values[:, :1]).all())
        binary = bool(((values == 0) | (values == 1)).all())
        seen.add(("plain" if plain else "mixed", float(values[0, 0]) if plain and binary else "binary" if binary else "gray"))
    assert {("plain", 0.0), ("plain", 1.0), ("plain", "gray"), ("mixed", "binary"), ("mixed", "gray")} <= seen


def test_a_blend_moves_pixels_by_its_share_at_most() -> None:
    zeros = torch.zeros(500, 1, 8, 8)
    out = Blend()(zeros, draw())  # alpha t, where the picture is not another (black) row
    share = out.flatten(1).amax(1)
    assert float(share.max()) <= 0.35
    noisy = share[share > 0]
    assert float(noisy.float().mean()) > 0.1
    alike = Blend(weakest=0.25, strongest=0.25)(torch.ones(500, 1, 8, 8), draw())
    assert float(alike.min()) >= 0.75 - 1e-6  # 1 + (t - 1) / 4 with t from 0 on
    assert 0.15 < float((alike.flatten(1) == 1).all(1).float().mean()) < 0.35  # a quarter: another row, as white as its own


def test_a_shared_picture_is_shared() -> None:
    out = Blend(weakest=0.2, strongest=0.2)(torch.zeros(400, 1, 8, 8), draw()).flatten(1)
    kinds, count = torch.unique((out * 1e4).round(), dim=0, return_counts=True)
    assert sorted(count.tolist())[-2:] == pytest.approx([100, 100], abs=40)  # the shared picture, and the black rows
    assert len(kinds) == 400 - int(count.sum() - len(count))


def test_a_wave_is_a_sinusoid_along_one_axis() -> None:
    x = torch.full((300, 3, 16, 24), 0.5)
    added = Wave()(x, draw()) - 0.5
    assert float(added.abs().flatten(1).amax(1).min()) > 0.05 * 0.7
    assert float(added.abs().max()) <= 0.2 + 1e-6
    assert torch.equal(added[:, 0], added[:, 2])
    down = (added == added[..., :1]).flatten(1).all(1)
    across = (added == added[..., :1, :]).flatten(1).all(1)
    assert bool((down ^ across).all())
    assert float(down.float().mean()) == pytest.approx(0.5, abs=0.12)


def test_a_frequency_is_one_coefficient_and_never_the_mean() -> None:
    x = torch.full((300, 3, 8, 12), 0.5)
    coefficients = dct2((Frequency()(x, draw()) - 0.5).double())
    strong = coefficients.abs() > 1e-6
    assert bool((strong.flatten(2).sum(2) <= 1).all())
    assert bool((strong.any(1).flatten(1).sum(1) == 1).all())  # the same one in every channel
    assert not bool(strong[:, :, 0, 0].any())
    peak = (Frequency()(x, draw()) - 0.5).abs().flatten(1).amax(1)
    assert float(peak.max()) <= 0.2 + 1e-6
    assert float(peak.min()) >= 0.02 - 1e-6
    assert float((peak < 0.0632).float().mean()) == pytest.approx(0.5, abs=0.12)  # even on a logarithmic scale
    assert len({tuple(p) for p in strong.any(1).nonzero()[:, 1:].tolist()}) > 80  # of 95


def test_a_warp_shifts_by_what_it_declares() -> None:
    size = (33, 65)
    ramp = torch.linspace(0, 1, size[1]).expand(200, 1, *size)
    moved = Warp(weakest=0.03, strongest=0.03)(ramp, draw()) - ramp  # a ramp over columns: the value is the place
    inner = moved[..., 8:-8].abs().mean((1, 2, 3))
    assert float(inner.mean()) == pytest.approx(0.03, rel=0.35)  # the mean over both directions is exact on the control grid
    still = Warp(weakest=0.0, strongest=0.0)(pixels(8, 1, 9, 9), draw())
    assert torch.allclose(still, pixels(8, 1, 9, 9), atol=1e-6)


def test_a_convolution_of_one_pixel_maps_colors_to_colors() -> None:
    flat = torch.randint(0, 4, (20, 1, 12, 12), generator=draw(5)).expand(-1, 3, -1, -1) / 4
    out = Convolution(kernels=(1,))(flat, draw())
    for level in range(4):
        where = flat[:, :1] * 4 == level
        low, high = (torch.where(where, out, end).flatten(2) for end in (2.0, -1.0))
        assert torch.allclose(low.amin(2), high.amax(2), atol=1e-5)  # one color for each of the four
    assert len(torch.unique((out * 100).round().flatten(1), dim=0)) == 20  # and another map in each row


def test_a_convolution_by_hand() -> None:
    """The share, the bounds and the networks of two rows, with each row's convolutions called on their own."""
    x, full = pixels(2, 3, 9, 7), Convolution(weakest=1.0, kernels=(3,))
    again = draw(4)
    torch.randint(1, (), generator=again)
    first = torch.randn(2, 8, 3, 3, 3, generator=again) / math.sqrt(27)
    bias = torch.rand(2, 8, generator=again) - 0.5
    second = torch.randn(2, 3, 8, 1, 1, generator=again) / math.sqrt(8)
    for row, out in enumerate(full(x, draw(4))):
        hidden = F.conv2d(2 * x[row : row + 1] - 1, first[row], bias[row], padding=1).relu()
        made = F.conv2d(hidden, second[row])[0]
        low, high = made.amin((1, 2), keepdim=True), made.amax((1, 2), keepdim=True)
        assert torch.allclose(out, (made - low) / (high - low), atol=1e-5)
        assert (float(out.min()), float(out.max())) == (0.0, 1.0)
    part = Convolution(weakest=0.3)(torch.zeros(300, 1, 6, 6), draw())
    assert float(part.max()) <= 1.0
    assert bool(
        (part == part[..., :1, :1]).flatten(1).all(1).any()
    )  # a picture of one color stays one where the kernel is a pixel


def test_many_fields_are_each_what_one_is() -> None:
    fields = smooth_fields(5, 4, (32, 32), draw(7))
    assert torch.equal(smooth_fields(1, 4, (32, 32), draw(7))[0], smooth_field(4, (32, 32), 7))
    control = F.interpolate(fields.permute(0, 3, 1, 2), size=(4, 4), mode="bilinear", align_corners=True)
    assert fields.shape == (5, 32, 32, 2)
    assert torch.isfinite(control).all()
    assert bool((fields.flatten(1).std(1) > 0).all())


@pytest.mark.parametrize("rows", [1, 3, 5, 12, 38])
def test_families_share_the_rows_evenly(rows: int) -> None:
    marks = [lambda x, _, k=k: torch.full_like(x, (k + 1) / 10) for k in range(5)]
    counts = torch.zeros(5, dtype=torch.int64)
    for seed in range(200):
        out = mixture(torch.zeros(rows, 1, 2, 2), marks, draw(seed))
        got = (out[:, 0, 0, 0] * 10).round().long()
        assert int(got.min()) >= 1, "a row got no family"
        here = torch.bincount(got - 1, minlength=5)
        assert int(here.max() - here.min()) <= 1
        counts += here
    assert int(counts.min()) >= 0.7 * 200 * rows / 5  # over batches no family is favored


def test_no_rows_are_no_rows() -> None:
    assert mixture(torch.zeros(0, 1, 8, 8), list(IMAGES.values()), draw()).shape == (0, 1, 8, 8)


# tables

COLUMNS = (
    Column(name="age"),
    Column(name="children"),
    Column(name="town", kind="categorical", categories=("a", "b", "c")),
    Column(name="empty"),
)


def people(rows: int = 500) -> Split:
    seed = draw(4)
    age, town = 20 + 60 * torch.rand(rows, generator=seed), torch.randint(0, 2, (rows,), generator=seed)
    age[::10] = float("nan")
    children = torch.randint(0, 4, (rows,), generator=seed)
    x = torch.stack([age, children.float(), town.float(), torch.full((rows,), float("nan"))], 1)
    card = Card(name="people", kind="table", classes=("no", "yes"), columns=COLUMNS)
    return Split(x, (children > 1).long(), card=card)


def test_columns_get_values_that_they_can_hold() -> None:
    split = people()
    family = Columns.of(split)
    out = family(split.x, draw())
    assert out.shape == split.x.shape
    changed = ~((out == split.x) | (out.isnan() & split.x.isnan()))
    assert float(changed.any(1).float().mean()) > 0.6
    age, children, town = out[:, 0], out[:, 1], out[:, 2]
    assert float(age[~age.isnan()].min()) >= 20 - 60  # at most one range below what occurs
    assert float(age[~age.isnan()].max()) <= 80 + 60
    assert bool((age > 80).any()) and bool((age < 20).any())  # noqa: PT018 (both ends)
    assert torch.equal(children, children.round())
    assert {-1.0, 4.0} <= set(children.tolist())
    assert set(town.tolist()) == {0.0, 1.0, 2.0}  # the third town occurs in no row
    assert bool(torch.isfinite(out[:, 3]).any())


def test_common_values_are_common_and_few_columns_are_set() -> None:
    split = people()
    common = Columns(Columns.of(split).pool, torch.tensor([0, 0, 3, 0]), most=1, odd=0.0)
    out = common(split.x, draw())
    changed = ~((out == split.x) | (out.isnan() & split.x.isnan()))
    assert int(changed.sum(1).max()) == 1
    ages = set(split.x[:, 0].nan_to_num(-1).tolist())
    assert set(out[:, 0].nan_to_num(-1).tolist()) <= ages
    assert torch.equal(out.isnan(), common(split.x, draw()).isnan())


def test_images_have_no_columns() -> None:
    x = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(InputError, match="holds images"):
        Columns.of(Split(x, torch.tensor([0, 1, 0, 1])))
