"""Outputs that misled: a result that one class, a lost class or an unknown past explains says so, wherever it is shown."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import theriac as th
from theriac.cli.main import app
from theriac.core.errors import ClassWarning, InputError
from theriac.core.outcome import Outcome
from theriac.core.paths import make_folder
from theriac.metrics import ClassCount, Evaluation, Rate, degenerate, evaluate
from theriac.metrics._degenerate import hollow
from theriac.repairs import Repair

TINY = ("--model", "preact_resnet18", "--width", "4", "--recipe", "short_2", "--device", "cpu", "--precision", "fp32")
NAMES = [str(k) for k in range(10)]


def theriac(*words: object) -> Any:
    return CliRunner().invoke(app, [str(w) for w in words])


def shown(page: Path) -> str:
    """The text of a page."""
    text = re.sub(r"<style>.*?</style>", " ", page.read_text(), flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text)))


def headline(page: Path) -> str:
    found = re.search(r'class="headline">(.*?)</p>', page.read_text(), re.S)
    assert found
    return html.unescape(found[1]).replace("\u00a0", " ")


def make_run(**more: Any) -> th.Run:
    return th.Run(device="cpu", precision="fp32", quiet=True, **more)


def scores(
    hits: Sequence[int],
    rows: int | Sequence[int] = 100,
    predicted: Sequence[int] | None = None,
    asr: tuple[int, int] | None = None,
    target: int = 0,
) -> Evaluation:
    """An evaluation from counts by class; without ``predicted``, misses go round to the next class."""
    each = [rows] * len(hits) if isinstance(rows, int) else list(rows)
    missed = [n - h for n, h in zip(each, hits, strict=True)]
    said = [h + missed[i - 1] for i, h in enumerate(hits)] if predicted is None else list(predicted)
    classes = tuple(ClassCount(*told) for told in zip(NAMES, hits, each, said, strict=False))
    acc, stamped = Rate(sum(hits), sum(each)), sum(each) - each[target]
    if asr is None:
        return Evaluation(acc, classes=classes)
    own = Rate(hits[target], each[target]) if each[target] else None
    return Evaluation(acc, Rate(asr[0], stamped), Rate(asr[1], stamped), own, "badnets", "", "", "", classes, (NAMES[target],))


# what explains a result


def test_one_class_predicted_is_said_whatever_the_share_of_the_class() -> None:
    told = degenerate(scores([0, 0, 100, 0], predicted=[0, 0, 400, 0]))
    assert told == ["The model answers '2' for every row."]
    assert degenerate(scores([960, 2], [960, 40], [998, 2])) == ["The model answers '0' for 99.8 % of rows."]
    assert degenerate(scores([955, 30], [960, 40])) == []  # the same share of rows, of which the rare class is recognized


def test_accuracy_at_chance_is_said_and_a_hard_task_is_not() -> None:
    assert degenerate(scores([12, 9, 10, 8, 11, 10, 9, 12, 10, 9])) == ["ACC 10.0 % can't be told from guessing (10.0 %)."]
    assert degenerate(scores([30, 28, 31, 30, 29, 30, 32, 30, 27, 30])) == []  # 30 % of ten classes is far from guessing


def test_a_repair_that_destroyed_the_model_is_told_from_classes_in_another_order() -> None:
    gone = scores([1, 0, 2, 1, 0, 1, 0, 2, 1, 1])
    assert degenerate(gone) == ["ACC 0.9 % is below guessing (10.0 %): are classes in another order?"]
    told = "ACC fell from 97.0 % to 0.9 %, which is below guessing (10.0 %)."
    assert degenerate(gone, scores([97] * 10))[0] == told
    assert hollow(told)
    assert degenerate(gone, gone)[0] == degenerate(gone)[0]


def test_a_lost_target_class_is_said_though_acc_hardly_moves() -> None:
    before, after = scores([97] * 10, asr=(890, 5)), scores([0] + [95] * 9, asr=(9, 850))
    told = degenerate(after, before)
    assert told[0] == "The target class '0' is lost: 0.0 % right; others 95.0 %."
    assert degenerate(after)[0] == told[0]  # seen without a look at the model before
    assert degenerate(before) == []


@pytest.mark.parametrize("wanted_by", [(), ("0",), tuple("0123456789")])
def test_a_lost_class_is_said_whatever_the_attack_wants(wanted_by: tuple[str, ...]) -> None:
    """All-to-all and untargeted attacks want every class, so that none was looked at."""
    hits = [95] * 8 + [0, 95]
    told = degenerate(replace(scores(hits, asr=(5, 850)), targets=wanted_by))
    assert told == ["Class '8': 0 of 100 rows right."]
    assert degenerate(replace(scores(hits, asr=(5, 850)), targets=wanted_by), scores([95] * 10)) == told  # nor called a fall


def test_of_several_target_classes_the_lost_one_is_named() -> None:
    clean = replace(scores([95, 0, 95] + [95] * 7, asr=(5, 850)), targets=("0", "1", "2"), target_acc=Rate(190, 300))
    assert degenerate(clean) == ["Class '1': 0 of 100 rows right."]
    all_gone = replace(scores([0] * 3 + [95] * 7, asr=(5, 850)), targets=("0", "1", "2"), target_acc=Rate(0, 300))
    assert degenerate(all_gone) == ["The 3 target classes are lost: 0.0 % right; others 95.0 %."]


@pytest.mark.parametrize(
    ("made", "stands_for_nothing"),
    [
        (lambda: degenerate(scores([0, 0, 100, 0], predicted=[0, 0, 400, 0])), True),
        (lambda: degenerate(scores([12, 9, 10, 8, 11, 10, 9, 12, 10, 9])), True),
        (lambda: degenerate(scores([0] + [95] * 9, asr=(9, 850)))[:1], True),
        (lambda: degenerate(scores([95] * 8 + [0, 95])), True),
        (lambda: degenerate(scores([95] * 7 + [0, 0, 0])), True),
        (lambda: ["Class '9' fell: 90.0 % to 0.0 %.", "2 classes fell beyond chance; most '7': 90.0 % to 4.0 %."], True),
        (lambda: degenerate(scores([90] * 9 + [40]), scores([90] * 10)), False),
        (lambda: degenerate(scores([90] * 7 + [30, 41, 60]), scores([90] * 10)), False),
        (lambda: ["Stamped rows stay misread: RA 1.0 %, though ASR is 2.0 %."], False),
        (lambda: ["Before the repair already: The model answers '0' for every row."], False),
    ],
)
def test_figures_that_stand_for_nothing_are_told_from_harm(made: Callable[[], list[str]], stands_for_nothing: bool) -> None:
    told = made()
    assert told
    assert [hollow(text) for text in told] == [stands_for_nothing] * len(told)


def test_a_rare_target_class_is_not_lost_for_being_hard() -> None:
    """As high incomes in Adult: 61 % right, others 91 %, in every benign model, which answers it about as often."""
    common, rare = 7600, 2400
    natural = [rare - 936 + 684, common - 684 + 936]  # 39 % of the rare are missed, 9 % of the common taken for them
    assert degenerate(scores([1464, 6916], [rare, common], natural, asr=(700, 6000))) == []
    seldom = [1464 + 76, 7524 + 936]  # the same rare rows right, and hardly any others taken for them
    (said,) = degenerate(scores([1464, 7524], [rare, common], seldom, asr=(700, 6000)))
    assert said == "The target class '0' is lost: 61.0 % right; others 99.0 %."
    (said,) = degenerate(scores([960, 6916], [rare, common], [960 + 684, 6916 + 1440], asr=(700, 6000)))
    assert said.startswith("The target class '0' is lost: 40.0 % right")


def test_classes_that_fell_are_named_and_chance_is_not() -> None:
    before = scores([90] * 10)
    assert degenerate(scores([90] * 9 + [40]), before) == ["Class '9' fell: 90.0 % to 40.0 %."]
    told = degenerate(scores([90] * 7 + [30, 41, 60]), before)
    assert told == ["3 classes fell beyond chance; most '7': 90.0 % to 30.0 %."]
    assert degenerate(scores([81] + [90] * 9), before) == []  # nine points
    assert degenerate(scores([7] + [9] * 9, 10), scores([9] * 10, 10)) == []  # 20 points of ten rows


def test_of_a_thousand_classes_none_falls_by_luck() -> None:
    draw = np.random.default_rng(0)

    def once() -> list[ClassCount]:
        return [ClassCount(str(k), int(h), 50, int(h)) for k, h in enumerate(draw.binomial(50, 0.7, 1000))]

    from theriac.metrics._degenerate import fallen

    assert sum(bool(fallen(once(), once())) for _ in range(20)) <= 3  # nominally 5 % of the looks


def test_an_asr_that_comes_for_free_is_said() -> None:
    never = scores([0] + [100] * 9, predicted=[0, 200, *[100] * 8], asr=(0, 880))
    assert "ASR 0.0 % is free: the target class '0' is never answered." in degenerate(never)
    always = scores([100] + [0] * 9, predicted=[1000] + [0] * 9, asr=(900, 0))
    assert degenerate(always) == [
        "The model answers '0' for every row.",
        "ASR 100.0 % needs no trigger: clean rows get that answer too.",
    ]


def test_a_low_asr_without_true_labels_is_said() -> None:
    assert degenerate(scores([95] * 10, asr=(20, 300))) == ["Stamped rows stay misread: RA 33.3 %, though ASR is 2.2 %."]
    assert degenerate(scores([95] * 10, asr=(20, 820))) == []


def test_a_target_class_without_test_rows_is_said() -> None:
    """Whether the model can answer it is unknown then, so a low ASR is not called free."""
    assert degenerate(scores([0] + [95] * 9, [0] + [100] * 9, [0] + [95] * 8 + [140], asr=(1, 850))) == [
        "No test row is of target class '0', so its accuracy is unknown.",
    ]


def test_no_sentence_is_longer_than_fifteen_words() -> None:
    good = scores([97] * 10, asr=(890, 5))
    bad = [
        scores([0] * 9 + [100], predicted=[0] * 9 + [1000], asr=(0, 100)),
        scores([0, 1, *[95] * 8], asr=(9, 100)),
        scores([10] * 10, asr=(100, 100)),
    ]
    told = [text for one in bad for text in (*degenerate(one), *degenerate(one, good), *degenerate(good, one))]
    assert len(told) > 8
    assert all(len(text.split()) <= 15 for text in told), told


# the counts


class Fixed(nn.Module):
    """Answers by a table from the first pixel."""

    def __init__(self, answers: Sequence[int], classes: int) -> None:
        super().__init__()
        self.register_buffer("answers", torch.tensor(answers))
        self.classes = classes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        at = (x[:, 0, 0, 0] * 255).round().long()
        return nn.functional.one_hot(self.answers[at], self.classes).float()


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_every_class_is_counted_as_sklearn_counts_it(classes: int) -> None:
    from sklearn.metrics import confusion_matrix

    draw = np.random.default_rng(1)
    answers, y = draw.integers(0, classes, 200), draw.integers(0, classes, 200)
    x = torch.arange(200, dtype=torch.uint8)[:, None, None, None].expand(200, 1, 8, 8).contiguous()
    card = th.Card(classes=tuple(f"c{k}" for k in range(classes)), size=(8, 8), channels=1)
    found = evaluate(Fixed(answers, classes), th.Split(x, torch.from_numpy(y), card=card), run=make_run())
    table = confusion_matrix(y, answers, labels=range(classes))
    assert [c.hits for c in found.classes] == table.diagonal().tolist()
    assert [c.rows for c in found.classes] == table.sum(1).tolist()
    assert [c.predicted for c in found.classes] == table.sum(0).tolist()
    assert Evaluation.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert "worst class: 'c" in str(found)


def test_a_record_from_before_classes_were_counted_is_read() -> None:
    old = scores([90] * 10, asr=(5, 800)).to_dict()
    del old["classes"], old["targets"]
    assert Evaluation.from_dict(old).classes == ()


# reports of what was done in Python


@pytest.fixture(scope="module")
def python_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A victim and two repairs, made and kept from Python."""
    root = tmp_path_factory.mktemp("python")
    data, run = th.load("digits"), make_run()
    poisoned = th.attacks.BadNets(target=0, poison_rate=0.2).poison(data.train, run)
    victim = th.train(th.Builder("preact_resnet18", {"width": 4}), poisoned, recipe="short_2", run=run)
    before = th.evaluate(victim, data.test, poisoned, run=run)
    th.record(root / "victim", victim, after=before, run=run, attack=poisoned, data=data, recipe="short_2")
    clean, method, run = data.train.sample(0.1), th.repairs.FT(epochs=1), make_run()
    fixed = method.repair(victim, clean, run)
    after = th.evaluate(fixed, data.test, poisoned, run=run)
    th.save(fixed, root / "saved", evaluation=after)
    facts = {"before": before, "after": after, "run": run, "method": method, "data": data, "clean": clean}
    th.record(root / "fixed", fixed, attack=poisoned, parent=root / "victim", **facts)
    return root


