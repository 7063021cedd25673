"""Rows from frames, files and folders are matched by what they are called; models take what others hold."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import nn

import theriac as th
from theriac.core.errors import InputError
from theriac.debias import DwBClassifier
from theriac.scanning.rows import _rows_of


@pytest.fixture(scope="module")
def people() -> pd.DataFrame:
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"a": draw.normal(size=300), "b": draw.normal(size=300)}, index=[f"r{i}" for i in range(300)])
    frame["y"] = np.where(frame.a > 0, "yes", "no")
    frame["sex"] = np.where(frame.b > 0, "f", "m")
    return frame


# frames


def test_a_classifiers_rows_labels_and_groups_are_matched_by_index(people: pd.DataFrame) -> None:
    rows, y, sex = people[["a", "b"]], people.y, people.sex
    order = np.random.default_rng(1).permutation(len(people))
    fitted = LogisticRegression().fit(rows, y)
    same = th.fairness(fitted, rows, y_true=y, sensitive_features=sex, positive="yes")
    for labels, groups in ((y.iloc[order], sex), (y, sex.iloc[order]), (y.iloc[order], sex.iloc[order])):
        again = th.fairness(fitted, rows, y_true=labels, sensitive_features=groups, positive="yes")
        assert (again.acc, again.positive_rate) == (same.acc, same.positive_rate)
    with pytest.raises(InputError, match="can't be matched"):
        th.fairness(fitted, rows, y_true=y.to_numpy(), sensitive_features=sex.iloc[order])


def test_weights_of_a_score_are_matched_by_index(people: pd.DataFrame) -> None:
    rows, y = people[["a", "b"]], people.y
    fair = DwBClassifier(hidden=(8,), min_steps=20, teacher_epochs=1, student_epochs=2, random_state=0)
    fair.fit(rows, y, sensitive_features=people.sex)
    right = fair.predict(rows) == y
    weights = pd.Series(np.where(right, 1.0, 9.0), index=rows.index)
    wanted = right.sum() / weights.sum()
    assert fair.score(rows, y, sample_weight=weights.sample(frac=1, random_state=0)) == pytest.approx(wanted)


def test_labels_and_groups_of_other_indexes_beside_bare_rows_are_refused(people: pd.DataFrame) -> None:
    rows = people[["a", "b"]].to_numpy()
    with pytest.raises(InputError, match="y and sensitive_features have different indexes"):
        DwBClassifier().fit(rows, people.y, sensitive_features=people.sex.sample(frac=1, random_state=0))


def test_numbers_of_numpy_are_options() -> None:
    draw = np.random.default_rng(0)
    rows, sex = draw.normal(size=(80, 2)), draw.choice(["f", "m"], 80)
    options = {"min_steps": np.int64(5), "teacher_epochs": np.int64(1), "lr": np.float32(0.01), "batch_size": np.int32(16)}
    made = DwBClassifier(hidden=[np.int64(4)], student_epochs=1, random_state=0, **options)  # type: ignore[arg-type, list-item]
    assert made.fit(rows, np.where(rows[:, 0] > 0, 1, 0), sensitive_features=sex).predict(rows).shape == (80,)


def test_frames_bring_their_columns_and_labels_their_index(people: pd.DataFrame) -> None:
    rows = people.assign(c=np.where(people.a > 1, "high", "low"))[["a", "b", "c"]]
    train, test, order = rows[:200], rows[200:], np.random.default_rng(1).permutation(200)
    parts = {"x_train": train, "y_train": people.y[:200].iloc[order], "x_test": test[["c", "b", "a"]], "y_test": people.y[200:]}
    groups = {"group_train": people.sex[:200].iloc[order], "group_test": people.sex[200:]}
    data = th.load({**parts, **groups})
    assert [(c.name, c.categories) for c in data.card.columns] == [("a", ()), ("b", ()), ("c", ("high", "low"))]
    for split, frame in ((data.train, people[:200]), (data.test, people[200:])):
        assert np.allclose(split.x[:, :2].numpy(), frame[["a", "b"]].to_numpy(np.float32))
        assert [data.card.classes[k] for k in split.y] == frame.y.tolist()
        assert split.group is not None
        assert [data.card.groups[k] for k in split.group] == frame.sex.tolist()
    with pytest.raises(InputError, match="in training it had"):
        th.load({**parts, "x_test": test[["a", "b"]]})


# files


def parquet(folder: Path, **parts: dict[str, Any]) -> Path:
    folder.mkdir()
    for part, table in parts.items():
        pq.write_table(pa.table(table), folder / f"{part}.parquet")
    return folder


def test_a_number_in_one_file_and_its_text_in_another_are_one_value(tmp_path: Path) -> None:
    train = {"a": [1.0, 2, 3, 4], "city": ["1", "2", "1", "2"], "sex": ["1", "1", "2", "2"], "y": ["0", "1", "0", "1"]}
    test = {"a": [1.0, 2], "city": [2, 1], "sex": [2, 1], "y": [1, 0]}
    data = th.load(parquet(tmp_path / "t", train=train, test=test), label="y", sensitive="sex")
    assert (data.card.groups, data.card.classes) == (("1", "2"), ("0", "1"))
    assert data.test.group is not None
    assert (data.test.group.tolist(), data.test.y.tolist()) == ([1, 0], [1, 0])
    assert data.test.x[:, 1].tolist() == [1, 0]


def test_groups_that_no_training_row_has_are_told(tmp_path: Path) -> None:
    train = {"a": [1.0, 2, 3, 4], "sex": ["False", "True"] * 2, "y": ["0", "1", "0", "1"]}
    folder = parquet(tmp_path / "t", train=train, test={"a": [1.0, 2], "sex": ["0", "1"], "y": ["1", "0"]})
    with pytest.warns(UserWarning, match="holds 0, 1 in the test rows and False, True in the training rows"):
        th.load(folder, label="y", sensitive="sex", drop="sex")


def test_the_named_index_of_a_frame_is_no_feature(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": range(12), "y": [0, 1] * 6}, index=pd.Index([10, 11, 12] * 4, name="row"))
    frame.to_parquet(tmp_path / "t.parquet")
    with pytest.warns(UserWarning, match="'row' is the index of a pandas frame"):
        assert [c.name for c in th.load(tmp_path / "t.parquet", label="y").card.columns] == ["a"]
    assert len(th.load(tmp_path / "t.parquet", label="y", categorical="row").card.columns) == 2
    assert len(th.load(tmp_path / "t.parquet", label="y", drop="row").card.columns) == 1


def test_a_column_that_is_empty_in_the_test_rows_alone_is_told(tmp_path: Path) -> None:
    train = {"a": [1.0, 2, 3, 4], "b": [1.0, 2, 3, 4], "none": pa.nulls(4), "y": [0, 1, 0, 1]}
    test = {"a": pa.nulls(2, pa.float64()), "b": [1.0, 2], "none": pa.nulls(2), "y": [1, 0]}
    with pytest.warns(UserWarning, match="'a' has no value in any test row") as told:
        th.load(parquet(tmp_path / "t", train=train, test=test), label="y")
    assert len(told) == 1


def test_columns_may_be_called_inf_and_nan(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("inf,nan,y\n" + "".join(f"{k},{k % 3},{k % 2}\n" for k in range(12)))
    assert [c.name for c in th.load(tmp_path / "t.csv", label="y").card.columns] == ["inf", "nan"]


# folders


def picture(level: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8), level, np.uint8)).save(out, "PNG")
    return out.getvalue()


def in_folders(folder: Path, names: str = "ab", mode: str = "L") -> Path:
    for k, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for n in range(6):
            Image.fromarray(np.full((8, 8), 200 + 40 * k + n, np.uint8)).convert(mode).save(folder / name / f"{n}.png")
    return folder


def test_files_are_named_of_what_was_read_alone(tmp_path: Path) -> None:
    there = in_folders(tmp_path / "both")
    pictures = [{"bytes": picture(200 + k), "path": ""} for k in range(10)]
    pq.write_table(pa.table({"image": pictures, "label": [0, 1] * 5}), there / "train.parquet")
    rows, files, source = _rows_of(str(there), {})
    assert (len(rows), files, source) == (10, (), None)


def test_a_hub_folder_may_hold_pictures_beside_its_data(tmp_path: Path) -> None:
    there = in_folders(tmp_path / "hub")
    (there / "data").mkdir()
    pictures = [{"bytes": picture(200 + k), "path": ""} for k in range(10)]
    pq.write_table(pa.table({"image": pictures, "label": [0, 1] * 5}), there / "data" / "train-00000-of-00001.parquet")
    assert th.load(there).train.x.float().mean() > 190


def test_what_archives_of_macos_bring_along_is_no_class(tmp_path: Path) -> None:
    there = in_folders(tmp_path / "pets")
    (there / "__MACOSX" / "a").mkdir(parents=True)
    (there / "__MACOSX" / "a" / "._0.png").write_bytes(b"\0\5\26\7")
    assert th.load(there).card.classes == ("a", "b")


def test_gray_clean_pictures_serve_beside_colored_ones(tmp_path: Path) -> None:
    from theriac.scanning.rows import _clean_rows

    scanned = th.load(in_folders(tmp_path / "colored", mode="RGB")).joined()
    gray = str(in_folders(tmp_path / "gray"))
    assert _clean_rows(gray, "colored", {}, scanned).x.shape[1] == scanned.x.shape[1]


def test_a_folder_called_digits_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_folders(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match=r"the folder or file of that name here is \./digits"):
        assert th.load("digits").card.num_classes == 10
    assert th.load("./digits").card.num_classes == 2


# models


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.body(x)
        return out


def test_stored_bytes_are_no_input(digits: th.Data, trained: nn.Module) -> None:
    for model in (trained, th.adapt(Plain().eval(), card=digits.card)):
        with pytest.raises(InputError, match=r"x is torch\.uint8; .*to_input"):
            model(digits.test.x[:2])


def test_weights_that_were_all_made_half_are_taken(digits: th.Data, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\n\ndef make():\n"
        "    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 10))\n"
    )
    net = th.models.make_own(f"{tmp_path / 'nets.py'}:make")
    net[1].num_batches_tracked += 7  # type: ignore[index, operator]
    torch.save({k: v.half() for k, v in net.state_dict().items()}, tmp_path / "half.pt")
    opened = th.models.open_own(f"{tmp_path / 'nets.py'}:make", card=digits.card, weights=tmp_path / "half.pt")
    count = dict(opened.named_buffers())["net.1.num_batches_tracked"]
    assert (count.dtype, int(count)) == (torch.int64, 7)
    state = {k: v.half() for k, v in net.state_dict().items()} | {"1.num_batches_tracked": torch.tensor(7.5).half()}
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(InputError, match="types differ"):
        th.models.open_own(f"{tmp_path / 'nets.py'}:make", card=digits.card, weights=tmp_path / "odd.pt")


def test_no_warning_follows_a_plain_load() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert len(th.load("digits").train) == 1438
    assert told == []


class Counting(Plain):
    """A network that stays in training mode, whatever it is told, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def train(self, mode: bool = True) -> Counting:
        return super().train(True)  # type: ignore[return-value]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls = self.calls + 1
        return super().forward(x)


def test_measuring_leaves_statistics_and_counters_as_they_were(digits: th.Data) -> None:
    net = Counting()
    model = th.adapt(net, card=digits.card)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    first = th.evaluate(model, digits.test, run=th.Run(quiet=True))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert th.evaluate(model, digits.test, run=th.Run(quiet=True)).acc == first.acc
