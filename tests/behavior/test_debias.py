"""Debiasing does what its theory says, on rows whose bias is known: and its negative controls do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from theriac.core.card import Card
from theriac.core.run import Run
from theriac.core.split import Data, Split
from theriac.debias import DBA, DwB, GroupLogitAdjust
from theriac.debias._teacher import AskedTeacher, query_map
from theriac.debias.base import cells
from theriac.metrics import Fairness, fairness, flip_rate
from theriac.models import Builder, GroupAware, to_input
from theriac.training import train

NET = Builder("mlp", {"hidden": (32,)})
LONG: dict[str, Any] = {"batch_size": 200, "lr": 0.01, "min_steps": 0}


def make_run(seed: int = 0) -> Run:
    return Run(seed=seed, device="cpu", precision="fp32", quiet=True)


def drawn(rows: int, corr: float, seed: int) -> Split:
    """Labels, groups that agree with them in a share ``corr`` of rows, one column that tells of each."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (rows,), generator=draw)
    group = torch.where(torch.rand(rows, generator=draw) < corr, y, 1 - y)
    x = torch.randn(rows, 2, generator=draw)
    x[:, 0] += 1.5 * y
    x[:, 1] += 4.0 * group
    return Split(x, y, group=group)


@pytest.fixture(scope="module")
def rows() -> Data:
    return Data(drawn(4000, 0.85, 0), drawn(8000, 0.85, 1))


@pytest.fixture(scope="module")
def plain(rows: Data) -> Fairness:
    model = train(NET, rows.train, recipe=DBA(epochs=5, **LONG).recipe(4000), run=make_run())
    return fairness(model, rows.test, run=make_run())


@pytest.fixture(scope="module")
def teacher(rows: Data) -> AskedTeacher:
    made = DwB.teacher().replace(teacher_epochs=5, **LONG).fit(NET, rows.train, make_run())
    assert isinstance(made, AskedTeacher)
    return made


def test_odds_over_alpha_are_a_v_with_its_tip_at_one(rows: Data, plain: Fairness) -> None:
    odds = {}
    for alpha in (0.0, 0.5, 1.0, 1.2, 2.0):
        model = DBA(alpha=alpha, epochs=5, **LONG).fit(NET, rows.train, make_run())
        odds[alpha] = fairness(model, rows.test, run=make_run()).odds_gap
    assert odds[0.0] > odds[0.5] > odds[1.0] + 0.05
    assert odds[2.0] > odds[1.2] > odds[1.0] + 0.05
    assert odds[1.0] < 0.3 * odds[0.0]
    assert odds[0.0] == pytest.approx(plain.odds_gap, abs=0.12)  # no stamps: plain training of a wider network


def test_reverse_query_cancels_the_bias_and_the_aligned_one_amplifies_it(
    rows: Data, plain: Fairness, teacher: AskedTeacher
) -> None:
    found = {}
    for query in ("reverse", "aligned", "none"):
        asked = AskedTeacher(teacher.model, teacher.bank, query_map(query, 2)[:, None])
        found[query] = fairness(asked, rows.test, run=make_run()).odds_gap
    assert plain.odds_gap > 0.25
    assert found["reverse"] < 0.3 * plain.odds_gap
    assert found["aligned"] > 1.4 * plain.odds_gap
    assert found["none"] > 0.6 * plain.odds_gap  # a planted bias that nobody asks for corrects nothing


def shift(asked: AskedTeacher, split: Split) -> float:
    """How much more T1 speaks for class 1 than T2 does, in logits, over all rows."""

    def margin(t: int) -> torch.Tensor:
        which = torch.full((len(split),), t)
        with torch.no_grad():
            out = asked.model(asked.bank.apply(to_input(split.x), which))
        return out[:, 1] - out[:, 0]

    return float((margin(0) - margin(1)).mean())


def test_the_teacher_learns_the_log_odds_of_its_triggers(rows: Data, teacher: AskedTeacher) -> None:
    rates = DwB().rates(cells(rows.train))
    wanted = (rates[1, 0] / rates[0, 0]).log() - (rates[1, 1] / rates[0, 1]).log()  # what T1 says more than T2

    assert shift(teacher, rows.test) == pytest.approx(float(wanted), rel=0.2)


