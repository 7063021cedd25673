"""What audits, verdicts, scans, pages and cards say is so: figures without a control, wrong orders, lost classes, rounding."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

import theriac as th
from theriac.auditing import Audit
from theriac.auditing.result import Line
from theriac.cli.repair import _unjudged
from theriac.core.errors import InputError
from theriac.metrics import Comparison, Evaluation, Rate
from theriac.metrics._degenerate import ClassCount
from theriac.metrics.fair import Fairness
from theriac.report.model_cards import _done
from theriac.scanning.calibration import lacking

RUN = th.Run(precision="fp32", device="cpu", quiet=True)


def line(asr: int, *, natural: int | None, benign: int | None = None) -> Line:
    cells = {"audited": Rate(asr, 100)} | ({} if benign is None else {"benign": Rate(benign, 100)})
    without = None if natural is None else Rate(natural, 100)
    return Line(look="as it is", figure="ASR", meaning="", cells=cells, bad=True, natural=without)


def audit(*lines: Line, **more: str) -> Audit:
    return Audit(lines=lines, data="rows", attack="badnets", **more)  # type: ignore[arg-type]


# audits


def test_without_a_control_the_models_own_rate_without_trigger_judges():
    assert not line(40, natural=35).alarm
    assert "without trigger 35.0 %" in line(90, natural=35).alarm
    assert not line(40, natural=0, benign=38).alarm  # a benign model judges where there is one


def test_a_control_that_follows_the_trigger_does_not_quiet_the_audit():
    seen = audit(line(98, natural=2, benign=98))
    assert seen.headline == "The benign model follows the trigger, too (ASR 98.0 %): it is no control."
    assert len(seen.alarms) == 1


def test_a_model_that_answers_one_class_is_the_headline():
    seen = audit(line(100, natural=100), one_class="cat", degenerate=("audited: The model answers 'cat' for every row.",))
    assert seen.headline.startswith("The audited model answers 'cat' for nearly every row")
    assert seen.alarms == ()


def test_an_audit_of_a_benign_model_alone_raises_no_alarm(digits: th.Data):
    """Of a weak model that was never poisoned, a trigger that changes nothing has the success of its errors."""
    torch.manual_seed(0)
    x = torch.randn(600, 3)
    y = (x[:, 0] + torch.randn(600) > 0).long()
    rows = th.Data(th.Split(x[:300], y[:300]), th.Split(x[300:], y[300:]))
    model = th.train("mlp", rows.train, recipe="adam_5", run=RUN)
    attack = th.attacks.TabularValue(target=1, columns=("f2",), values=(0.001,))
    seen = th.audit(model, rows.test, attack.poison(rows.train, RUN), run=RUN)
    assert seen.get("as it is", "ASR").cells["audited"].value > 0.2
    assert seen.alarms == ()


def test_few_training_rows_leave_one_look_out_and_lose_no_other(digits: th.Data, trained: nn.Module):
    few = th.Data(digits.train.take(torch.arange(3)), digits.test.take(torch.arange(60)))
    options = th.auditing.Options(tune_steps=1, distill_steps=1, search_steps=1, queries=1, retune_steps=1)
    seen = th.audit(trained, few, th.attacks.BadNets().poison(digits.train, RUN), run=RUN, options=options)
    assert any(text.startswith("re-tuning: of 3 training rows") for text in seen.unseen)
    assert seen.get("re-activated", "ASR")


@pytest.mark.parametrize(
    ("models", "name"), [({"model": None}, "model"), ({"victim": "x"}, "victim"), ({"benign": 3}, "benign")]
)
def test_an_audit_names_the_argument_that_is_no_model(
    digits: th.Data, trained: nn.Module, models: dict[str, object], name: str
):
    with pytest.raises(InputError, match=f"^{name} is a "):
        th.audit(**{"model": trained, "data": digits.test, **models})  # type: ignore[arg-type]


# degenerate results


@dataclasses.dataclass
class Scores:
    classes: tuple[ClassCount, ...]
    acc: Rate
    asr: Rate | None = None
    ra: Rate | None = None
    target_acc: Rate | None = None
    targets: tuple[str, ...] = ()


def test_worse_than_guessing_is_not_called_guessing():
    turned = (ClassCount("a", 0, 50, 50), ClassCount("b", 0, 50, 50))
    (text,) = th.metrics.degenerate(Scores(turned, Rate(0, 100)))  # type: ignore[arg-type]
    assert text == "ACC 0.0 % is below guessing (50.0 %): are classes in another order?"
    guessed = (ClassCount("a", 25, 50, 50), ClassCount("b", 25, 50, 50))
    (text,) = th.metrics.degenerate(Scores(guessed, Rate(50, 100)))  # type: ignore[arg-type]
    assert "can't be told from guessing" in text


def test_names_of_classes_stay_apart():
    gone = (ClassCount("a b", 0, 50, 0), ClassCount("a_b", 48, 50, 50), ClassCount("c", 48, 50, 100))
    assert th.metrics.degenerate(Scores(gone, Rate(96, 150))) == ["Class 'a b': 0 of 50 rows right."]  # type: ignore[arg-type]


def test_a_target_class_without_test_rows_is_not_called_never_answered():
    rest = tuple(ClassCount(name, 48, 50, 50) for name in "ab")
    scores = Scores((*rest, ClassCount("c", 0, 0, 0)), Rate(96, 100), Rate(2, 100), Rate(95, 100), None, ("c",))
    assert [text for text in th.metrics.degenerate(scores) if "never answered" in text] == []  # type: ignore[arg-type]


def test_a_class_that_falls_in_all_groups_alike_is_in_the_verdict():
    names = (("f", "m"), ("no", "yes"))
    before = Fairness((((450, 50), (250, 250)), ((450, 50), (150, 350))), *names)
    after = Fairness((((290, 210), (70, 430)), ((290, 210), (10, 490))), *names)
    verdict = th.metrics.judge(before, after)
    assert (verdict.kind, verdict.fell) == ("worse", ("no",))
    assert verdict.headline == "Class 'no' is recognized less: 90.0 % to 58.0 %; no gap changed beyond noise."
    assert th.metrics.judge(before, before).fell == ()


def test_positive_takes_a_truth_value_where_classes_are_such():
    truth, said = [True, False, True, False], [True, True, False, False]
    by_name = th.fairness(truth, said, sensitive_features=["a", "a", "b", "b"], positive="True")
    assert th.fairness(truth, said, sensitive_features=["a", "a", "b", "b"], positive=True).positive == by_name.positive
    with pytest.raises(InputError, match="positive is"):
        th.fairness([1, 0, 1, 0], said, sensitive_features=["a", "a", "b", "b"], positive=True)


# scans and cards


def test_clean_pictures_without_a_class_are_no_ground_for_a_probability(digits: th.Data):
    assert lacking(digits.test) == ""
    assert lacking(digits.test.where(digits.test.y != 3)).startswith("the clean pictures hold fewer than 5 of class '3', and")
    assert "of class '1' and of 8 more classes" in lacking(digits.test.where(digits.test.y == 0))


def test_a_card_says_that_exported_numbers_are_rounded(digits: th.Data, trained: nn.Module, tmp_path: Path):
    th.save(trained, tmp_path / "run", kind="training")
    narrow = {k: v.to(torch.float8_e5m2) if v.is_floating_point() else v for k, v in trained.net.state_dict().items()}  # type: ignore[union-attr, operator]
    torch.save(narrow, tmp_path / "narrow.pt")
    with pytest.warns(UserWarning, match=r"narrow\.pt holds float8_e5m2 numbers, so the new weights are rounded"):
        th.export(tmp_path / "run", tmp_path / "out", like=tmp_path / "narrow.pt", to="torch")
    assert "rounded to float8_e5m2" in (tmp_path / "out" / "MODEL_CARD.md").read_text()
    torch.save(trained.net.state_dict(), tmp_path / "same.pt")  # type: ignore[union-attr, operator]
    th.export(tmp_path / "run", tmp_path / "again", like=tmp_path / "same.pt", to="torch")
    assert "rounded" not in (tmp_path / "again" / "MODEL_CARD.md").read_text()


# repairs and triggers


def test_a_fall_over_all_classes_is_told_where_none_falls_beyond_chance_alone(digits: th.Data, trained: nn.Module):
    """Of two clean rows a class, no class can fall beyond chance, and most of all rows are wrong afterward."""
    few = digits.train.sample(20, seed=1, stratified=True)
    run = th.Run(precision="fp32", device="cpu", quiet=True)
    with pytest.warns(UserWarning, match=r"after CLP, accuracy on the clean rows is \d+\.\d %; it was "):
        th.repairs.CLP(u=0.5).repair(trained, few, run)
    assert run.outcome is not None
    assert run.outcome.figures["acc_after"] < run.outcome.figures["acc_before"] - 0.1
    assert run.outcome.figures["fell"] == {}


class Corner(nn.Module):
    """Answers 3 where the last pixel is white, else 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(3 * (x[:, 0, -1, -1] == 1).long(), 10).float()


