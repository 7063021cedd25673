"""Repaired twin: its rule on counts made by hand, how often it raises a false alarm where classes are alike, and real rows."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binom
from torch import nn

import theriac as th
from theriac.core.errors import InputError
from theriac.core.run import Run
from theriac.core.split import Data, Split
from theriac.detectors import RepairedTwin
from theriac.detectors import repaired_twin as module
from theriac.detectors.repaired_twin import stand_out, tail

ALL = torch.ones(10, dtype=torch.bool)


def make_run(seed: int = 0) -> Run:
    return Run(seed=seed, device="cpu", precision="fp32", quiet=True)


@pytest.mark.parametrize(("trials", "hits", "each"), [(9, 5, 0.1), (9, 9, 0.5), (3, 1, 1 / 82), (9, 0, 0.3), (4, 2, 1.0)])
def test_the_tail_is_that_of_the_binomial(trials: int, hits: int, each: float) -> None:
    assert tail(trials, hits, each) == pytest.approx(binom.sf(hits - 1, trials, each), rel=1e-9)


def test_a_class_that_loses_rows_to_all_others_stands_out_and_one_that_looks_like_another_does_not() -> None:
    counts = torch.zeros(10, 10, dtype=torch.int64)
    counts[3] = 4  # the target of an attack
    counts[3, 3] = 100  # rows that keep their label are no loss
    counts[6, 2] = counts[6, 4] = 60  # a class that looks like two others
    figures, chances = stand_out(counts, ALL)
    assert figures.tolist() == [0, 0, 0, 4, 0, 0, 0, 0, 0, 0]
    # each: 2 of the 81 other counts reach 4, and one more; all nine of its own do
    assert float(chances[3]) == pytest.approx(10 * (3 / 82) ** 9)
    assert all(float(chances[k]) == 1 for k in range(10) if k != 3)


def test_the_figure_is_the_lower_median_and_each_count_is_judged_by_the_other_classes() -> None:
    counts = torch.tensor([[0, 5, 3, 2, 9], [0, 0, 0, 0, 0], [0, 0, 0, 0, 4], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]])
    figures, chances = stand_out(counts, torch.ones(5, dtype=torch.bool))
    assert figures.tolist() == [3, 0, 0, 0, 0]
    assert float(chances[0]) == pytest.approx(5 * tail(4, 3, 2 / 17))
    judged = torch.tensor([True, True, False, True, True])
    assert float(stand_out(counts, judged)[1][0]) == pytest.approx(4 * tail(4, 3, 1 / 13))  # class 2 is not looked at


def test_where_classes_are_alike_false_alarms_are_about_as_rare_as_the_chance_says() -> None:
    """Counts of all pairs from one skewed distribution. The figure is the class's own median, so it is not quite exact."""
    draw = torch.Generator().manual_seed(0)
    least = []
    for _ in range(600):
        means = torch.empty(10, 10).exponential_(0.7, generator=draw)  # some pairs look alike, most do not
        least.append(float(stand_out(torch.poisson(means, generator=draw).long(), ALL)[1].min()))
    assert 0.02 < sum(value < 0.05 for value in least) / 600 < 0.08
    assert sum(value < RepairedTwin().chance for value in least) <= 3


class Fixed(nn.Module):
    """Answers that come with the rows: the first pixel says which, and the second how sure."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        at = (x[:, 0, 0, 0] * 255).round().long()
        return nn.functional.one_hot(at, 10).to(x.dtype) * (1 + 9 * x[:, 0, 0, 1, None])


def made_rows() -> tuple[Split, torch.Tensor]:
    """40 rows a class; 36 of class 0 are those of the nine others."""
    x = torch.zeros(400, 1, 2, 2, dtype=torch.uint8)
    y = torch.arange(400) % 10
    x[:, 0, 0, 0], x[:, 0, 0, 1] = y.to(torch.uint8), 255
    extra = x[y > 0][:36].clone()
    card = th.core.card.Card(name="made", classes=tuple("abcdefghij"), size=(2, 2), channels=1, mean=(0.1,), std=(0.1,))
    poison = torch.arange(436) >= 400
    return Split(torch.cat([x, extra]), torch.cat([y, torch.zeros(36, dtype=torch.int64)]), card=card), poison


class Obeys(Fixed):
    """Gives class 0 to the last rows, as a backdoored model would; which they are is told by the third pixel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = super().forward(x)
        out[x[:, 0, 1, 0] > 0] = torch.tensor([10.0] + 9 * [0.0])
        return out


def test_rows_that_the_twin_gives_back_are_flagged_and_rank_first(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, poison = made_rows()
    x = rows.x.clone()
    x[poison, 0, 1, 0] = 255
    rows = Split(x, rows.y, card=rows.card)

    class Repair:
        def repair(self, model: nn.Module, clean: Split, run: Run) -> nn.Module:
            return Fixed()

    monkeypatch.setattr(module, "create", lambda *_, **__: Repair())
    clean = rows.where(~poison).sample(100, seed=0, stratified=True)
    finding = RepairedTwin().detect(Obeys(), rows, clean, make_run())
    assert finding.verdict == "suspicious"
    assert sorted(finding.flagged) == poison.nonzero().flatten().tolist()
    assert finding.rows is not None
    assert float(finding.rows[poison].min()) > float(finding.rows[~poison].max())
    assert finding.classes is not None
    assert finding.classes.tolist() == [4.0] + 9 * [0.0]
    few = clean.where(clean.y != 0)  # without clean rows of a class nothing is said of it
    assert RepairedTwin().detect(Obeys(), rows, few, make_run()).verdict == "clean"
    none = RepairedTwin().detect(Obeys(), rows, clean.where(clean.y < 3), make_run())
    assert none.verdict == "abstains"
    assert "3 classes" in none.reason
    monkeypatch.setattr(Repair, "repair", lambda *_: nn.Sequential(nn.Flatten(), nn.Linear(4, 10)))
    spoiled = RepairedTwin().detect(Obeys(), rows, clean, make_run())
    assert spoiled.verdict == "abstains"
    assert "the repaired copy gets" in spoiled.reason


def test_poisoned_digits_are_found_and_benign_ones_left_alone(digits: Data) -> None:
    build, clean = th.Builder("preact_resnet18", {"width": 8}), digits.test.sample(100, seed=13, stratified=True)
    few, twin = digits.train.sample(800, seed=13), RepairedTwin(steps=100)
    poisoned = th.attacks.BadNets(poison_rate=0.1).poison(few, make_run(13))
    model = th.train(build, poisoned.split, recipe="short_20", run=make_run(13))
    finding = twin.detect(model, poisoned.split, clean, make_run(13))
    hits = int(poisoned.poison[list(finding.flagged)].sum())
    assert hits >= 0.7 * int(poisoned.poison.sum())
    assert hits >= 0.7 * len(finding.flagged)
    assert twin.detect(model, few, clean, make_run(13)).verdict == "clean"  # the same rows before the attack


def test_tables_are_refused(run: Run) -> None:
    x = torch.rand(100, 3, generator=torch.Generator().manual_seed(0))
    rows = Split(x, torch.arange(100) % 4)
    with pytest.raises(InputError, match="table"):
        RepairedTwin().detect(nn.Linear(3, 4), rows, rows, run)
