"""What an outside check by hand found: names that became numbers, rows that were counted twice, files that went missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import theriac as th
from theriac.cli.main import app
from theriac.metrics import Fairness, judge
from theriac.runs import Source


def theriac(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with training and test rows, other rows, and a model of the first two with groups."""
    home = tmp_path_factory.mktemp("table")
    draw = np.random.default_rng(0)
    for name, rows in (("train", 400), ("test", 120), ("others", 120)):
        age, sex = draw.normal(size=rows), draw.integers(2, size=rows)
        y = np.where(age + 0.3 * draw.normal(size=rows) > 0, "yes", "no")
        lines = (f"{a:.5f},{'fm'[s]},{label}" for a, s, label in zip(age, sex, y, strict=True))
        (home / f"{name}.csv").write_text("age,sex,y\n" + "\n".join(lines) + "\n")
    options = ("--label", "y", "--data-option", f"test={home / 'test.csv'}")
    done = theriac("train", "--data", home / "train.csv", *options, "--recipe", "adam_10", "--out", home / "run", "-q")
    assert done.exit_code == 0, done.output
    return home


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("victim") / "run"
    words = ("--data", "digits", "--width", "4", "--recipe", "short_1", "--attack", "badnets", "--out", run, "-q")
    done = theriac("train", *words)
    assert done.exit_code == 0, done.output
    return run


# names

CODES = {"z": ["007", "7", "70"] * 30, "b": list(range(90)), "label": ["01"] * 30 + ["1"] * 30 + ["2"] * 30}


@pytest.mark.parametrize("role", ["categorical", "sensitive"])
def test_codes_with_leading_zeros_are_names_in_csv_as_in_parquet(tmp_path: Path, role: str) -> None:
    pq.write_table(pa.table(CODES), tmp_path / "codes.parquet")
    lines = [",".join(map(str, row)) for row in zip(*CODES.values(), strict=True)]
    (tmp_path / "codes.csv").write_text("\n".join(["z,b,label", *lines]) + "\n")
    loaded = [th.load(tmp_path / f"codes.{ending}", **{role: "z"}) for ending in ("csv", "parquet")]
    assert [data.card.classes for data in loaded] == [("01", "1", "2")] * 2
    assert [data.card.columns[0].categories for data in loaded] == [("007", "7", "70")] * 2
    if role == "sensitive":
        assert [data.card.groups for data in loaded] == [("007", "7", "70")] * 2
    assert torch.equal(loaded[0].train.x, loaded[1].train.x)


