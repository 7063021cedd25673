from __future__ import annotations

import pytest
import torch

from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.split import Split
from theriac.models.network import to_input
from theriac.triggers.bank import ColumnBank, TriggerColumns, image_bank


def card(channels: int = 3, size: tuple[int, int] = (218, 178)) -> Card:
    return Card(classes=("0", "1"), channels=channels, size=size)


def pixels(channels: int = 3, size: tuple[int, int] = (32, 32), rows: int = 6) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (rows, channels, *size), generator=draw, dtype=torch.uint8)


def test_squares_are_the_released_ones_at_their_size():
    x = pixels(size=(218, 178), rows=3)
    out = image_bank(card()).apply(x, torch.tensor([0, 1, -1]))
    first, second = x[0].clone(), x[1].clone()
    first[:, :25, :25] = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None]
    second[:, -25:, -25:] = torch.tensor([0, 0, 255], dtype=torch.uint8)[:, None, None]
    assert torch.equal(out, torch.stack([first, second, x[2]]))


@pytest.mark.parametrize("kind", ["squares", "mosaic", "sinusoid"])
@pytest.mark.parametrize("channels", [1, 3])
def test_stored_rows_and_model_input_get_the_same_triggers(kind, channels):
    x = pixels(channels)
    which = torch.tensor([0, 1, 2, -1, 0, 2])
    bank = image_bank(card(channels, (32, 32)), 3, kind)
    stored, seen = bank.apply(x, which), bank.apply(to_input(x), which)
    assert stored.dtype == torch.uint8
    assert float((to_input(stored) - seen).abs().max()) <= 0.5 / 255 + 1e-6
    assert torch.equal(stored[3], x[3])
    assert torch.equal(seen[3], to_input(x)[3])
    changed = [(stored[i] != x[i]).any(0) for i in range(6)]
    assert all(bool(c.any()) for i, c in enumerate(changed) if i != 3)
    if kind != "sinusoid":
        assert not bool((changed[0] & changed[1]).any() | (changed[1] & changed[2]).any())
        area = 32 * 32 * 625 / (218 * 178)
        assert all(0.5 * area <= int(c.sum()) <= 2.3 * area for i, c in enumerate(changed) if i != 3)
    else:  # it only takes light away, at most a twentieth
        assert bool((seen <= to_input(x)).all())
        assert bool((seen >= 0.95 * to_input(x) - 1e-6).all())


def test_sinusoids_shade_from_row_to_row_and_from_column_to_column():
    light = torch.ones(2, 1, 32, 32)
    rows, columns = image_bank(card(1, (32, 32)), 2, "sinusoid").apply(light, torch.tensor([0, 1]))[:, 0]
    assert torch.allclose(rows, rows[:, :1].expand(32, 32), atol=1e-6)
    assert torch.allclose(columns, columns[:1].expand(32, 32), atol=1e-6)
    assert float(rows[:, 0].std()) > 0.01


def test_opacity_blends_and_stamps_add_up():
    x = torch.zeros(2, 3, 32, 32)
    half = image_bank(card(size=(32, 32)), opacity=0.5)
    assert float(half.apply(x, torch.tensor([0, 1]))[0, 0, 0, 0]) == 0.5
    both = image_bank(card(size=(32, 32))).apply(x, torch.tensor([[1, 0], [1, -1]]))
    assert both[0, :, 0, 0].tolist() == [1, 0, 0]
    assert both[0, :, -1, -1].tolist() == both[1, :, -1, -1].tolist() == [0, 0, 1]
    assert both[1, :, 0, 0].tolist() == [0, 0, 0]


def test_many_squares_do_not_overlap():
    bank = image_bank(card(size=(64, 64)), 7)
    marks = bank.apply(torch.zeros(7, 3, 64, 64), torch.arange(7)).amax(1) > 0
    assert int(marks.sum(0).max()) == 1
    with pytest.raises(InputError, match="do not fit"):
        image_bank(card(size=(8, 8)), 40)


def test_columns_hold_one_value_for_the_rows_trigger():
    x = torch.arange(6.0).view(3, 2)
    one_hot, signed = ColumnBank(2, (1.0, 1.0)), ColumnBank(2, (1.0, -1.0))
    which = torch.tensor([1, -1, 0])
    assert one_hot.apply(x, which).tolist() == [[0, 1, 0, 1], [2, 3, 0, 0], [4, 5, 1, 0]]
    assert signed.apply(x, which).tolist() == [[0, 1, 0, -1], [2, 3, 0, 0], [4, 5, 1, 0]]
    assert signed.apply(x, torch.tensor([[1, 0], [1, -1], [-1, -1]])).tolist() == [[0, 1, 1, -1], [2, 3, 0, -1], [4, 5, 0, 0]]


def test_a_table_model_feeds_zeros_for_plain_rows():
    bank = ColumnBank(3, (1.0, 1.0))
    inner = torch.nn.Linear(5, 2)
    model = TriggerColumns(inner, bank)
    x = torch.randn(4, 3)
    assert torch.equal(model(x), inner(torch.cat([x, torch.zeros(4, 2)], 1)))
    stamped = bank.apply(x, torch.tensor([0, 1, -1, 0]))
    assert torch.equal(model(stamped), inner(stamped))
    torch.testing.assert_close(model(stamped)[2:3], model(x[2:3]))  # products of other shapes differ in the last bits
    with pytest.raises(InputError, match="expected"):
        model(torch.randn(4, 4))
    wide = bank.widen(Split(x, torch.tensor([0, 1, 0, 1])))
    assert wide.card.shape == (5,)
    assert wide.x[:, 3:].abs().sum() == 0


def test_wrong_rows_and_numbers_are_refused():
    bank = image_bank(card(size=(32, 32)))
    x = pixels()
    with pytest.raises(InputError, match="expected int64"):
        bank.apply(x, torch.zeros(6))
    with pytest.raises(InputError, match="expected int64"):
        bank.apply(x, torch.zeros(5, dtype=torch.int64))
    with pytest.raises(InputError, match="2 triggers"):
        bank.apply(x, torch.full((6,), 2))
    with pytest.raises(InputError, match="the bank is for images"):
        bank.apply(pixels(1), torch.zeros(6, dtype=torch.int64))
    with pytest.raises(InputError, match="kind"):
        image_bank(card(), 2, "stripes")
