"""``theriac debias``: train a fairer model beside a plain one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import theriac as th

Theriac = Callable[..., Any]
QUICK = ("--model-option", "hidden=[8]", "--device", "cpu", "--precision", "fp32")


@pytest.fixture
def people(tmp_path: Path) -> list[Any]:
    """What follows the command's name: a CSV file whose label goes along with the town, mostly."""
    draw = np.random.default_rng(0)
    lines = ["skill,town,hired"]
    for i in range(400):
        hired = int(draw.random() < 0.5)
        town = ("Ulm", "Bonn")[hired] if draw.random() < 0.8 else ("Bonn", "Ulm", "Rom")[i % 3]
        lines.append(f"{draw.normal() + hired:.3f},{town},{hired}")
    (tmp_path / "people.csv").write_text("\n".join(lines) + "\n")
    return ["debias", "--data", tmp_path / "people.csv", "--label", "hired", "--sensitive", "town", *QUICK]


@pytest.mark.parametrize("method", ["dwb:exact", "dba", "logit_adjust:distilled", "resampling:within_groups"])
def test_it_trains_compares_and_keeps(theriac: Theriac, people: list[Any], tmp_path: Path, method: str) -> None:
    epochs = "student_epochs=2" if method in ("dwb:exact", "logit_adjust:distilled") else "epochs=2"
    out = tmp_path / "fair"
    words = (*people, "--against", "Bonn", "--method", method, "--option", epochs, "--option", "batch_size=64", "--out", out)
    done = theriac(*words, "--json")
    assert done.code == 0, done.err
    record = json.loads((out / "run.json").read_text())
    assert record["kind"] == "debias"
    assert record["groups"] == ["not Bonn", "Bonn"]
    assert record["fairness"] == done.json["fairness"]
    assert record["method"]["method"] == method.partition(":")[0]
    assert not list(out.glob("*.checkpoint.pt"))
    for found in record["fairness"].values():
        assert th.metrics.Fairness.from_dict(found).to_dict() == found

    model = th.load_model(out)  # takes the user's plain rows, and says what the record says
    data = th.load(tmp_path / "people.csv", label="hired", sensitive="town")
    test = th.data.regroup(data, {"Bonn": "Bonn"}, rest="not Bonn").test
    run = th.Run(device="cpu", precision="fp32", quiet=True)
    assert th.fairness(model, test, run=run).counts == th.metrics.Fairness.from_dict(record["fairness"]["debiased"]).counts

    measured = theriac("eval", out, "--json")
    assert measured.json["evaluation"] == record["evaluation"]
    assert theriac(*words).code == 3  # this very run is there
    assert theriac("report", out).code == 0
    page = (out / "report.html").read_text()
    title = th.core.method.title_of("debiasing", record["method"]["method"])
    assert f"Trained {title} (fair) so that it treats groups alike (not Bonn, Bonn)" in page
    assert "Trained benign" not in page
    assert "not Bonn, Bonn</span></caption>" in page
    gap = record["fairness"]["debiased"]["odds_gap"]
    assert f"{100 * (gap['value'] if isinstance(gap, dict) else gap):.1f}" in page
    card = th.report.model_card(out)
    assert "only clean accuracy" not in card
    assert "Groups: not Bonn, Bonn." in card
    assert " ".join(record["verdict"]["sentence"].split()) in " ".join(card.split())
    assert "| odds gap |" in card
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    last = [e for e in events if "epoch" in e][-1]
    assert last["event"] != "train"  # the plain model's epochs are not shown as those of the debiased one


