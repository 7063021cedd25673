"""Spectral Signatures on features that are made by hand, where the answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from theriac.core.card import Card, Column
from theriac.core.errors import InputError
from theriac.core.split import Split
from theriac.detectors import SpectralSignatures
from theriac.detectors.spectral import along_the_main_direction, bimodality, smaller_group
from theriac.metrics import detection

WIDTH, CLASSES, EACH = 12, 4, 100
CARD = Card(
    name="made",
    kind="table",
    classes=tuple("abcd"),
    columns=tuple(Column(name=f"f{i}") for i in range(WIDTH)),
)


class Head(nn.Module):
    """The features are the columns themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def made(planted: int = 0, shift: float = 8.0, sizes: tuple[int, ...] = (EACH,) * CLASSES) -> tuple[Split, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    y = torch.repeat_interleave(torch.arange(CLASSES), torch.tensor(sizes))
    x = torch.randn((len(y), WIDTH), generator=draw) + 3 * y[:, None]
    poison = torch.zeros(len(y), dtype=torch.bool)
    poison[torch.randperm(sizes[0], generator=draw)[:planted]] = True  # of class 0
    x[poison] += shift * torch.nn.functional.normalize(torch.randn(WIDTH, generator=draw), dim=0)
    mixed = torch.randperm(len(y), generator=draw)
    return Split(x[mixed], y[mixed], index=1000 + mixed, card=CARD), poison[mixed]


def test_a_planted_shift_of_rank_one_is_ranked_first(run):
    rows, poison = made(planted=15)
    finding = SpectralSignatures(safeguard=False).detect(Head(), rows, run=run)  # the head knows no labels
    assert finding.verdict == "suspicious"
    assert finding.classes is not None
    assert finding.rows is not None
    assert int(finding.classes.argmax()) == 0
    assert set(finding.flagged) == set(poison.nonzero().flatten().tolist())
    assert detection(finding.rows, poison).auroc > 0.995
    suspects = finding.suspects(rows)
    assert torch.equal(suspects.index, rows.index[list(finding.flagged)])
    assert int(suspects.index.min()) >= 1000
    assert finding.evidence["spectrum"]["a"][0] > 2 * finding.evidence["spectrum"]["b"][0]


def test_it_abstains_where_nothing_stands_out(run):
    finding = SpectralSignatures().detect(Head(), made()[0], run=run)
    assert (finding.verdict, finding.flagged) == ("abstains", ())
    assert "clears no rows" in finding.reason
    assert "uncalibrated" in finding.origin


def test_small_classes_and_wrong_labels_are_no_alarm(run):
    rows, _ = made(sizes=(200, 100, 20, 5))  # imbalance; the last is too small to be judged
    finding = SpectralSignatures().detect(Head(), rows, run=run)
    assert finding.verdict == "abstains"
    assert finding.classes is not None
    assert float(finding.classes[3]) == 0.0
    assert "d" not in finding.evidence["spectrum"]


def test_half_a_class_is_beyond_it(run):
    """The known limit: from two equal halves, both are as far from the mean."""
    rows, poison = made(planted=EACH // 2)
    finding = SpectralSignatures().detect(Head(), rows, run=run)
    assert finding.rows is not None
    assert 0.3 < detection(finding.rows[rows.y == 0], poison[rows.y == 0]).auroc < 0.7


def test_official_flags_15_percent_of_every_class(run):
    rows, poison = made(planted=10)
    finding = SpectralSignatures.official().detect(Head(), rows, run=run)
    flagged = torch.tensor(finding.flagged)
    assert torch.bincount(rows.y[flagged]).tolist() == [15] * CLASSES
    assert bool(torch.isin(poison.nonzero().flatten(), flagged).all())


def test_positions_are_along_the_first_eigenvector_of_the_covariance():
    draw = torch.Generator().manual_seed(1)
    features = torch.randn((30, 5), generator=draw, dtype=torch.float64)
    centered = features - features.mean(0)
    values, vectors = torch.linalg.eigh(centered.T @ centered)
    position, spectrum = along_the_main_direction(features)
    assert torch.allclose(position**2, (centered @ vectors[:, -1]) ** 2)
    assert torch.allclose(spectrum[0] ** 2, values[-1])


def test_bimodality_of_known_distributions():
    assert float(bimodality(torch.tensor([0.0, 0.0, 1.0]))) == pytest.approx(1.0)
    assert float(bimodality(torch.linspace(0, 1, 10001).double())) == pytest.approx(5 / 9, abs=1e-3)
    normal = torch.randn(200_000, generator=torch.Generator().manual_seed(0)).double()
    assert float(bimodality(normal)) == pytest.approx(1 / 3, abs=0.01)


def test_the_smaller_group_is_the_best_cut_of_all():
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        values = torch.randn(9, generator=draw).double()
        order = values.argsort()
        parts = [(values[order[:c]], values[order[c:]]) for c in range(1, 9)]
        within = [sum(float(((part - part.mean()) ** 2).sum()) for part in both) for both in parts]
        cut = within.index(min(within)) + 1
        lower = smaller_group(values)[order].tolist()
        assert lower == [i < cut if 2 * cut <= 9 else i >= cut for i in range(9)]
    assert smaller_group(torch.tensor([1.0, 0.0, 0.0, 0.0]).double()).tolist() == [True, False, False, False]


def test_suspects_want_the_rows_that_were_looked_through(run):
    rows, _ = made(planted=15)
    finding = SpectralSignatures().detect(Head(), rows, run=run)
    with pytest.raises(InputError, match="split has 5 rows; the finding is about 400 rows"):
        finding.suspects(rows.take(torch.arange(5)))
