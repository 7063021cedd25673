"""Neural Cleanse as a detector: what it makes of a search that is given."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from theriac.core.card import Card, Column
from theriac.core.errors import InputError
from theriac.core.split import Split
from theriac.detectors import NeuralCleanse
from theriac.detectors.neural_cleanse import Schedule, method
from theriac.detectors.neural_cleanse.inversion import judge
from theriac.detectors.neural_cleanse.method import class_scores


def found(norms: list[float], success: list[float], schedule: Schedule):
    count = len(norms)
    patches = torch.zeros(count, 8, 8), torch.zeros(count, 1, 8, 8)
    return judge(tuple(range(count)), *patches, torch.tensor(norms), torch.tensor(success), schedule)


@pytest.fixture
def detect(monkeypatch, trained, digits, run):
    def go(norms: list[float], success: list[float], **options: object):
        schedule = NeuralCleanse(**options).schedule()
        monkeypatch.setattr(method, "invert", lambda *_: found(norms, success, schedule))
        return NeuralCleanse(**options).detect(trained, clean=digits.train.sample(20), run=run)

    return go


SIZES = [20.0, 21.0, 19.0, 20.5, 22.0, 18.0, 20.0, 21.5, 19.5, 20.2]


def test_a_small_patch_that_works_is_backdoored(detect):
    finding = detect([*SIZES[:3], 4.0, *SIZES[4:]], [1.0] * 10)
    assert (finding.verdict, finding.flagged) == ("backdoored", (3,))
    assert int(finding.classes.argmax()) == 3
    assert finding.score == float(finding.classes[3])
    assert finding.evidence["masks"][3].shape == (8, 8)
    assert finding.evidence["patterns"][3].shape == (1, 8, 8)
    assert "uncalibrated" in finding.origin


def test_a_large_patch_is_no_alarm(detect):
    finding = detect([*SIZES[:3], 60.0, *SIZES[4:]], [1.0] * 10)
    assert (finding.verdict, finding.flagged) == ("clean", ())
    assert float(finding.classes[3]) < -2  # far off, on the other side


def test_a_small_patch_that_does_not_work_is_no_alarm(detect):
    finding = detect([*SIZES[:3], 1.0, *SIZES[4:]], [1.0] * 3 + [0.1] + [1.0] * 6)
    assert finding.verdict == "clean"
    assert float(finding.classes[3]) == 0.0


@pytest.mark.parametrize(
    ("norms", "success", "why"),
    [(SIZES, [0.1] * 10, "no search"), ([20.0] * 10, [1.0] * 10, "equally large"), ([20.0, 5.0, 19.0], [1.0] * 3, "3 classes")],
)
def test_it_abstains_where_the_search_says_nothing(norms, success, why):
    schedule = Schedule.few_samples()
    seen = found(norms, success, schedule)
    assert why in seen.reason
    assert not bool(seen.index.any()) or not bool((seen.success >= seen.threshold).any())
    assert class_scores(seen).max() <= 0


def test_presets_follow_the_schedules():
    assert NeuralCleanse().schedule() == Schedule.screen()
    assert NeuralCleanse.few_samples().schedule() == Schedule.few_samples()
    assert NeuralCleanse.official().schedule() == Schedule.official()
    assert NeuralCleanse.bench().schedule() == Schedule.bench()
    assert NeuralCleanse(rounds=3, restarts=2).schedule() == Schedule.screen().replace(rounds=3, restarts=2)


def test_tables_are_refused(run):
    card = Card(name="t", kind="table", classes=("a", "b"), columns=(Column(name="f"), Column(name="g")))
    rows = Split(torch.zeros(6, 2), torch.arange(6) % 2, card=card)
    with pytest.raises(InputError, match="is a table"):
        NeuralCleanse().detect(nn.Linear(2, 2), clean=rows, run=run)