def test_a_model_that_answers_one_class_only_is_told(theriac: Theriac, people: list[Any], tmp_path: Path) -> None:
    words = (*people, "--against", "Bonn", "--out", tmp_path / "fair", "--method", "reweighing")
    still = ("--option", "lr=1e-12", "--option", "epochs=1")
    learnt = ("--option", "lr=0.01", "--option", "epochs=20")
    found = {}
    for name, options in (("still", still), ("learnt", learnt)):
        done = theriac(*words, *options, "--force")
        counts = json.loads((tmp_path / "fair" / "run.json").read_text())["fairness"]["debiased"]["counts"]
        one = len(np.array(counts).sum((0, 1)).nonzero()[0]) == 1
        assert ("for every row" in " ".join((done.out + done.err).split())) == one
        found[name] = one
    assert found == {"still": True, "learnt": False}


def test_it_shows_both_models_by_group_with_formulas(theriac: Theriac, people: list[Any], tmp_path: Path) -> None:
    words = ("--against", "Bonn", "--option", "student_epochs=1", "--option", "teacher_epochs=1", "--out", tmp_path / "fair")
    done = theriac(*people, *words)
    assert done.code == 0, done.err
    for text in ("plain", "debiased", "not Bonn, 1", "odds gap", "demographic parity difference", "mean odds difference"):
        assert text in done.out
    assert "kept in" in done.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--method", "dwb:teacher"], "needs each row's group"),
        (["--method", "logit_adjust"], "needs each row's group"),
        (["--method", "sau"], "unknown debiasing 'sau'"),
        (["--against", "Paris"], "unknown group in against 'Paris'; known: "),
        (["--option", "rule=exact"], "two groups and two classes"),
        (["--positive", "7", "--against", "Bonn"], "positive is 7"),
    ],
)
def test_bad_input_ends_with_code_2_and_leaves_nothing(
    theriac: Theriac, people: list[Any], tmp_path: Path, words, told
) -> None:
    done = theriac(*people, *words, "--out", tmp_path / "fair")
    assert done.code == 2
    assert told in done.err
    assert not (tmp_path / "fair").exists()


def test_a_sensitive_column_is_needed(theriac: Theriac, tmp_path: Path) -> None:
    done = theriac("debias", "--data", "digits", "--out", tmp_path / "fair", "--device", "cpu")
    assert done.code == 2
    assert "--sensitive is missing" in done.err


def test_group_names_are_text_and_no_markup(theriac: Theriac, people: list[Any], tmp_path: Path) -> None:
    file = people[2]
    file.write_text(file.read_text().replace("Ulm", "[/f]").replace("Rom", "\x1b[2Jm"))
    words = (*people, "--method", "reweighing", "--option", "epochs=1", "--out", tmp_path / "fair")
    done = theriac(*words, "--against", "Bonn")
    assert done.code == 0, done.err
    text = theriac(*people, "--against", "[/f]", "--method", "reweighing", "--option", "epochs=1", "--out", tmp_path / "f")
    assert text.code == 0, text.err
    assert "[/f], 1" in text.out
    assert "\x1b" not in text.out


def table(path: Path, rows: int, towns: tuple[str, ...], seed: int = 0) -> Path:
    """A table whose label follows a number, and whose towns take turns."""
    draw = np.random.default_rng(seed)
    skill = draw.normal(size=rows)
    lines = [f'{s:.3f},{towns[i % len(towns)]},"{("clerk, senior", "it")[i % 2]}",{int(s > 0)}' for i, s in enumerate(skill)]
    path.write_text("\n".join(["skill,town,job,hired", *lines]) + "\n")
    return path


def debiased(theriac: Theriac, folder: Path, *words: object, towns: tuple[str, ...] = ("Bonn", "Ulm", "Rom")) -> Any:
    train = table(folder / "train.csv", 360, ("Bonn", "Ulm", "Rom"))
    test = table(folder / "test.csv", 150, towns, seed=1)
    of = ("--data", train, "--label", "hired", "--sensitive", "town", "--data-option", f"test={test}")
    return theriac("debias", *of, "--method", "reweighing", *QUICK, "--out", folder / "fair", *words)