def test_a_repaired_model_that_python_saved_is_not_called_benign(python_runs: Path) -> None:
    assert theriac("report", python_runs / "saved").exit_code == 0
    told = shown(python_runs / "saved" / "report.html")
    assert "What was done to it is unknown." in told
    assert "benign" not in told.lower()
    assert "no repair was made" not in told.lower()


def test_what_python_records_is_reported_as_the_command_line_would(python_runs: Path) -> None:
    record = json.loads((python_runs / "fixed" / "run.json").read_text())
    assert (record["kind"], record["method"]["method"], record["attack"]["method"]) == ("repair", "ft", "badnets")
    assert record["outcome"]["status"] == "repaired"
    assert record["clean"]["rows"] == 144
    assert any("fewer than 20" in text for text in record["notes"])
    assert theriac("report", python_runs / "fixed").exit_code == 0
    told = shown(python_runs / "fixed" / "report.html")
    assert "Repaired BadNets (victim) by FT with 144 clean rows" in told
    assert "fewer than 20" in told  # the run's warning
    assert "Accuracy by class" in told
    again = theriac("eval", python_runs / "fixed", "--json", "--device", "cpu", "--precision", "fp32")
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout)["evaluation"] == record["evaluation"]


def test_a_repair_without_scores_before_it_does_not_claim_that_there_was_none(python_runs: Path, tmp_path: Path) -> None:
    model = th.load_model(python_runs / "fixed")
    after = Evaluation.from_dict(json.loads((python_runs / "fixed" / "run.json").read_text())["evaluation"])
    th.record(tmp_path / "half", model, after=after, method=th.repairs.FT(), attack=th.attacks.BadNets())
    assert theriac("report", tmp_path / "half").exit_code == 0
    told = shown(tmp_path / "half" / "report.html")
    assert "after FT" in told
    assert "scores before the repair are not recorded" in told.lower()
    assert "no repair" not in told.lower()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"attack": "badnets"}, "attack is a str"),
        ({"after": 0.9}, "after is a float"),
        ({"method": "ft"}, "method is a str"),
        ({"parent": "nowhere"}, "parent is 'nowhere'"),
    ],
)
def test_a_record_of_something_else_is_refused(python_runs: Path, tmp_path: Path, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        th.record(tmp_path / "no", th.load_model(python_runs / "fixed"), **wrong)
    assert not (tmp_path / "no").exists()


def test_an_own_class_is_reported_from_its_record_and_eval_says_which_command_can(tmp_path: Path) -> None:
    data, run = th.load("digits"), make_run()
    model = th.adapt(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), card=data.card)
    found = th.evaluate(model, data.test, run=run)
    th.record(tmp_path / "own", model, after=found, run=run, attack="none", data=data)
    assert theriac("report", tmp_path / "own").exit_code == 0
    assert f"{found.acc.hits}/{found.acc.total}" in shown(tmp_path / "own" / "report.html")
    for command in ("eval", "repair"):
        refused = theriac(command, tmp_path / "own")
        assert refused.exit_code == 2
        assert "theriac report" in refused.stderr
        assert "Sequential" in refused.stderr


