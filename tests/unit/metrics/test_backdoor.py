"""Metrics on tables small enough to count by hand. Each row's pixels say what the model answers, clean and stamped."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from theriac.attacks import BadNets, Blended, Victim
from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.metrics import Evaluation, compare, der, evaluate, predict
from theriac.metrics.intervals import Rate

CLASSES = 3
CARD = Card(name="table", classes=("a", "b", "c"), size=(2, 2), channels=1, mean=(0.5,), std=(0.5,))


class Reader(nn.Module):
    """Answers with the class that stands in the first pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.frozen = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot((x[:, 0, 0, 0] * 255).round().long(), CLASSES).float()


@dataclasses.dataclass
class Fake:
    """An attack whose stamp copies the second pixel to the first; what it wants and whom it counts can be chosen."""

    mode: str = "all_to_one"
    sources: tuple[int, ...] = ()
    name: str = "fake"

    def stamp(self, x, y, index, phase):
        assert phase == "test"
        assert bool((self.target(y) != y).all()), "a row was stamped that does not count"
        out = x.clone()
        out[:, :, 0, 0] = x[:, :, 0, 1]
        return out

    def target(self, y):
        return (y + 1) % CLASSES if self.mode == "all_to_all" else torch.zeros_like(y)

    def population(self, y):
        counted = self.target(y) != y
        if self.sources:
            counted &= torch.isin(y, torch.tensor(self.sources))
        return counted


def table(*rows: tuple[int, int, int]) -> Split:
    """A split from rows of (true label, clean answer, stamped answer)."""
    y, clean, stamped = (torch.tensor(column) for column in zip(*rows, strict=True))
    x = torch.zeros(len(rows), 1, 2, 2, dtype=torch.uint8)
    x[:, 0, 0, 0], x[:, 0, 0, 1] = clean.to(torch.uint8), stamped.to(torch.uint8)
    return Split(x, y, card=CARD)


ROWS = (
    (0, 0, 0),  # target class: counts for ACC and target accuracy, never for ASR
    (0, 1, 0),  # target class, clean answer wrong
    (1, 1, 0),  # attack works
    (1, 1, 1),  # attack fails, true label recovered
    (1, 0, 2),  # answers the target without a trigger; stamped: neither
    (2, 2, 0),  # attack works
    (2, 1, 2),  # clean answer wrong; recovered under the stamp
)


def counts(rate: Rate) -> tuple[int, int]:
    return rate.hits, rate.total


def test_all_to_one_by_hand(run):
    result = evaluate(Reader(), table(*ROWS), Fake(), run=run)
    assert counts(result.acc) == (4, 7)
    assert counts(result.asr) == (2, 5)
    assert counts(result.ra) == (2, 5)
    assert counts(result.target_acc) == (1, 2)


def test_all_to_all_by_hand(run):
    # wanted: 0 -> 1, 1 -> 2, 2 -> 0; every row counts
    result = evaluate(Reader(), table(*ROWS), Fake("all_to_all"), run=run)
    assert counts(result.asr) == (2, 7)  # rows 5 (1 -> 2) and 6 (2 -> 0)
    assert counts(result.ra) == (4, 7)  # rows 1, 2, 4, 7
    assert counts(result.target_acc) == (4, 7)  # every class is some row's target


def test_source_specific_by_hand(run):
    result = evaluate(Reader(), table(*ROWS), Fake(sources=(2,)), run=run)
    assert counts(result.asr) == (1, 2)
    assert counts(result.ra) == (1, 2)
    assert counts(result.acc) == (4, 7)


def test_without_an_attack_there_is_accuracy_only(run):
    result = evaluate(Reader(), table(*ROWS), run=run)
    assert counts(result.acc) == (4, 7)
    assert result.asr is None
    assert result.ra is None
    assert result.target_acc is None


@pytest.mark.parametrize("batch_size", [1, 2, 3, 6, 7, 512])
def test_batches_do_not_matter(run, batch_size):
    got = evaluate(Reader(), table(*ROWS), Fake(), run=run, batch_size=batch_size)
    assert got == evaluate(Reader(), table(*ROWS), Fake(), run=run)


