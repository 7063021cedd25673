"""Which rows the closed-form attacks change, what they leave alone, and that saved state stamps the same bytes."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load, save

from theriac.attacks import SIG, BadNets, Blended, BppAttack, FTrojan, WaNet
from theriac.attacks._per_batch import augment_alike
from theriac.attacks.store import restore
from theriac.core.card import Augment
from theriac.core.errors import InputError
from theriac.core.method import create
from theriac.core.poisoned import CROSS, POISON
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.metrics import cross_accuracy
from theriac.training import Recipe

STATIC = [SIG(), FTrojan(), WaNet(), BppAttack(), BppAttack(dithering=True)]
SIZES = [(1, 8), (3, 8), (1, 32), (3, 32)]


def named(attack):
    return f"{attack.name}{'-dither' if getattr(attack, 'dithering', False) else ''}"


@pytest.mark.parametrize("shape", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("attack", STATIC, ids=named)
def test_only_chosen_rows_change_and_labels_follow_the_kind(attack, shape, images, run):
    split = images(200, *shape, 4)
    poisoned = attack.poison(split, run)
    kind, after = poisoned.kind, poisoned.split
    count = round(attack.poison_rate * (50 if attack.clean_label else 200))
    assert int((kind == POISON).sum()) == count
    assert int((kind == CROSS).sum()) == {"wanet": 2 * count, "bpp": 20}.get(attack.name, 0)
    untouched = kind == 0
    assert torch.equal(after.x[untouched], split.x[untouched])
    assert torch.equal(after.y[kind != POISON], split.y[kind != POISON])
    assert torch.equal(poisoned.y_true, split.y)
    changed = (after.x != split.x).flatten(1).any(1)
    assert (changed == ~untouched).all()
    assert bool((after.y[poisoned.poison] == 0).all())
    assert poisoned.dirty == (0 if attack.clean_label else count)
    assert after.x.dtype == torch.uint8


@pytest.mark.parametrize("attack", STATIC, ids=named)
def test_the_seed_decides_the_bytes(attack, images):
    split = images(120, 3, 8, 4)
    one, same, other = (attack.poison(split, Run(seed=s, quiet=True)) for s in (1, 1, 2))
    assert torch.equal(one.split.x, same.split.x)
    assert torch.equal(one.kind, same.kind)
    assert not torch.equal(one.kind, other.kind)
    # only the poison stream matters
    streams = Run(seed=9, streams={"poison": 1}, quiet=True)
    assert torch.equal(attack.poison(split, streams).split.x, one.split.x)


@pytest.mark.parametrize("attack", STATIC, ids=named)
@pytest.mark.parametrize("variant", ["poison", "cross"])
def test_saved_state_stamps_the_same_bytes(attack, variant, images, run):
    if variant == "cross" and attack.name not in ("wanet", "bpp"):
        with pytest.raises(InputError, match="cross"):
            attack.plant(images()).stamp(images().x, images().y, variant="cross")
        return
    split = images(40, 3, 8, 4)
    planted = attack.plant(split, run=run)
    config = json.loads(json.dumps(attack.config()))
    again = restore(config, split.card, load(save(dict(planted.state))))
    assert again.attack == attack
    first = planted.stamp(split.x, split.y, split.index, "test", variant)
    assert torch.equal(again.stamp(split.x, split.y, split.index, "test", variant), first)


@pytest.mark.parametrize("attack", STATIC, ids=named)
def test_stamping_does_not_depend_on_the_batch(attack, images, run):
    split = images(30, 1, 8, 3)
    planted = attack.plant(split, run=run)
    for variant in ("poison", "cross") if attack.name in ("wanet", "bpp") else ("poison",):
        whole = planted.stamp(split.x, split.y, split.index, "train", variant)
        part = planted.stamp(split.x[7:11], split.y[7:11], split.index[7:11], "train", variant)
        assert torch.equal(part, whole[7:11])


def test_rows_of_earlier_attacks_are_chosen_as_before(images):
    """Measurements rely on this choice: a permutation of the pool from the stream ("poison", "rows"), ascending."""
    split, run = images(300, 1, 8, 4), Run(seed=3)
    pool = (split.y != 0).nonzero().flatten()
    expected = pool[torch.randperm(len(pool), generator=run.generator("poison", "rows"))[:30]].sort().values
    for attack in (BadNets(), Blended(), WaNet()):
        poisoned = attack.poison(split, run)
        assert torch.equal(poisoned.poison.nonzero().flatten(), expected)


def test_cross_rows_are_drawn_beside_the_poisoned_ones_and_refused_when_too_many(images, run):
    split = images(100, 1, 8, 4)
    poisoned = WaNet(poison_rate=0.3).poison(split, run)
    assert int((poisoned.kind == CROSS).sum()) == 60
    with pytest.raises(InputError, match="80 cross rows; only 60 of 100"):
        WaNet(poison_rate=0.4).poison(split, run)


def test_no_rows_leave_everything_alone(images, run):
    split = images()
    poisoned = WaNet(poison_rate=0.0).poison(split, run)
    assert not poisoned.kind.any()
    assert torch.equal(poisoned.split.x, split.x)


def test_cross_rows_without_poisoned_ones(images, run):
    split = images(100, 1, 8, 4)
    poisoned = BppAttack(poison_rate=0.0).poison(split, run)
    assert poisoned.kind.bincount(minlength=3).tolist() == [90, 0, 10]
    assert poisoned.dirty == 0


# clean label


def test_rates_of_clean_label_attacks_say_what_they_are_a_share_of(images, run):
    split = images(200, 1, 8, 4)  # 50 rows a class
    assert int(SIG(poison_rate=0.2, target=1).poison(split, run).poison.sum()) == 10
    assert int(SIG(poison_rate=0.2, target=1, rate_of="all").poison(split, run).poison.sum()) == 40
    assert SIG.official().rate_of == "all"
    with pytest.raises(InputError, match="asks for 60 of 200 rows; only 50 can be poisoned"):
        SIG(poison_rate=0.3, rate_of="all").poison(split, run)


def test_clean_label_attacks_know_one_target_only():
    with pytest.raises(InputError, match="mode"):
        SIG(mode="all_to_all")


# all to all


@pytest.mark.parametrize("attack", [WaNet, FTrojan, BppAttack])
def test_all_to_all_moves_every_label_by_one(attack, images, run):
    split = images(120, 1, 8, 4)
    poisoned = attack(mode="all_to_all").poison(split, run)
    rows = poisoned.poison
    assert torch.equal(poisoned.split.y[rows], (split.y[rows] + 1) % 4)
    assert bool(poisoned.planted.population(split.y).all())


# the released code's way: rows drawn in each batch


@pytest.mark.parametrize("attack", [WaNet.official(), BppAttack.official()], ids=named)
def test_official_presets_have_no_poisoned_set_and_train(attack, digits, narrow, run):
    with pytest.raises(InputError, match="train"):
        attack.poison(digits.train, run)
    rows = digits.train.sample(160)
    recipe = Recipe(epochs=1, batch_size=40, lr=0.05)
    first = attack.train(narrow, rows, Run(precision="fp32", quiet=True), recipe)
    second = attack.train(narrow, rows, Run(precision="fp32", quiet=True), recipe)
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))
    rate = cross_accuracy(first, digits.test, run=run)
    assert rate.total == len(digits.test)


def test_augmenting_alike_gives_all_images_one_fate(images):
    one = images(2, 3, 16, 2).x[:1]
    batch = one.expand(6, -1, -1, -1).contiguous()
    policy = Augment(crop_pad=3, rotation=10.0, flip=True)
    fates = set()
    for seed in range(12):
        out = augment_alike(batch, policy, torch.Generator().manual_seed(seed))
        assert out.shape == batch.shape
        assert all(torch.equal(row, out[0]) for row in out)
        fates.add(out[0].numpy().tobytes())
    assert len(fates) > 6


def test_per_batch_training_stamps_the_first_rows_and_their_labels(digits, narrow, run, monkeypatch):
    import theriac.attacks._per_batch as module
    from theriac.training.step import Batch

    seen = []

    def spy(model, split, run, recipe, *, before_augment, about):
        x, y = split.rows(torch.arange(20)), split.y[:20]
        batch = Batch(x.clone(), y.clone(), torch.arange(20), 0, 0, run, 1)
        before_augment(batch)
        seen.append((x, y, batch))
        return model

    monkeypatch.setattr(module, "loop", spy)
    attack = WaNet(rows="per_batch", poison_rate=0.2)
    victim = attack.train(narrow, digits.train, run, "short_1")
    x, y, batch = seen[0]
    assert torch.equal(batch.x[:4], victim.planted.stamp(x[:4], y[:4]))
    assert bool((batch.y[:4] == 0).all())
    assert torch.equal(batch.y[4:], y[4:])
    assert (batch.x[4:12] != x[4:12]).flatten(1).any(1).all()
    assert torch.equal(batch.x[12:], x[12:])


@pytest.mark.parametrize("name", ["wanet", "bpp", "input_aware"])
def test_a_rate_that_comes_to_no_row_of_a_batch_is_refused(name, digits, narrow, run):
    attack = create("attack", name, "official", poison_rate=1 / 130)
    attack = attack.replace(mask_epochs=1) if name == "input_aware" else attack
    with pytest.raises(InputError, match=r"comes to no row of a batch of 128; .* takes 0\.0078 at least"):
        attack.train(narrow, digits.train, run, "short_2")


def test_a_wave_that_is_zero_at_a_width_is_refused(images, run):
    with pytest.raises(InputError, match=r"on the 12 columns of .* such a wave is zero"):
        create("attack", "sig").plant(images(20, 1, 12, 4), run=run)
    assert create("attack", "sig", frequency=2.0).poison(images(20, 1, 12, 4), run).poison.any()
    assert create("attack", "sig", delta=0.0).plant(images(20, 1, 12, 4), run=run).state is not None  # asked for nothing
    with pytest.raises(InputError, match=r"sig changes none of the 2 chosen rows: it has no strength"):
        create("attack", "sig", delta=0.0).poison(images(20, 1, 12, 4), run)


@pytest.mark.parametrize("arithmetic", ["exact", "bytes"])
def test_a_frequency_outside_the_window_is_refused(arithmetic, images, run):
    attack = create("attack", "ftrojan", arithmetic=arithmetic, positions=((8, 0),))
    with pytest.raises(InputError, match=r"frequency \(8, 0\) lies outside a window of 8 x 8"):
        attack.poison(images(20, 3, 8, 4), run)


def test_what_is_stamped_is_stored_rows_and_as_many_labels(images, run):
    split = images(20, 1, 8, 4)
    planted = create("attack", "blended").plant(split, run=run)
    with pytest.raises(InputError, match=r"x is torch\.float32; expected torch\.uint8; .* levels 0 to 255"):
        planted.stamp(split.x.float() / 255, split.y)
    with pytest.raises(InputError, match="x has 20 rows, y 19 and index 20"):
        planted.stamp(split.x, split.y[:19])


@pytest.mark.parametrize("name", ["sig", "tact", "multi_target", "composite", "narcissus"])
def test_an_option_without_effect_is_refused(name):
    with pytest.raises(InputError, match=f"draw_from is 'all'; {name}"):
        create("attack", name, draw_from="all")
    with pytest.raises(InputError, match="together is True"):
        WaNet(together=True)


# arguments


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sig", {"delta": -1.0}),
        ("sig", {"frequency": 0.0}),
        ("ftrojan", {"magnitude": -5.0}),
        ("ftrojan", {"window": -1}),
        ("wanet", {"lattice": 1}),
        ("wanet", {"cross_ratio": -0.5}),
        ("bpp", {"levels": 1}),
        ("bpp", {"negative_rate": 1.5}),
    ],
)
def test_bad_options_are_refused_by_name(name, options):
    with pytest.raises(InputError, match=next(iter(options))):
        create("attack", name, **options)


def test_the_variant_is_checked(images):
    split: Split = images()
    with pytest.raises(InputError, match="variant"):
        WaNet().plant(split).stamp(split.x, split.y, variant="crosss")


def test_a_bank_of_one_error_is_refused():
    """A negative row that is the bank's own would get its own error, which is the trigger, beside a true label."""
    with pytest.raises(InputError, match="bank is 1; expected 2 or more"):
        BppAttack(bank=1)
