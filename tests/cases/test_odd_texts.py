"""Names that no record can hold, that stand there twice or read alike, and messages that named the wrong thing."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

import theriac as th
from theriac.bench import read_spec
from theriac.cli.main import app
from theriac.core.errors import InputError
from theriac.core.files import read_json, write_json
from theriac.core.text import twins
from theriac.debias import DwBClassifier
from theriac.debias.estimator import _OPTIONS

ODD = os.fsdecode(b"d\xe9")  # a name in Latin-1, as old archives make them


def pictures(folder: Path, names: tuple[str, ...] = ("cat", "dog"), count: int = 12) -> Path:
    draw = np.random.default_rng(0)
    for name in names:
        (folder / name).mkdir(parents=True)
        for k in range(count):
            Image.fromarray(draw.integers(0, 255, (8, 8), dtype=np.uint8)).save(folder / name / f"{k}.png")
    return folder


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.output + result.stderr


def test_a_run_on_a_folder_whose_name_is_no_utf8_can_be_read_again(tmp_path: Path):
    """It trained, said that all was kept, and nothing could open it."""
    data = pictures(tmp_path / ODD)
    words = ["--model", "preact_resnet18", "--width", "2", "--recipe", "short_1", "--attack", "badnets", "--quiet"]
    assert run("train", "--data", data, *words, "--out", tmp_path / "run")[0] == 0
    code, text = run("eval", tmp_path / "run", "--data", data)
    assert (code, "ACC" in text) == (0, True), text
    assert run("report", tmp_path / "run")[0] == 0
    assert run("train", "--data", data, *words, "--out", tmp_path / "run")[0] == 3  # nothing to do: it is this very run


@pytest.mark.parametrize("text", ["caf\u00e9", "\U0001f600", "a\udce9b", "\ud83d"])
def test_what_is_written_can_be_read(text: str, tmp_path: Path):
    path = write_json(tmp_path / "record.json", {"name": text, "share": [0.5, None]})
    whole = text.encode("utf-8", "replace").decode()
    assert read_json(path) == {"name": whole, "share": [0.5, None]}
    assert path.read_text() == json.dumps({"name": whole, "share": [0.5, None]}, indent=1) + "\n"


@pytest.mark.parametrize("part", ["name", "classes", "groups"])
def test_half_characters_are_refused_before_a_model_is_made_of_them(part: str):
    x, y = torch.rand(40, 1, 8, 8), [0, 1] * 20
    own = {"name": "z\udce9", "classes": ["a\ud800b", "c"], "groups": ["f", "m\udfff"]}[part]
    with pytest.raises(InputError, match=rf"^{part} holds '.*\\ud.*', in which a character is not whole"):
        th.data.from_tensors((255 * x).round() / 255, y, group=[0, 1] * 20, **{part: own})


def test_a_single_row_is_measured(tmp_path: Path):
    """Nothing needs to be held out of rows that are to be measured."""
    data = pictures(tmp_path / "data")
    home = tmp_path / "run"
    assert run("train", "--data", data, "--width", 2, "--recipe", "short_1", "--quiet", "--out", home)[0] == 0
    for names, count in ((("cat", "dog"), 1), (("cat",), 1), (("cat", "dog"), 2)):
        few = pictures(tmp_path / f"few{len(names)}{count}", names, count)
        code, text = run("eval", home, "--data", few, "--json")
        assert code == 0, text
        shown = text[text.index("{") : text.rindex("}") + 1]
        assert json.loads(shown)["evaluation"]["acc"]["total"] == len(names) * count
    assert "too few to hold any out" in run("train", "--data", tmp_path / "few21", "--out", tmp_path / "no")[1]


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (["ONE", "one "], "; 'ONE' and 'one ' differ only in upper and lower case and in spaces"),
        (["ONE", "one", "a", "A", "zero"], "; 'ONE' and 'one' differ only in upper and lower case (and 1 more)"),
        (["a b", "a  b"], "; 'a b' and 'a  b' differ only in spaces"),
        (["a", "b", "a"], "; 'a' stands there twice"),
        (["", "b", ""], "; '' stands there twice"),
        (["a", "b"], ""),
    ],
)
def test_names_that_read_alike_are_told_truly(names: list[str], hint: str):
    assert twins(names) == hint


def test_tensors_whose_classes_read_alike_are_told_as_loaded_ones_are():
    x = np.full((40, 1, 8, 8), 255, np.uint8)
    with pytest.warns(UserWarning, match="classes that read alike; 'a' and 'a ' differ only in spaces"):
        th.data.from_tensors(x, ["a", "a "] * 20)
    with pytest.warns(UserWarning, match="'a' stands there twice"):
        data = th.data.from_tensors(x, [0, 1, 2, 3] * 10, classes=["a", "a", "b", "c"])
    other = data.test.replace(card=data.card.replace(classes=("c", "b", "a", "a")))
    with pytest.raises(InputError, match="two classes that are called 'a', which can't be told apart by name; rename one"):
        th.data.align(other, data.card)
    assert th.data.align(data.test, data.card) is data.test


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.dropout(x.flatten(1), 0.5))  # never off


def test_a_network_that_draws_is_not_said_to_lack_something(tmp_path: Path):
    saved = th.adapt(Dropping(), card=th.load("digits").card)
    th.save(saved, tmp_path / "own")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        loaded = th.load_model(tmp_path / "own", into=Dropping())
    assert not told
    assert torch.equal(loaded.net.head.weight, saved.net.head.weight)


FRAME = pd.DataFrame({"a": np.arange(40.0), "b": np.tile([1.0, 2.0], 20)})
LABELS, SEX = np.array(["yes", "no"] * 20, object), np.repeat(["f", "m"], 20)
ONE_LOST = np.where(np.arange(40) == 3, None, LABELS)


@pytest.mark.parametrize(
    ("x", "y", "sex", "options", "says"),
    [
        (FRAME, ONE_LOST, SEX, {}, "^y has no value in 1 of 40 rows; every row needs a label$"),
        (FRAME, pd.Series(pd.array(ONE_LOST, dtype="string")), SEX, {}, "^y has no value in 1 of 40 rows"),
        (FRAME, np.array([1, "a"] * 20, object), SEX, {}, "^y holds text and numbers"),
        (FRAME, LABELS, ["f"] * 40, {}, "^sensitive_features holds one group only, 'f'"),
        (
            FRAME,
            LABELS,
            pd.DataFrame(np.stack([SEX, SEX], 1), columns=["s", "s"]),
            {},
            "^sensitive_features has two columns that",
        ),
        (pa.table([FRAME["a"], FRAME["b"]], names=["a", "a"]), LABELS, SEX, {}, "^X has two columns that are called 'a'"),
        (FRAME.set_axis(["a", "a"], axis=1), LABELS, SEX, {}, "^X has two columns that are called 'a'"),
        (FRAME.set_axis([0, "b"], axis=1), LABELS, SEX, {}, "^X has columns that are called .0, 'b'."),
        (FRAME.set_axis([None, "b"], axis=1), LABELS, SEX, {}, "^X has columns that are called .nan, 'b'."),
        (FRAME.replace({"b": {2.0: np.inf}}), LABELS, SEX, {}, "^column 'b' of X is infinite in row 1$"),
        *((FRAME, LABELS, SEX, {"random_state": seed}, "^random_state is ") for seed in ("a", -1, 2**40, 1.5)),
    ],
)
def test_what_the_estimator_is_handed_is_refused_by_its_name(x: object, y: object, sex: object, options: dict, says: str):
    assert "random_state" not in _OPTIONS  # it is the estimator's own
    with pytest.raises(InputError, match=says):
        DwBClassifier(**options).fit(x, y, sensitive_features=sex)


def test_positions_may_be_whole_numbers_of_any_kind():
    split = th.load("digits").train
    assert torch.equal(next(iter(split.batches(np.int64(7)))), torch.arange(7))
    for positions in (range(5), np.arange(5), torch.arange(5, dtype=torch.uint8), torch.arange(5, dtype=torch.int16)):
        assert torch.equal(split.take(positions).index, split.index[:5])
    with pytest.raises(InputError, match=r"positions are a tensor of torch.uint8; expected one of int64 or int32"):
        split.rows(torch.arange(5, dtype=torch.uint8))
    with pytest.raises(InputError, match="size is 0; expected"):
        next(iter(split.batches(0)))


@pytest.mark.filterwarnings("ignore:the model gets")
@pytest.mark.parametrize("method", [th.repairs.FST(), th.repairs.D3()])
def test_a_network_without_a_classifier_is_refused_without_a_cure_that_there_is_not(method: object):
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Parameter(torch.randn(64, 10))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1) @ self.head

    digits = th.load("digits")
    with pytest.raises(InputError, match="its last layer has to be one of these"):
        method.repair(th.adapt(Bare(), card=digits.card), digits.train.sample(0.1), th.Run(quiet=True))


def test_a_table_is_no_data_of_a_model_of_pictures(tmp_path: Path):
    """It was said that a size had been given, which nobody had."""
    assert run("train", "--width", 2, "--recipe", "short_1", "--rows", 100, "--quiet", "--out", tmp_path / "net")[0] == 0
    table = tmp_path / "rows.csv"
    table.write_text("a,b,y\n" + "\n".join(f"{k},{k % 3},{'no' if k % 2 else 'yes'}" for k in range(40)) + "\n")
    label = ("--data-option", "label=y")
    for words in (
        ("eval", tmp_path / "net", "--data", table, *label),
        ("audit", tmp_path / "net", "--data", table, *label, "--out", tmp_path / "audit"),
        ("check", tmp_path / "net", "--data", table, *label),
    ):
        code, text = run(*words)
        assert (code, f"--data is '{table}', a table; the model of 'digits' takes pictures" in text) == (2, True), text
    code, text = run("scan", tmp_path / "net", "--clean", table, *label)
    assert (code, f"--clean is '{table}', a table; the model of 'digits' takes pictures" in text) == (64, True), text
    code, text = run("scan-data", pictures(tmp_path / "data"), "--clean", table)
    assert (code, f"--clean is '{table}', a table; the scanned rows are pictures" in text) == (2, True), text


def test_an_audit_says_that_it_fine_tunes_on_rows_of_unknown_origin(tmp_path: Path):
    """On poisoned rows it teaches a clean model the backdoor that it then finds."""
    data, mine = pictures(tmp_path / "data"), pictures(tmp_path / "mine")
    home = tmp_path / "net"
    assert run("train", "--data", data, "--width", 2, "--recipe", "short_1", "--quiet", "--out", home)[0] == 0
    words = ("audit", home, "--attack", "badnets", "--json", "--out")
    code, text = run(*words, tmp_path / "one")
    assert code in (0, 1)
    assert "the audit finds what it taught itself (--clean-from takes rows that you trust)" in text
    for name in ("audit.json", "audit.html"):
        assert "the audit finds what it taught itself" in (tmp_path / "one" / name).read_text()
    code, text = run(*words, tmp_path / "two", "--clean-from", mine)
    assert code in (0, 1)
    assert "taught itself" not in text


def test_a_plan_refuses_what_columns_and_classes_do_not_have(tmp_path: Path):
    table = tmp_path / "people.csv"
    lines = [f"{k},{'f' if k % 2 else 'm'},{'no' if k % 3 else 'yes'}" for k in range(60)]
    table.write_text("age,sex,y\n" + "\n".join(lines) + "\n")
    spec: dict = {
        "name": "plan",
        "data": {"name": "people.csv", "label": "y", "sensitive": ["sex"]},
        "models": "mlp",
        "positive": "maybe",
    }
    spec |= {
        "recipes": "adam_1",
        "clean": 0.2,
        "attacks": ["tabular_value", {"name": "tabular_value", "count": 1, "as": "one"}],
    }
    spec |= {"defenses": ["reweighing", "npd", "pdb", {"name": "filtering", "detector": "strip"}, "ft"]}
    (tmp_path / "plan.json").write_text(json.dumps(spec))
    _, text = run("bench", tmp_path / "plan.json", "--store", tmp_path / "store", "--plan")
    text = " ".join(text.split())
    assert "count is 3; 'people' has 1 numeric column" in text
    assert "positive is 'maybe'; expected one of the classes 'no', 'yes'" in text
    assert "'people' is a table; NPD's perturbations are of pixels" in text
    assert "'people' is a table; PDB stamps a patch on pictures" in text
    assert "detector is 'strip', which changes pixels, and these are rows of a table" in text
    table.write_text(table.read_text().replace("f,", "x,", 15))  # a third group
    del spec["positive"]
    (tmp_path / "plan.json").write_text(json.dumps({**spec, "attacks": [], "defenses": ["dwb"]}))
    _, text = run("bench", tmp_path / "plan.json", "--store", tmp_path / "store", "--plan")
    assert "rule 'exact' is for two groups and two classes; these rows have 3 and 2" in " ".join(text.split())


def test_clean_rows_of_no_number_are_refused_in_a_spec():
    with pytest.raises(InputError, match="clean is empty; expected a share"):
        read_spec({"name": "a", "data": "digits", "attacks": ["badnets"], "defenses": ["ft"], "clean": None})


def test_rows_that_are_not_there_leave_no_page(tmp_path: Path):
    spec = {"name": "a", "data": {"name": "digits", "rows": 60}, "models": {"name": "preact_resnet18", "width": 2}}
    (tmp_path / "a.json").write_text(json.dumps({**spec, "recipes": "short_1", "attacks": [], "controls": True}))
    assert run("bench", tmp_path / "a.json", "--store", tmp_path / "store", "-q")[0] == 0
    words = (
        "results",
        tmp_path / "store",
        "--status",
        "failed",
        "--page",
        tmp_path / "page.html",
        "--out",
        tmp_path / "rows.csv",
    )
    code, text = run(*words)
    assert (code, "there is no row to write" in text) == (2, True), text
    assert not (tmp_path / "page.html").exists()


@pytest.mark.filterwarnings("error:.*are rounded")
def test_nothing_is_said_of_rounding_where_the_file_is_of_another_network(tmp_path: Path):
    assert run("train", "--width", 2, "--recipe", "short_1", "--rows", 100, "--quiet", "--out", tmp_path / "net")[0] == 0
    torch.save({"other.weight": torch.zeros(3, dtype=torch.float16)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="is no file of this network: it lacks"):
        th.export(tmp_path / "net", tmp_path / "out", to="torch", like=tmp_path / "other.pth")


def test_the_next_command_can_be_run_for_a_folder_that_begins_with_a_dash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    code, text = run("train", "--width", 2, "--recipe", "short_1", "--rows", 100, "--out", "./-x")
    assert code == 0
    assert "next: theriac eval ./-x " in text
