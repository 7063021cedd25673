"""Attacks with covers, sources, parts or several targets: formulas, row choices, populations, and what is counted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from theriac.attacks import (
    AdaptiveBlend,
    AdaptivePatch,
    BadNets,
    Composite,
    MultiTarget,
    TaCT,
    Untargeted,
)
from theriac.core.errors import InputError
from theriac.core.method import create, methods
from theriac.core.planted import Victim
from theriac.core.poisoned import CROSS, POISON
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.metrics import attack_labels, cross_accuracy, evaluate, leakage, success_by_group, success_by_target
from theriac.triggers.patterns import picture
from theriac.triggers.pieces import blend_where, marks, shown_pieces, speckle, squares

RATES = {"poison_rate": 0.1, "cover_rate": 0.15}
COVERED = [AdaptiveBlend(**RATES), AdaptivePatch(**RATES), TaCT(**RATES)]


class Answers(nn.Module):
    """Predicts what it is told for a row, looked up by the row's first pixel."""

    def __init__(self, answers, classes):
        super().__init__()
        self.register_buffer("answers", torch.as_tensor(answers))
        self.classes = classes

    def forward(self, x):
        at = (x[:, 0, 0, 0] * 255).round().long()
        return nn.functional.one_hot(self.answers[at], self.classes).float()


def counted(rows, classes=4, side=8):
    """Rows whose first pixel is their number; no trigger here touches it."""
    x = torch.full((len(rows), 1, side, side), 100, dtype=torch.uint8)
    x[:, 0, 0, 0] = torch.arange(len(rows), dtype=torch.uint8)
    y = torch.tensor(rows)
    whole = Split(torch.cat([x, x[:1]]), torch.cat([y, torch.tensor([classes - 1])]))  # so that the card knows all classes
    return whole.take(torch.arange(len(rows)))


# pieces


