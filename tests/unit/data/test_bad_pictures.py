from __future__ import annotations

import io
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import theriac as th
from theriac.core.errors import InputError


@pytest.mark.parametrize(
    ("labels", "names", "text"),
    [
        ([0, 0, 0, 0], None, "label column 'label' holds one class only, 0"),
        ([0, 1, None, 1], None, "label column 'label' has no value in training row 2"),
        ([0.5, 1.0, 2.0, 0.5], None, "label column 'label' holds fractions such as 0.5"),
        ([0, 1, 2, 1], ["a", "b"], "label column 'label' holds 2; the declared names are for 0 to 1"),
        ([0, 1, -1, 1], ["a", "b"], r"label column 'label' holds -1 \(-1 marks rows without a label\)"),
        ([[0], [1], [0], [1]], None, "column 'label' has type list<.*>; expected text, whole numbers or booleans"),
    ],
)
def test_bad_labels(tmp_path: Path, pixels, write_parquet, labels, names, text: str) -> None:
    path = write_parquet(tmp_path / "set.parquet", pixels(4), label=labels, names=names and {"label": names})
    with pytest.raises(InputError, match=text):
        th.load(path)


def test_a_label_that_only_test_rows_have(tmp_path: Path, pixels, write_parquet) -> None:
    write_parquet(tmp_path / "s" / "train.parquet", pixels(2), label=["a", "b"])
    write_parquet(tmp_path / "s" / "test.parquet", pixels(2), label=["a", "c"])
    with pytest.raises(InputError, match=r"label column 'label' is 'c' in test row 1, and in no training row"):
        th.load(tmp_path / "s")


def test_an_empty_part(tmp_path: Path, pixels, write_parquet) -> None:
    write_parquet(tmp_path / "s" / "train.parquet", pixels(2), label=[0, 1])
    write_parquet(tmp_path / "s" / "test.parquet", [], label=pa.array([], pa.int64()))
    with pytest.raises(InputError, match=r"the test part of 's' is empty"):
        th.load(tmp_path / "s")


def test_a_part_without_training_rows(tmp_path: Path, pixels, write_parquet) -> None:
    write_parquet(tmp_path / "s" / "test.parquet", pixels(2), label=[0, 1])
    with pytest.raises(InputError, match=r"holds a test part and no training part"):
        th.load(tmp_path / "s")


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda b: b[: len(b) // 2], "bad.parquet row 4 is not a readable picture .*truncated or damaged"),
        (lambda b: b"hello", "bad.parquet row 4 is not a readable picture .not one of PNG, JPEG"),
        (lambda b: b"", "bad.parquet row 4 is not a readable picture"),
        (lambda b: None, r"bad.parquet row 4 holds no picture \(no bytes\)"),
        (lambda b: b"GIF89a" + b[6:], "bad.parquet row 4 is not a readable picture"),
    ],
)
def test_an_unreadable_picture_is_named(tmp_path: Path, cache: Path, pixels, encode, write_parquet, spoil, text: str) -> None:
    blobs = [encode(i) for i in pixels(6)]
    blobs[4] = spoil(blobs[4])
    path = write_parquet(tmp_path / "bad.parquet", blobs, label=[0, 1] * 3)
    with pytest.raises(InputError, match=text):
        th.load(path)
    assert not list(cache.glob("*.npy"))  # nothing half written
    assert not list(cache.glob(".*"))


def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path: Path, write_parquet) -> None:
    sink = io.BytesIO()
    Image.new("1", (16_000, 16_000)).save(sink, "PNG")
    path = write_parquet(tmp_path / "bomb.parquet", [sink.getvalue()] * 4, label=[0, 1, 0, 1])
    with pytest.raises(InputError, match=r"bomb.parquet row 0 is larger than 64,000,000 pixels"):
        th.load(path, size=8)


def test_an_unreadable_file_is_named(tmp_path: Path, pixels, write_parquet) -> None:
    path = write_parquet(tmp_path / "whole.parquet", pixels(8), label=[0, 1] * 4)
    bad = tmp_path / "cut.parquet"
    bad.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=re.escape(str(bad)) + " is not a readable parquet file .*truncated or damaged"):
        th.load(bad)
    bad.write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"is not a readable parquet file"):
        th.load(bad)


def test_companion_files_must_agree(tmp_path: Path, pixels, write_parquet) -> None:
    write_parquet(tmp_path / "s" / "train-0.parquet", pixels(2), label=[0, 1])
    write_parquet(tmp_path / "s" / "train-1.parquet", pixels(2), target=[0, 1])
    with pytest.raises(InputError, match=r"unknown column of train-1.parquet 'label'; known: image, target$"):
        th.load(tmp_path / "s")


def test_tables_options_are_refused(tmp_path: Path, pixels, write_parquet) -> None:
    path = write_parquet(tmp_path / "s.parquet", pixels(4), label=[0, 1, 0, 1])
    with pytest.raises(InputError, match=r"categorical was given, but this is a set of pictures"):
        th.load(path, categorical="label")


def test_plain_parquet_of_pixels_in_lists_is_refused_clearly(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [[1, 2]] * 6, "label": [0, 1] * 3}), tmp_path / "l.parquet")
    with pytest.raises(InputError, match=r"column 'image' has type list<.*>; expected numbers, text or booleans"):
        th.load(tmp_path / "l.parquet")
