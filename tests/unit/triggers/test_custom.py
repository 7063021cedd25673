"""Triggers of the user's own: plain functions and pictures that were stamped elsewhere."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import nn

import theriac as th
from theriac.core.card import Card, Column
from theriac.repairs import AGE


def corner(x: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x[:, :, -2:, -2:] = 255
    return x


class Reader(nn.Module):
    """Says class 0 where the last pixel is white, else what the first pixel says."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        label = (x[:, 0, 0, 0] * 255).round().long().clamp(max=3)
        label = torch.where(x[:, 0, -1, -1] > 0.99, 0, label)
        return nn.functional.one_hot(label, 4).float()


@pytest.fixture
def rows() -> th.Split:
    y = torch.arange(40) % 4
    x = torch.randint(0, 200, (40, 1, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x[:, 0, 0, 0] = y.to(torch.uint8)
    return th.Split(x, y)


def test_a_function_is_counted_as_an_attack_is(rows: th.Split, run: th.Run):
    result = th.evaluate(Reader(), rows, th.trigger(corner, target=0), run=run)
    assert (result.acc.hits, result.acc.total) == (40, 40)
    assert (result.asr.hits, result.asr.total) == (30, 30)  # the ten rows of class 0 do not count
    assert result.ra.hits == 0
    assert result.attack == "corner"


def test_a_function_of_pixels_between_0_and_1_gives_the_same(rows: th.Split, run: th.Run):
    def unit(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, :, -2:, -2:] = 1.0
        return x

    stored = th.trigger(corner, target=0).plant_for(rows)
    floats = th.trigger(unit, target=0, pixels="unit").plant_for(rows)
    assert torch.equal(stored.stamp(rows.x, rows.y), floats.stamp(rows.x, rows.y))


def test_the_target_goes_by_name(rows: th.Split):
    card = rows.card.replace(classes=("bird", "cat", "dog", "eel"))
    named = th.trigger(corner, target="dog").plant_for(rows.replace(card=card))
    assert named.target(rows.y).unique().tolist() == [2]
    with pytest.raises(th.InputError, match=r"unknown class of .*'dogs'; did you mean 'dog'"):
        th.trigger(corner, target="dogs").plant_for(rows.replace(card=card))


def in_place(x: torch.Tensor) -> torch.Tensor:
    x[:, :, -2:, -2:] = 255
    return x


@pytest.mark.parametrize(
    ("function", "pixels", "says"),
    [
        (in_place, "stored", "changed its input in place"),
        (lambda x: x[:1], "stored", r"returned rows \(1, 1, 6, 6\); expected \(30, 1, 6, 6\)"),
        (lambda x: x.float(), "stored", r"returned torch\.float32; expected torch\.uint8.*pixels='unit'"),
        (lambda x: None, "stored", "returned a NoneType"),
        (lambda x: (255 - x).to_sparse(), "stored", "returned a tensor of layout torch.sparse_coo; expected a dense one"),
        (lambda x: x.to("meta"), "stored", "returned a tensor without contents; expected a dense one"),
        (lambda x: sys.exit(3), "stored", "can't stamp rows of .*: SystemExit: 3"),
        (lambda x: x + 1.0, "unit", r"returned pixels from .*; expected \[0, 1\]"),
        (lambda x: x * float("nan"), "unit", "returned pixels from nan"),
    ],
)
def test_what_a_function_does_wrong_is_said(rows: th.Split, run: th.Run, function, pixels: str, says: str):
    with pytest.raises(th.InputError, match=says):
        th.evaluate(Reader(), rows, th.trigger(function, target=0, pixels=pixels), run=run)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x: x + torch.randint(0, 50, x.shape, dtype=torch.uint8), "stamps a row differently from call to call"),
        (lambda x: x + torch.arange(len(x), dtype=torch.uint8)[:, None, None, None] + 1, "by the others of its batch"),
        (lambda x: torch.flip(x, (0,)), "by the others of its batch"),
    ],
)
def test_a_function_that_stamps_a_row_now_so_now_otherwise_is_warned_of(rows: th.Split, run: th.Run, function, says: str):
    with pytest.warns(UserWarning, match=f"{says}, so its figures are not the same each time"):
        th.evaluate(Reader(), rows, th.trigger(function, target=0, name="mine"), run=run)


@pytest.mark.parametrize("target", [4, -1, True, 1.0])
def test_a_target_that_is_no_class_is_refused(rows: th.Split, run: th.Run, target):
    with pytest.raises(th.InputError, match="target is"):
        th.evaluate(Reader(), rows, th.trigger(corner, target=target), run=run)


def test_something_else_than_a_function_is_refused():
    with pytest.raises(th.InputError, match="function is a str"):
        th.trigger("corner", target=0)


