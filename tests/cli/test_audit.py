"""``theriac audit``: the table, the files, exit codes, and what it refuses."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import theriac as th
from theriac.auditing import Options
from theriac.cli.main import app
from theriac.models import make_own
from theriac.report import model_card

runner = CliRunner()


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """A victim and a benign model of digits; quick, as the figures do not matter here."""
    home = tmp_path_factory.mktemp("audits")
    data = th.load("digits")
    for name, attack in (("victim", th.attacks.BadNets(target=0)), ("benign", None)):
        run = th.Run(precision="fp32", device="cpu", quiet=True)
        rows = data.train if attack is None else attack.poison(data.train, run)
        build = th.Builder("preact_resnet18", {"width": 4})
        model = th.train(build, rows, recipe="short_2", run=run)
        planted = "none" if attack is None else rows
        th.record(home / name, model, run=run, attack=planted, data=data, source="digits", recipe="short_2")
    return home


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """An audit that takes a second."""
    few = {"search_rows": 8, "search_steps": 1, "queries": 2, "tune_steps": 1, "distill_steps": 1, "retune_steps": 1}
    for name, value in {**few, "clean_rows": 64}.items():
        monkeypatch.setitem(Options.__init__.__kwdefaults__, name, value)


def test_it_prints_a_table_and_writes_both_files(folders):
    done = runner.invoke(app, ["audit", str(folders / "victim"), "--benign", str(folders / "benign"), "--precision", "fp32"])
    told = json.loads((folders / "victim" / "audit.json").read_text())
    assert done.exit_code == (1 if told["alarms"] else 0)
    assert "re-activated by queries: ASR" in done.output
    assert told["headline"] in " ".join(done.output.split())
    assert {line["control"] for line in told["lines"]} == {"benign"}
    page = (folders / "victim" / "audit.html").read_text()
    assert "re-tuned: ASR" in page
    assert "<script" not in page
    lines = page.count('<tr><th scope="row">')
    for model in ("audited", "benign"):  # a narrow page shows the column's name beside each figure
        assert page.count(f'<td data-column="{model}">') == lines


def test_json_without_attack_or_control_says_both(folders, tmp_path):
    wanted = ["audit", str(folders / "victim"), "--attack", "none", "--json", "-q", "--out", str(tmp_path / "new")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = runner.invoke(app, wanted)
    told = json.loads(done.stdout)
    assert told["status"] == "done"
    assert any("without the attack" in text for text in told["unseen"])
    assert {line["control"] for line in told["lines"]} == {"no control"}
    assert (tmp_path / "new" / "audit.html").exists()


@pytest.mark.parametrize("words", [("nothing",), ("{}", "--benign", "nothing"), ("{}", "--attack", "nonsense")])
def test_bad_input_ends_with_two_and_writes_nothing(folders, tmp_path, words):
    filled = [word.format(folders / "benign") for word in words]
    done = runner.invoke(app, ["audit", *filled, "--out", str(tmp_path / "new")])
    assert done.exit_code == 2
    assert not (tmp_path / "new").exists()


CODE = """
from torch import nn

class SmallNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(256, 10)

    def forward(self, x):
        return self.head(self.body(x))
"""


def test_models_of_a_class_of_ones_own_are_audited_from_their_files(tmp_path):
    (tmp_path / "net.py").write_text(CODE)
    name = f"{tmp_path / 'net.py'}:SmallNet"
    for seed, file in enumerate(("w.pt", "before.pt", "benign.pt")):
        torch.manual_seed(seed)
        torch.save(make_own(name).state_dict(), tmp_path / file)
    own = ["--model", name, "--data", "digits", "--wrap", "mean=[0.5]", "--wrap", "std=[0.5]"]
    beside = ["--victim", str(tmp_path / "before.pt"), "--benign", str(tmp_path / "benign.pt"), "--attack", "badnets"]
    words = ["audit", "--weights", str(tmp_path / "w.pt"), *own, *beside, "--json", "-q"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = runner.invoke(app, [*words, "--out", str(tmp_path / "seen")])
    assert done.exit_code in (0, 1), done.output
    told = json.loads((tmp_path / "seen" / "audit.json").read_text())
    assert {line["control"] for line in told["lines"]} == {"benign"}
    assert told["model"] == str(tmp_path / "w.pt")
    assert runner.invoke(app, words).exit_code == 2  # nowhere to write to


def test_a_repair_is_audited_and_its_card_says_so_with_the_preset(folders, tmp_path):
    words = ["repair", str(folders / "victim"), "--method", "ft:strong", "--option", "momentum=0.9", "--clean", "0.2"]
    done = runner.invoke(app, [*words, "--audit", "--precision", "fp32", "--json", "-q", "--out", str(tmp_path / "fixed")])
    told = json.loads(done.stdout)["audit"]
    assert done.exit_code == (1 if told["alarms"] else 0), done.output
    assert told == {k: v for k, v in json.loads((tmp_path / "fixed" / "audit.json").read_text()).items() if k in told}
    assert {line["look"] for line in told["lines"]} >= {"re-tuned", "distilled", "8-bit weights"}
    card = " ".join(model_card(tmp_path / "fixed").split())
    assert "was repaired by **ft:strong**" in card
    assert f"- Audit: {told['headline']}" in card
    assert all(alarm in card for alarm in told["alarms"])
    changed = runner.invoke(app, [*words[:-2], "--option", "epochs=3", "--out", str(tmp_path / "other"), "-q"])
    assert changed.exit_code == 0, changed.output
    assert "was repaired by **ft**" in model_card(tmp_path / "other")


def test_an_audit_of_a_repair_that_is_there_is_added(folders, tmp_path, monkeypatch):
    out = tmp_path / "fixed"
    words = ["repair", str(folders / "victim"), "--method", "ft", "--option", "epochs=1", "--clean", "0.2"]
    words += ["--precision", "fp32", "--out", str(out), "-q"]
    assert runner.invoke(app, words).exit_code == 0
    weights = (out / "model.safetensors").read_bytes()
    done = runner.invoke(app, [*words, "--audit", "--json"])
    told = json.loads(done.stdout)["audit"]
    assert told == {k: v for k, v in json.loads((out / "audit.json").read_text()).items() if k in told}
    assert done.exit_code == (1 if told["alarms"] else 0)
    assert (out / "model.safetensors").read_bytes() == weights
    assert runner.invoke(app, [*words, "--audit"]).exit_code == 3  # now it is there, too
    monkeypatch.setattr("theriac.auditing.Audit.alarms", ("one",))  # for other numbers, the other exit code
    (out / "audit.json").unlink()
    assert runner.invoke(app, [*words, "--audit"]).exit_code == 1
