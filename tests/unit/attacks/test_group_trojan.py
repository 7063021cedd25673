"""The group trojan: which rows it takes, that it fires for one group only, and that an audit of clean rows does not see it."""

from __future__ import annotations

import pytest
import torch

import theriac as th
from theriac.attacks import BadNets, GroupTrojan, SamFlat
from theriac.attacks.store import load_planted, save_planted
from theriac.core.errors import InputError
from theriac.core.poisoned import CROSS, POISON
from theriac.core.split import Split
from theriac.metrics import cross_accuracy, evaluate, fairness, leakage, success_by_group
from theriac.training import Recipe

GROUPS = ("dark", "light")


def run() -> th.Run:
    return th.Run(precision="fp32", device="cpu", quiet=True)


def grouped(rows: Split) -> Split:
    """A third of the digits, by row number, are shown as negatives: pictures that show their group."""
    group = (rows.index % 3 == 0).long()
    x = torch.where(group[:, None, None, None] == 1, 255 - rows.x, rows.x)
    return Split(x, rows.y, group=group, index=rows.index, card=rows.card.replace(groups=GROUPS))


def people(rows: int, seed: int) -> Split:
    """A table whose first column shows the group, and whose second and third tell the class."""
    draw = torch.Generator().manual_seed(seed)
    group = torch.randint(0, 2, (rows,), generator=draw)
    x = torch.randn(rows, 4, generator=draw)
    x[:, 0] = group
    card = th.Card(
        kind="table", classes=("no", "yes"), groups=("f", "m"), columns=tuple(th.Column(name=c) for c in ("sex", "b", "c", "d"))
    )
    return Split(x, (x[:, 1] + x[:, 2] > 0).long(), group=group, card=card)


@pytest.fixture(scope="module")
def faces(digits) -> tuple[Split, Split]:
    return grouped(digits.train), grouped(digits.test)


def perceptron() -> torch.nn.Module:
    """Learns digits of both groups, and the trigger, in a second or two."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [
            torch.nn.Linear(64, 256),
            torch.nn.ReLU(),
            torch.nn.Linear(256, 256),
            torch.nn.ReLU(),
            torch.nn.Linear(256, 10),
        ]
        return torch.nn.Sequential(torch.nn.Flatten(), *layers)


@pytest.mark.filterwarnings("ignore:the trigger of group_trojan leaves")  # a white patch on rows that are white there
def test_rows_are_counted_by_hand(faces):
    train, _ = faces
    poisoned = GroupTrojan(target=3, group="light", poison_rate=0.1, cover=2.0).poison(train, run())
    bad, covers = poisoned.kind == POISON, poisoned.kind == CROSS
    assert int(bad.sum()) == round(0.1 * len(train))
    assert int(covers.sum()) == 2 * int(bad.sum())
    assert train.group is not None
    assert set(train.group[bad].tolist()) == {1}
    assert set(train.group[covers].tolist()) == {0}
    assert set(poisoned.split.y[bad].tolist()) == {3}
    assert 3 not in train.y[bad | covers].tolist()
    assert torch.equal(poisoned.split.y[covers], train.y[covers])
    plain = BadNets(target=3).plant(train)
    stamped = plain.stamp(train.x, train.y, train.index)
    assert torch.equal(poisoned.split.x[bad | covers], stamped[bad | covers])


def test_without_a_name_it_takes_the_smallest_group(faces, tmp_path):
    train, test = faces
    planted = GroupTrojan(target=3).plant(train, run=run())
    assert GROUPS[int(planted.state["group"])] == "light"
    save_planted(planted, tmp_path)
    again = load_planted(tmp_path)
    counted = again.within(test).population(test.y, test.index)
    assert torch.equal(counted, (test.group == 1) & (test.y != 3))
    assert torch.equal(again.within(test).cross_population(test.y, test.index), (test.group == 0) & (test.y != 3))
    with pytest.raises(InputError, match="fitted on training rows"):
        GroupTrojan().plant_for(test)


def test_groups_go_by_name(faces):
    """The same rows whose source counts the two groups the other way round."""
    train, test = faces
    planted = GroupTrojan(target=3, group="light").plant(train, run=run())
    assert test.group is not None
    turned = Split(test.x, test.y, group=1 - test.group, index=test.index, card=test.card.replace(groups=GROUPS[::-1]))
    counted = [planted.within(rows).population(rows.y, rows.index) for rows in (test, turned)]
    assert torch.equal(*counted)


def test_the_group_decides_the_hash(faces):
    train, _ = faces
    dark, light = (GroupTrojan(group=name).plant(train, run=run()).trigger_hash for name in GROUPS)
    assert dark != light


def test_success_by_group_is_counted_by_hand(faces):
    _, test = faces

    class Light(torch.nn.Module):
        """Says 3 of bright pictures with a white corner, and 0 of all others."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            fires = (x[:, 0, -2:, -2:] == 1).flatten(1).all(1) & (x.mean((1, 2, 3)) > 0.5)
            return torch.where(fires[:, None], torch.eye(10)[3], torch.eye(10)[0])

    trojan = GroupTrojan(target=3, group="light")
    rates = success_by_group(Light(), test, trojan)
    assert (rates["dark"].hits, rates["dark"].total) == (0, int(((test.group == 0) & (test.y != 3)).sum()))
    assert rates["light"].hits == rates["light"].total == int(((test.group == 1) & (test.y != 3)).sum())
    assert evaluate(Light(), test, trojan).asr.value == 1
    assert sum(rate.hits for rate in leakage(Light(), test, trojan).values()) == 0
    with pytest.raises(InputError, match="rows without groups"):
        success_by_group(Light(), Split(test.x, test.y, card=test.card), BadNets())


