from __future__ import annotations

import sys
import types
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch

import theriac as th
from theriac.core.errors import InputError
from theriac.data.loading import check_name


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """A stand-in for huggingface_hub that serves a local folder as the snapshot of every repository."""

    def serve(folder: Path | Exception) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def snapshot_download(repo_id: str, *, repo_type: str, allow_patterns: list[str]) -> str:
            calls.append({"repo_id": repo_id, "repo_type": repo_type, "allow_patterns": allow_patterns})
            if isinstance(folder, Exception):
                raise folder
            snapshot = tmp_path / "hub" / ("c0ffee" * 7)[:40]
            for path in sorted(folder.rglob("*")):
                name = path.relative_to(folder)
                if path.is_file() and any(fnmatch(str(name), p) for p in allow_patterns):
                    (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
                    (snapshot / name).write_bytes(path.read_bytes())
            snapshot.mkdir(parents=True, exist_ok=True)
            return str(snapshot)

        module = types.ModuleType("huggingface_hub")
        module.snapshot_download = snapshot_download  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "huggingface_hub", module)
        return calls

    return serve


def test_pictures_by_name(tmp_path: Path, hub, pixels, write_parquet) -> None:
    names = {"fine_label": ["apple", "bear"], "coarse_label": ["fruit", "animal"]}
    columns = {"fine_label": [0, 1, 0, 1], "coarse_label": [0, 1, 0, 1], "names": names, "column": "img"}
    for part in ("train", "test"):
        write_parquet(tmp_path / "repo" / "cifar100" / f"{part}-00000-of-00001.parquet", pixels(4, side=32), **columns)
    write_parquet(tmp_path / "repo" / "other" / "train-00000-of-00001.parquet", pixels(4), **columns)
    calls = hub(tmp_path / "repo")
    data = th.load("CIFAR-100")
    assert calls == [{"repo_id": "uoft-cs/cifar100", "repo_type": "dataset", "allow_patterns": ["cifar100/*.parquet"]}]
    assert data.card.name == "cifar100"
    assert data.card.classes == ("apple", "bear")
    assert data.card.augment == th.Augment(crop_pad=4, flip=True)
    assert data.card.source == f"hub: uoft-cs/cifar100@{('c0ffee' * 7)[:40]}"
    assert torch.equal(data.train.x, torch.from_numpy(pixels(4, side=32).transpose(0, 3, 1, 2).copy()))


def test_a_set_of_mixed_sizes_has_its_usual_size(tmp_path: Path, hub, pixels, write_parquet) -> None:
    for part in ("train", "test", "contrast"):
        images = [*pixels(2, side=20), *pixels(2, side=41)]
        write_parquet(tmp_path / "repo" / "data" / f"{part}-00000-of-00001.parquet", images, label=[0, 1, 0, 1])
    hub(tmp_path / "repo")
    data = th.load("gtsrb")
    assert data.card.size == (32, 32)
    assert data.card.augment == th.Augment(crop_pad=4, flip=False)
    assert th.load("gtsrb", size=48).card.size == (48, 48)
    assert (len(data.train), len(data.test)) == (4, 4)


def test_a_table_by_name(tmp_path: Path, hub) -> None:
    (tmp_path / "repo").mkdir()
    rows = "".join(
        f"{20 + k},{'?' if k == 3 else 'Private'},{'Male' if k % 3 else 'Female'},{'>50K' if k % 2 else '<=50K'}\n"
        for k in range(40)
    )
    (tmp_path / "repo" / "adult.csv").write_text("age,workclass,sex,income\n" + rows)
    (tmp_path / "repo" / "stray.csv").write_text("a,b\n1,2\n")
    hub(tmp_path / "repo")
    data = th.load("adult", sensitive="sex")
    assert data.card.classes == ("<=50K", ">50K")
    assert data.card.groups == ("Female", "Male")
    assert [c.name for c in data.card.columns] == ["age", "workclass", "sex"]
    assert (len(data.train), len(data.test)) == (32, 8)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        InputError, match=r"mnist is downloaded by the hub extra: pip install 'theriac\[hub\]', or pass a local copy"
    ):
        th.load("mnist")


def test_without_the_network(hub) -> None:
    hub(ConnectionError("Name or service not known"))
    with pytest.raises(
        InputError, match=r"could not be downloaded from .*zh-plus/tiny-imagenet \(ConnectionError: Name or"
    ) as caught:
        th.load("tiny-imagenet")
    assert "pass a local copy" in str(caught.value)


def test_a_repository_that_changed(tmp_path: Path, hub) -> None:
    (tmp_path / "repo").mkdir()
    hub(tmp_path / "repo")
    with pytest.raises(
        InputError, match=r"the hub repository ylecun/mnist holds no mnist/\*.parquet any more; pass a local copy"
    ):
        th.load("mnist")


def test_a_set_without_repository() -> None:
    with pytest.raises(InputError, match=r"german_credit has no copy on the hub that we read; get it from the UCI repository"):
        th.load("german_credit")


def test_local_copies_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub, pixels, write_parquet) -> None:
    calls = hub(ConnectionError("never asked"))
    write_parquet(tmp_path / "sets" / "fashion_mnist" / "train.parquet", pixels(8, channels=1, side=28), label=[0, 1] * 4)
    monkeypatch.setenv("THERIAC_DATA", str(tmp_path / "sets"))
    data = th.load("fashion_mnist")
    assert not calls
    assert data.card.name == "fashion_mnist"
    assert data.card.augment == th.Augment(crop_pad=4, flip=True)
    assert data.card.license == "MIT"
    here = th.load(tmp_path / "sets" / "fashion_mnist")
    assert here.card.augment.flip
    assert here.card.content_hash == data.card.content_hash


def test_names_are_suggested() -> None:
    assert {"digits", "cifar10", "cifar100", "mnist", "svhn", "gtsrb", "tiny-imagenet", "adult"} <= set(th.data.names())
    with pytest.raises(InputError, match=r"unknown data set 'fashon_mnist'; did you mean 'fashion_mnist'"):
        th.load("fashon_mnist")


def test_any_folder_on_the_shelf_is_taken_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THERIAC_DATA", str(tmp_path))
    (tmp_path / "mine_50").mkdir()
    (tmp_path / "mine_50" / "train.csv").write_text("a,label\n" + "\n".join(f"{i},{i % 2}" for i in range(20)))
    data = th.load("mine_50", label="label")
    assert (data.card.name, len(data.train) + len(data.test)) == ("mine_50", 20)
    check_name("mine_50")
    with pytest.raises(InputError, match="unknown data set 'mine_51'"):
        check_name("mine_51")
    with pytest.raises(InputError, match="unknown data set 'mine_51'"):
        th.load("mine_51")
