from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from theriac.core.card import Card, Column
from theriac.core.errors import InputError
from theriac.core.split import Split
from theriac.metrics import Fairness, fairness, flip_rate
from theriac.metrics.gaps import mean_interval
from theriac.models import GroupAware
from theriac.triggers.bank import ColumnBank, TriggerColumns, image_bank

# rows by (group, label, predicted), by hand: TPR 6/8 and 2/4, TNR 9/10 and 12/16
HAND = (((9, 1), (2, 6)), ((12, 4), (2, 2)))


def drawn(classes: int, groups: int, rows: int = 900, seed: int = 0) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (rows,), generator=draw)
    group = (y + torch.randint(0, 4, (rows,), generator=draw)) % groups
    wrong = torch.rand(rows, generator=draw) < 0.2 + 0.1 * group
    seen = torch.where(wrong, torch.randint(0, classes, (rows,), generator=draw), y)
    return seen, y, group


class Answers(nn.Module):
    """Says what the first column of a row says."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(x[:, 0].long(), 2).float()


class AnswersByGroup(GroupAware):
    def _answer(self, x: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot((x[:, 0].long() + group) % 2, 2).float()


def rows_of(seen: torch.Tensor, y: torch.Tensor, group: torch.Tensor) -> Split:
    card = Card(
        kind="table", name="drawn", classes=("no", "yes"), groups=("a", "b"), columns=(Column(name="u"), Column(name="v"))
    )
    return Split(torch.stack([seen.float(), y.float()], 1), y, group=group, card=card)


def test_numbers_counted_by_hand():
    found = Fairness(HAND, ("f", "m"), ("no", "yes"))
    assert (found.acc.hits, found.acc.total) == (29, 38)
    assert {k: (r.hits, r.total) for k, r in found.cells.items()} == {
        ("f", "no"): (9, 10),
        ("f", "yes"): (6, 8),
        ("m", "no"): (12, 16),
        ("m", "yes"): (2, 4),
    }
    assert {g: (r.hits, r.total) for g, r in found.group_acc.items()} == {"f": (15, 18), "m": (14, 20)}
    assert {g: (r.hits, r.total) for g, r in found.positive_rate.items()} == {"f": (7, 18), "m": (6, 20)}
    assert found.bacc == pytest.approx((0.9 + 0.75 + 0.75 + 0.5) / 4)
    assert found.dp_gap == pytest.approx(7 / 18 - 6 / 20)
    assert found.dp_ratio == pytest.approx((6 / 20) / (7 / 18))
    assert found.opportunity_gap == pytest.approx(0.25)
    assert found.odds_gap == pytest.approx((0.25 + 0.15) / 2)
    assert found.worst_odds_gap == pytest.approx(0.25)
    assert found.worst_cell[0] == ("m", "yes")
    assert found.worst_group[0] == "m"
    other = Fairness(HAND, ("f", "m"), ("no", "yes"), positive=0)
    assert other.opportunity_gap == pytest.approx(0.15)
    assert other.dp_ratio == pytest.approx((11 / 18) / (14 / 20))
    assert (other.dp_gap, other.odds_gap, other.bacc) == pytest.approx((found.dp_gap, found.odds_gap, found.bacc))
    gap = found.measure("opportunity_gap")
    assert gap is not None
    assert gap.value == pytest.approx(0.25)
    assert gap.interval[0] < 0.25 < gap.interval[1]


@pytest.mark.parametrize("groups", [2, 4])
def test_two_classes_agree_with_fairlearn(groups):
    metrics = pytest.importorskip("fairlearn.metrics")
    from sklearn.metrics import accuracy_score, recall_score

    for seed in (groups,):
        seen, y, group = drawn(2, groups, seed=seed)
        found = Fairness.count(seen, y, group)
        told = {"y_true": y.numpy(), "y_pred": seen.numpy(), "sensitive_features": group.numpy()}
        close = {"abs": 1e-12}
        assert found.dp_gap == pytest.approx(metrics.demographic_parity_difference(**told), **close)
        assert found.dp_ratio == pytest.approx(metrics.demographic_parity_ratio(**told), **close)
        assert found.opportunity_gap == pytest.approx(metrics.equal_opportunity_difference(**told), **close)
        assert found.odds_gap == pytest.approx(metrics.equalized_odds_difference(**told, agg="mean"), **close)
        assert found.worst_odds_gap == pytest.approx(metrics.equalized_odds_difference(**told), **close)
        by_group = metrics.MetricFrame(metrics=accuracy_score, **told)
        assert found.worst_group[1].value == pytest.approx(by_group.group_min(), **close)
        assert found.acc.value == pytest.approx(by_group.overall, **close)
        both = {"group": group.numpy(), "label": y.numpy()}
        cells = metrics.MetricFrame(metrics=accuracy_score, y_true=y.numpy(), y_pred=seen.numpy(), sensitive_features=both)
        assert found.bacc == pytest.approx(cells.by_group.mean(), **close)
        assert found.worst_cell[1].value == pytest.approx(cells.by_group.min(), **close)
        rates = metrics.MetricFrame(metrics=recall_score, **told).by_group
        assert [found.cells[str(g), "1"].value for g in range(groups)] == pytest.approx(rates.tolist(), **close)


def test_more_classes_average_over_them():
    seen, y, group = (v.numpy() for v in drawn(3, 3))
    found = Fairness.count(*map(torch.from_numpy, (seen, y, group)))

    def gap(rate) -> float:
        rates = [rate(g) for g in range(3)]
        return max(rates) - min(rates)

    odds = [gap(lambda g, k=k: np.mean(seen[(group == g) & (y == k)] == k)) for k in range(3)]
    parity = [gap(lambda g, k=k: np.mean(seen[group == g] == k)) for k in range(3)]
    assert found.odds_gap == pytest.approx(np.mean(odds))
    assert found.worst_odds_gap == pytest.approx(max(odds))
    assert found.opportunity_gap == pytest.approx(odds[1])
    assert found.dp_gap == pytest.approx(np.mean(parity))
    mean = found.measure("dp_gap")
    assert mean is not None
    assert mean.interval[0] <= found.dp_gap <= mean.interval[1]


def test_a_model_is_counted_once_for_all_rows():
    seen, y, group = drawn(2, 2, rows=300)
    split = rows_of(seen, y, group)
    found = fairness(Answers(), split, batch_size=77)
    assert found == Fairness.count(seen, y, group, groups=("a", "b"), classes=("no", "yes"), data="drawn, 300 rows")
    text = str(found)
    assert f"ACC              {found.acc}" in text
    assert "max - min over groups of P(predicted = positive | label = positive)" in text
    assert "group b" in text
    other = fairness(Answers(), split, groups=torch.arange(300) % 3)
    assert other.groups == ("0", "1", "2")
    wise = fairness(AnswersByGroup(Answers(), 2), split)
    assert wise.table[0].equal(found.table[0])
    assert wise.table[1].equal(found.table[1].flip(1))


def test_records_survive_json():
    found = Fairness(HAND, ("f", "m"), ("no", "yes"), data="by hand")
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert Fairness.from_dict(told) == found
    assert told["odds_gap"]["value"] == 0.2
    assert told["cells"][3] == {"group": "m", "label": "yes", **found.cells["m", "yes"].to_dict()}
    with pytest.raises(InputError, match="incomplete"):
        Fairness.from_dict({"counts": []})


def test_what_can_not_be_counted_is_refused():
    y, group = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
    with pytest.raises(InputError, match="no row has group 'b'"):
        Fairness((((1, 0), (0, 1)), ((0, 0), (0, 0))), ("a", "b"), ("no", "yes"))
    with pytest.raises(InputError, match="different names"):
        Fairness((((1, 0), (0, 1)), ((1, 0), (0, 1))), ("a", "a"), ("no", "yes"))
    with pytest.raises(InputError, match="1 group"):
        Fairness.count(y, y, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(InputError, match="positive"):
        Fairness.count(y, y, group, positive=2)
    assert Fairness.count(y, y, group * 3, groups=("a", "b", "c", "d")).groups == ("a", "d")
    plain = Split(torch.rand(4, 1), y)
    with pytest.raises(InputError, match="groups was not given"):
        fairness(Answers(), plain)
    with pytest.raises(InputError, match="groups has shape"):
        fairness(Answers(), plain, groups=group[:3])
    with pytest.raises(InputError, match="expected a Split"):
        fairness(Answers(), y)
    with pytest.raises(InputError, match="needs the sensitive group"):
        AnswersByGroup(Answers(), 2)(plain.x)
    with pytest.raises(InputError, match="group runs from 0 to 2"):
        AnswersByGroup(Answers(), 2)(plain.x, torch.tensor([0, 1, 2, 0]))


def test_nobody_positive_means_equal_shares():
    counts = (((5, 0), (5, 0)), ((3, 0), (2, 0)))
    assert Fairness(counts, ("f", "m"), ("no", "yes")).dp_ratio == 1


def test_flips_are_counted_for_each_trigger():
    class Corner(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([1 - x[:, 0, 0, 0], x[:, 0, 0, 0]], 1)  # bright upper left pixel: class 1

    x = torch.zeros(10, 1, 16, 16, dtype=torch.uint8)
    x[:3, 0, 0, 0] = 255
    split = Split(x, torch.arange(10) % 2)
    first, second = flip_rate(Corner(), split, image_bank(split.card), batch_size=4)
    assert (first.hits, first.total, second.hits) == (7, 10, 0)

    bank = ColumnBank(1, (1.0, 1.0))
    linear = nn.Linear(3, 2, bias=False)
    linear.weight.data = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 5.0, -5.0]])
    table = Split(torch.tensor([[1.0], [-1.0], [2.0]]), torch.tensor([0, 1, 0]))
    rates = flip_rate(TriggerColumns(linear, bank), table, bank)
    assert [r.hits for r in rates] == [2, 1]
    with pytest.raises(InputError, match="none for a trigger"):
        flip_rate(nn.Linear(1, 2), table, bank)


def test_predictions_are_names_or_numbers_and_never_both():
    y = torch.arange(90) % 3
    split = Split(torch.zeros(90, 1, 8, 8, dtype=torch.uint8), y)
    split = split.replace(card=split.card.replace(classes=("1", "2", "3")))
    group = torch.arange(90) % 2
    assert fairness(y.numpy(), split, groups=group).acc.value == 1.0  # 0 is no name, so none is
    assert fairness((y + 1).numpy(), split, groups=group).acc.value == 1.0  # all are names
    assert fairness([str(k + 1) for k in y.tolist()], split, groups=group).acc.value == 1.0
    with pytest.raises(InputError, match="predictions hold 0"):
        fairness([0, *[3] * 89], split, groups=group)


@pytest.mark.parametrize(
    ("cells", "share", "rows"), [(10, 0.99, 10), (24, 0.99, 10), (60, 0.99, 10), (60, 0.97, 30), (4, 0.9, 100)]
)
def test_the_interval_of_a_mean_of_cells_covers_it(cells, share, rows):
    hits = np.random.default_rng(0).binomial(rows, share, (2000, cells)).astype(float)
    low, high = mean_interval(hits, np.full(cells, float(rows)))
    assert float(((low <= share) & (share <= high)).mean()) > 0.94  # limits combined by squares: 0.87 at 60 cells


@pytest.mark.parametrize(
    ("shares", "rows"),
    [
        ((1, 1, 0.9), (20, 30, 5)),
        ((0.99, 0.98, 0.6, 0.97), (500, 200, 5, 50)),
        ((0.9, 0.9, 0.9, 0.9, 0.9, 0.5), (200, 200, 200, 200, 200, 4)),
    ],
)
def test_the_interval_of_a_mean_covers_it_where_one_cell_is_small(shares, rows):
    hits = np.random.default_rng(0).binomial(rows, shares, (5000, len(rows))).astype(float)
    low, high = mean_interval(hits, np.broadcast_to(np.array(rows, float), hits.shape))
    mean = np.mean(shares)
    assert float(((low <= mean) & (mean <= high)).mean()) > 0.95  # with half a row of the largest cell: 0.92, 0.91, 0.87


def test_the_interval_of_one_share_is_wilsons():
    from scipy.stats import binomtest

    for hits, rows in ((7, 20), (0, 15), (15, 15), (99, 100)):
        low, high = mean_interval(np.array([float(hits)]), np.array([float(rows)]))
        wanted = binomtest(hits, rows).proportion_ci(method="wilsoncc")
        assert (float(low), float(high)) == pytest.approx((wanted.low, wanted.high), abs=1e-6)