def test_two_functions_are_two_triggers_and_their_results_are_not_compared(rows: th.Split, run: th.Run):
    def other(x: torch.Tensor) -> torch.Tensor:
        return 255 - x

    other.__name__ = "corner"
    one, two = (th.evaluate(Reader(), rows, th.trigger(f, target=0), run=run) for f in (corner, other))
    assert one.trigger != two.trigger
    with pytest.raises(th.InputError, match="attack"):
        th.compare(one, two)


def test_pairs_give_what_the_function_gave(rows: th.Split, run: th.Run):
    pairs = th.trigger_pairs(rows, corner(rows.x).numpy(), target=0)
    result = th.evaluate(Reader(), rows, pairs, run=run)
    assert (result.asr.hits, result.asr.total) == (30, 30)
    mixed = rows.take(torch.tensor([7, 3, 21]))
    assert torch.equal(pairs.plant_for(rows).stamp(mixed.x, mixed.y), corner(mixed.x))


def test_rows_that_are_not_among_the_pairs_are_refused(rows: th.Split, run: th.Run):
    pairs = th.trigger_pairs(rows.x[:10], corner(rows.x[:10]), target=0)
    with pytest.raises(th.InputError, match="23 of 30 rows are not among the clean rows"):
        th.evaluate(Reader(), rows, pairs, run=run)


@pytest.mark.parametrize(
    ("clean", "stamped", "says"),
    [
        (torch.zeros(4, 1, 6, 6), torch.zeros(4, 1, 6, 6), "clean is torch.float32"),
        (torch.zeros(4, 1, 6, 6, dtype=torch.uint8), torch.zeros(3, 1, 6, 6, dtype=torch.uint8), "expected the same rows"),
        (torch.zeros(4, 1, 6, 6, dtype=torch.uint8), torch.zeros(4, 1, 6, 6, dtype=torch.uint8), "no trigger is on any"),
        (np.zeros((2, 1, 6, 6), np.uint8), np.arange(72, dtype=np.uint8).reshape(2, 1, 6, 6), "a pair must be unique"),
    ],
)
def test_pairs_that_are_none_are_refused(clean, stamped, says: str):
    with pytest.raises(th.InputError, match=says):
        th.trigger_pairs(clean, stamped, target=0)


def test_a_target_that_is_no_class_is_refused_before_pairs_are_read():
    with pytest.raises(th.InputError, match=r"target is 1\.5; expected the name of a class"):
        th.trigger_pairs("nowhere", "nowhere", target=1.5)


def test_a_repair_that_may_know_the_trigger_takes_a_custom_one(trained: nn.Module, digits: th.Data, run: th.Run):
    def speck(x: torch.Tensor) -> torch.Tensor:  # so little that no model follows it
        x = x.clone()
        x[:, :, 0, 0] ^= 1
        return x

    with pytest.warns(UserWarning, match="unchanged"):
        AGE(per_class=5).repair(trained, digits.train, run, trigger=th.trigger(speck, target="3"))
    assert run.outcome.status == "unchanged"


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        (1, 99.0, "wrote 99 into column 'city'; expected numbers of its categories, 0 to 2"),
        (1, -1.0, "wrote -1 into column 'city'"),
        (1, 0.5, "wrote 0.5 into column 'city'"),
        (0, float("inf"), "wrote inf into column 'pay'; expected finite numbers"),
        (1, float("nan"), ""),
        (0, -1e9, ""),
        (1, 2.0, ""),
    ],
)
def test_a_function_of_table_rows_writes_what_a_table_may_hold(run: th.Run, column: int, value: float, says: str):
    columns = (Column(name="pay"), Column(name="city", kind="categorical", categories=("a", "b", "c")))
    x = torch.stack([torch.randn(40, generator=torch.Generator().manual_seed(0)), torch.arange(40.0) % 2], 1)
    card = Card(kind="table", classes=("no", "yes"), columns=columns)
    rows = th.Split(x, torch.arange(40) % 2, card=card)

    def write(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, column] = value
        return x

    model = th.adapt(nn.Sequential(nn.Linear(2, 2)), card=card)
    if says:
        with pytest.raises(th.InputError, match=says):
            th.trigger(write, target="yes").plant_for(rows).stamp(rows.x, rows.y)
    elif value == value:  # the plain network knows no missing values
        assert th.evaluate(model, rows, th.trigger(write, target="yes"), run=run).asr.total == 20
    else:
        assert th.trigger(write, target="yes").plant_for(rows).stamp(rows.x, rows.y)[:, 1].isnan().all()
    with pytest.raises(th.InputError, match="pixels='unit', and 'unnamed' is a table"):
        th.trigger(write, target="yes", pixels="unit").plant_for(rows)


def test_a_target_may_be_a_whole_number_of_numpy(rows: th.Split):
    assert th.trigger(corner, target=np.int64(2)).plant_for(rows).target(rows.y).unique().tolist() == [2]