def test_a_sensitive_column_that_the_model_sees_is_told_and_can_be_left_out(theriac: Theriac, tmp_path: Path) -> None:
    seen = debiased(theriac, tmp_path)
    assert "the model goes on to see town as a feature" in seen.err
    assert any("town" in note for note in json.loads((tmp_path / "fair" / "run.json").read_text())["notes"])
    unseen = debiased(theriac, tmp_path, "--data-option", "drop=town", "--force")
    assert "as a feature" not in unseen.err
    (tmp_path / "new.csv").write_text("skill,job,hired\n1.0,it,1\n-1.0,it,0\n")
    assert theriac("eval", tmp_path / "fair", "--data", tmp_path / "new.csv", "--label", "hired").code == 0


def test_groups_of_which_the_test_rows_say_nothing_or_little_are_named(theriac: Theriac, tmp_path: Path) -> None:
    absent = debiased(theriac, tmp_path, towns=("Bonn", "Ulm"))
    assert "no test row of group 'Rom': the comparison says nothing of them" in absent.err
    few = debiased(theriac, tmp_path, "--force", towns=("Bonn",) * 9 + ("Ulm",))
    assert "fewer than 30 test rows of group 'Ulm': only large changes show" in few.err
    new = debiased(theriac, tmp_path, "--force", towns=("Bonn", "Ulm", "Rom", "Oslo"))
    assert new.code == 2
    assert "group 'Oslo' is in 37 test rows and in no training row" in new.err


def test_a_model_that_is_below_guessing_is_told_before_its_gaps(theriac: Theriac, tmp_path: Path) -> None:
    done = debiased(
        theriac, tmp_path, "--option", "epochs=1", "--option", "lr=1e-9", "--seed", "4", "--data-option", "drop=town"
    )
    sentences = json.loads((tmp_path / "fair" / "run.json").read_text())["degenerate"]
    assert sentences  # an untrained network is
    assert all(sentence in " ".join(done.out.split()) for sentence in sentences)
    assert "more steps help" in done.err


def test_the_card_of_a_table_s_model_says_how_rows_are_made(theriac: Theriac, tmp_path: Path) -> None:
    assert debiased(theriac, tmp_path, "--data-option", "drop=town").code == 0
    assert theriac("export", tmp_path / "fair", "--to", "pt2", "--out", tmp_path / "out").code == 0
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    columns = th.load_model(tmp_path / "fair").card.columns
    assert [c.name for c in columns] == ["skill", "job"]
    assert columns[1].categories == ("clerk, senior", "it")
    assert (
        "- Input: a float32 matrix of 2 raw columns in this order; NaN is a missing value\n  - column 0, skill: a number\n"
        in card
    )
    assert "  - column 1, job: a code: 0 = clerk, senior; 1 = it\n" in card


def test_a_sweep_compares_one_group_with_all_others(tmp_path: Path) -> None:
    train = table(tmp_path / "train.csv", 300, ("Bonn", "Ulm", "Rom"))
    data = {"name": str(train), "label": "hired", "sensitive": "town", "as": "towns"}
    spec = {"name": "one", "data": data, "models": "mlp", "defenses": [{"name": "reweighing", "epochs": 1}], "controls": False}
    done = th.bench.run({**spec, "against": "Bonn"}, tmp_path / "s", quiet=True)
    assert not done.failed
    with th.bench.Store(tmp_path / "s") as store:
        (row,) = [r for r in th.bench.rows(store) if r["role"] == "debiased"]
    record = json.loads((tmp_path / "s" / "runs" / row["key"] / "run.json").read_text())
    assert record["groups"] == ["not Bonn", "Bonn"]
    wrong = th.bench.run({**spec, "against": "Bon"}, tmp_path / "t", quiet=True)
    assert list(wrong.refused.values()) == ["unknown group in against 'Bon'; did you mean 'Bonn'?"]
    with pytest.raises(th.InputError, match="against is True; expected the name of a group, in quotes"):
        th.bench.read_spec({**spec, "against": True})
