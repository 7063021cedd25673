from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import theriac as th
from theriac.core.errors import InputError


def channels_first(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp"])
def test_rows_are_ordered_by_class_and_path(tmp_path: Path, pixels, write_folder, suffix: str) -> None:
    root = tmp_path / "zoo"
    write_folder(root / "train", {"tiger": pixels(3, seed=1), "ape": pixels(2, seed=2)}, suffix)
    write_folder(root / "test", {"ape": pixels(1, seed=3), "tiger": pixels(1, seed=4)}, suffix)
    (root / "train" / "ape" / "notes.txt").write_text("not a picture")
    (root / "train" / "ape" / ".hidden.png").write_text("not a picture")
    data = th.load(root)
    assert data.card.classes == ("ape", "tiger")
    assert data.train.y.tolist() == [0, 0, 1, 1, 1]
    assert torch.equal(data.train.x, channels_first(np.concatenate([pixels(2, seed=2), pixels(3, seed=1)])))
    assert torch.equal(data.test.x, channels_first(np.concatenate([pixels(1, seed=3), pixels(1, seed=4)])))
    assert data.card.name == "zoo"


def test_pictures_below_a_class_folder_count(tmp_path: Path, pixels, write_folder) -> None:
    write_folder(tmp_path / "z" / "train" / "n01", {"images": pixels(2, seed=1)})
    write_folder(tmp_path / "z" / "train" / "n02", {"images": pixels(2, seed=2)})
    write_folder(tmp_path / "z" / "val", {"n01": pixels(1, seed=3), "n02": pixels(1, seed=4)})
    data = th.load(tmp_path / "z")
    assert data.card.classes == ("n01", "n02")
    assert (len(data.train), len(data.test), data.val) == (4, 2, None)  # val without test is the test part


def test_all_three_parts(tmp_path: Path, pixels, write_folder) -> None:
    for k, part in enumerate(("Train", "valid", "test")):
        write_folder(tmp_path / "z" / part, {"a": pixels(2 + k), "b": pixels(1)})
    data = th.load(tmp_path / "z")
    assert data.val is not None
    assert (len(data.train), len(data.val), len(data.test)) == (3, 4, 5)


def test_without_a_test_folder_rows_are_drawn(tmp_path: Path, pixels, write_folder) -> None:
    root = write_folder(tmp_path / "z", {"a": pixels(10, seed=1), "b": pixels(20, seed=2)})
    every = channels_first(np.concatenate([pixels(10, seed=1), pixels(20, seed=2)]))
    data = th.load(root)
    assert data.test.count().tolist() == [2, 4]
    assert torch.equal(data.test.x, every[data.test.index])
    assert torch.equal(data.train.x, every[data.train.index])
    assert torch.equal(th.load(root).test.index, data.test.index)


def test_a_class_may_be_called_train(tmp_path: Path, pixels, write_folder) -> None:
    root = write_folder(tmp_path / "vehicles", {"train": pixels(4), "truck": pixels(4)})
    assert th.load(root).card.classes == ("train", "truck")


def test_stray_tables_do_not_hide_pictures(tmp_path: Path, pixels, write_folder) -> None:
    root = write_folder(tmp_path / "z", {"a": pixels(4), "b": pixels(4)})
    for place in (root, root / "a", root / "b"):
        (place / "meta.csv").write_text("file,label\nx,1\n")
    assert th.load(root).card.kind == "image"


def test_test_rows_from_another_folder(tmp_path: Path, pixels, write_folder) -> None:
    root = write_folder(tmp_path / "one", {"a": pixels(4), "b": pixels(4)})
    other = write_folder(tmp_path / "two", {"b": pixels(3, seed=8)})
    data = th.load(root, test=other)
    assert len(data.train) == 8
    assert data.test.y.tolist() == [1, 1, 1]
    assert torch.equal(data.test.x, channels_first(pixels(3, seed=8)))


def test_bad_folders(tmp_path: Path, pixels, write_folder) -> None:
    root = write_folder(tmp_path / "z", {"a": pixels(4), "b": pixels(4)})
    with pytest.raises(InputError, match=r"sensitive was given, but a folder of pictures has no columns"):
        th.load(root, sensitive="sex")
    (root / "c").mkdir()
    with pytest.raises(InputError, match=r"class folder .*c holds no picture \(\.png"):
        th.load(root)
    with pytest.raises(InputError, match=r"holds no data that we read; expected parquet or CSV files"):
        th.load(root / "c")
    write_folder(tmp_path / "y" / "train", {"a": pixels(2), "b": pixels(2)})
    write_folder(tmp_path / "y" / "test", {"a": pixels(2), "c": pixels(2)})
    with pytest.raises(InputError, match=r"the test part has a class folder 'c', and the training part has none"):
        th.load(tmp_path / "y")
    write_folder(tmp_path / "x", {"only": pixels(4)})
    with pytest.raises(InputError, match=r"class folder holds one class only, 'only'"):
        th.load(tmp_path / "x")
    write_folder(tmp_path / "w" / "test", {"a": pixels(2), "b": pixels(2)})
    with pytest.raises(InputError, match=r"holds test and no training part"):
        th.load(tmp_path / "w")


def test_an_unreadable_picture_is_named(tmp_path: Path, pixels, write_folder) -> None:
    root = write_folder(tmp_path / "z", {"a": pixels(4), "b": pixels(4)})
    broken = root / "b" / "002.png"
    broken.write_bytes(broken.read_bytes()[:50])
    with pytest.raises(InputError, match=r"b.002\.png is not a readable picture .*truncated or damaged"):
        th.load(root)


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere/data does not exist; expected a folder, a file, or a name"):
        th.load("nowhere/data")
    with pytest.raises(InputError, match=r"unknown data set 'cifra10'; did you mean 'cifar10'"):
        th.load("cifra10")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=r"notes.txt is not a kind of file that we read; expected .parquet, .csv"):
        th.load(tmp_path / "notes.txt")
    with pytest.raises(InputError, match=r"source is a int; expected a name, a path, \(x, y\) or a mapping"):
        th.load(7)


