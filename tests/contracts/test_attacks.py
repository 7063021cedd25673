"""What every registered attack promises. A new attack is tested here as soon as it is registered."""

from __future__ import annotations

import dataclasses
import functools
import json

import pytest
import torch

from theriac.attacks import Attack
from theriac.attacks.store import restore
from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.method import methods
from theriac.core.poisoned import CLEAN, CROSS, POISON, Poisoned
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models import Builder

ATTACKS = methods("attack")
ON_DATA = {name: cls for name, cls in ATTACKS.items() if not cls().trains}
PRESETS = [(name, made) for name, cls in ATTACKS.items() for made in (None, *cls.presets())]
SHAPES = [(1, 8), (3, 8), (1, 32), (3, 32)]  # grey and colour, small and usual
RATE = 0.05
BUILD = Builder("preact_resnet18", {"width": 4})  # for attacks that fit a surrogate
LONG = ("steps", "epochs", "rounds", "iterations", "passes")
# where the general rule below does not do: what is fitted so briefly is no good, and some attacks refuse it then
QUICK: dict[str, dict[str, object]] = {
    "ssba": {"bits": 1, "width": 4, "epochs": 1, "warmup": 0, "bit_accuracy": 0.0},
    "narcissus": {"steps": 20},
}


def quick(name: str, **options: object) -> Attack:
    """The attack with as little fitting as possible: whether a trigger is any good is not asked here."""
    cls = ATTACKS[name]
    start = cls.short() if "short" in cls.presets() else cls()
    attack = start.replace(**{"poison_rate": RATE, **options})
    changes: dict[str, object] = {}
    if attack.must_fit:
        for field in dataclasses.fields(attack):
            value = getattr(attack, field.name)
            if field.name.endswith(LONG) and isinstance(value, int):
                changes[field.name] = min(value, 2) or 2  # often 0 stands for a large number that is worked out
            elif field.name.endswith("recipe") and isinstance(value, str):
                changes[field.name] = "short_1"
    return attack.replace(**(changes | QUICK.get(name, {})))


def make_run(seed: int = 0, **streams: int) -> Run:
    return Run(seed=seed, streams=streams, device="cpu", precision="fp32", quiet=True)


