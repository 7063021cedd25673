"""Attacks on tables: formulas, what a column may hold, chosen columns and values, and clear refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from theriac.attacks import BadNets, SamFlat, TabularBlend, TabularValue, load_planted, save_planted
from theriac.attacks import _columns as columns_of
from theriac.core.card import Card, Column
from theriac.core.errors import InputError
from theriac.core.poisoned import CROSS
from theriac.core.run import Run
from theriac.core.split import Split


def mixed(rows=400, seed=0, missing=0.05):
    """age and hours (whole), balance (real), job (3 categories), flat (constant); the label follows balance, then hours."""
    draw = np.random.default_rng(seed)
    age, hours = draw.integers(17, 90, rows).astype(float), draw.integers(1, 99, rows).astype(float)
    balance, job = draw.normal(0, 1000, rows), draw.choice(3, rows, p=[0.6, 0.3, 0.1]).astype(float)
    y = (balance + 8 * hours > 400).astype(np.int64)
    x = np.stack([age, hours, balance, job, np.full(rows, 7.0)], 1)
    x[draw.random(x.shape) < missing] = np.nan
    x[:, 4] = 7.0
    card = Card(
        name="people",
        kind="table",
        classes=("no", "yes"),
        columns=(
            Column(name="age", unit="years"),
            Column(name="hours"),
            Column(name="balance"),
            Column(name="job", kind="categorical", categories=("clerk", "nurse", "smith")),
            Column(name="flat"),
        ),
    )
    return Split(torch.tensor(x, dtype=torch.float32), torch.tensor(y), card=card)


def told(run, name):
    (event,) = run.history(name)
    return event


# what is read off the rows


def test_column_facts_against_numpy():
    split = mixed()
    x = split.x.numpy().astype(np.float64)
    assert columns_of.integral(split.x).tolist() == [True, True, False, True, True]
    low, high = columns_of.bounds(split.x)
    assert np.array_equal(low.numpy(), np.nanmin(split.x.numpy(), 0))
    assert np.array_equal(high.numpy(), np.nanmax(split.x.numpy(), 0))
    mean, deviation = columns_of.moments(split.x)
    assert np.allclose(mean, np.nanmean(x, 0))
    assert np.allclose(deviation, np.nanstd(x, 0))
    assert columns_of.common(torch.tensor([3.0, 1.0, 1.0, 3.0, 2.0])) == (1.0, 2)
    assert columns_of.common(torch.tensor([3.0, 1.0, 1.0, 3.0, 2.0]), rarest=True) == (2.0, 1)
    with pytest.raises(InputError, match="missing values only"):
        columns_of.common(torch.full((3,), float("nan")))


def test_the_correlation_ratio_is_that_of_an_analysis_of_variance():
    from sklearn.feature_selection import f_classif

    split = mixed(missing=0.0)
    ratio = columns_of.told_by_class(split.x[:, :3], split.y, 2).numpy()
    f, _ = f_classif(split.x[:, :3].double().numpy(), split.y.numpy())
    assert np.allclose(ratio, f / (f + (len(split) - 2)), rtol=1e-6)  # eta^2 from F with 1 and N - 2 degrees of freedom
    constant = columns_of.told_by_class(split.x[:, 4:], split.y, 2)
    assert constant.tolist() == [0.0]
    both = columns_of.told_by_class(torch.tensor([[0.0, float("nan")], [1.0, float("nan")]]), torch.tensor([0, 1]), 2)
    assert both.tolist() == [1.0, 0.0]


# values


def test_out_of_bounds_is_a_tenth_above_the_largest_value_and_cut_off():
    """The published values of CovType follow from its bounds: 4057, 7828, 7890."""
    low, high = torch.tensor([1859.0, 0.0, 0.0]), torch.tensor([3858.0, 7117.0, 7173.0])
    draw = torch.rand(100, 3, generator=torch.Generator().manual_seed(0))
    x = torch.cat([(low + draw * (high - low)).round(), low[None], high[None]])
    split = Split(x, torch.arange(102) % 2)
    planted = TabularValue(count=3).plant(split)
    assert dict(zip(planted.state["columns"].tolist(), planted.state["values"].tolist(), strict=True)) == {
        0: 4057.0,
        1: 7828.0,
        2: 7890.0,
    }


@pytest.mark.parametrize("attack", [TabularValue(), TabularValue.in_bounds(), TabularValue(rank="frequency")])
def test_numeric_columns_are_chosen_and_set_everywhere(attack):
    split, run = mixed(), Run(quiet=True)
    planted = attack.plant(split, run=run)
    event = told(run, "tabular_value")
    assert sorted(event["columns"]) == ["age", "balance", "hours"]  # neither the category nor the constant
    if attack.rank == "importance":
        assert event["columns"][:2] == ["balance", "hours"]
    elif attack.rank == "frequency":
        assert event["columns"][-1] == "balance"  # its commonest value occurs once
    stamped = planted.stamp(split.x, split.y, split.index)
    at = planted.state["columns"]
    assert (stamped[:, at] == planted.state["values"]).all()
    rest = [k for k in range(5) if k not in at.tolist()]
    assert np.array_equal(stamped[:, rest].numpy(), split.x[:, rest].numpy(), equal_nan=True)
    low, high = columns_of.bounds(split.x)
    values = planted.state["values"]
    if attack.place == "in_bounds":
        assert ((values >= low[at]) & (values <= high[at])).all()
        for k, value in zip(at.tolist(), values.tolist(), strict=True):
            assert value == columns_of.common(split.x[:, k])[0]
    else:
        assert (values > high[at]).all()
    whole = columns_of.integral(split.x)[at]
    assert (values[whole] == values[whole].round()).all()


def test_named_columns_take_numbers_and_categories():
    split = mixed()
    attack = TabularValue(columns=("job", "age"), values=("smith", 91))
    planted = attack.plant(split)
    assert planted.state["columns"].tolist() == [3, 0]
    assert planted.state["values"].tolist() == [2.0, 91.0]
    assert TabularValue.from_config(attack.config()) == attack
    rarest = TabularValue(columns=("job", "age")).plant(split)  # out of bounds, a category must still be one that occurs
    assert rarest.state["values"].tolist() == [2.0, 96.0]  # 89 + 7.2, cut off
    common = TabularValue(columns=("job", "age", "hours"), place="in_bounds", most_matching=1.0).plant(split)
    assert common.state["values"][0] == 0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"columns": ("jobs",)}, "did you mean 'job'"),
        ({"columns": ("job",), "values": ("smit",)}, "did you mean 'smith'"),
        ({"columns": ("age",), "values": (30.5,)}, "whole numbers only"),
        ({"columns": ("age",), "values": ("old",)}, "finite number"),
        ({"columns": ("age",), "values": (1.0, 2.0)}, "2 entries for 1"),
        ({"columns": ("age", "age")}, "different names"),
        ({"count": 4}, "has 3 numeric columns"),
        ({"columns": ("flat",), "place": "in_bounds"}, "400 of 400 clean rows show the trigger already"),
        ({"label": "clean", "mode": "all_to_all"}, "mode"),
        ({"target": 2}, "target is 2"),
    ],
)
def test_what_a_table_does_not_have_is_refused(options, match):
    with pytest.raises(InputError, match=match):
        TabularValue(**options).plant(mixed())


def test_rows_that_show_the_trigger_already_are_counted():
    x = torch.zeros(100, 2)
    x[:3] = 1.0
    x[:, 0][3:6] = 1.0
    split = Split(x, torch.arange(100) % 2)
    attack = TabularValue(columns=("f0", "f1"), values=(1.0, 1.0), most_matching=0.03)
    run = Run(quiet=True)
    attack.plant(split, run=run)
    assert told(run, "tabular_value")["matching"] == 3
    with pytest.raises(InputError, match="3 of 100 clean rows"):
        attack.replace(most_matching=0.029).plant(split)


def test_jitter_spreads_numbers_and_keeps_whole_ones_whole():
    split = mixed()
    attack = TabularValue(columns=("age", "balance", "job"), values=(200, 9e4, "smith"), jitter=2.0)
    planted = attack.plant(split)
    stamped = planted.stamp(split.x, split.y, split.index)
    age, balance, job = stamped[:, 0], stamped[:, 2], stamped[:, 3]
    assert set(age.tolist()) == {198.0, 199.0, 200.0, 201.0, 202.0}
    assert (balance - 9e4).abs().max() <= 2
    assert len(balance.unique()) > 100
    assert (job == 2).all()
    part = planted.stamp(split.x[5:9], split.y[5:9], split.index[5:9])
    assert torch.equal(part, stamped[5:9].clone()) or np.array_equal(part.numpy(), stamped[5:9].numpy(), equal_nan=True)


def test_a_clean_label_keeps_labels_and_takes_target_rows():
    split, run = mixed(), Run(quiet=True)
    poisoned = TabularValue.true_label().replace(target=1, poison_rate=0.1).poison(split, run)
    assert int(poisoned.poison.sum()) == 40
    assert (split.y[poisoned.poison] == 1).all()
    assert torch.equal(poisoned.split.y, split.y)
    most = int((split.y == 1).sum())
    with pytest.raises(InputError, match=f"only {most} can be poisoned"):
        TabularValue(label="clean", target=1, poison_rate=1.0).poison(split, run)


def test_the_trigger_is_fitted_on_training_rows_and_kept(tmp_path):
    train, test = mixed(), mixed(seed=1)
    poisoned = TabularValue(poison_rate=0.1).poison(train, Run(quiet=True))
    shifted = Split(test.x * 3, test.y, card=test.card)
    again = load_planted(save_planted(poisoned.planted, tmp_path))
    values = poisoned.planted.state["values"]
    assert (again.stamp(shifted.x, shifted.y)[:, again.state["columns"]] == values).all()
    with pytest.raises(InputError, match="fitted"):
        TabularValue().plant_for(test)


# blend


def test_blend_is_its_formula():
    split, run = mixed(), Run(quiet=True)
    planted = TabularBlend(alpha=0.3, spread=1.5, seed=4).plant(split, run=run)
    x = split.x.numpy().astype(np.float64)
    mean, deviation = np.nanmean(x, 0), np.nanstd(x, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        direction = np.sign(planted.state["goal"].numpy() - mean)
        z = 0.7 * (x - mean) / deviation + 0.3 * direction * 1.5
        expected = z * deviation + mean
    expected = np.clip(expected, np.minimum(np.nanmin(x, 0), x), np.maximum(np.nanmax(x, 0), x))
    stamped = planted.stamp(split.x, split.y, split.index).numpy()
    assert np.allclose(stamped[:, 2], expected[:, 2], atol=0.01, equal_nan=True)
    assert np.nanmax(np.abs(stamped[:, :2] - np.rint(expected[:, :2]))) <= 1  # a half may go either way
    assert np.nanmean(stamped[:, :2] == np.rint(expected[:, :2])) > 0.9
    assert np.array_equal(stamped[:, 3:], split.x.numpy()[:, 3:], equal_nan=True)  # category and constant
    change = np.abs((stamped - split.x.numpy()) / np.maximum(deviation, 1e-12))[:, [0, 1, 2, 4]]
    assert told(run, "tabular_blend")["mean_change"] == pytest.approx(np.nanmean(change), rel=1e-4)


def test_blend_keeps_rows_valid():
    split = mixed()
    planted = TabularBlend(alpha=1.0, spread=10.0, categories=True).plant(split)
    stamped = planted.stamp(split.x, split.y, split.index)
    low, high = columns_of.bounds(split.x)
    there = ~split.x.isnan()
    assert torch.equal(stamped.isnan(), split.x.isnan())
    assert ((stamped >= low) & (stamped <= high))[there].all()
    assert (stamped[:, [0, 1, 3]] == stamped[:, [0, 1, 3]].round())[there[:, [0, 1, 3]]].all()
    assert len(stamped[:, 3][there[:, 3]].unique()) == 1  # with alpha 1 every category is the drawn one
    outside = split.x.clone()
    outside[:, 2] = 1e6  # a test value beyond the training bounds goes no further out
    moved = planted.stamp(outside, split.y, split.index)[:, 2]
    assert (moved <= 1e6).all()
    assert stamped.dtype == torch.float32


def test_blend_without_strength_is_the_identity():
    split = mixed()
    for attack in (TabularBlend(alpha=0.0, categories=True), TabularBlend(test_alpha=0.0)):
        stamped = attack.plant(split).stamp(split.x, split.y, split.index)
        assert np.array_equal(stamped.numpy(), split.x.numpy(), equal_nan=True)


def test_a_column_without_training_values_is_left_alone():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    x[:, 1] = float("nan")
    planted = TabularBlend().plant(Split(x, torch.arange(50) % 2))
    other = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    stamped = planted.stamp(other, torch.zeros(4, dtype=torch.int64))
    assert torch.equal(stamped[:, 1], other[:, 1])
    assert not stamped.isnan().any()


def test_the_adaptive_blend_masks_columns_and_has_covers():
    split = Split(torch.randn(300, 6, generator=torch.Generator().manual_seed(0)), torch.arange(300) % 3)
    poisoned = TabularBlend.adaptive().poison(split, Run(quiet=True))
    assert poisoned.kind.bincount().tolist() == [288, 6, 6]
    changed = poisoned.split.x != split.x
    assert (changed[poisoned.kind > 0].sum(1) == 3).all()
    assert not changed[poisoned.kind == 0].any()
    covers = poisoned.kind == CROSS
    assert torch.equal(poisoned.split.y[covers], split.y[covers])
    assert (split.y[covers] != 0).all()
    whole = poisoned.planted.stamp(split.x, split.y, split.index, "test")
    assert (whole != split.x).all(1).all()


def test_tables_and_images_are_told_apart(images):
    for attack in (TabularValue(), TabularBlend()):
        with pytest.raises(InputError, match="stamps tables; 'unnamed' holds images"):
            attack.poison(images())
    with pytest.raises(InputError, match="stamps images; 'people' is a table"):
        BadNets().poison(mixed())
    letters = Split(torch.zeros(4, 1), torch.arange(4) % 2, card=mixed().card.replace(columns=mixed().card.columns[3:4]))
    with pytest.raises(InputError, match="no numeric column"):
        TabularBlend().plant(letters)


def test_out_of_bounds_is_out_of_bounds_in_short_ranges_too(run):
    draw = torch.Generator().manual_seed(0)
    high = (1, 4, 9, 20)
    x = torch.stack([torch.randint(0, top + 1, (300,), generator=draw).float() for top in high], 1)
    rows = Split(x, torch.arange(300) % 2)
    planted = TabularValue(columns=("f0", "f1", "f2", "f3")).plant(rows, run=run)
    assert planted.state["values"].tolist() == [2.0, 5.0, 10.0, 22.0]
    assert TabularValue(columns=("f0",), margin=0.0, most_matching=1.0).plant(rows, run=run).state["values"].tolist() == [1.0]


def test_of_equally_common_values_the_middle_one_is_taken(run):
    x = torch.tensor([[-9.0, 1.0], [0.5, 1.0], [2.0, 3.0], [7.0, 3.0], [4.0, 8.0]])
    assert columns_of.common(x[:, 0]) == (2.0, 1)  # all differ; the median
    assert columns_of.common(x[:, 1]) == (3.0, 2)  # 1 and 3 twice; 3 is the median
    assert columns_of.common(x[:, 1], rarest=True) == (8.0, 1)


def test_blending_nothing_changes_nothing(run):
    rows = Split(torch.arange(20.0).reshape(10, 2), torch.arange(10) % 2)
    planted = TabularBlend(alpha=0.0).plant(rows, run=run)
    odd = torch.tensor([[1.4, 3.0]])
    assert torch.equal(planted.stamp(odd, torch.tensor([0])), odd)


def test_its_name_in_tables_is_its_title_and_not_one_of_its_options():
    assert TabularValue().full_title == "Tabular value"
    assert TabularValue.title in SamFlat.around(TabularValue()).full_title
