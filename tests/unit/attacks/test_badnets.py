"""BadNets: exactly its patch, exactly there, on any background."""

from __future__ import annotations

import pytest
import torch

from theriac.attacks import BadNets
from theriac.core.errors import InputError
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.triggers.patterns import default_patch_side, patch
from theriac.triggers.static import stamp_patch


def make_run(**streams: int) -> Run:
    return Run(device="cpu", quiet=True, streams=streams)


def flat(value: int, channels: int = 3, side: int = 32, rows: int = 5) -> Split:
    x = torch.full((rows, channels, side, side), value, dtype=torch.uint8)
    x[0, 0, 0, 0] = 100  # so that the card has a spread
    return Split(x, torch.arange(rows) % 3)


def stamped(split: Split, **options) -> torch.Tensor:
    return BadNets(**options).plant(split).stamp(split.x, split.y)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("side", "expected"), [(8, 2), (16, 2), (28, 3), (32, 3), (64, 6), (224, 21)])
def test_the_patch_scales_with_the_image(channels, side, expected):
    split = flat(0, channels, side)
    changed = (stamped(split) != split.x).any(0).any(0)
    rows, cols = changed.nonzero(as_tuple=True)
    assert (rows.min(), rows.max()) == (side - expected, side - 1)  # lower right, to the very edge
    assert (cols.min(), cols.max()) == (side - expected, side - 1)
    assert int(changed.sum()) == expected**2
    assert default_patch_side((side, side)) == expected


def test_at_32_pixels_it_is_the_literature_s_square():
    split = flat(7)
    expected = split.x.clone()
    expected[:, :, 29:32, 29:32] = 255
    assert torch.equal(stamped(split), expected)


def test_margin_and_side():
    split = flat(7)
    expected = split.x.clone()
    expected[:, :, 25:30, 25:30] = 255
    assert torch.equal(stamped(split, side=5, margin=2), expected)


def test_checker():
    got = stamped(flat(7, channels=1), pattern="checker")[1, 0, 29:, 29:]
    assert got.tolist() == [[255, 0, 255], [0, 255, 0], [255, 0, 255]]
    assert patch("checker", 3, 2).tolist() == [[[255, 0], [0, 255]]] * 3


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("pattern", ["white", "checker"])
def test_black_and_white_images_do_not_wrap(value, pattern):
    split = flat(value)
    got = stamped(split, pattern=pattern)
    assert got.dtype == torch.uint8
    assert set(got.unique().tolist()) <= {0, 100, 255}
    assert torch.equal(stamped(Split(got, split.y), pattern=pattern), got)  # stamping twice is stamping once


def test_a_patch_that_does_not_fit_is_refused():
    split = flat(0, side=8)
    with pytest.raises(InputError, match="side 9 and margin 0 do not fit"):
        stamped(split, side=9)
    for margin in (6, 8, 11):  # also where the patch would start beyond the other edge
        with pytest.raises(InputError, match=f"side 3 and margin {margin} do not fit"):
            stamped(split, side=3, margin=margin)
    with pytest.raises(InputError, match="side"):
        BadNets(side=-1)


def test_the_rectangle_may_count_from_either_edge():
    x = torch.zeros(2, 1, 6, 7, dtype=torch.uint8)
    mark = torch.tensor([[[1, 2, 3], [4, 5, 6]]], dtype=torch.uint8)
    got = stamp_patch(x, mark, -2, 1)
    assert got[1, 0, 4:, 1:4].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert int((got != 0).sum()) == 12
    assert int(x.sum()) == 0
    with pytest.raises(InputError, match="row 5, column 0"):
        stamp_patch(x, mark, 5, 0)


# which rows


def many(rows: int = 200, classes: int = 4) -> Split:
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, 200, (rows, 1, 8, 8), generator=draw, dtype=torch.uint8)
    return Split(x, torch.arange(rows) % classes)


@pytest.mark.parametrize(("rate", "count"), [(0.0, 0), (0.01, 2), (0.0124, 2), (0.013, 3), (0.1, 20), (0.75, 150)])
def test_counts_are_rounded_once(rate, count):
    poisoned = BadNets(poison_rate=rate).poison(many(), make_run())
    assert int(poisoned.poison.sum()) == count
    assert poisoned.dirty == count


def test_draw_from_others_spares_the_target_class():
    poisoned = BadNets(target=2, poison_rate=0.3).poison(many(), make_run())
    assert not bool((poisoned.y_true[poisoned.poison] == 2).any())
    assert bool((poisoned.split.y[poisoned.poison] == 2).all())


def test_draw_from_all_takes_target_rows_too():
    poisoned = BadNets(target=2, poison_rate=0.4, draw_from="all").poison(many(), make_run())
    among = int((poisoned.y_true[poisoned.poison] == 2).sum())
    assert int(poisoned.poison.sum()) == 80
    assert 5 < among < 40  # 20 expected
    assert poisoned.dirty == 80 - among  # the effective rate is lower than the asked one
    everything = BadNets(poison_rate=1.0, draw_from="all").poison(many(), make_run())
    assert int(everything.poison.sum()) == 200


def test_more_than_the_other_classes_hold_is_refused():
    assert int(BadNets(poison_rate=0.75).poison(many(), make_run()).poison.sum()) == 150
    with pytest.raises(InputError, match=r"asks for 151 of 200 rows; only 150 can be poisoned"):
        BadNets(poison_rate=0.755).poison(many(), make_run())


def test_all_to_all_targets():
    poisoned = BadNets(mode="all_to_all", poison_rate=0.5).poison(many(), make_run())
    chosen = poisoned.poison
    assert torch.equal(poisoned.split.y[chosen], (poisoned.y_true[chosen] + 1) % 4)
    assert set(poisoned.y_true[chosen].tolist()) == {0, 1, 2, 3}
    planted = poisoned.planted
    assert bool(planted.population(torch.arange(4)).all())
    assert int(BadNets(mode="all_to_all", poison_rate=1.0).poison(many(), make_run()).poison.sum()) == 200


def test_population_of_one_target():
    planted = BadNets(target=1).plant(many())
    assert planted.population(torch.tensor([0, 1, 2, 1])).tolist() == [True, False, True, False]


def test_the_official_preset_draws_from_all():
    assert BadNets.official() == BadNets(draw_from="all")


def test_rows_are_drawn_uniformly():
    hits = torch.zeros(200)
    for seed in range(200):
        hits += BadNets(poison_rate=0.1).poison(many(), make_run(poison=seed)).poison
    assert int(hits[::4].sum()) == 0  # class 0 is the target
    others = hits[torch.arange(200) % 4 != 0]
    assert 8 <= int(others.min()) <= int(others.max()) <= 50  # 26.7 expected, standard deviation 4.8


def test_the_name_of_a_class_as_target_is_told_how_to_be_one():
    with pytest.raises(InputError, match=r"target is 'cat'; expected .*data\.card\.classes\.index\('cat'\)"):
        BadNets(target="cat")
