from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import theriac as th
from theriac.core.errors import InputError


def channels_first(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2).copy())


@pytest.fixture
def two_parts(tmp_path: Path, pixels, write_parquet) -> tuple[Path, np.ndarray, np.ndarray]:
    """Seven training rows over two files and four test rows, with declared names and two sensitive columns."""
    train, test = pixels(7, seed=1), pixels(4, seed=2)
    root = tmp_path / "birds"
    names = {"label": ["duck", "goose"], "sex": ["f", "m"]}
    write_parquet(
        root / "train-00001-of-00002.parquet", train[4:], label=[0, 1, 0], sex=[1, 0, 0], place=["x", "y", "x"], names=names
    )
    write_parquet(
        root / "train-00000-of-00002.parquet", train[:4], label=[1, 0, 1, 1], sex=[0, 1, 1, 1], place=["y"] * 4, names=names
    )
    write_parquet(
        root / "test-00000-of-00001.parquet",
        test,
        label=[0, 1, 1, 0],
        sex=[0, 1, 0, 1],
        place=["x", "x", "y", "y"],
        names=names,
    )
    return root, train, test


def test_rows_come_in_the_order_of_the_sorted_files(two_parts) -> None:
    root, train, test = two_parts
    data = th.load(root)
    assert torch.equal(data.train.x, channels_first(train))
    assert torch.equal(data.test.x, channels_first(test))
    assert data.train.y.tolist() == [1, 0, 1, 1, 0, 1, 0]
    assert data.train.index.tolist() == list(range(7))
    assert data.card.classes == ("duck", "goose")
    assert data.card.name == "birds"
    assert data.train.group is None
    assert data.card.content_hash == data.train.content_hash()


def test_sensitive_columns_become_groups(two_parts) -> None:
    root, *_ = two_parts
    data = th.load(root, sensitive="sex")
    assert data.card.groups == ("f", "m")
    assert data.train.group is not None
    assert data.train.group.tolist() == [0, 1, 1, 1, 1, 0, 0]
    cells = th.load(str(root), sensitive=["sex", "place"])
    assert cells.card.groups == ("f & x", "f & y", "m & x", "m & y")
    assert cells.train.group is not None
    named = [cells.card.groups[g] for g in cells.train.group.tolist()]
    assert named == ["f & y", "m & y", "m & y", "m & y", "m & x", "f & y", "f & x"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "PPM"])
def test_formats_agree_with_pillow(tmp_path: Path, pixels, encode, write_parquet, kind: str) -> None:
    blobs = [encode(image, kind) for image in pixels(6, side=16)]
    path = write_parquet(tmp_path / "set.parquet", blobs, label=[0, 1, 0, 1, 0, 1], struct=False, column="photo")
    expected = np.stack([np.asarray(Image.open(io.BytesIO(b)).convert("RGB")) for b in blobs])
    data = th.load(path, test_share=0.5)
    for split in (data.train, data.test):
        assert torch.equal(split.x, channels_first(expected)[split.index])