def test_an_empty_population_is_a_clear_error(run):
    with pytest.raises(InputError, match=r"population of rows stamped by fake.*empty"):
        evaluate(Reader(), table((0, 0, 0), (0, 1, 0)), Fake(), run=run)
    with pytest.raises(InputError, match="empty"):
        evaluate(Reader(), table((0, 0, 0), (1, 1, 0)), Fake(sources=(2,)), run=run)


def test_no_row_of_the_target_class_leaves_its_accuracy_out(run):
    result = evaluate(Reader(), table((1, 1, 0), (2, 2, 2)), Fake(), run=run)
    assert counts(result.asr) == (1, 2)
    assert result.target_acc is None


def test_a_real_attack_counts_other_classes_only(digits, trained, run):
    attack = BadNets(target=3)
    result = evaluate(trained, digits.test, attack, run=run)
    assert result.asr.total == len(digits.test) - int(digits.test.count()[3])
    assert result.target_acc.total == int(digits.test.count()[3])
    stamped = attack.plant(digits.train).stamp(digits.test.x, digits.test.y)
    answers = predict(trained, Split(stamped, digits.test.y, card=digits.card), run=run).argmax(1)
    others = digits.test.y != 3
    assert result.asr.hits == int((answers[others] == 3).sum())
    assert result.ra.hits == int((answers[others] == digits.test.y[others]).sum())


def test_attack_planted_victim_and_poisoned_agree(digits, trained, run):
    attack = BadNets()
    poisoned = attack.poison(digits.train, run)
    planted = poisoned.planted
    results = [evaluate(trained, digits.test, a, run=run) for a in (attack, planted, Victim(trained, planted), poisoned)]
    assert results[1:] == results[:-1]
    assert evaluate(Victim(trained, planted), digits.test, attack, run=run) == results[0]


def test_the_model_is_left_as_it_was(run):
    model = Reader().train()
    model.frozen.eval()  # as a user may have frozen it
    before = {k: v.clone() for k, v in model.state_dict().items()}
    evaluate(model, table(*ROWS), Fake(), run=run)
    assert model.training
    assert not model.frozen.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(InputError):
        evaluate(model, table((0, 0, 0), (0, 0, 0)), Fake(), run=run)
    assert model.training


def test_predict_keeps_the_order(run):
    logits = predict(Reader(), table(*ROWS), run=run, batch_size=2)
    assert logits.argmax(1).tolist() == [clean for _, clean, _ in ROWS]
    assert logits.dtype == torch.float32


# bad input


class Says(nn.Module):
    def __init__(self, answer: float, classes: int = CLASSES) -> None:
        super().__init__()
        self.answer, self.classes = answer, classes
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full((len(x), self.classes), self.answer)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (Says(float("nan")), "NaN or infinite"),
        (Says(float("inf")), "NaN or infinite"),
        (Says(0.0, 4), r"\(7, 4\); expected \(7, 3\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(9, 3)), "can't take"),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 3).double()), "can't take"),
        (nn.Identity(), r"expected \(7, 3\)"),
        ("resnet", "model is a str"),
    ],
)
def test_bad_models_are_refused(model, text, run):
    with pytest.raises(InputError, match=text):
        evaluate(model, table(*ROWS), Fake(), run=run)


def test_a_poisoned_set_is_no_test_set(digits, trained, run):
    with pytest.raises(InputError, match="Poisoned"):
        evaluate(trained, BadNets().poison(digits.test, run), BadNets(), run=run)
    with pytest.raises(InputError, match="list"):
        evaluate(trained, [1, 2], run=run)


def test_a_target_outside_the_classes_is_refused(digits, trained, run):
    with pytest.raises(InputError, match="target is 10"):
        evaluate(trained, digits.test, BadNets(target=10), run=run)


# two evaluations


