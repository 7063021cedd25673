from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import theriac as th
from theriac.core.errors import InputError
from theriac.data import _tables

TRAIN = "age,race,label\n31,Black,no\n42,White,yes\n,White,no\n27,Black,yes\n"
TEST = "age,race,label\n20,Black,yes\n30,White,no\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.csv").write_text(TRAIN)
    (tmp_path / "test.csv").write_text(TEST)
    return tmp_path


BAD = {
    "ragged": ("x,label\n1,0\n2,1,9\n", {}, "t.csv is no regular CSV table: CSV parse error: .*Expected 2 columns, got 3"),
    "no names": ("1,2,0\n3,4,1\n", {}, "t.csv begins with '1,2,0'; expected a line of column names"),
    "one column": ("label\n1\n2\n", {}, "t.csv has 1 columns in its first line; expected 2"),
    "twice": ("x,x,label\n1,2,0\n", {}, "t.csv has two columns called 'x'"),
    "no rows": ("x,label\n", {}, "t.csv has no rows below its column names"),
    "empty": ("", {}, "t.csv has 0 columns in its first line"),
    "one class": ("x,label\n1,a\n2,a\n", {}, "label column 'label' holds one class only, 'a'"),
    "no label": ("x,label\n1,a\n2,?\n3,b\n", {}, "label column 'label' has no value in training row 1"),
    "fractions": ("x,label\n1,0.5\n2,1.5\n", {}, "label column 'label' holds fractions such as 0.5"),
    "no label column": (
        "x,z\n1,0\n2,1\n",
        {},
        r"t.csv has no column called label; name it with label= or --label \(columns: x, z\)",
    ),
    "unknown label": ("x,income\n1,a\n2,b\n", {"label": "incom"}, r"unknown column of t.csv 'incom'; did you mean 'income'\?"),
    "unknown sensitive": (
        "x,sex,label\n1,f,a\n2,m,b\n",
        {"sensitive": "sx"},
        "unknown column of t.csv 'sx'; did you mean 'sex'",
    ),
    "unknown drop": ("x,sex,label\n1,f,a\n2,m,b\n", {"drop": "seks"}, "unknown column of t.csv 'seks'; did you mean 'sex'"),
    "unknown categorical": ("x,label\n1,a\n2,b\n", {"categorical": "z"}, "unknown column of t.csv 'z'; known: label, x$"),
    "label dropped": ("x,label\n1,a\n2,b\n", {"drop": "label"}, "column 'label' is the label; it can't be in"),
    "nothing left": ("x,label\n1,a\n2,b\n1,a\n2,b\n", {"drop": "x"}, "no column is left as a feature of 't'"),
    "infinite": ("x,label\n1,a\ninf,b\n3,a\n4,b\n", {}, "column 'x' is inf in training row 1; expected finite numbers"),
    "too large": ("x,label\n1,a\n1e300,b\n3,a\n4,b\n", {}, r"column 'x' is 1e\+300 in training row 1; expected finite numbers"),
    "size": ("x,label\n1,a\n2,b\n", {"size": 8}, "size was given, but this is a table"),
    "one row each": ("x,label\n1,a\n2,b\n", {}, "2 rows are too few to hold any out for test"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables(tmp_path: Path, case: str) -> None:
    text, options, message = BAD[case]
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        th.load(tmp_path / "t.csv", **options)


def test_not_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"x,label\xff\xfe\n1,2\n")
    with pytest.raises(InputError, match=r"t.csv is not UTF-8 text"):
        th.load(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes(b"x,label\n" + b"1,2\n" * 5000 + b"\xff\xfe,2\n")
    with pytest.raises(InputError, match=r"t.csv is no regular CSV table"):
        th.load(tmp_path / "t.csv")


def test_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.csv").write_text("x,label\n" + "1,a\n2,b\n" * 50)
    pq.write_table(pa.table({"x": list(range(100)), "label": [0, 1] * 50}), tmp_path / "t.parquet")
    monkeypatch.setattr(_tables, "MAX_BYTES", 100)
    with pytest.raises(InputError, match=r"t.csv has 408 bytes; a CSV table may have 100"):
        th.load(tmp_path / "t.csv")
    with pytest.raises(InputError, match=r"t.parquet and its companions hold .* bytes; a table may have 100"):
        th.load(tmp_path / "t.parquet")


def test_a_nearly_numeric_column_is_a_mistake(tmp_path: Path) -> None:
    rows = "".join(f"{'n.a' if k == 17 else k},{k % 2}\n" for k in range(50))
    (tmp_path / "t.csv").write_text("x,label\n" + rows)
    with pytest.raises(InputError, match=r"column 'x' holds 49 numbers and 'n.a' in training row 17; correct it"):
        th.load(tmp_path / "t.csv")
    with pytest.warns(UserWarning, match="column 'x' has in 10 of 10 test rows a value that no training row has"):
        assert th.load(tmp_path / "t.csv", categorical="x").card.columns[0].kind == "categorical"


def test_text_among_the_numbers_of_test_rows(folder: Path) -> None:
    (folder / "test.csv").write_text(TEST.replace("20,", "old,"))
    with pytest.raises(InputError, match=r"column 'age' holds numbers in the training rows and 'old' in test row 0"):
        th.load(folder)


def test_free_text_and_continuous_labels(tmp_path: Path) -> None:
    rows = "".join(f"name {k},{k % 2},{k}\n" for k in range(200))
    (tmp_path / "t.csv").write_text("who,label,rent\n" + rows)
    with pytest.raises(InputError, match=r"column 'who' has 160 different values in 160 rows; it looks like an identifier"):
        th.load(tmp_path / "t.csv")
    with pytest.raises(InputError, match=r"label column 'rent' has 200 different values in 200 rows; it is no class label"):
        th.load(tmp_path / "t.csv", label="rent", drop="who")
    with pytest.raises(InputError, match=r"sensitive column 'rent' has 200 different values; expected at most 64"):
        th.load(tmp_path / "t.csv", sensitive="rent", drop="who")


def test_parts_with_other_columns_or_classes(folder: Path) -> None:
    (folder / "test.csv").write_text(TEST.replace("race", "color"))
    with pytest.raises(InputError, match=r"unknown column of the test part 'race'.*columns: age, color, label"):
        th.load(folder)
    (folder / "test.csv").write_text(TEST.replace("White,no", "White,maybe"))
    with pytest.raises(InputError, match=r"label column 'label' is 'maybe' in test row 1, and in no training row"):
        th.load(folder)


def test_dates_are_refused(tmp_path: Path) -> None:
    table = pa.table({"when": pa.array([0, 1, 2, 3] * 2, pa.timestamp("s")), "x": [1, 2] * 4, "label": [0, 0, 1, 1] * 2})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"column 'when' has type timestamp\[.*\]; expected numbers, text or booleans"):
        th.load(tmp_path / "t.parquet")
    assert len(th.load(tmp_path / "t.parquet", drop="when").card.columns) == 1


def test_numbers_in_other_spellings_are_told(tmp_path: Path) -> None:
    def load(values: list[str], separator: str = ",", **options: object) -> th.core.split.Data:
        rows = [f"{value}{separator}{('no', 'yes')[i % 2]}" for i, value in enumerate(values)]
        (tmp_path / "t.csv").write_text("\n".join([f"size{separator}label", *rows]) + "\n")
        return th.load(tmp_path / "t.csv", label="label", **options)

    with pytest.raises(InputError, match="'size' holds numbers with a comma for decimals; write them with a point"):
        load([f"{i},5" for i in range(40)], ";")
    for values in ([f"{i + 1},500" for i in range(40)], ["950", "1,200"] * 20, [f"{i + 1},500,000.25" for i in range(40)]):
        with pytest.raises(InputError, match="'size' holds numbers with a comma between thousands or for decimals"):
            load(values, ";")  # "1,500" with a point for its comma would be one and a half
    assert load(["950", "1,200", "1,200"] * 15, ";", categorical="size").card.columns[0].kind == "categorical"
    for value in ("${}", "{}%", "{} €"):
        with pytest.raises(InputError, match="'size' holds numbers with a sign, such as"):
            load([value.format(i % 30) for i in range(60)])
    assert load(["5%", "10%", "10%"] * 15).card.columns[0].kind == "categorical"  # a few steps are names
    with pytest.warns(UserWarning, match="'size' has 40 different numbers, of which float32 tells 1 apart"):
        assert load([str(2**60 + i) for i in range(40)]).card.columns[0].kind == "numeric"
    assert load(["1_000"] * 20 + ["2_000"] * 20).card.columns[0].kind == "categorical"
    (tmp_path / "t.csv").write_text("x" * 200_000 + ",label\n1,no\n")
    with pytest.raises(InputError, match=r"t\.csv is no regular CSV table"):
        th.load(tmp_path / "t.csv", label="label")
    with pytest.raises(InputError, match="drop is False; expected a column name"):
        load(["1"] * 40, drop=False)
