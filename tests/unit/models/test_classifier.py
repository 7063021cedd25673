"""Input preparation against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import theriac as th
from theriac.core.card import Column
from theriac.core.errors import InputError
from theriac.models import Normalize, TablePrep, build, parameter_count, to_input


def test_normalize_equals_numpy():
    x = np.random.default_rng(0).random((4, 3, 5, 6)).astype(np.float32)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    expected = (x - np.float32(mean)[:, None, None]) / np.float32(std)[:, None, None]
    np.testing.assert_array_equal(Normalize(mean, std)(torch.from_numpy(x)).numpy(), expected)


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,), (0.0,)), ((0.5,), (0.5, 0.5)), ((), ()), ((float("nan"),), (1.0,)), ((0.5,), (float("inf"),))]
)
def test_normalize_refuses_what_divides_by_nothing(mean: tuple, std: tuple):
    with pytest.raises(InputError, match="expected one finite number a channel in each, std above 0"):
        Normalize(mean, std)


def test_to_input_is_pixels_over_255_and_leaves_tables_alone():
    rows = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8)
    assert torch.equal(to_input(rows).flatten(), torch.arange(256, dtype=torch.float32) / 255)
    table = torch.randn(3, 4)
    assert to_input(table) is table


def test_table_prep_equals_numpy(table: th.Split):
    raw = table.x.numpy().astype(np.float64)
    numbers = raw[:, :2]
    mean, std = np.nanmean(numbers, 0), np.nanstd(numbers, 0)
    scaled = (np.where(np.isnan(numbers), mean, numbers) - mean) / std
    one_hot = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])  # the last row's color is missing
    prep = TablePrep.fit(table)
    assert prep.width == 5
    np.testing.assert_allclose(prep(table.x).numpy(), np.concatenate([scaled, one_hot], 1), rtol=1e-6, atol=1e-6)


def test_table_prep_on_rows_it_was_not_fitted_on(table: th.Split):
    prep = TablePrep.fit(table)
    unseen = torch.tensor([[float("nan"), float("nan"), 7.0]])  # nothing known, and a code out of range
    assert torch.equal(prep(unseen), torch.zeros(1, 5))


def test_table_prep_survives_constant_and_empty_columns():
    x = torch.tensor([[3.0, float("nan")], [3.0, float("nan")]])
    prep = TablePrep.fit(th.Split(x, torch.tensor([0, 1])))
    assert torch.equal(prep(x), torch.zeros(2, 2))
    assert torch.equal(prep(torch.tensor([[4.0, 1.0]])), torch.ones(1, 2))  # only centered


def test_a_table_with_nothing_in_it_is_refused():
    with pytest.raises(InputError, match="1 columns, none numeric and none with categories"):
        TablePrep((Column(name="color", kind="categorical"),))


def test_mlp_takes_raw_rows_and_has_the_width_of_the_preparation(table: th.Split):
    model = build("mlp", table, hidden=(7, 3)).eval()
    assert parameter_count(model) == (5 * 7 + 7) + (7 * 3 + 3) + (3 * 2 + 2)
    assert model(table.x).shape == (4, 2)
    assert bool(model(table.x).isfinite().all()), "a missing value must not reach the network"
    wide = build("mlp", table)
    assert parameter_count(wide) == (5 * 128 + 128) + (128 * 256 + 256) + (256 * 512 + 512) + (512 * 2 + 2)


@pytest.mark.parametrize("hidden", ["128", 5, (0,), (3.0,), (1,) * 65])
def test_mlp_refuses_odd_widths(table: th.Split, hidden: object):
    with pytest.raises(InputError, match="hidden"):
        build("mlp", table, hidden=hidden)


def test_an_image_network_is_refused_for_a_table(table: th.Split):
    with pytest.raises(InputError, match="'wrn_16_1' is for image data"):
        build("wrn_16_1", table)