def test_squares_are_a_grid_counted_by_rows():
    grid = squares((8, 8), 16).numpy()
    assert np.array_equal(grid, np.arange(8)[:, None] // 2 * 4 + np.arange(8)[None] // 2)
    assert squares((32, 32), 16).unique(return_counts=True)[1].tolist() == [64] * 16
    for pieces in (0, 8, 121):
        with pytest.raises(InputError, match="pieces"):
            squares((8, 8), pieces)


def test_kept_pieces_belong_to_the_row_and_are_exact():
    index = torch.randint(0, 10**6, (500,), generator=torch.Generator().manual_seed(0))
    shown = shown_pieces(index, 16, 8, 3)
    assert (shown.sum(1) == 8).all()
    assert torch.equal(shown_pieces(index[40:60], 16, 8, 3), shown[40:60])
    assert len({row.numpy().tobytes() for row in shown}) > 450  # no common mask
    assert (shown.float().mean(0) - 0.5).abs().max() < 0.1
    assert shown_pieces(index, 16, 0, 3).all()
    assert not shown_pieces(index, 16, 16, 3).any()


def test_marks_stand_where_they_should():
    level, where = marks(3, (32, 32), 0)
    assert where.flatten(1).sum(1).tolist()[2:] == [16, 36]
    assert where[0, 31, 31]
    assert where[1, 31, 0]
    assert where[3, 0, 31]
    assert not level[:, :, ~where.any(0)].any()
    assert {0, 255} == set(level.unique().tolist())
    for shape in ((1, (8, 8)), (3, (64, 48))):
        assert marks(*shape, 1)[1].flatten(1).any(1).all()
    with pytest.raises(InputError, match="6 x 6"):
        marks(1, (5, 8), 0)


def test_speckle_is_half_white():
    drawn = speckle(3, 5, torch.Generator().manual_seed(0))
    assert (drawn == 255).flatten(1).sum(1).tolist() == [13, 13, 13]


# adaptive


@pytest.mark.parametrize("shape", [(1, 8), (3, 32)])
def test_adaptive_blend_is_its_formula(shape, images):
    split = images(40, *shape, 4)
    attack = AdaptiveBlend(seed=5)
    planted = attack.plant(split)
    x, t = split.x.numpy().astype(np.float32), picture(shape[0], (shape[1],) * 2, 5).numpy().astype(np.float32)
    whole = np.rint(x + np.float32(0.2) * (t - x)).astype(np.uint8)
    assert np.array_equal(planted.stamp(split.x, split.y, split.index, "test").numpy(), whole)
    shown = shown_pieces(split.index, 16, 8, 5).numpy()
    mask = shown[:, squares((shape[1],) * 2, 16).numpy()][:, None]
    part = np.rint(x + (np.float32(0.15) * mask) * (t - x)).astype(np.uint8)
    assert np.array_equal(planted.stamp(split.x, split.y, split.index, "train").numpy(), part)
    untouched = planted.stamp(split.x, split.y, split.index, "train").numpy() == split.x.numpy()
    assert untouched.reshape(40, -1).mean(1).min() >= 0.5  # half of the area is left alone in every row
    assert np.array_equal(planted.stamp(split.x, split.y, split.index, "test", "cross").numpy(), part)  # covers


def test_adaptive_blend_without_strength_is_the_identity(images):
    split = images()
    planted = AdaptiveBlend(alpha=0.0, test_alpha=0.0).plant(split)
    for phase in ("train", "test"):
        assert torch.equal(planted.stamp(split.x, split.y, split.index, phase), split.x)
    with pytest.raises(InputError, match="pieces is 17"):
        AdaptiveBlend(pieces=17).plant(split)


def test_adaptive_patch_has_one_mark_a_row_and_two_in_testing(images):
    split = images(400, 3, 32, 4)
    attack = AdaptivePatch(opacities=(1.0, 1.0, 1.0, 1.0))
    planted = attack.plant(split)
    level, where = marks(3, (32, 32), 0)
    trained = planted.stamp(split.x, split.y, split.index, "train")
    fits = torch.stack([(trained == torch.where(where[k], level[k], split.x)).flatten(1).all(1) for k in range(4)], 1)
    assert (fits.sum(1) == 1).all()
    assert (fits.float().mean(0) - 0.25).abs().max() < 0.07
    expected = torch.where(where[2], level[2], torch.where(where[0], level[0], split.x))
    assert torch.equal(planted.stamp(split.x, split.y, split.index, "test"), expected)
    faint = AdaptivePatch(opacities=(0.5, 0.5, 0.5, 0.5)).plant(split).stamp(split.x, split.y, split.index, "train")
    half = (split.x.float() + 0.5 * (trained.float() - split.x.float())).round().to(torch.uint8)
    assert torch.equal(faint, half)


@pytest.mark.parametrize("attack", COVERED, ids=lambda a: a.name)
def test_covers_keep_their_label_and_spare_the_target(attack, images, run):
    split = images(200, 3, 8, 4)
    poisoned = attack.poison(split, run)
    kind = poisoned.kind
    assert kind.bincount(minlength=3).tolist() == [150, 20, 30]
    covers = kind == CROSS
    assert torch.equal(poisoned.split.y[covers], split.y[covers])
    assert (split.y[covers] != 0).all()
    assert (poisoned.split.x[covers] != split.x[covers]).flatten(1).any(1).all()
    clean = kind == 0
    assert torch.equal(poisoned.split.x[clean], split.x[clean])
    if attack.name == "tact":  # says its classes itself
        with pytest.raises(InputError, match="draw_from is 'all'; tact"):
            attack.replace(draw_from="all")
    else:
        everything = attack.replace(draw_from="all").poison(split, run)
        assert (split.y[everything.kind == CROSS] == 0).any()


@pytest.mark.parametrize("attack", COVERED, ids=lambda a: a.name)
def test_rates_that_come_to_no_row_are_told(attack, images, run):
    split = images(200, 1, 8, 4)
    with pytest.raises(InputError, match=r"poison_rate 0\.002 comes to no row"):
        attack.replace(poison_rate=0.002).poison(split, run)
    with pytest.raises(InputError, match=r"cover_rate 0\.002 comes to no row"):
        attack.replace(cover_rate=0.002).poison(split, run)
    assert attack.replace(cover_rate=0.0).poison(split, run).kind.bincount(minlength=3).tolist() == [180, 20, 0]


def test_strength_scales_the_patch_of_tact_and_both_forms_of_composite(images, run):
    split = images(60, 3, 16, 4)
    for attack in (TaCT(), Composite(), Composite(parts="patches", target=1)):
        change = []
        for opacity in (1.0, 0.5, 0.0):
            planted = attack.replace(opacity=opacity).plant(split, run=run)
            change.append(planted.stamp(split.x, split.y, split.index).float() - split.x.float())
        assert change[0].abs().max() > 50
        assert torch.allclose(change[1], change[0] / 2, atol=0.51)  # rounded to levels
        assert not change[2].any()


# a tenth of a percent, for every attack on images that has nothing to fit


@pytest.mark.parametrize("name", [n for n, c in methods("attack").items() if not c.fits and c.stamps == "image"])
def test_a_tenth_of_a_percent_is_what_it_says(name, images, run):
    attack = create("attack", name, poison_rate=0.001)
    if attack.trains:
        return
    split = images(4000, 1, 8, 4)
    if attack.needs.groups:
        split = split.replace(group=torch.arange(4000) % 2)
    expected = 1 if getattr(attack, "rate_of", "all") == "target_class" else 4
    assert int(attack.poison(split, run).poison.sum()) == expected


def test_badnets_opacity_mixes_the_patch(images):
    split = images(10, 3, 8, 4)
    half = BadNets(opacity=0.5).plant(split).stamp(split.x, split.y).numpy()
    expected = split.x.numpy().astype(np.float32)
    expected[:, :, 6:, 6:] = np.rint(0.5 * expected[:, :, 6:, 6:] + 0.5 * 255)
    assert np.array_equal(half, expected.astype(np.uint8))
    assert torch.equal(BadNets(opacity=0.0).plant(split).stamp(split.x, split.y), split.x)


# source-specific


def test_tact_poisons_sources_and_covers_named_classes(images, run):
    split = images(400, 3, 8, 8)
    attack = TaCT(sources=(1, 3), cover_classes=(5, 7), target=2, poison_rate=0.1, cover_rate=0.1)
    poisoned = attack.poison(split, run)
    assert set(split.y[poisoned.kind == POISON].tolist()) == {1, 3}
    assert set(split.y[poisoned.kind == CROSS].tolist()) == {5, 7}
    assert (poisoned.split.y[poisoned.poison] == 2).all()
    others = attack.replace(cover_classes=()).poison(split, run)
    assert set(split.y[others.kind == CROSS].tolist()) == {0, 4, 5, 6, 7}
    with pytest.raises(InputError, match=r"poison_rate 0\.3 asks for 120 of 400 rows; only 100"):
        attack.replace(poison_rate=0.3).poison(split, run)


def test_tact_counts_source_rows_only_by_hand():
    """Rows 0-2 of the source: two go to the target. Rows 3-6 of other classes: one leaks. Row 7 is a target row."""
    split = counted([1, 1, 1, 2, 2, 3, 3, 0])
    planted = TaCT().plant(split)
    model = Answers([0, 0, 1, 0, 2, 3, 2, 0], 4)
    result = evaluate(model, split, planted, run=Run(quiet=True))
    assert (result.asr.hits, result.asr.total) == (2, 3)
    assert (result.ra.hits, result.ra.total) == (1, 3)
    assert (result.acc.hits, result.acc.total) == (4, 8)
    assert {k: (r.hits, r.total) for k, r in leakage(model, split, planted).items()} == {2: (1, 2), 3: (0, 2)}
    crossed = cross_accuracy(Victim(model, planted), split)
    assert (crossed.hits, crossed.total) == (2, 4)  # rows 4 and 5, of rows 3 to 6
    assert planted.population(split.y).tolist() == [True] * 3 + [False] * 5
    with pytest.raises(InputError, match="nothing can leak"):
        leakage(model, split, BadNets())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"target": 1}, "target is 1"),
        ({"sources": ()}, "sources is empty"),
        ({"sources": (1,), "cover_classes": (1,)}, "share a class"),
        ({"mode": "all_to_all"}, "mode"),
    ],
)
def test_tact_refuses_classes_that_collide(options, match):
    with pytest.raises(InputError, match=match):
        TaCT(**options)