def test_a_pipe_among_the_pictures_is_refused_before_it_is_read(tmp_path: Path, pixels, write_folder) -> None:
    write_folder(tmp_path, {"cat": pixels(2), "dog": pixels(2)})
    os.mkfifo(tmp_path / "dog" / "zz.png")
    with pytest.raises(InputError, match=r"zz\.png is no regular file"):
        th.load(tmp_path)


def test_pictures_of_other_kinds_are_told(tmp_path: Path, pixels, write_folder) -> None:
    write_folder(tmp_path, {"cat": pixels(10), "dog": pixels(10)})
    for i in range(3):
        (tmp_path / "cat" / f"{i}.gif").write_bytes(b"GIF89a")
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    with pytest.warns(UserWarning, match=r"3 pictures in .* are left out \(such as \d\.gif\); only"):
        assert len(th.load(tmp_path).train) == 16


def test_a_test_part_without_a_training_part_is_no_class(tmp_path: Path, pixels, write_folder) -> None:
    write_folder(tmp_path, {"cat": pixels(3), "dog": pixels(3)})
    write_folder(tmp_path / "test", {"cat": pixels(3), "dog": pixels(3)})
    with pytest.raises(InputError, match="test holds class folders, but there is no training part beside it"):
        th.load(tmp_path)


def test_file_names_need_not_be_utf8_but_classes_must(tmp_path: Path, pixels, write_folder) -> None:
    write_folder(tmp_path, {"cat": pixels(10), "dog": pixels(10)})
    one = next((tmp_path / "cat").iterdir())
    os.rename(one, os.fsencode(tmp_path / "cat") + b"/caf\xe9.png")
    assert len(th.load(tmp_path).train) == 16
    os.rename(tmp_path / "dog", os.fsencode(tmp_path) + b"/h\xfcnd")
    with pytest.raises(InputError, match="has a name that is no readable text"):
        th.load(tmp_path)
