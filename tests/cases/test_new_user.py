"""What a new user met at the command line: code of their own that misbehaves, advice that fails, options that are ignored."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import theriac as th
from theriac.bench import zoo
from theriac.cli.main import app
from theriac.core.errors import InputError, unknown
from theriac.metrics import check_wrapping

NETS = """
import sys
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(64, 10)

    def forward(self, x):
        return self.line(x.flatten(1))

class Asserts(Net):
    def forward(self, x):
        assert x.shape[1] == 3, "color please"
        return super().forward(x[:, :1])

class Looks(Net):
    def forward(self, x):
        return {}["logits"]

class Exits(Net):
    def forward(self, x):
        sys.exit(0)

class Pair(Net):
    def forward(self, x):
        return x.mean((1, 2, 3)), super().forward(x)

class Bad(nn.Module):
    def __init__(self):
        self.size = 3

class Loud(Net):
    def forward(self, x):
        print("a layer says hello")
        return super().forward(x)

def loud():
    print("the factory says hello")
    return Loud()
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a user's own networks and the weights of one, as the current folder."""
    (tmp_path / "nets.py").write_text(NETS)
    torch.manual_seed(0)
    line = torch.nn.Linear(64, 10)
    torch.save({f"line.{name}": value for name, value in line.state_dict().items()}, tmp_path / "w.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str | Path) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("name", "says"),
    [("Asserts", "color please"), ("Looks", "'logits'"), ("Exits", "0"), ("Bad", "_parameters")],
)
def test_whatever_a_users_network_raises_is_its_own_fault_and_named(home: Path, name: str, says: str):
    for command in ("eval", "scan"):
        code, _, said = run(command, "w.pt", "--model", f"nets.py:{name}", "--data", "digits")
        assert code == (64 if command == "scan" else 2)
        assert says in said
        assert "internal error" not in said


def test_check_tries_on_after_a_network_that_asserts(home: Path):
    _, out, said = run("check", "w.pt", "--model", "nets.py:Asserts", "--data", "digits", "--rows", "100")
    assert "channels 3" in out
    assert "internal error" not in said