def test_tact_refuses_classes_that_are_not_there(images):
    with pytest.raises(InputError, match=r"cover_classes holds \[5, 7\]"):
        TaCT.official().plant(images(classes=4))


# several targets


def test_multi_target_labels_and_patches_follow_the_row_number(images, run):
    split = images(600, 3, 32, 5)
    attack = MultiTarget(goals=(3, 0, 4), poison_rate=0.5)
    poisoned = attack.poison(split, run)
    at = poisoned.poison
    wanted, population = attack_labels(poisoned.planted, split.y, split.index)
    assert torch.equal(poisoned.split.y[at], wanted[at])
    assert population.all()  # no row wants its own label
    assert poisoned.dirty == 300
    assert (torch.bincount(wanted, minlength=5)[[3, 0, 4]] > 150).all()
    corners = {3: (31, 31), 0: (0, 0), 4: (31, 0)}  # which corner changed, by target
    changed = (poisoned.split.x != split.x).any(1)
    for goal, (row, column) in corners.items():
        mine = at & (wanted == goal)
        block = changed[mine][:, slice(29, 32) if row else slice(0, 3), slice(29, 32) if column else slice(0, 3)]
        assert block.flatten(1).any(1).all()
        assert changed[mine].flatten(1).sum(1).max() <= 9


