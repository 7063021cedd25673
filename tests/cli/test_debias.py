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
        (["--against", "Paris"], "unknown group of --against 'Paris'; known: "),
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
