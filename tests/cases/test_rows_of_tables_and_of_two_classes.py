"""Detectors of rows where there are two classes, many rows with a few odd ones, or columns in other units."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import theriac as th
from theriac.core.card import Card, Column
from theriac.core.errors import InputError
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.detectors import ActivationClustering
from theriac.detectors._rows import best_cut, more_varied
from theriac.scanning.rows import share_interval


def quiet(seed: int = 0) -> Run:
    return Run(seed=seed, device="cpu", precision="fp32", quiet=True)


@pytest.fixture(scope="module")
def zeros_and_ones(digits: th.Data) -> tuple[Split, nn.Module]:
    rows = th.attacks.BadNets(poison_rate=0.2).poison(digits.train.where(digits.train.y < 2)).split
    return rows, th.train(th.Builder("preact_resnet18", {"width": 4}), rows, recipe="short_4", run=quiet())


@pytest.mark.parametrize("name", ["scan", "strip", "scale_up"])
def test_a_detector_that_compares_classes_does_not_call_two_of_them_clean(zeros_and_ones, name: str):
    rows, model = zeros_and_ones
    result = th.scan_data(rows, model, detectors=[name], run=quiet())
    assert (result.verdict, result.exit_code) == ("abstains", 3)
    assert "class" in result.findings[name].reason


class Taken(nn.Module):
    """A table's columns are its features, and the first two its logits."""

    def __init__(self, columns: int, classes: int = 2) -> None:
        super().__init__()
        self.head = nn.Linear(columns, classes, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(classes, columns))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(x)
        return out


def table(x: torch.Tensor, y: torch.Tensor, **kinds: str) -> Split:
    columns = [
        Column(name=f"c{k}", kind="categorical", categories=("a", "b", "c")) if f"c{k}" in kinds else Column(name=f"c{k}")
        for k in range(x.shape[1])
    ]
    classes = tuple(str(k) for k in range(int(y.max()) + 1))
    return Split(x, y, card=Card(name="t", kind="table", classes=classes, columns=tuple(columns)))


@pytest.mark.parametrize("seed", range(4))
def test_one_odd_row_among_thousands_ends_no_scan(seed: int):
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(8000) % 2
    x = torch.randn(8000, 4, generator=draw) + torch.eye(2, 4)[y] * 3
    x[0] = 1e4
    finding = ActivationClustering().detect(Taken(4), table(x, y), run=quiet(seed))
    assert 0 not in finding.flagged


def test_the_unit_of_a_column_does_not_decide_which_group_varies():
    """The first group holds two classes' values in every column but the last, which varies more in the second."""
    draw = torch.Generator().manual_seed(0)
    member = torch.arange(200) < 100
    x = torch.randn(200, 4, generator=draw)
    x[member, :3] += 4 * torch.randint(0, 2, (100, 3), generator=draw)
    x[member, 3] = 0.1 * x[member, 3]
    for unit in (1.0, 1000.0, 0.001):
        scaled = x.clone()
        scaled[:, 3] *= unit
        rows = table(scaled, torch.zeros(200, dtype=torch.int64))
        assert torch.equal(more_varied(rows, torch.arange(200), member), member)
    codes = torch.zeros(200, 2)
    codes[member, 0] = (torch.arange(100) % 3).float()  # three categories as often as another, beside one alone
    codes[~member, 1] = torch.where(torch.arange(100) < 2, float("nan"), 0.0)  # a column without variation, and missing values
    rows = table(codes, torch.zeros(200, dtype=torch.int64), c0="categorical")
    assert torch.equal(more_varied(rows, torch.arange(200), member), member)


def test_the_interval_of_the_share_holds_where_classes_are_scored_on_other_scales():
    draw = torch.Generator().manual_seed(1)
    y = torch.arange(2000) // 1000
    poison = torch.zeros(2000, dtype=torch.bool)
    poison[:100] = poison[1000:1100] = True
    scores = torch.randn(2000, generator=draw).double() + 8 * poison
    scores[1000:] /= 10
    low, high = share_interval(scores, 10_000, torch.cat([best_cut(scores[y == k])[0] for k in (0, 1)]), y)
    assert low < 0.02 < high
    assert high - low < 0.01


def test_two_presets_of_a_detector_are_both_named_and_one_twice_is_refused(zeros_and_ones):
    rows, model = zeros_and_ones
    result = th.scan_data(rows, model, detectors=["spectral", "spectral:official"], run=quiet())
    assert list(result.findings) == ["spectral", "spectral:official"]
    with pytest.raises(InputError, match="spectral twice"):
        th.scan_data(rows, model, detectors=["spectral", "spectral"], run=quiet())