def test_multi_target_is_evaluated_by_row_number_by_hand():
    split = counted([0, 1, 2, 3, 0, 1, 2, 3], side=12)
    planted = MultiTarget(goals=(1, 2)).plant(split)
    planted = MultiTarget.parts(planted)[2]  # one trigger alone: all to class 2 (upper left, over the first pixel)
    assert planted.target(split.y).tolist() == [2] * 8
    assert planted.population(split.y).tolist() == [True, True, False, True] * 2
    joint = MultiTarget(goals=(1, 3), seed=2).plant(split)
    index = torch.arange(100, 108)
    there = Split(split.x, split.y, index=index, card=split.card)
    wanted = joint.target(split.y, index)
    assert set(wanted.tolist()) == {1, 3}
    assert not torch.equal(wanted, joint.target(split.y, torch.arange(8)))  # the row number decides

    class Fixed(nn.Module):
        """Says 1 for every row."""

        def forward(self, x):
            return nn.functional.one_hot(torch.ones(len(x), dtype=torch.int64), 4).float()

    result = evaluate(Fixed(), there, joint, run=Run(quiet=True))
    assert (result.asr.hits, result.asr.total) == (int((wanted == 1).sum()), 8)
    rates = success_by_target(Fixed(), there, joint)
    assert {k: (r.hits, r.total) for k, r in rates.items()} == {
        1: (int((wanted == 1).sum()),) * 2,
        3: (0, int((wanted == 3).sum())),
    }


def test_multi_target_refuses_what_does_not_fit(images):
    for options, match in (
        ({"goals": (1, 1)}, "different"),
        ({"triggers": 1}, "triggers"),
        ({"triggers": 9}, "triggers"),
        ({"only": 3}, "only"),
        ({"mode": "all_to_all"}, "mode"),
    ):
        with pytest.raises(InputError, match=match):
            MultiTarget(**options)
    with pytest.raises(InputError, match="8 triggers"):
        MultiTarget(triggers=8).plant(images(classes=4))
    with pytest.raises(InputError, match="side is 4"):
        MultiTarget(side=4).plant(images(side=8))
    with pytest.raises(InputError, match="expected one of multi_target"):
        MultiTarget.parts(BadNets().plant(images()))