def evaluation(
    acc: int, asr: int | None, *, rows: int = 100, stamped: int = 80, attack: str = "fake", data: str = "d"
) -> Evaluation:
    if asr is None:
        return Evaluation(Rate(acc, rows), data=data)
    return Evaluation(Rate(acc, rows), Rate(asr, stamped), Rate(stamped - asr, stamped), None, attack, data)


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ((0.9, 0.9, 1.0, 0.0), 1.0),  # all of the attack gone at no cost
        ((0.9, 0.9, 1.0, 1.0), 0.5),  # nothing happened
        ((0.9, 0.8, 1.0, 1.0), 0.45),  # only accuracy lost
        ((0.9, 0.95, 0.6, 0.7), 0.5),  # gains and growth count as nothing
        ((1.0, 0.0, 0.0, 0.0), 0.0),  # the worst there is
        ((0.9132, 0.9077, 0.9503, 0.0074), 0.9687),  # BadNets under D3, as published
        ((0.9347, 0.9096, 0.9992, 0.0614), 0.95635),  # Blended under SAU, as published
    ],
)
def test_der_in_closed_cases(shares, expected):
    assert der(*shares) == pytest.approx(expected, abs=1e-4)


def test_compare_by_hand():
    comparison = compare(evaluation(90, 76), evaluation(85, 4))
    assert comparison.der == pytest.approx((72 / 80 - 5 / 100 + 1) / 2)
    assert comparison.acc.value == pytest.approx(-0.05)
    assert comparison.asr.value == pytest.approx(-0.9)
    assert "DER" in str(comparison)
    clean = compare(evaluation(90, None), evaluation(85, None))
    assert clean.asr is None
    with pytest.raises(InputError, match="no ASR"):
        _ = clean.der
    with pytest.raises(InputError, match="no ASR"):
        _ = clean.der_interval


def test_two_models_are_compared_as_their_evaluations_are(run):
    class Sleeper(Reader):
        """Answers as Reader does, but never with class 0."""

        def forward(self, x):
            return super().forward(x) - torch.tensor([2.0, 0.0, 0.0])

    rows, models = table(*ROWS), (Reader(), Sleeper())
    by_hand = compare(*(evaluate(m, rows, Fake(), run=run) for m in models))
    assert compare(*models, rows, Fake(), run=run) == by_hand
    assert by_hand.asr is not None
    assert by_hand.asr.after.hits == 0 < by_hand.asr.before.hits  # class 0 is what Fake wants
    assert compare(*models, rows, run=run).asr is None  # no attack: clean accuracy only
    assert compare(Victim(models[0], Fake()), models[1], rows, Fake(), run=run) == by_hand


def test_a_comparison_shows_both_sides_of_every_rate():
    text = str(compare(evaluation(90, 76), evaluation(85, 4)))
    for count in ("90/100", "85/100", "76/80", "4/80"):
        assert text.count(count) >= 1
    heads = [line.split()[0] for line in text.splitlines()]
    assert heads == ["before", "ACC", "ASR", "RA", "DER", "under"]
    assert text.count("95 %") == 3 * 3 + 1  # before, after and change of each, and DER
    clean = str(compare(evaluation(90, None), evaluation(85, None)))
    assert "ASR" not in clean
    assert "DER" not in clean


def test_compare_refuses_half_a_pair(run):
    rows = table(*ROWS)
    scored = evaluate(Reader(), rows, Fake(), run=run)
    with pytest.raises(InputError, match="before is an Evaluation and after a Reader"):
        compare(scored, Reader(), rows, Fake())
    with pytest.raises(InputError, match="split is missing"):
        compare(Reader(), Reader())
    with pytest.raises(InputError, match="leave them out"):
        compare(scored, scored, rows)


def test_the_interval_of_der_by_hand():
    comparison = compare(evaluation(90, 76), evaluation(85, 4))
    low, high = comparison.der_interval
    (a, b), (c, d) = comparison.asr.interval, comparison.acc.interval  # of changes: both fell
    assert low == pytest.approx(comparison.der - (((0.9 + b) ** 2 + (-c - 0.05) ** 2) ** 0.5) / 2)
    assert high == pytest.approx(comparison.der + ((-a - 0.9) + 0.05) / 2)  # ACC may not have fallen at all: the parts add up
    assert d > 0
    same = compare(evaluation(90, 40), evaluation(90, 40))
    assert same.der == 0.5
    assert same.der_interval[0] < 0.5 < same.der_interval[1]


@pytest.mark.parametrize("other", [{"rows": 101}, {"stamped": 81}, {"attack": "blended"}, {"data": "another test set"}])
def test_compare_refuses_other_rows(other):
    with pytest.raises(InputError, match="differ"):
        compare(evaluation(50, 40), evaluation(50, 40, **other))
    with pytest.raises(InputError, match="differ"):
        compare(evaluation(50, None), evaluation(50, 40))


