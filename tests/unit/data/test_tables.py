from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import theriac as th
from theriac.core.card import Column
from theriac.core.errors import InputError
from theriac.core.split import Split

NAN = math.nan

TRAIN = """age,job,sex,race,score,label
31, clerk,F,Black,1.5,no
42,miner,M,White,?,yes
,clerk,F,White,2.5,no
27,?,F,Black,-1e2,yes
55,smith,M,White,NaN,no
61,clerk,M,Black,0,yes
"""
TEST = """age,job,sex,race,score,label
20,miner,M,Black,1,yes
30,baker,F,White,nan,no
"""


def column(split: Split, name: str) -> list[float]:
    names = [c.name for c in split.card.columns]
    return split.x[:, names.index(name)].tolist()


def same(one: list[float], two: list[float]) -> bool:
    return len(one) == len(two) and all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(one, two, strict=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "people"
    root.mkdir()
    (root / "train.csv").write_text(TRAIN)
    (root / "test.csv").write_text(TEST)
    return root


A_BAKER = pytest.mark.filterwarnings("ignore:column 'job' has in 1 of 2 test rows a value")  # no training row is one


def test_types_codes_and_missing_values(folder: Path) -> None:
    with pytest.warns(UserWarning, match="'job' has in 1 of 2 test rows a value that no training row has, such as 'baker'"):
        data = th.load(folder)
    assert data.card.kind == "table"
    assert data.card.name == "people"
    assert data.card.classes == ("no", "yes")
    assert data.card.columns == (
        Column(name="age"),
        Column(name="job", kind="categorical", categories=("clerk", "miner", "smith")),
        Column(name="sex", kind="categorical", categories=("F", "M")),
        Column(name="race", kind="categorical", categories=("Black", "White")),
        Column(name="score"),
    )
    assert data.train.x.dtype == torch.float32
    assert same(column(data.train, "age"), [31, 42, NAN, 27, 55, 61])
    assert same(column(data.train, "job"), [0, 1, 0, NAN, 2, 0])
    assert same(column(data.train, "score"), [1.5, NAN, 2.5, -100, NAN, 0])
    assert data.train.y.tolist() == [0, 1, 0, 1, 0, 1]
    assert same(column(data.test, "job"), [1, NAN])  # no training row is a baker
    assert same(column(data.test, "score"), [1, NAN])
    assert data.card.content_hash == data.train.content_hash()


@A_BAKER
def test_sensitive_columns_make_cells_and_stay_features(folder: Path) -> None:
    data = th.load(folder, sensitive=["sex", "race"])
    assert data.card.groups == ("F & Black", "F & White", "M & Black", "M & White")
    assert data.train.group is not None
    assert data.test.group is not None
    assert data.train.group.tolist() == [0, 3, 1, 0, 3, 2]
    assert data.test.group.tolist() == [2, 1]
    assert {"sex", "race"} <= {c.name for c in data.card.columns}
    assert [c.name for c in th.load(folder, sensitive="sex", drop=["sex", "score"]).card.columns] == ["age", "job", "race"]


@A_BAKER
def test_missing_sensitive_values_are_refused_or_a_cell_if_asked_for(folder: Path) -> None:
    with pytest.raises(InputError, match=r"'job' has no value in 1 of 8 rows.*missing_group='own'"):
        th.load(folder, sensitive="job")
    data = th.load(folder, sensitive="job", missing_group="own")
    assert data.card.groups == ("baker", "clerk", "miner", "smith", "missing")
    assert data.train.group is not None
    assert data.train.group.tolist() == [1, 2, 1, 4, 3, 1]


def test_the_draw_does_not_depend_on_the_sensitive_column(tmp_path: Path) -> None:
    rows = "".join(f"{k},{'fm'[k % 3 > 0]},{'ab'[k % 5 > 0]},{k % 2}\n" for k in range(60))
    (tmp_path / "t.csv").write_text("x,sex,race,label\n" + rows)
    drawn = [th.load(tmp_path / "t.csv", sensitive=s, val_share=0.1) for s in (None, "sex", "race", ["sex", "race"])]
    for data in drawn[1:]:
        assert torch.equal(data.test.index, drawn[0].test.index)
        assert torch.equal(data.train.index, drawn[0].train.index)


@A_BAKER
def test_another_label_column(folder: Path) -> None:
    data = th.load(folder, label="sex")
    assert data.card.classes == ("F", "M")
    assert data.train.y.tolist() == [0, 1, 0, 0, 1, 1]
    assert "label" in [c.name for c in data.card.columns]


def test_numbers_as_categories(tmp_path: Path) -> None:
    rows = "".join(f"{z},{k},{k % 2}\n" for k, z in enumerate([10, 9, 10, 200, 9, 10, 9, 200, 10, 9]))
    (tmp_path / "t.csv").write_text("zone,x,label\n" + rows)
    assert th.load(tmp_path / "t.csv").card.columns[0] == Column(name="zone")
    coded = th.load(tmp_path / "t.csv", categorical="zone", test_share=0.2)
    assert coded.card.columns[0] == Column(name="zone", kind="categorical", categories=("9", "10", "200"))
    assert set(column(coded.train, "zone")) <= {0.0, 1.0, 2.0}


@pytest.mark.filterwarnings("ignore:column 'name' has in")
def test_categories_are_fitted_on_the_training_rows_of_a_drawn_split(tmp_path: Path) -> None:
    rows = "".join(f"only{k},{k % 2}\n" for k in range(40))  # every row has a category of its own
    (tmp_path / "t.csv").write_text("name,label\n" + rows)
    data = th.load(tmp_path / "t.csv", val_share=0.2)
    assert data.val is not None
    assert set(data.card.columns[0].categories) == {f"only{i}" for i in data.train.index.tolist()}
    assert data.test.x.isnan().all()
    assert data.val.x.isnan().all()
    assert not data.train.x.isnan().any()


def test_a_single_file_is_split_by_class_and_seed(tmp_path: Path) -> None:
    rows = "".join(f"{k},{'rare' if k % 10 == 0 else 'common'}\n" for k in range(200))
    (tmp_path / "t.csv").write_text("x,label\n" + rows)
    data = th.load(tmp_path / "t.csv", seed=5)
    assert data.test.count().tolist() == [36, 4]
    assert torch.equal(data.test.x[:, 0], data.test.index.float())
    assert torch.equal(data.test.index, th.load(tmp_path / "t.csv", seed=5).test.index)
    assert not torch.equal(data.test.index, th.load(tmp_path / "t.csv", seed=6).test.index)


def test_parquet_tables(tmp_path: Path, folder: Path) -> None:
    table = {
        "age": pa.array([31, 42, None, 27], pa.int64()),
        "job": pa.array([" clerk", "miner", "?", "clerk"], pa.large_string()),
        "tax": pa.array([1.5, float("nan"), None, 2.0]),
        "code": pa.array(["07", "8", "07", "8"]),  # text stays text
        "kind": pa.array(["a", "b", "a", "b"]).dictionary_encode(),
        "flag": pa.array([True, False, None, True]),
        "none": pa.nulls(4),
        "__index_level_0__": pa.array([5, 6, 7, 8]),
        "label": pa.array([1, 0, 1, 0], pa.int8()),
    }
    root = tmp_path / "tab"
    root.mkdir()
    pq.write_table(pa.table(table), root / "train-00000-of-00001.parquet")
    pq.write_table(pa.table(table).slice(0, 3), root / "test-00000-of-00001.parquet")
    data = th.load(root)
    assert [(c.name, c.categories) for c in data.card.columns] == [
        ("age", ()),
        ("job", ("clerk", "miner")),
        ("tax", ()),
        ("code", ("07", "8")),
        ("kind", ("a", "b")),
        ("flag", ("False", "True")),
        ("none", ()),
    ]
    assert same(column(data.train, "age"), [31, 42, NAN, 27])
    assert same(column(data.train, "job"), [0, 1, NAN, 0])
    assert same(column(data.train, "tax"), [1.5, NAN, NAN, 2.0])
    assert same(column(data.test, "flag"), [1, 0, NAN])
    assert data.card.classes == ("0", "1")


def test_declared_names_of_code_columns(tmp_path: Path) -> None:
    names = '{"info": {"features": {"race": {"_type": "ClassLabel", "names": ["White", "Black", "Other"]}}}}'
    table = pa.table({"race": [1, 0, 1, 0], "x": [1.0, 2.0, 3.0, 5.0], "label": [0, 1, 1, 0]})
    pq.write_table(table.replace_schema_metadata({"huggingface": names}), tmp_path / "t.parquet")
    data = th.load(tmp_path / "t.parquet", sensitive="race", test_share=0.5)
    assert data.card.columns[0] == Column(name="race", kind="categorical", categories=("White", "Black", "Other"))
    assert data.card.groups == ("White", "Black", "Other")


def test_a_column_that_repeats_the_label_is_left_out_with_a_warning(tmp_path: Path) -> None:
    rows = "".join(f"{k},{'good' if k % 3 else 'bad'},{k % 3 and 1},{k % 5 and 1}\n" for k in range(60))
    (tmp_path / "t.csv").write_text("x,credit,label,other\n" + rows)
    with pytest.warns(UserWarning, match=r"columns \['credit'\] repeat the label one to one and are left out"):
        data = th.load(tmp_path / "t.csv")
    assert [c.name for c in data.card.columns] == ["x", "other"]
    assert [c.name for c in th.load(tmp_path / "t.csv", drop="credit").card.columns] == ["x", "other"]
    assert [c.name for c in th.load(tmp_path / "t.csv", drop=()).card.columns] == ["x", "credit", "other"]
    assert "credit" in [c.name for c in th.load(tmp_path / "t.csv", sensitive="credit").card.columns]
    with pytest.warns(UserWarning, match=r"columns \['credit'\] repeat the label"):
        assert [c.name for c in th.load(tmp_path / "t.csv", drop="other").card.columns] == ["x"]


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_other_delimiters_quotes_and_byte_order_marks(tmp_path: Path, delimiter: str) -> None:
    lines = ['x,"job, past",label', '1,"a ""b""",0', '2,"c",1', '3,"c",0', '4,"c",1']
    text = "\ufeff" + "\r\n".join(lines).replace(",", delimiter).replace(f'"job{delimiter} past"', '"job, past"')
    path = tmp_path / ("t.tsv" if delimiter == "\t" else "t.csv")
    path.write_bytes(text.encode())
    data = th.load(path, test_share=0.5)
    assert [c.name for c in data.card.columns] == ["x", "job, past"]


def test_row_numbers_that_pandas_wrote_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(",x,label\n0,5,a\n1,6,b\n2,7,a\n3,8,b\n")
    assert [c.name for c in th.load(tmp_path / "t.csv").card.columns] == ["x"]


@A_BAKER
def test_a_model_learns_from_loaded_rows(tmp_path: Path) -> None:
    """The columns' codes are what TablePrep expects: one-hot width and all-zero for the unknown."""
    from theriac.models.network import TablePrep

    (tmp_path / "train.csv").write_text(TRAIN)
    (tmp_path / "test.csv").write_text(TEST)
    data = th.load(tmp_path)
    prep = TablePrep.fit(data.train)
    out = prep(data.test.x)
    assert out.shape == (2, 2 + 3 + 2 + 2)
    assert not out.isnan().any()
    assert out[1, 2:5].tolist() == [0, 0, 0]


def test_names_that_read_alike_are_told_once(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,c,g,label\n" + "\n".join(f"{n},{'xXy'[n % 3]},{'fm'[n % 2]},{n % 4 // 2}" for n in range(40)))
    with pytest.warns(
        UserWarning, match="^column 'c' holds categories that read alike; 'X' and 'x' differ only in upper"
    ) as caught:
        th.load(path, label="label", sensitive="g")
    assert len(caught) == 1
    accents = (chr(233), "e" + chr(769), "z")
    path.write_text("a,g,label\n" + "\n".join(f"{n},{'fFm'[n % 3]},{accents[n // 3 % 3]}" for n in range(60)), encoding="utf-8")
    groups = pytest.warns(UserWarning, match="^the data hold groups that read alike; 'F' and 'f'")  # not again as a column
    with (
        groups,
        pytest.warns(UserWarning, match="^the data hold classes that read alike; .* differ only in Unicode form; each"),
    ):
        th.load(path, label="label", sensitive="g")