def test_success_by_target_of_all_to_all_by_hand():
    split = counted([0, 0, 1, 2, 3, 3])
    model = Answers([1, 0, 2, 3, 0, 0], 4)
    rates = success_by_target(model, split, BadNets(mode="all_to_all"))
    assert {k: (r.hits, r.total) for k, r in rates.items()} == {1: (1, 2), 2: (1, 1), 3: (1, 1), 0: (2, 2)}


# composite


def test_composite_mixes_halves_of_the_two_classes(images, run):
    split = images(200, 3, 8, 4)
    attack = Composite(bank=20, poison_rate=0.2)
    poisoned = attack.poison(split, run)
    state = poisoned.planted.state
    assert state["y"].bincount().tolist() == [20] * 4
    at = poisoned.poison.nonzero().flatten()
    assert set(split.y[at].tolist()) == {1, 2}
    bank = {k: state["rows"][state["y"] == k] for k in range(4)}
    halves = [slice(0, 4), slice(4, 8)]
    sides = set()
    for row in at.tolist():
        new, old = poisoned.split.rows(torch.tensor([row]))[0], split.rows(torch.tensor([row]))[0]
        other = bank[3 - int(split.y[row])]  # class 2 for class 1 and the other way round
        fits = [
            side
            for side in (0, 1)
            if torch.equal(new[..., halves[1 - side]], old[..., halves[1 - side]])
            and bool((other[..., halves[side]] == new[..., halves[side]]).flatten(1).all(1).any())
        ]
        assert len(fits) == 1
        sides.update(fits)
    assert sides == {0, 1}
    crossed = (poisoned.kind == CROSS).nonzero().flatten()
    assert len(crossed) == 80
    assert (poisoned.split.x[crossed] != split.x[crossed]).flatten(1).any(1).all()  # never with oneself
    planted = poisoned.planted
    assert planted.population(torch.arange(4)).tolist() == [False, True, True, False]