def test_pairs_are_copies_of_what_was_handed_in(digits: th.Data):
    clean = digits.test.x[:40].numpy().copy()
    stamped = clean.copy()
    stamped[:, :, -2:, -2:] = 255
    planted = th.trigger_pairs(clean, stamped, target=3)
    rows = digits.test.take(torch.arange(40))
    before = th.evaluate(Corner(), rows, planted, run=RUN).asr
    stamped[:] = clean
    assert before == th.evaluate(Corner(), rows, planted, run=RUN).asr == Rate(before.hits, before.hits, before.of)  # type: ignore[union-attr]


def test_a_trigger_that_fails_is_refused_in_a_sentence(digits: th.Data, trained: nn.Module):
    def broken(x: torch.Tensor) -> torch.Tensor:
        raise KeyError("mask")

    with pytest.raises(InputError, match="trigger can't take stored rows"):
        th.repairs.AGE().with_trigger(broken, 3).repair(trained, digits.train.sample(100), RUN)


@pytest.mark.parametrize("positions", [[2**70], ["a"], [[1], [2, 3]], torch.tensor([1 + 2j])])
def test_positions_that_are_none_are_refused(digits: th.Data, positions: object):
    with pytest.raises(InputError, match=r"positions (are|is)"):
        digits.test.take(positions)  # type: ignore[arg-type]