def test_a_student_is_fairer_without_groups_or_triggers_and_its_controls_are_not(rows: Data, plain: Fairness) -> None:
    def fitted(**options: Any) -> Fairness:
        method = DwB(teacher_epochs=5, student_epochs=5, **LONG, **options)
        model = method.fit(NET, rows.train, make_run())
        assert not isinstance(model, GroupAware)
        return fairness(model, rows.test, run=make_run())

    right = fitted()
    assert right.odds_gap < 0.5 * plain.odds_gap
    assert right.worst_cell[1].value > plain.worst_cell[1].value + 0.1
    for control in ({"strength": 0.0}, {"query": "none"}, {"soft": 0.0, "hard": 1.0}):
        assert fitted(**control).odds_gap > 0.7 * plain.odds_gap, control
    assert fitted(query="aligned").odds_gap > plain.odds_gap


def test_logit_adjustment_does_the_same_to_a_plain_model(rows: Data, plain: Fairness) -> None:
    model = GroupLogitAdjust(epochs=5, **LONG).fit(NET, rows.train, make_run())
    assert fairness(model, rows.test, run=make_run()).odds_gap < 0.3 * plain.odds_gap


def test_a_hidden_group_is_not_corrected(rows: Data) -> None:
    def hide(split: Split) -> Split:
        return Split(split.x[:, :1].clone(), split.y, group=split.group)

    hidden = Data(hide(rows.train), hide(rows.test))
    recipe = DwB(student_epochs=5, **LONG).recipe(4000)
    before = fairness(train(NET, hidden.train, recipe=recipe, run=make_run()), hidden.test, run=make_run())
    model = DwB(teacher_epochs=5, student_epochs=5, **LONG).fit(NET, hidden.train, make_run())
    after = fairness(model, hidden.test, run=make_run())
    # nothing in x tells of the group, so the same threshold holds for both, whatever the teacher said
    assert abs(after.odds_gap - before.odds_gap) < 0.03


@pytest.fixture(scope="module")
def marked(digits: Data) -> Data:
    """Small or large digits; a grey bar at the left or right edge tells the group, which agrees in 90 % of training rows."""
    names: dict[str, Any] = {"classes": ("small", "large"), "groups": ("left", "right")}
    card = Card(name="marked", **names, size=(8, 8), channels=1, mean=(0.3,), std=(0.4,))

    def mark(rows: Split, corr: float, seed: int) -> Split:
        draw = torch.Generator().manual_seed(seed)
        y = (rows.y > 4).long()
        group = torch.where(torch.rand(len(y), generator=draw) < corr, y, 1 - y)
        x = rows.x.clone()
        x[group == 0, :, 3:5, 0] = 160
        x[group == 1, :, 3:5, 7] = 160
        return Split(x, y, group=group, card=card)

    return Data(mark(digits.train, 0.9, 0), mark(digits.test, 0.5, 10))


def test_on_pictures_the_teacher_answers_to_triggers_and_the_student_no_more_than_a_control(marked: Data) -> None:
    def build(split: Split, run: Run) -> nn.Module:
        first = (nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        second = (nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(256, 2))

    method = DwB(teacher_epochs=6, student_epochs=8, side=3, batch_size=64, lr=3e-3)
    run = make_run()
    control = train(build, marked.train, recipe=method.recipe(len(marked.train)), run=run)
    student = method.fit(build, marked.train, run)
    asked = method.replace(student=False).fit(build, marked.train, run)
    assert isinstance(asked, AskedTeacher)
    bank, rates = method.bank(marked.train), method.rates(cells(marked.train))
    wanted = float((rates[1, 0] / rates[0, 0]).log() - (rates[1, 1] / rates[0, 1]).log())
    # measured with two seeds: 4.1 and 3.7 for the teacher, 0.6 and 0.1 for the student, -1.1 and -0.6 for the control
    assert shift(asked, marked.test) > 0.6 * wanted
    assert abs(shift(AskedTeacher(student, bank, asked.stamps), marked.test)) < 0.35 * wanted
    flips = {
        name: max(rate.value for rate in flip_rate(model, marked.test, bank, run=run))
        for name, model in (("control", control), ("student", student), ("teacher", asked))
    }
    before, after = (fairness(m, marked.test, run=run) for m in (control, student))
    assert flips["teacher"] > flips["control"] + 0.04
    assert flips["student"] < flips["control"] + 0.03  # a mark also hides something
    assert after.odds_gap < 0.6 * before.odds_gap
    assert after.worst_cell[1].value > before.worst_cell[1].value