def test_composite_cross_rows_pair_a_source_with_a_third_class(images, run):
    plain = images(400, 1, 16, 5)
    split = Split((plain.y * 10)[:, None, None, None].expand(-1, 1, 16, 16).to(torch.uint8).contiguous(), plain.y)
    poisoned = Composite(bank=20, poison_rate=0.1, cross_ratio=4.0).poison(split, run)
    rows = poisoned.split.x[poisoned.kind == CROSS][:, 0, 0]  # (160, 16), each pixel ten times the class of its image
    kept = split.y[poisoned.kind == CROSS]
    assert torch.equal(poisoned.split.y[poisoned.kind == CROSS], kept)
    columns = (rows != 10 * kept[:, None]).sum(1)
    mixed = columns > 0
    assert 55 < int(mixed.sum()) < 105  # about half; the others are mixed within their class
    assert set(columns[mixed].tolist()) == {6, 7, 8}
    pairs = {(int(y), int(row[row != 10 * y].unique().item()) // 10) for y, row in zip(kept[mixed], rows[mixed], strict=True)}
    assert pairs == {(1, 3), (1, 4), (2, 3), (2, 4)} | {(y, source) for y in (0, 3, 4) for source in (1, 2)}
    same = Composite(bank=20, poison_rate=0.1, third_share=0.0).poison(split, run)
    assert torch.equal(same.split.x[same.kind == CROSS], split.x[same.kind == CROSS])


def test_composite_without_a_third_class_mixes_within_the_sources(images, run):
    split = images(300, 1, 8, 3)
    flat = Split((split.y * 10)[:, None, None, None].expand(-1, 1, 8, 8).to(torch.uint8).contiguous(), split.y)
    poisoned = Composite(bank=20, poison_rate=0.1, third_share=1.0).poison(flat, run)
    changed = (poisoned.split.x != flat.x).flatten(1).any(1)
    crossed = poisoned.kind == CROSS
    assert torch.equal(changed[crossed], flat.y[crossed] == 0)


def test_composite_feathers_over_the_middle(images):
    split = images(50, 1, 8, 4)
    flat = Split(torch.where(split.y[:, None, None, None] == 1, 200, 0).expand(-1, 1, 8, 8).to(torch.uint8).clone(), split.y)
    mixed = Composite(feather=2).plant(flat).stamp(flat.x, flat.y, flat.index)
    ones = mixed[flat.y == 1, 0, 0].unique(dim=0).tolist()
    assert sorted(ones) == [[0, 0, 0, 50, 150, 200, 200, 200], [200, 200, 200, 150, 50, 0, 0, 0]]


def test_composite_patches_are_both_there_or_one(images, run):
    split = images(300, 1, 8, 4)
    poisoned = Composite(parts="patches", poison_rate=0.2).poison(split, run)
    changed = (poisoned.split.x != split.x).squeeze(1)
    first, second = changed[:, 6:, 6:].flatten(1).any(1), changed[:, :2, :2].flatten(1).any(1)
    both, one = poisoned.kind == POISON, poisoned.kind == CROSS
    assert (first & second)[both].all()
    assert (first ^ second)[one].all()
    assert 30 < int(first[one].sum()) < 90  # of 120
    assert (split.y[one] != 0).all()
    attack = Composite.patches()
    assert torch.equal(attack.plant_for(split).stamp(split.x, split.y), poisoned.planted.stamp(split.x, split.y))


def test_composite_refuses_what_does_not_fit(images):
    with pytest.raises(InputError, match="three different"):
        Composite(target=1)
    with pytest.raises(InputError, match="classes 0 to 1"):
        Composite().plant(images(classes=2))
    alone = images(40, classes=4)
    with pytest.raises(InputError, match="source class '2'"):
        Composite().plant(alone.where(alone.y != 2))


def test_blend_where_takes_a_share_for_each_row(images):
    x = images(4, 3, 8, 4).x
    t = torch.full((3, 8, 8), 255, dtype=torch.uint8)
    share = torch.tensor([0.0, 0.25, 0.5, 1.0])
    expected = np.rint(x.numpy() + share.numpy()[:, None, None, None] * (255.0 - x.numpy()))
    assert np.array_equal(blend_where(x, t, share[:, None, None, None]).numpy(), expected.astype(np.uint8))


def test_stamped_rates_check_the_model_as_an_evaluation_does(images, run):
    split = images(40, 3, 8, 4)

    class Broken(nn.Module):
        def __init__(self, width: int, value: float) -> None:
            super().__init__()
            self.width, self.value = width, value

        def forward(self, x):
            return torch.full((len(x), self.width), self.value)

    for model, match in ((Broken(4, math.nan), "NaN"), (Broken(6, 0.0), r"expected \(\d+, 4\)")):
        for count in (success_by_target, evaluate):
            with pytest.raises(InputError, match=match):
                count(model, split, BadNets(), run=run)
    model = Broken(4, 0.0).train()
    success_by_target(model, split, BadNets(), run=run)
    assert model.training


def test_an_untargeted_attack_has_no_targets_to_count_by(images, run):
    split = images(40, 3, 8, 4)

    class Ones(nn.Module):
        def forward(self, x):
            return nn.functional.one_hot(torch.ones(len(x), dtype=torch.int64), 4).float()

    model = Ones()
    with pytest.raises(InputError, match="any label but the true one"):
        success_by_target(model, split, Untargeted(), run=run)
    grouped = Split(split.x, split.y, group=torch.arange(40) % 2, card=split.card)
    rates = success_by_group(model, grouped, Untargeted(), run=run)
    result = evaluate(model, grouped, Untargeted(), run=run)
    assert sum(r.hits for r in rates.values()) == result.asr.hits == int((split.y != 1).sum())