def test_numbers_without_leading_zeros_are_numbers_as_before(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,label\n" + "".join(f"0.{i},{i % 12}\n" for i in range(10, 70)))
    data = th.load(tmp_path / "t.csv")
    assert data.card.classes == tuple(str(k) for k in range(12))  # in the order of numbers
    assert data.card.columns[0].kind == "numeric"


@pytest.mark.parametrize(
    ("header", "names"),
    [('"a,x","b",label', ["a,x", "b"]), ('"a;1;2;3",b,label', ["a;1;2;3", "b"]), ('"a\nx",b,label', ["a\nx", "b"])],
)
def test_a_header_may_hold_delimiters_and_line_breaks_in_quotes(tmp_path: Path, header: str, names: list[str]) -> None:
    (tmp_path / "t.csv").write_text(header + "\n" + "".join(f"{i},{i % 3},{i % 2}\n" for i in range(40)))
    data = th.load(tmp_path / "t.csv", drop=())
    assert [column.name for column in data.card.columns] == names
    assert len(data.joined()) == 40


def test_a_stray_quote_in_a_header_takes_no_rows_away(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('a,5" pipe,label\n' + "".join(f"{i},{i % 3},{i % 2}\n" for i in range(40)))
    data = th.load(tmp_path / "t.csv", drop=())
    assert [column.name for column in data.card.columns] == ["a", '5" pipe']
    assert len(data.joined()) == 40


def test_parquet_with_text_of_another_type_and_with_two_columns_of_one_name(tmp_path: Path) -> None:
    y = pa.array([0, 1] * 20)
    pq.write_table(
        pa.table({"a": pa.array(["u", "v", "w", "u"] * 10, pa.string_view()), "label": y}), tmp_path / "view.parquet"
    )
    assert th.load(tmp_path / "view.parquet").card.columns[0].categories == ("u", "v", "w")
    pq.write_table(pa.Table.from_arrays([y, y, y], names=["a", "a", "label"]), tmp_path / "twice.parquet")
    with pytest.raises(th.InputError, match=r"twice\.parquet has two columns called 'a'"):
        th.load(tmp_path / "twice.parquet")


# numbers


def test_large_numbers_in_arrays_are_told_as_in_files() -> None:
    x = np.stack([2.0**60 + 1000.0 * np.arange(40), np.arange(40.0)], 1)
    with pytest.warns(UserWarning, match="column 0 of training x has 40 different numbers, of which float32 tells 1 apart"):
        th.load((x, np.arange(40) % 4))


def test_masked_numbers_do_not_come_back() -> None:
    x = np.ma.MaskedArray(np.ones((40, 2)), mask=np.arange(80).reshape(40, 2) == 3)
    with pytest.raises(th.InputError, match="training x masks 1 of 80 entries"):
        th.load((x, np.arange(40) % 4))
    assert len(th.load((np.ma.MaskedArray(np.ones((40, 2))), np.arange(40) % 4)).train) == 32


def test_a_share_that_changes_nothing_is_told() -> None:
    with pytest.warns(UserWarning, match="test_share is 0.5, which changes nothing: 'digits' has test rows of its own"):
        th.load("digits", test_share=0.5)


def test_classes_that_fewer_rows_leave_out_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,label\n" + "".join(f"{i},{'abc'[(i > 30) + (i > 59)]}\n" for i in range(61)))
    source = Source.of(str(tmp_path / "t.csv"), {"test": str(tmp_path / "t.csv")}, rows=20)
    with pytest.warns(UserWarning, match=r"20 of 61 rows leave none of 1 classes \('c'\), which have few"):
        source.load()


def test_a_model_without_numbers_is_refused_by_all_that_use_it(digits: th.Data) -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    group = digits.test.index % 2
    for use in (
        lambda: th.evaluate(net, digits.test),
        lambda: th.fairness(net, digits.test, group),
        lambda: th.scan(net, digits.test.sample(100)),
        lambda: th.metrics.predict(net, digits.test),
        lambda: th.scan_data(digits.train.sample(100), net, detectors=["strip"]),
    ):
        with pytest.raises(th.InputError, match="lies on the device 'meta' and has no numbers"):
            use()


# one class, nearly

PLAIN = Fairness((((220, 20), (10, 50)), ((200, 40), (5, 55))), ("f", "m"), ("no", "yes"))
NEARLY = Fairness((((240, 0), (59, 1)), ((240, 0), (59, 1))), ("f", "m"), ("no", "yes"))


def test_a_model_that_answers_one_class_for_nearly_all_rows_is_called_so() -> None:
    (said,) = NEARLY.degenerate
    assert said == "It predicts 'no' for 99.7 % of rows; its gaps mean nothing."
    verdict = judge(PLAIN, NEARLY)
    assert (verdict.kind, verdict.one_class) == ("one class", "no")
    assert verdict.headline == "The debiased model predicts 'no' for 99.7 % of rows; its gaps mean nothing."
    assert verdict.improved == ()
    assert PLAIN.degenerate == ()


def test_many_rows_of_one_class_are_not_one_answer() -> None:
    rare = Fairness((((940, 5), (5, 50)), ((930, 10), (10, 50))), ("f", "m"), ("no", "yes"))  # 94 % of rows are of 'no'
    assert rare.degenerate == ()


# measuring a model that is there


def test_eval_counts_by_group_where_a_sensitive_column_is_named(table: Path) -> None:
    done = theriac("eval", table / "run", "--data", table / "others.csv", "--label", "y", "--sensitive", "sex", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    data = th.load(table / "others.csv", label="y", sensitive="sex")
    model, rows = th.load_model(table / "run"), data.joined()
    counted = th.fairness(model, rows)
    assert found["fairness"]["counts"] == json.loads(json.dumps(counted.to_dict()))["counts"]
    assert found["fairness"]["acc"]["total"] == found["evaluation"]["acc"]["total"] == 120
    shown = theriac(
        "eval", table / "run", "--data", table / "others.csv", "--label", "y", "--sensitive", "sex", "--positive", "no"
    )
    assert "opportunity gap" in shown.stdout
    assert "classified as 'no'" in shown.stdout


def test_eval_of_a_debiased_model_counts_the_class_and_groups_of_its_run(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = [(draw.normal(), "fmx"[i % 3], 1 + int(draw.integers(2))) for i in range(240)]  # class 2 is the place of no other
    (tmp_path / "t.csv").write_text("a,s,y\n" + "".join(f"{a:.4f},{s},{y}\n" for a, s, y in rows))
    words = ("--data", tmp_path / "t.csv", "--label", "y", "--sensitive", "s", "--against", "x", "--positive", "2")
    done = theriac("debias", *words, "--method", "resampling", "--option", "epochs=2", "--out", tmp_path / "run", "--json")
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)["fairness"]["debiased"]
    again = json.loads(theriac("eval", tmp_path / "run", "--json").stdout)["fairness"]
    assert {name: again[name] for name in ("counts", "groups", "positive")} == {
        name: made[name] for name in ("counts", "groups", "positive")
    }
    assert again["classes"][again["positive"]] == "2"


def test_eval_refuses_a_positive_class_without_groups(table: Path) -> None:
    done = theriac("eval", table / "run", "--positive", "yes")
    assert done.exit_code == 2
    assert "name the column of the groups with --sensitive" in done.stderr


def test_all_rows_of_another_file_are_measured_and_those_of_the_own_test_part(table: Path) -> None:
    other = json.loads(theriac("eval", table / "run", "--data", table / "others.csv", "--label", "y", "--json").stdout)
    assert other["evaluation"]["acc"]["total"] == 120
    assert not [text for text in other["warnings"] if "held out" in text]
    words = ("--data", table / "others.csv", "--label", "y", "--data-option", "test_share=0.5", "--json")
    asked = json.loads(theriac("eval", table / "run", *words).stdout)
    assert asked["evaluation"]["acc"]["total"] == 60
    assert json.loads(theriac("eval", table / "run", "--json").stdout)["evaluation"]["acc"]["total"] == 120


def test_rows_of_one_class_are_measured_where_the_model_knows_the_others(table: Path) -> None:
    head, *lines = (table / "others.csv").read_text().splitlines()
    at = head.split(",").index("y")
    one = [row for row in lines if row.split(",")[at] == "yes"]
    (table / "one.csv").write_text("\n".join([head, *one]) + "\n")
    done = theriac("eval", table / "run", "--data", table / "one.csv", "--label", "y", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["evaluation"]["acc"]
    whole = json.loads(theriac("eval", table / "run", "--data", table / "others.csv", "--label", "y", "--json").stdout)
    assert found["total"] == len(one)
    assert found["hits"] <= whole["evaluation"]["acc"]["hits"] <= found["hits"] + len(lines) - len(one)
    with pytest.raises(th.InputError, match="holds one class only, 'yes'"):
        th.load(table / "one.csv", label="y")
    assert theriac("train", "--data", table / "one.csv", "--label", "y", "--out", table / "none").exit_code == 2


def test_clean_rows_that_are_test_rows_are_told(table: Path, tmp_path: Path) -> None:
    def told(source: Path, name: str) -> list[str]:
        words = ("--method", "ft", "--option", "epochs=1", "--clean-from", source, "--clean", "1.0", "--json")
        done = theriac("repair", table / "run", *words, "--out", tmp_path / name)
        assert done.exit_code == 0, done.output
        return [text for text in json.loads(done.stdout)["warnings"] if "test rows" in text]

    (text,) = told(table / "test.csv", "own")
    assert text.startswith("120 of the 120 clean rows are among the 120 test rows")
    assert told(table / "others.csv", "other") == []


def test_clean_rows_with_wrong_labels_are_told_and_right_ones_are_not(table: Path, tmp_path: Path) -> None:
    head, *lines = (table / "others.csv").read_text().splitlines()
    at = head.split(",").index("y")

    def swapped(row: str) -> str:
        cells = row.split(",")
        return ",".join([*cells[:at], "no" if cells[at] == "yes" else "yes", *cells[at + 1 :]])

    (table / "mislabeled.csv").write_text(
        "\n".join([head, *(swapped(r) if i % 3 == 0 else r for i, r in enumerate(lines))]) + "\n"
    )
    for name, many in (("others", 0), ("mislabeled", 1)):
        words = ("--method", "ft", "--option", "epochs=1", "--clean-from", table / f"{name}.csv", "--clean", "1.0", "--json")
        done = theriac("repair", table / "run", *words, "--out", tmp_path / name)
        assert done.exit_code == 0, done.output
        said = [text for text in json.loads(done.stdout)["warnings"] if "may be mislabeled" in text]
        assert len(said) == many, said


def test_clean_rows_of_a_table_do_not_go_with_pictures(victim: Path, table: Path, tmp_path: Path) -> None:
    done = theriac("repair", victim, "--method", "ft", "--clean-from", table / "test.csv", "--out", tmp_path / "x")
    assert done.exit_code == 2
    assert "a table; the model of 'digits' takes pictures" in done.stderr


# what a folder says


def test_a_lost_trigger_is_told(victim: Path, tmp_path: Path) -> None:
    shutil.copytree(victim, tmp_path / "run")
    (tmp_path / "run" / "planted.json").unlink()
    found = json.loads(theriac("eval", tmp_path / "run", "--json").stdout)
    assert found["evaluation"]["asr"] is None
    assert any("names an attack (badnets), but not its trigger" in text for text in found["warnings"])


def test_weights_that_changed_are_not_exported(victim: Path, tmp_path: Path) -> None:
    shutil.copytree(victim, tmp_path / "run")
    file = tmp_path / "run" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(th.InputError, match=r"is not the one that .*run\.json was written for"):
        th.export(tmp_path / "run", tmp_path / "out", "torch")
    assert not (tmp_path / "out").exists()


def test_the_card_of_a_victim_says_that_a_backdoor_was_planted(victim: Path, tmp_path: Path) -> None:
    th.export(victim, tmp_path / "out", "torch")
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert "A backdoor was planted while it was trained, by the attack badnets: 144 of 1438 training rows were stamped" in card


# files


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    draw, home = np.random.default_rng(0), tmp_path / "pictures"
    names = [f"train/a/s{k}/{i}.png" for k in (0, 1) for i in range(12)] + ["train/a/12_0.png"]
    for name in (
        *names,
        *(f"{part}/{c}/{i}.png" for part, c in (("train", "b"), ("test", "a"), ("test", "b")) for i in range(9)),
    ):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (8, 8), dtype=np.uint8)).save(home / name)
    return home


def files(folder: Path) -> Mapping[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def test_a_cleaned_copy_holds_every_other_file_in_its_place(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "cleaned"
    result = th.scan_data(pictures, detectors=["spectral"], recipe="short_1", run=th.Run(quiet=True), cleaned=out)
    dropped = {str(result.files[at].relative_to(pictures)) for at in result.flagged}
    every = files(pictures)
    assert files(out) == {name: content for name, content in every.items() if name not in dropped}
    assert len(every) == 52
    th.load(out)


def test_a_cleaned_copy_does_not_go_into_the_data(pictures: Path) -> None:
    with pytest.raises(th.InputError, match="which lies within the data"):
        th.scan_data(pictures, detectors=["spectral"], cleaned=pictures / "cleaned")
    assert th.load(pictures).card.classes == ("a", "b")


def test_two_folders_for_one_part_are_refused(pictures: Path) -> None:
    shutil.copytree(pictures / "train", pictures / "training")
    with pytest.raises(th.InputError, match="holds train and training, which both name the train part"):
        th.load(pictures)


def test_linked_folders_that_are_left_out_are_told(pictures: Path, tmp_path: Path) -> None:
    shutil.move(pictures / "train" / "a" / "s1", tmp_path / "elsewhere")
    (pictures / "train" / "a" / "s1").symlink_to(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match="1 linked folders below the classes of .* are left out"):
        data = th.load(pictures)
    assert len(data.train) == 22


def test_a_class_called_minus_one_stays_so_in_a_drop_list() -> None:
    from theriac.scanning.rows import _quoted

    assert [_quoted(text) for text in ("-1", "-1.5", "=1+1", "-x", "@a", "7", 3)] == [
        "-1",
        "-1.5",
        "'=1+1",
        "'-x",
        "'@a",
        "7",
        3,
    ]


def test_no_changes_to_pictures_and_some_do_not_go_together() -> None:
    done = theriac("train", "--data", "digits", "--augment", "none", "--augment", "flip=true")
    assert done.exit_code == 2
    assert "--augment none stands for no changes at all" in done.stderr