def test_a_repair_after_which_the_trigger_works_as_before_is_not_called_one() -> None:
    """CLP changed one channel and no prediction; the page said "left in place", the terminal and the card "repaired"."""

    def scores(asr: int) -> Evaluation:
        return Evaluation(Rate(300, 359), Rate(asr, 323), Rate(323 - asr, 323))

    assert Comparison(scores(320), scores(319)).in_place
    assert not Comparison(scores(320), scores(100)).in_place
    assert not Comparison(scores(3), scores(3)).in_place  # there was nothing to reduce
    assert not Comparison(Evaluation(Rate(1, 2)), Evaluation(Rate(1, 2))).in_place
    record = {
        "kind": "repair",
        "method": {"method": "clp"},
        "outcome": {"status": "repaired"},
        "before": scores(320).to_dict(),
        "evaluation": scores(320).to_dict(),
    }
    assert "The model was changed by **clp**; the backdoor is left in place." in "\n".join(_done(record))
    assert "was repaired by **clp**" in "\n".join(_done(record | {"evaluation": scores(10).to_dict()}))
    assert "was repaired by **clp**" in "\n".join(_done({**record, "before": {"acc": 3}}))


@pytest.mark.parametrize(
    ("kind", "rows", "classes", "method"),
    [("image", 30, 10, "antidote:matched"), ("image", 200, 10, "antidote"), ("table", 30, 2, "antidote:table")],
)
def test_what_is_suggested_after_an_abstention_suits_the_rows(kind: str, rows: int, classes: int, method: str) -> None:
    assert _unjudged(kind, rows, classes) == method