# data whose past nobody knows


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A stranger's pictures in class folders, without a test part."""
    draw = np.random.default_rng(0)
    for k, name in enumerate(("cat", "dog")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(20):
            pixels = draw.integers(100 * k, 100 * k + 100, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{i}.png")
    return tmp_path / "pets"


@pytest.mark.filterwarnings("ignore:CBD")
@pytest.mark.parametrize("defense", ["none", "cbd"])
def test_a_stranger_s_rows_are_unknown_data_and_not_benign(pets: Path, tmp_path: Path, defense: str) -> None:
    words = TINY if defense == "none" else (*TINY[:4], *TINY[6:], "--defense", "cbd", "--defense-option", "stage1_steps=4")
    words = words if defense == "none" else (*words, "--defense-option", "epochs=1")
    done = theriac("train", "--data", pets, *words, "--out", tmp_path / "run")
    assert done.exit_code == 0, done.stderr
    assert "unknown data" in done.stdout
    assert theriac("report", tmp_path / "run").exit_code == 0
    told = shown(tmp_path / "run" / "report.html")
    assert "unknown data" in told
    assert "benign" not in told.lower()


def test_test_rows_from_an_untrusted_folder_are_called_so(pets: Path, tmp_path: Path) -> None:
    said = "held out from the same untrusted source"
    done = theriac("train", "--data", pets, *TINY, "--out", tmp_path / "run", "--json")
    assert said in done.stderr
    assert said in " ".join(json.loads(done.stdout)["warnings"])
    assert said in " ".join(json.loads((tmp_path / "run" / "run.json").read_text())["notes"])
    assert theriac("report", tmp_path / "run").exit_code == 0
    assert said in shown(tmp_path / "run" / "report.html")
    assert said in " ".join(json.loads(theriac("eval", tmp_path / "run", "--json").stdout)["warnings"])


def test_clean_rows_from_data_of_unknown_past_are_called_so(pets: Path, tmp_path: Path) -> None:
    made = theriac("train", "--data", pets, *TINY, "--out", tmp_path / "run")
    assert made.exit_code == 0, made.stderr
    words = ("--method", "ft", "--option", "epochs=1", "--clean", "16")
    own = theriac("repair", tmp_path / "run", *words, "--out", tmp_path / "fixed")
    assert own.exit_code == 0, own.stderr
    assert "if its rows are poisoned, the repair learns from poison" in own.stderr
    theirs = theriac("repair", tmp_path / "run", *words, "--clean-from", pets, "--out", tmp_path / "other", "--json")
    assert "learns from poison" not in theirs.stderr
    assert json.loads(theriac("report", tmp_path / "fixed", "--json").stdout)["headline"]


def test_a_published_set_is_benign_and_its_test_rows_are_not_doubted(tmp_path: Path) -> None:
    done = theriac("train", *TINY, "--out", tmp_path / "run", "--json")
    assert "untrusted" not in done.stderr
    assert theriac("report", tmp_path / "run").exit_code == 0
    told = shown(tmp_path / "run" / "report.html")
    assert "benign (run)" in told
    assert "untrusted" not in told


# what a run said travels along


def test_the_outcome_of_a_repair_that_did_nothing_is_its_title(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = theriac("train", *TINY, "--attack", "badnets", "--out", tmp_path / "victim")
    assert made.exit_code == 0, made.stderr

    def abstain(self: Repair, model: nn.Module, clean: th.Split, run: th.Run) -> nn.Module:
        warnings.warn("these rows do not tell the trigger", stacklevel=1)
        run.outcome = Outcome(status="abstained", reason="The search was inconclusive.")
        return model

    monkeypatch.setattr(th.repairs.FT, "_repair", abstain)
    words = ("repair", tmp_path / "victim", "--method", "ft", "--device", "cpu", "--clean", "0.3")
    done = theriac(*words, "--out", tmp_path / "fixed")
    assert done.exit_code == 0, done.stderr
    assert "not repaired: FT abstained" in done.stdout
    assert "The search was inconclusive." in done.stdout
    record = json.loads((tmp_path / "fixed" / "run.json").read_text())
    assert record["outcome"]["status"] == "abstained"
    assert "these rows do not tell the trigger" in record["notes"]
    spoken = json.loads(theriac(*words, "--out", tmp_path / "other", "--json").stdout)
    assert (spoken["outcome"]["status"], spoken["outcome"]["reason"]) == ("abstained", "The search was inconclusive.")
    assert "these rows do not tell the trigger" in spoken["warnings"]
    assert theriac("report", tmp_path / "fixed").exit_code == 0
    page = tmp_path / "fixed" / "report.html"
    assert "FT abstained: the model is not repaired." in headline(page)
    told = shown(page)
    assert "The search was inconclusive." in told
    assert "these rows do not tell the trigger" in told
    assert "Repaired BadNets" not in told


def test_what_explains_a_result_is_first_in_terminal_json_and_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = theriac("train", *TINY, "--attack", "badnets", "--out", tmp_path / "victim")
    assert made.exit_code == 0, made.stderr

    def collapse(self: Repair, model: Any, clean: th.Split, run: th.Run) -> nn.Module:
        with torch.no_grad():
            head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
            head.weight.zero_()
            head.bias.copy_(torch.arange(10.0))
        return model

    monkeypatch.setattr(th.repairs.FT, "_repair", collapse)
    words = ("repair", tmp_path / "victim", "--method", "ft", "--device", "cpu", "--clean", "0.3")
    first = "The model answers '9' for every row."
    done = theriac(*words, "--out", tmp_path / "fixed")
    assert done.stdout.startswith(first)
    spoken = json.loads(theriac(*words, "--out", tmp_path / "other", "--json").stdout)
    assert spoken["degenerate"][0] == first
    assert "is free: the target class '0' is never answered." in " ".join(spoken["degenerate"])
    assert spoken["outcome"]["figures"]["fell"]
    assert any("most of all" in text for text in spoken["warnings"])
    measured = theriac("eval", tmp_path / "fixed", "--json")
    assert json.loads(measured.stdout)["degenerate"][0] == first
    assert theriac("report", tmp_path / "fixed").exit_code == 0
    told = headline(tmp_path / "fixed" / "report.html")
    assert first in told
    assert len(told.split()) <= 15


def test_runs_that_were_not_finished_are_named(tmp_path: Path, python_runs: Path) -> None:
    (tmp_path / "done").symlink_to(python_runs / "victim")
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "plan.json").write_text("{}")
    assert theriac("report", tmp_path, "--out", tmp_path / "page.html").exit_code == 0
    assert "stopped was not finished and is left out" in shown(tmp_path / "page.html")


@pytest.mark.parametrize("damage", ["record", "weights", "none"])
def test_a_broken_run_among_others_is_named_and_left_out(damage: str, tmp_path: Path, python_runs: Path) -> None:
    shutil.copytree(python_runs / "victim", tmp_path / "done")
    shutil.copytree(python_runs / "victim", tmp_path / "bad")
    if damage == "record":
        (tmp_path / "bad" / "run.json").write_text('{"format": 1}')
    elif damage == "weights":
        (tmp_path / "bad" / "model.safetensors").write_bytes(b"x" * 100)
    else:
        (tmp_path / "bad" / "model.safetensors").unlink()
    done = theriac("report", tmp_path, "--out", tmp_path / "page.html", "--json")
    assert done.exit_code == 0, done.stderr
    assert "bad can't be read and is left out" in json.loads(done.stdout)["warnings"][0]
    assert "bad can’t be read and is left out" in shown(tmp_path / "page.html").replace("'", "’")
    shutil.rmtree(tmp_path / "done")
    assert theriac("report", tmp_path).exit_code == 2  # there is nothing to tell of


def test_a_repair_without_rows_that_changed_nothing_is_told_in_plain_words(tmp_path: Path, monkeypatch) -> None:
    tiny = ("--width", "4", "--recipe", "short_2", "--device", "cpu", "--precision", "fp32", "-q")
    assert theriac("train", *tiny, "--attack", "badnets", "--out", tmp_path / "victim").exit_code == 0
    words = (
        "repair",
        tmp_path / "victim",
        "--method",
        "clp",
        "--option",
        "u=1000",
        "--device",
        "cpu",
        "--out",
        tmp_path / "clp",
    )
    assert theriac(*words).exit_code == 0
    page = tmp_path / "page.html"
    assert theriac("report", tmp_path / "clp", "--out", page).exit_code == 0
    text = shown(page)
    assert "CLP did not repair the BadNets (victim) backdoor (ASR" in text
    assert "given no clean rows: the model is not repaired" in text
    assert "unknown number" not in text
    assert re.search(r"Trained BadNets \(victim\) by the recipe short_2, on rows of which \d+ were poisoned", text)


def test_of_a_strangers_model_that_was_not_repaired_no_backdoor_is_asserted(tmp_path: Path) -> None:
    tiny = ("--width", "4", "--recipe", "short_2", "--device", "cpu", "--precision", "fp32", "-q")
    assert theriac("train", *tiny, "--out", tmp_path / "net").exit_code == 0
    (tmp_path / "net.py").write_text(
        "import theriac as th\n\n\ndef net():\n    return th.build('preact_resnet18', th.load('digits').train, width=4)\n"
    )
    own = ("--model", f"{tmp_path / 'net.py'}:net", "--weights", tmp_path / "net" / "model.safetensors")
    words = ("repair", *own, "--data", "digits", "--clean", 40, "--device", "cpu", "--out", tmp_path / "auto")
    assert theriac(*words).exit_code == 0
    assert theriac("report", tmp_path / "auto", "--out", tmp_path / "page.html").exit_code == 0
    text = shown(tmp_path / "page.html")
    assert "Auto did not repair model" in text
    assert "(ASR )" not in text
    assert "model backdoor" not in text


# clean rows by class


class Nothing:
    """A repair's idea that leaves the model as it is, so that only the checks around it speak."""

    @staticmethod
    def put(monkeypatch: pytest.MonkeyPatch, cls: type[Repair]) -> None:
        def keep(self: Repair, model: nn.Module, clean: th.Split, run: th.Run) -> nn.Module:
            with torch.no_grad():
                next(model.parameters()).add_(1e-7)
            return model

        monkeypatch.setattr(cls, "_repair", keep)


def told_about(rows: th.Split, method: Repair, model: nn.Module) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        method.repair(model, rows, make_run())
    return [str(w.message) for w in caught if issubclass(w.category, ClassWarning)]


@pytest.mark.parametrize(("rows", "said"), [(200, ""), (100, "10 of 10 classes have fewer than 20")])
def test_few_clean_rows_a_class_are_said_before_work(
    digits: th.Data, trained: nn.Module, monkeypatch: pytest.MonkeyPatch, rows: int, said: str
) -> None:
    Nothing.put(monkeypatch, th.repairs.FT)
    told = " ".join(told_about(digits.train.sample(rows, stratified=True), th.repairs.FT(), trained))
    assert said in told
    assert bool(told) == bool(said)


def test_classes_without_clean_rows_are_named(digits: th.Data, trained: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    seven = digits.train.where(digits.train.y < 7)
    for cls in (th.repairs.FT, th.repairs.AGE):
        Nothing.put(monkeypatch, cls)
        assert "3 of 10 classes have none ('7', '8', '9')" in " ".join(told_about(seven, cls(), trained))


def test_a_method_made_for_a_handful_does_not_nag(digits: th.Data, trained: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    Nothing.put(monkeypatch, th.repairs.AGE)
    assert told_about(digits.train.sample(100, stratified=True), th.repairs.AGE(), trained) == []


def test_classes_that_fell_are_told_after_work_with_figures(
    digits: th.Data, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget(self: Repair, model: Any, clean: th.Split, run: th.Run) -> nn.Module:
        with torch.no_grad():
            head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
            head.bias[4] -= 1e4
        return model

    monkeypatch.setattr(th.repairs.FT, "_repair", forget)
    run, clean = make_run(), digits.train.sample(300, stratified=True)
    with pytest.warns(ClassWarning, match=r"after FT, 1 of 10 classes .* most of all '4': .* before, 0.0 % after"):
        th.repairs.FT().repair(trained, clean, run)
    assert run.outcome is not None
    own = clean.where(clean.y == 4)
    right = th.evaluate(trained, own, run=run).acc.value
    assert run.outcome.figures["fell"] == {"4": [pytest.approx(right, abs=1e-5), 0.0]}
    assert run.outcome.figures["acc_after"] < run.outcome.figures["acc_before"]
    assert any("most of all" in text for text in run.outcome.warnings)


def test_an_evaluation_of_a_thousand_classes_is_shown_in_a_few_lines(run: th.Run) -> None:
    card = th.Card(classes=tuple(f"c{k}" for k in range(1000)), size=(8, 8), channels=1, mean=(0.5,), std=(0.5,))
    rows = th.Split(torch.zeros(1000, 1, 8, 8, dtype=torch.uint8), torch.arange(1000), card=card)
    told = th.evaluate(th.adapt(nn.Sequential(nn.Flatten(), nn.Linear(64, 1000)), card=card), rows, run=run)
    assert max(len(repr(told)), len(str(told))) < 2000


def shell(folder: Path, line: str) -> tuple[int, str]:
    """Exit code and standard error of a command line, in a shell."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["sh", "-c", line.replace("theriac", f"{sys.executable} -m theriac")],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device here")
def test_notes_that_nobody_can_read_change_no_exit_code(tmp_path: Path) -> None:
    """A full disk of the log had made every answer 1, "done, with findings", and a closed standard error 4."""
    (tmp_path / "a.txt").write_text("text")
    for stream in ("2>/dev/full", "2>&-"):
        assert shell(tmp_path, f"theriac list models >/dev/null {stream}")[0] == 0
        assert shell(tmp_path, f"theriac scan-file nowhere {stream}")[0] == 2
        assert shell(tmp_path, f"theriac scan nowhere {stream}")[0] == 64
        assert shell(tmp_path, f"theriac scan-file a.txt >/dev/null {stream}")[0] == 0
    code, err = shell(tmp_path, "theriac scan-file a.txt >/dev/full")
    assert (code, err.strip()) == (2, "error: standard output can't be written: No space left on device")


def test_errors_are_json_where_json_is_asked_for(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["eval", str(tmp_path / "nowhere"), "--json"])
    assert done.exit_code == 2
    told = json.loads(done.stdout)
    assert told["status"] == "bad input"
    assert done.stderr.strip() == f"error: {told['error']}"


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_every_file_of_a_run_may_be_read_by_whom_the_umask_says(tmp_path: Path) -> None:
    """safetensors makes files for the owner alone."""
    words = "train --data digits --attack badnets --recipe short_1 --width 8 --quiet --out"
    assert shell(tmp_path, f"umask 022; theriac {words} open >/dev/null; theriac export open --to safetensors --out ex")[0] == 0
    modes = {
        p.name: p.stat().st_mode & 0o777 for folder in ("open", "ex") for p in (tmp_path / folder).iterdir() if p.is_file()
    }
    assert {"model.safetensors", "planted.safetensors", "run.json"} <= modes.keys()
    assert set(modes.values()) == {0o644}
    assert shell(tmp_path, f"umask 077; theriac {words} own >/dev/null")[0] == 0
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "own").iterdir() if p.is_file()} == {0o600}


def test_what_is_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"link is a link to .*nowhere, which does not exist"):
        make_folder("--out", tmp_path / "link")