@functools.cache
def rows(channels: int = 1, side: int = 8, count: int = 200) -> Split:
    """Images of four classes that a surrogate can tell apart, for attacks that fit one."""
    draw = torch.Generator().manual_seed(channels * 100 + side)
    y = torch.arange(count) % 4
    faces = torch.randint(40, 216, (4, channels, side, side), generator=draw)
    x = (faces[y] + torch.randint(-40, 40, (count, channels, side, side), generator=draw)).clamp(0, 255)
    card = Card(
        name=f"faces{channels}x{side}", classes=tuple("abcd"), size=(side, side), channels=channels,
        mean=(0.5,) * channels, std=(0.25,) * channels,
    )  # fmt: skip
    group = (torch.arange(count) // 4) % 2
    return Split(x.to(torch.uint8), y, group=group, card=card, index=torch.randperm(count, generator=draw) + 1000)


@functools.cache
def table(count: int = 200) -> Split:
    draw = torch.Generator().manual_seed(0)
    return Split(torch.randn(count, 5, generator=draw), torch.arange(count) % 4, group=(torch.arange(count) // 4) % 2)


def data_for(attack: Attack) -> Split:
    """Images, or a table for an attack on tables."""
    try:
        attack._check_card(rows().card)
    except InputError:
        return table()
    return rows()


@functools.cache
def poisoned_by(name: str) -> Poisoned:
    attack = quick(name)
    return attack.poison(data_for(attack), make_run(), BUILD)


def expected_count(attack: Attack, split: Split) -> int:
    of_class = getattr(attack, "rate_of", "all") == "target_class"
    return round(attack.poison_rate * int(split.count()[attack.target] if of_class else len(split)))


def weaker(attack: Attack) -> Attack:
    """A quarter of the strength; twice the levels."""
    if not attack.knob:  # one around another attack has that one's
        return type(attack).around(weaker(attack.inner))  # type: ignore[attr-defined]
    now = getattr(attack, attack.knob)
    if attack.knob == "levels":
        return attack.replace(levels=2 * now)
    return attack.replace(**{attack.knob: tuple(v / 4 for v in now) if isinstance(now, tuple) else now / 4})


@pytest.mark.parametrize("name", ON_DATA)
def test_the_knob_is_the_strength(name):
    """Less of it is a smaller change of the same rows."""
    attack = quick(name, **({"eps": 4.0} if name == "narcissus" else {}))  # its few steps do not fill a larger ball
    split = data_for(attack)

    def change(one: Attack) -> float:
        planted = one.plant(split, BUILD, make_run())
        phase = "test" if attack.clean_label else "train"  # label-consistent prepares the rows that it chose only
        stamped = planted.stamp(split.x, split.y, split.index, phase)
        return float((stamped.double() - split.x.double()).abs().mean())

    assert 0 < change(weaker(attack)) < change(attack)


@pytest.mark.parametrize("name", ATTACKS)
def test_two_knobs(name):
    fields = {field.name for field in dataclasses.fields(ATTACKS[name])}
    assert "poison_rate" in fields
    assert ATTACKS[name].knob in fields or hasattr(ATTACKS[name], "around")  # that of the attack inside


@pytest.mark.parametrize("name", [n for n, c in ATTACKS.items() if "official" in c.presets()])
def test_the_default_is_called_corrected(name):
    """Beside what released code does stands ours, by the same name everywhere."""
    cls = ATTACKS[name]
    assert cls.corrected() == cls() != cls.official()


def test_there_are_attacks():
    assert {"badnets", "blended"} <= ATTACKS.keys()


@pytest.mark.parametrize("name", ON_DATA)
class TestPoison:
    def test_counts_are_exact(self, name):
        poisoned = poisoned_by(name)
        attack = poisoned.planted.attack
        assert int(poisoned.poison.sum()) == expected_count(attack, data_for(attack)) > 0
        assert set(poisoned.kind.unique().tolist()) <= {CLEAN, POISON, CROSS}

    def test_other_rows_are_bit_identical(self, name):
        poisoned = poisoned_by(name)
        clean = data_for(poisoned.planted.attack)
        untouched = poisoned.kind == CLEAN
        assert torch.equal(poisoned.split.x[untouched], clean.x[untouched])
        assert torch.equal(poisoned.split.y[untouched], clean.y[untouched])
        assert torch.equal(poisoned.split.index, clean.index)
        assert torch.equal(poisoned.y_true, clean.y)
        assert poisoned.card == clean.card

    def test_poisoned_rows_differ_and_carry_the_label(self, name):
        poisoned = poisoned_by(name)
        attack, clean = poisoned.planted.attack, data_for(poisoned.planted.attack)
        x, chosen = poisoned.split.x[poisoned.poison], poisoned.poison
        assert x.dtype == clean.x.dtype
        assert bool((x != clean.x[chosen]).flatten(1).any(1).all())
        wanted = poisoned.planted.target(clean.y[chosen], clean.index[chosen])
        if attack.clean_label:
            assert torch.equal(poisoned.split.y, clean.y)
            assert bool((clean.y[chosen] == attack.target).all())
            assert poisoned.dirty == 0
        else:
            assert torch.equal(poisoned.split.y[chosen], wanted)
        if not attack.clean_label and attack.draw_from == "others":
            assert poisoned.dirty == int(chosen.sum())  # every one of them is really relabeled

    def test_cross_rows_keep_their_label(self, name):
        poisoned = poisoned_by(name)
        crossed = poisoned.kind == CROSS
        assert torch.equal(poisoned.split.y[crossed], poisoned.y_true[crossed])

    def test_the_given_rows_are_not_changed(self, name):
        attack = quick(name)
        split = data_for(attack)
        before = split.content_hash()
        attack.poison(split, make_run(1), BUILD)
        assert split.content_hash() == before

    def test_one_seed_repeats_and_two_differ(self, name):
        attack = quick(name)
        first, again = poisoned_by(name), attack.poison(data_for(attack), make_run(), BUILD)
        assert first.split.content_hash() == again.split.content_hash()
        assert torch.equal(first.kind, again.kind)
        other = attack.poison(data_for(attack), make_run(poison=7), BUILD)
        assert not torch.equal(first.kind, other.kind)

    def test_other_streams_do_not_choose_the_rows(self, name):
        attack = quick(name)
        again = attack.poison(data_for(attack), make_run(order=7, augment=7), BUILD)
        assert torch.equal(poisoned_by(name).kind, again.kind)

    def test_a_rate_that_comes_to_no_row_is_refused(self, name):
        attack = quick(name, poison_rate=1e-4)
        with pytest.raises(InputError, match="comes to no row"):
            attack.poison(data_for(attack), make_run(), BUILD)

    def test_rate_zero_poisons_nothing(self, name):
        attack = quick(name, poison_rate=0.0)
        split = data_for(attack)
        poisoned = attack.poison(split, make_run(), BUILD)
        assert int(poisoned.poison.sum()) == 0
        assert torch.equal(poisoned.split.y, split.y)
        untouched = poisoned.kind == CLEAN  # an attack may still plant rows that keep their label
        assert torch.equal(poisoned.split.x[untouched], split.x[untouched])
        if bool(untouched.all()):
            assert poisoned.split.content_hash() == split.content_hash()

    def test_a_rate_that_the_rows_can_not_supply_is_refused(self, name):
        attack = quick(name, poison_rate=1.0)
        if attack.by_row:
            pytest.skip("every row can be poisoned: there is a trigger that wants another label")
        if getattr(attack, "rate_of", "all") != "all":
            attack = attack.replace(rate_of="all")  # all rows of one class can be supplied, all rows can not
        with pytest.raises(InputError, match=r"poison_rate 1\.0"):
            attack.poison(data_for(attack), make_run(), BUILD)

    def test_a_poisoned_set_is_refused(self, name):
        poisoned = poisoned_by(name)
        with pytest.raises(InputError, match="Poisoned"):
            poisoned.planted.attack.poison(poisoned, make_run(), BUILD)
        with pytest.raises(InputError, match="Poisoned"):
            poisoned.planted.attack.plant(poisoned)

    def test_training_and_test_stamps_fit_the_rows(self, name):
        poisoned = poisoned_by(name)
        planted, whole = poisoned.planted, data_for(poisoned.planted.attack)
        chosen = whole.where(poisoned.poison)  # an attack may know the training rows that it chose only
        for phase, split in (("train", chosen), ("test", whole)):
            stamped = planted.stamp(split.x, split.y, split.index, phase)
            assert stamped.shape == split.x.shape
            assert stamped.dtype == split.x.dtype
            assert bool((stamped != split.x).any())
            assert torch.equal(stamped, planted.stamp(split.x, split.y, split.index, phase))

    def test_stamping_a_part_is_a_part_of_stamping_all(self, name):
        planted = poisoned_by(name).planted
        split = data_for(planted.attack)
        part = torch.tensor([7, 3, 11])
        whole = planted.stamp(split.x, split.y, split.index)
        assert torch.equal(planted.stamp(split.x[part], split.y[part], split.index[part]), whole[part])

    def test_the_stamp_is_what_was_planted(self, name):
        """The poisoned training rows are the training stamp of the clean ones: no second way to poison."""
        poisoned = poisoned_by(name)
        clean = data_for(poisoned.planted.attack)
        for variant, kind in (("poison", POISON), ("cross", CROSS)):
            at = poisoned.kind == kind
            if bool(at.any()):
                stamped = poisoned.planted.stamp(clean.x[at], clean.y[at], clean.index[at], "train", variant)
                assert torch.equal(poisoned.split.x[at], stamped)

    def test_the_population_never_holds_rows_with_the_label_already(self, name):
        planted = poisoned_by(name).planted
        y = torch.arange(4).repeat(3)
        counted = planted.population(y)
        assert counted.dtype == torch.bool
        assert not bool((planted.target(y)[counted] == y[counted]).any())
        assert bool(counted.any())

    def test_it_is_restored_from_what_is_saved(self, name):
        planted = poisoned_by(name).planted
        config = json.loads(json.dumps(planted.attack.config()))
        again = restore(config, planted.card, {k: v.clone() for k, v in planted.state.items()})
        split = data_for(planted.attack)
        assert again.attack == planted.attack
        assert torch.equal(again.stamp(split.x, split.y, split.index), planted.stamp(split.x, split.y, split.index))

    def test_wrong_rows_and_phases_are_refused(self, name):
        planted = poisoned_by(name).planted
        split = data_for(planted.attack)
        with pytest.raises(InputError, match="planted for"):
            planted.stamp(split.x[:, :, 1:] if split.x.dim() == 4 else split.x[:, 1:], split.y)
        with pytest.raises(InputError, match="phase"):
            planted.stamp(split.x, split.y, phase="validation")
        with pytest.raises(InputError, match="variant"):
            planted.stamp(split.x, split.y, variant="cros")


@pytest.mark.parametrize(("channels", "side"), SHAPES)
@pytest.mark.parametrize("name", [n for n, c in ON_DATA.items() if not c.fits])
def test_it_stamps_every_size_and_grey(name, channels, side):
    attack = quick(name)
    split = rows(channels, side)
    try:
        attack._check_card(split.card)
    except InputError as error:
        pytest.skip(str(error))
    stamped = attack.plant(split, run=make_run()).stamp(split.x, split.y, split.index)
    assert stamped.shape == split.x.shape
    assert bool((stamped != split.x).flatten(1).any(1).all())


@pytest.mark.parametrize("name", ATTACKS)
class TestOptions:
    def test_a_target_outside_the_classes_is_refused(self, name):
        attack = ATTACKS[name](target=4)
        with pytest.raises(InputError, match="target is 4"):
            attack.plant(data_for(ATTACKS[name]()), run=make_run())

    @pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan"), float("inf"), True, "0.1"])
    def test_impossible_rates_are_refused(self, name, rate):
        with pytest.raises(InputError, match="poison_rate"):
            ATTACKS[name](poison_rate=rate)

    @pytest.mark.parametrize("target", [-1, 0.5, True])
    def test_impossible_targets_are_refused(self, name, target):
        with pytest.raises(InputError, match="target"):
            ATTACKS[name](target=target)

    def test_an_unfitted_attack_stamps_only_if_nothing_is_fitted(self, name):
        attack = ATTACKS[name]()
        if attack.must_fit:
            with pytest.raises(InputError, match="fitted"):
                attack.plant_for(data_for(attack))
        else:
            assert attack.plant_for(data_for(attack)).attack is attack

    def test_all_to_all_moves_every_label_by_one(self, name):
        attack = ATTACKS[name]()
        if "mode" not in {f.name for f in dataclasses.fields(attack)}:
            pytest.skip("one target only")
        try:
            attack = attack.replace(mode="all_to_all")
        except InputError as error:
            pytest.skip(str(error))  # an attack may say that it has no such mode
        y = torch.arange(4)
        assert attack._target(y, 4).tolist() == [1, 2, 3, 0]


OTHERS = {"lira": {"strength": 0.3}, "input_aware": {"target": 3}, "wanet": {"strength": 4.0}, "bpp": {"levels": 2}}


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_folder_of_other_options_is_refused(name, tmp_path):
    options = {"rows": "per_batch"} if name in ("wanet", "bpp") else {"width": 2}
    split, run = rows(), Run(folder=tmp_path, device="cpu", quiet=True)
    attack = ATTACKS[name](**options, poison_rate=0.2)
    first = attack.train(BUILD, split, run, "short_1").model.state_dict()
    again = attack.train(BUILD, split, Run(folder=tmp_path, device="cpu", quiet=True), "short_1").model.state_dict()
    assert all(torch.equal(again[key], value) for key, value in first.items())
    with pytest.raises(InputError, match="belongs to another configuration"):
        attack.replace(**OTHERS[name]).train(BUILD, split, Run(folder=tmp_path, device="cpu", quiet=True), "short_1")


@pytest.mark.parametrize("name", [n for n, c in ON_DATA.items() if c.fits])
def test_a_rate_out_of_reach_is_refused_before_anything_is_fitted(name, monkeypatch):
    attack = quick(name)
    monkeypatch.setattr(type(attack), "_fit", lambda *_: pytest.fail("was fitted"))
    with pytest.raises(InputError, match="comes to no row"):
        attack.replace(poison_rate=1e-4).poison(data_for(attack), make_run(), BUILD)


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_an_attack_that_controls_training_has_no_poisoned_set(name, preset):
    attack = ATTACKS[name]() if preset is None else getattr(ATTACKS[name], preset)()
    if not attack.trains:
        return
    with pytest.raises(InputError, match="train"):
        attack.poison(data_for(attack), make_run(), BUILD)


def test_the_base_refuses_to_poison_where_training_is_controlled():
    """Holds even while no registered attack controls training."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Controlling(Attack):
        name = "controlling"
        controls_training = True

        def _stamp(self, state, x, y, index, phase):
            return x

    with pytest.raises(InputError, match=r"controls training.*train\("):
        Controlling().poison(rows(), make_run())


def test_images_only_attacks_refuse_tables():
    with pytest.raises(InputError, match="is a table"):
        ATTACKS["badnets"]().poison(table(), make_run())