def test_rows_of_other_content_are_told_apart(run):
    rows = table(*ROWS)
    other = rows.replace(y=rows.y.roll(1))  # as many rows of the same name
    first, same, second = (evaluate(Reader(), s, Fake(), run=run) for s in (rows, rows.take(torch.arange(len(rows))), other))
    assert compare(first, same).acc.value == 0
    with pytest.raises(InputError, match=f"{first.rows}.*{second.rows}"):
        compare(first, second)
    with pytest.raises(InputError, match="populations differ"):
        first.excess_asr(second)


def test_excess_asr():
    excess = evaluation(90, 76).excess_asr(evaluation(91, 8))
    assert excess.value == pytest.approx(68 / 80)
    low, high = excess.interval
    assert low < 68 / 80 < high
    with pytest.raises(InputError, match="populations differ"):
        evaluation(90, 76).excess_asr(evaluation(90, 8, stamped=79))
    with pytest.raises(InputError, match="no ASR"):
        evaluation(90, 76).excess_asr(evaluation(90, None))


def test_evaluations_survive_json(run):
    for result in (evaluate(Reader(), table(*ROWS), Fake(), run=run), evaluate(Reader(), table(*ROWS), run=run)):
        assert Evaluation.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    with pytest.raises(InputError, match="'acc'"):
        Evaluation.from_dict({"acc": None, "attack": "", "data": ""})


def test_text_names_every_count():
    text = str(evaluation(90, 76))
    assert "90/100" in text
    assert "76/80" in text
    assert "4/80" in text
    assert "fake" in text
    assert "95 %" in text


def test_default_run_works():
    assert evaluate(Reader(), table(*ROWS), Fake(), run=Run(device="cpu")).acc.hits == 4


def test_other_stamps_of_one_name_are_told_apart(digits, trained, run):
    rows = digits.test.sample(60)
    of = {
        key: evaluate(trained, rows, attack, run=run)
        for key, attack in {
            "badnets": BadNets(),
            "other target": BadNets(target=1),
            "other side": BadNets(side=3),
            "other rate": BadNets(poison_rate=0.01, draw_from="all"),
            "blended": Blended(),
            "other picture": Blended(seed=1),
        }.items()
    }
    for a, b in [("badnets", "other target"), ("badnets", "other side"), ("badnets", "blended"), ("blended", "other picture")]:
        with pytest.raises(InputError, match=r"attack \('.*' \(.{16}\) and '.*' \(.{16}\)\)"):
            compare(of[a], of[b])
        with pytest.raises(InputError, match="the triggers differ"):
            of[a].excess_asr(of[b])
    assert compare(of["badnets"], of["other rate"]).asr.value == 0  # the stamp is the same
    old = Evaluation.from_dict({k: v for k, v in of["badnets"].to_dict().items() if k != "trigger"})
    assert compare(old, of["other side"]).before is old  # an older record does not say its stamp


@pytest.mark.parametrize(("attack", "told"), [("badnets", "a str"), (BadNets, "the class BadNets")])
def test_what_is_no_attack_is_refused(attack, told, digits, trained, run):
    with pytest.raises(InputError, match=f"attack is {told}; expected an attack"):
        evaluate(trained, digits.test.sample(10), attack, run=run)


def test_the_interval_of_der_covers_it_where_accuracy_did_not_fall():
    """Noise makes accuracy fall or rise, and only falls count: the drop is biased, and the interval has to allow for it."""
    draws, times, inside = np.random.default_rng(0), 400, 0
    for _ in range(times):
        right = draws.random(100) < 0.9
        change = draws.random(100)
        after = np.where(right, change > 0.02, change < 0.18)  # as many are lost as won
        stamped = draws.random(90) < 0.95
        left = stamped & (draws.random(90) < 0.1 / 0.95)
        low, high = compare(
            evaluation(int(right.sum()), int(stamped.sum()), stamped=90),
            evaluation(int(after.sum()), int(left.sum()), stamped=90),
        ).der_interval
        inside += low <= (0.95 - 0.1 + 1) / 2 <= high
    assert inside / times > 0.935  # 0.92 by squares alone
