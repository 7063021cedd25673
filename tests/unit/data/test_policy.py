from __future__ import annotations

from pathlib import Path

import pytest

import theriac as th

FLIPPED = {"cifar10", "cifar100", "fashion_mnist", "fairface", "tiny-imagenet"}


@pytest.mark.parametrize(("side", "pad"), [(6, 0), (8, 1), (16, 2), (23, 2), (24, 4), (28, 4), (32, 4), (48, 6), (64, 8)])
def test_crop_follows_the_side(tmp_path: Path, pixels, write_parquet, side: int, pad: int) -> None:
    path = write_parquet(tmp_path / "own.parquet", pixels(4, side=side), label=[0, 1, 0, 1])
    assert th.load(path).card.augment == th.Augment(crop_pad=pad)  # an unknown set is never flipped


@pytest.mark.parametrize("name", [n for n in th.data.names() if n not in ("digits", "adult", "german_credit")])
def test_flips_by_folder_name(tmp_path: Path, pixels, write_parquet, name: str) -> None:
    write_parquet(tmp_path / name / "train.parquet", pixels(4, side=32), label=[0, 1, 0, 1])
    assert th.load(tmp_path / name).card.augment == th.Augment(crop_pad=4, flip=name in FLIPPED)


def test_a_known_name_decides_and_the_caller_more_so(tmp_path: Path, pixels, write_parquet) -> None:
    path = write_parquet(tmp_path / "own.parquet", pixels(4, side=32), label=[0, 1, 0, 1])
    assert th.load(path, name="cifar10").card.augment.flip
    assert not th.load(path, name="my birds").card.augment.flip
    wish = th.Augment(rotation=10.0, pad_mode="reflect", crop_pad=2)
    assert th.load(path, name="cifar10", augment=wish).card.augment == wish
    write_parquet(tmp_path / "cifar10" / "train.parquet", pixels(4, side=32), label=[0, 1, 0, 1])
    renamed = th.load(tmp_path / "cifar10", name="first half")
    assert renamed.card.name == "first half"
    assert renamed.card.augment.flip