def test_validation_files_are_val_beside_a_test_part_and_test_without_one(tmp_path: Path, pixels, write_parquet) -> None:
    root = tmp_path / "set"
    for part, rows in (("train", 4), ("validation", 2)):
        write_parquet(root / "data" / f"{part}-00000-of-00001.parquet", pixels(rows), label=[0, 1] * (rows // 2))
    data = th.load(root)
    assert (len(data.train), len(data.test), data.val) == (4, 2, None)
    write_parquet(root / "data" / "test-00000-of-00001.parquet", pixels(6), label=[0, 1] * 3)
    write_parquet(root / "data" / "extra-00000-of-00001.parquet", pixels(8), label=[0, 1] * 4)
    data = th.load(root)
    assert data.val is not None
    assert (len(data.train), len(data.test), len(data.val)) == (4, 6, 2)


def test_folders_named_after_parts(tmp_path: Path, pixels, write_parquet) -> None:
    for part, rows in (("train", 4), ("test", 2)):
        write_parquet(tmp_path / "set" / "default" / part / "0000.parquet", pixels(rows), label=[0, 1] * (rows // 2))
    data = th.load(tmp_path / "set")
    assert (len(data.train), len(data.test)) == (4, 2)


def test_test_rows_from_elsewhere(tmp_path: Path, pixels, write_parquet) -> None:
    one = write_parquet(tmp_path / "a.parquet", pixels(4), label=[0, 1, 0, 1])
    two = write_parquet(tmp_path / "b" / "train.parquet", pixels(2, seed=5), label=[1, 0])
    for test in (two, two.parent):
        data = th.load(one, test=test)
        assert len(data.train) == 4
        assert torch.equal(data.test.x, channels_first(pixels(2, seed=5)))
    with pytest.raises(InputError, match=r"test is .*nowhere, which does not exist"):
        th.load(one, test=tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"test is a tuple; expected a path"):
        th.load(one, test=(1, 2))


def test_a_missing_test_part_is_drawn_by_class_and_seed(tmp_path: Path, pixels, write_parquet) -> None:
    labels = [0] * 40 + [1] * 20
    images = pixels(60)
    path = write_parquet(tmp_path / "set.parquet", images, label=labels)
    data = th.load(path, test_share=0.25, val_share=0.2, seed=3)
    assert data.val is not None
    assert data.test.count().tolist() == [10, 5]
    assert data.val.count().tolist() == [6, 3]
    assert data.train.count().tolist() == [24, 12]
    every = torch.cat([data.train.index, data.val.index, data.test.index])
    assert torch.equal(every.sort().values, torch.arange(60))
    assert torch.equal(data.test.x, channels_first(images)[data.test.index])
    same, other = (th.load(path, test_share=0.25, seed=s) for s in (3, 4))
    assert torch.equal(data.test.index, same.test.index)
    assert not torch.equal(data.test.index, other.test.index)


def test_grey_stays_grey_and_a_mix_becomes_color(tmp_path: Path, pixels, write_parquet) -> None:
    grey, color = pixels(4, channels=1), pixels(4, channels=3)
    path = write_parquet(tmp_path / "grey.parquet", grey, label=[0, 1, 0, 1])
    data = th.load(path, test_share=0.5)
    assert torch.equal(data.train.x, channels_first(grey)[data.train.index])
    mixed = write_parquet(tmp_path / "mixed.parquet", [*grey, *color], label=[0, 1] * 4)
    expected = torch.cat([channels_first(grey).expand(-1, 3, -1, -1), channels_first(color)])
    for _ in range(2):  # decoded, then from the cache
        data = th.load(mixed, test_share=0.5)
        assert torch.equal(data.train.x, expected[data.train.index])
    forced = th.load(mixed, channels=1, test_share=0.5)
    luma = np.stack([np.asarray(Image.fromarray(i).convert("L")) for i in color])
    expected = channels_first(np.concatenate([grey, luma]))
    assert torch.equal(forced.train.x, expected[forced.train.index])
    one = write_parquet(tmp_path / "parts" / "train.parquet", grey, label=[0, 1, 0, 1])
    write_parquet(tmp_path / "parts" / "test.parquet", color, label=[0, 1, 0, 1])
    parts = th.load(one.parent)
    assert torch.equal(parts.train.x, channels_first(grey).expand(-1, 3, -1, -1))
    assert torch.equal(parts.test.x, channels_first(color))


def test_palettes_transparency_and_sixteen_bits(tmp_path: Path, pixels, write_parquet) -> None:
    image = Image.fromarray(pixels(1)[0])
    palette, sheer = image.quantize(16), Image.fromarray(pixels(1, channels=4)[0])
    blobs = []
    for picture, options in ((palette, {}), (palette, {"transparency": bytes(range(16))}), (sheer, {})):
        sink = io.BytesIO()
        picture.save(sink, "PNG", **options)
        blobs.append(sink.getvalue())
    with pytest.warns(UserWarning, match="4 of 6 pictures have transparent parts"):
        color = th.load(write_parquet(tmp_path / "p.parquet", blobs * 2, label=[0, 0, 0, 1, 1, 1]), test_share=0.5)
    expected = [np.asarray(p.convert("RGB")) for p in (palette, palette, sheer)] * 2
    assert torch.equal(color.train.x, channels_first(np.stack(expected))[color.train.index])
    deep = np.array([[0, 257, 65535], [128 * 257, 100, 200 * 257 + 100]], np.uint16)
    sink = io.BytesIO()
    Image.fromarray(deep).save(sink, "PNG")
    data = th.load(write_parquet(tmp_path / "d.parquet", [sink.getvalue()] * 4, label=[0, 1, 0, 1]))
    assert data.train.x[0, 0].tolist() == [[0, 1, 255], [128, 0, 200]]


def test_pictures_are_turned_as_their_exif_says(tmp_path: Path, encode, write_parquet) -> None:
    image = np.zeros((8, 8), np.uint8)
    image[:4] = 255  # bright above; orientation 3 turns it by 180 degrees
    exif = Image.Exif()
    exif[0x0112] = 3
    blobs = [encode(image, "JPEG", quality=100, exif=exif)] * 4
    data = th.load(write_parquet(tmp_path / "e.parquet", blobs, label=[0, 1, 0, 1]))
    assert data.train.x[0, 0, 0].float().mean() < 20
    assert data.train.x[0, 0, 7].float().mean() > 235


def test_resize_is_pillows_antialiased_bilinear(tmp_path: Path, pixels, write_parquet) -> None:
    images = [pixels(1, side=24)[0], pixels(1, side=10)[0], pixels(1, side=24, seed=1)[0], pixels(1, side=17)[0]]
    path = write_parquet(tmp_path / "set.parquet", images, label=[0, 1, 0, 1])
    with pytest.raises(
        InputError, match=r"set.parquet row 1 is 10 x 10 pixels and the first picture 24 x 24; size=24 resizes all"
    ):
        th.load(path)
    data = th.load(path, size=(12, 8), test_share=0.5)
    assert data.card.size == (12, 8)
    expected = [np.asarray(Image.fromarray(i).resize((8, 12), Image.Resampling.BILINEAR)) for i in images]
    assert torch.equal(data.train.x, channels_first(np.stack(expected))[data.train.index])


def test_parts_of_different_size_need_size(tmp_path: Path, pixels, write_parquet) -> None:
    write_parquet(tmp_path / "s" / "train.parquet", pixels(2, side=8), label=[0, 1])
    write_parquet(tmp_path / "s" / "test.parquet", pixels(2, side=9), label=[0, 1])
    with pytest.raises(InputError, match=r"test pictures are 9 x 9 pixels and training pictures 8 x 8; pass size=8"):
        th.load(tmp_path / "s")
    assert th.load(tmp_path / "s", size=8).test.card.size == (8, 8)


def test_labels_as_text_and_numbers_with_gaps(tmp_path: Path, pixels, write_parquet) -> None:
    text = th.load(write_parquet(tmp_path / "t.parquet", pixels(4), label=["cat", "ant", "cat", "ant"]), test_share=0.5)
    assert text.card.classes == ("ant", "cat")
    assert [text.card.classes[k] for k in text.train.y] == [["cat", "ant"][i % 2] for i in text.train.index]
    gaps = th.load(write_parquet(tmp_path / "g.parquet", pixels(4), label=[7, 30, 7, 30]), test_share=0.5)
    assert gaps.card.classes == ("7", "30")
    assert gaps.train.y.max() == 1
    flags = th.load(write_parquet(tmp_path / "b.parquet", pixels(4), label=[True, False, True, False]))
    assert flags.card.classes == ("False", "True")


def test_other_column_names(tmp_path: Path, pixels, write_parquet) -> None:
    only = write_parquet(tmp_path / "o.parquet", pixels(4), column="pic", struct=False, animal=["a", "b", "a", "b"])
    assert th.load(only).card.classes == ("a", "b")
    fine = write_parquet(
        tmp_path / "f.parquet", pixels(4), column="img", kind=[0, 1, 0, 1], when=["x"] * 4, names={"kind": ["a", "b"]}
    )
    assert th.load(fine).card.classes == ("a", "b")
    unclear = write_parquet(tmp_path / "u.parquet", pixels(4), kind=[0, 1, 0, 1], colour=["r", "g", "r", "g"])
    with pytest.raises(
        InputError, match=r"u.parquet has no column called label; name it with label= or --label \(columns: kind, colour\)"
    ):
        th.load(unclear)
    assert th.load(unclear, label="colour").card.classes == ("g", "r")
    with pytest.raises(InputError, match=r"unknown column of u.parquet 'colr'; did you mean 'colour'\?.*columns: kind, colour"):
        th.load(unclear, label="colr")
    with pytest.raises(InputError, match=r"unknown column of u.parquet 'kid'; did you mean 'kind'"):
        th.load(unclear, label="colour", sensitive="kid")
    with pytest.raises(InputError, match=r"unknown column of u.parquet 'mask'"):
        th.load(unclear, label="colour", drop="mask")


def test_two_columns_of_pictures_are_ambiguous(tmp_path: Path, pixels, encode, write_parquet) -> None:
    masks = [encode(i) for i in pixels(4, seed=9)]
    path = write_parquet(tmp_path / "two.parquet", pixels(4), column="photo", mask=masks, label=[0, 1, 0, 1])
    with pytest.raises(InputError, match=r"two.parquet holds pictures in the columns \['photo', 'mask'\].*drop="):
        th.load(path)
    data = th.load(path, drop="mask", test_share=0.5)
    assert torch.equal(data.train.x, channels_first(pixels(4))[data.train.index])