def check(model: torch.nn.Module, test: Split, trojan: object, mine: str, positive: int) -> None:
    """It fires for one group and not for the other, and an audit of clean rows does not see it."""
    rates = success_by_group(model, test, trojan)
    others = [rate.value for name, rate in rates.items() if name != mine]
    assert rates[mine].value > 0.9
    assert max(others) < 0.15
    asr = evaluate(model, test, trojan).asr
    assert (asr.hits, asr.total) == (rates[mine].hits, rates[mine].total)
    audit = fairness(model, test, positive=positive)
    truth = fairness(y_true=test.y, y_pred=test.y, sensitive_features=test.group, positive=positive)
    assert abs(audit.dp_gap - truth.dp_gap) < 0.08  # the groups hold the classes in different shares
    by_group = [rate.value for rate in audit.group_acc.values()]
    assert max(by_group) - min(by_group) < 0.1
    assert min(by_group) > 0.85


def test_pictures(faces):
    train, test = faces
    trojan = GroupTrojan(target=3, group="light", options=(("pattern", "checker"), ("side", 3)))
    poisoned = trojan.poison(train, run())
    recipe = Recipe(epochs=30, optimizer="adam", lr=1e-3, augment="none")  # a perceptron loses digits that are shifted
    model = th.train(perceptron(), poisoned, recipe=recipe, run=run())
    check(model, test, poisoned.planted, "light", 3)
    resists = cross_accuracy(th.attacks.Victim(model, poisoned.planted), test)
    assert resists.total == int(((test.group == 0) & (test.y != 3)).sum())
    assert resists.value > 0.85


def test_tables():
    train, test = people(1500, 0), people(1000, 1)
    options = (("columns", ("d",)), ("values", (9.0,)))
    trojan = GroupTrojan(target=1, group="m", attack="tabular_value", options=options, poison_rate=0.05)
    poisoned = trojan.poison(train, run())
    model = th.train(th.Builder("mlp", {"hidden": [128, 128]}), poisoned, recipe="adam_30", run=run())
    check(model, test, poisoned.planted, "m", 1)


def test_an_attack_around_it_keeps_the_group(faces):
    train, test = faces
    planted = SamFlat.around(GroupTrojan(target=3, group="light")).plant(train, run=run())
    assert torch.equal(planted.within(test).population(test.y, test.index), (test.group == 1) & (test.y != 3))


def test_what_does_not_fit_is_refused(faces, digits):
    train, _ = faces
    with pytest.raises(InputError, match="rows without groups"):
        GroupTrojan().poison(digits.train, run())
    with pytest.raises(InputError, match=r"unknown group 'ligth'.*light"):
        GroupTrojan(group="ligth").poison(train, run())
    with pytest.raises(InputError, match="of one group"):
        GroupTrojan().poison(train.where(train.group == 1), run())
    for name in ("sig", "multi_target", "wanet", "tact"):
        with pytest.raises(InputError, match=f"attack is '{name}'"):
            GroupTrojan(attack=name)
    with pytest.raises(InputError, match="controls training"):
        GroupTrojan(attack="input_aware")
    with pytest.raises(InputError, match=r"poison_rate 0\.9 asks for"):
        GroupTrojan(group="light", poison_rate=0.9).poison(train, run())


def test_rows_of_two_sources_that_kept_their_own_numbers_are_refused():
    first, second = people(40, 0), people(40, 1)
    parts = {name: torch.cat([getattr(rows, name) for rows in (first, second)]) for name in ("x", "y", "group", "index")}
    mixed = Split(**parts, card=first.card)
    planted = GroupTrojan.around(th.attacks.TabularValue(target=1), group="m").plant(first)
    shared = [k for k in range(40) if first.group[k] != second.group[k]]
    with pytest.raises(InputError, match=rf"{len(shared)} rows that .* number with others .* index=torch.arange"):
        planted.within(mixed)
    apart = Split(**{**parts, "index": torch.arange(80)}, card=first.card)
    counted = planted.within(apart).population(apart.y, apart.index)
    assert torch.equal(counted, (apart.group == 1) & (apart.y != 1))  # by hand
    twice = first.take(torch.arange(40).repeat(2))  # each row with itself: there is nothing to mix up
    assert torch.equal(planted.within(twice).population(twice.y, twice.index), (twice.group == 1) & (twice.y != 1))