def test_check_takes_where_the_logits_are_and_names_it_in_its_options(home: Path, digits: th.Data):
    words = ("check", "w.pt", "--model", "nets.py:Pair", "--data", "digits", "--rows", "100")
    assert "--wrap logits=NAME" in run(*words)[2]
    assert "--wrap logits=1" in run(*words, "--wrap", "logits=1")[1]

    class Named(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.line = torch.nn.Linear(64, 10)

        def forward(self, x):
            return {"out": self.line(x.flatten(1))}

    wrapped = th.adapt(Named(), card=digits.card, logits="out")
    assert all(way.options["logits"] == "out" for way in check_wrapping(wrapped, digits.test, most=60).ways)


def test_json_is_json_when_the_users_code_prints(home: Path):
    code, out, said = run("eval", "w.pt", "--model", "nets.py:loud", "--data", "digits", "--json", "-q")
    assert code == 0
    assert json.loads(out)["status"] == "done"
    assert "the factory says hello" in said
    assert "a layer says hello" in said


def test_a_file_that_is_no_code_does_not_run_the_code_beside_it(home: Path):
    (home / "mk.py").write_text("open('ran', 'w').close()")
    (home / "mk.txt").write_text("notes")
    for name in ("mk.txt:Net", "mk.md:Net"):  # the second file does not exist
        code, _, said = run("eval", "w.pt", "--model", name, "--data", "digits")
        assert code == 2
        assert "no .py file" in said or "no module 'mk.md'" in said
    assert not (home / "ran").exists()


def test_a_pickled_network_is_refused_with_advice_that_helps(home: Path):
    torch.save(torch.nn.Linear(64, 10), home / "whole.pt")
    code, _, said = run("eval", "whole.pt", "--model", "nets.py:Net", "--data", "digits")
    assert code == 2
    assert "state_dict()" in said
    assert "--tensors-only" not in said


def test_training_says_that_it_takes_no_code_of_ones_own(home: Path):
    code, _, said = run("train", "--model", "nets.py:Net", "--data", "digits", "--out", "r")
    assert code == 2
    assert "nets.py:Net" in said
    assert "theriac.train(theriac.adapt(" in said


def test_a_hint_names_what_is_there_and_not_what_was_typed():
    assert "did you mean 'BadNets'?" in str(unknown("attack", "badnets", ["BadNets", "Blended"]))
    assert "did you mean 'Label' or 'label'?" in str(unknown("column", "LABEL", ["Label", "label"]))


def test_rows_that_were_divided_anew_are_said_to_hold_training_rows(home: Path):
    lines = [f"{i},{i % 7},{'yes' if i % 3 else 'no'}" for i in range(120)]
    (home / "t.csv").write_text("\n".join(["a,b,label", *lines]) + "\n")
    assert run("train", "--data", "t.csv", "--recipe", "adam_3", "--out", "r")[0] == 0
    assert "among the test rows" not in run("eval", "r", "--data", "t.csv")[2]
    assert "among the test rows" in run("eval", "r", "--data", "t.csv", "--data-option", "seed=5")[2]
    assert "theriac report r" in run("train", "--data", "t.csv", "--recipe", "adam_3", "--out", "r", "--force")[2]
    assert run("report", "r")[0] == 0  # what is named works; a trigger of tables is fitted, so none can be measured afterward


def test_a_scan_does_not_trust_the_rows_that_it_judges(digits: th.Data):
    rows = digits.train.take(torch.arange(60))
    with pytest.raises(InputError, match="the scanned rows themselves"):
        th.scan_data(rows, clean=rows, detectors=["scan"])
    with pytest.warns(UserWarning, match="20 of the 40 clean pictures"):
        th.scan_data(rows, clean=digits.train.take(torch.arange(40, 80)), detectors=["spectral"], recipe="short_1", width=4)


def test_clean_rows_stay_those_that_were_named_when_the_data_have_a_test_part(tmp_path: Path):
    from theriac.scanning.rows import _clean_rows

    parts = {}
    for name, count in (("data", 30), ("test", 20), ("mine", 10)):
        lines = [f"{i},{i % 7},{'yes' if i % 3 else 'no'}" for i in range(count)]
        parts[name] = tmp_path / f"{name}.csv"
        parts[name].write_text("\n".join(["a,b,label", *lines]) + "\n")
    options = {"test": str(parts["test"])}
    assert len(_clean_rows(str(parts["mine"]), str(parts["data"]), options)) == 10
    assert len(_clean_rows(str(parts["data"]), str(parts["data"]), options)) == 20


def test_a_sweep_says_what_it_left_out_and_results_do_all_that_is_asked(home: Path):
    spec = {
        "name": "s",
        "data": {"name": "digits", "rows": 200},
        "models": {"name": "preact_resnet18", "width": 4},
        "recipes": "short_1",
        "attacks": ["badnets", {"name": "badnets", "as": "far", "target": 77}],
    }
    (home / "s.yaml").write_text(json.dumps(spec))
    code, out, said = run("bench", "s.yaml", "--store", "st", "--json")
    assert code == 0
    assert "left out of the spec: " in said
    assert "there are 10 classes" in next(iter(json.loads(out)["refused"].values()))

    code, out, _ = run("results", "st", "--out", "r.csv", "--page", "p.html", "--json")
    assert code == 0
    assert {"r.csv", "p.html"} <= set(os.listdir(home))
    assert len(json.loads(out)) == 3
    code, out, _ = run("results", "st", "--status", "failed", "--json")
    assert (code, json.loads(out)) == (0, [])
    assert run("results", "st", "--status", "fialed")[0] == 2
    for pair in (("--gc", "--page", "q.html"), ("--leaderboard", "--compare", "asr")):
        assert run("results", "st", *pair)[0] == 2
    assert not (home / "q.html").exists()

    zoo.make("st", "zoo")
    (benign,) = (model for model in zoo.models("zoo") if model.attack == "benign")
    assert run("zoo", "fetch", "zoo", benign.key, "--out", "got")[0] == 0
    assert os.listdir(home / "got") == ["benign"]


@pytest.mark.parametrize(("evil", "code"), [(False, 0), (True, 1)])
def test_a_reader_that_leaves_early_does_not_change_the_answer(tmp_path: Path, evil: bool, code: int):
    """As in a shell with ``theriac scan-file FILE | true`` under ``set -o pipefail``."""
    path = tmp_path / "file.pkl"
    path.write_bytes(pickle.dumps(print if evil else [1, 2, 3]))
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "theriac", "scan-file", str(path)]
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert "Broken pipe" not in done.stderr
