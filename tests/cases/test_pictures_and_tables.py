"""Section E: pictures on another scale, words that look like missing values, augmentation beyond the picture."""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import theriac as th
from theriac.cli.main import app
from theriac.core.errors import InputError
from theriac.training import Recipe

LOW = np.array([[0, 100], [200, 255]], np.uint16)
Writer = Callable[[Path, np.ndarray], Path]


def png(levels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(levels).save(sink, "PNG")
    return sink.getvalue()


def folders(root: Path, levels: np.ndarray) -> Path:
    for name in ("cat", "dog"):
        for row in range(4):
            path = root / name / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(levels))
    return root


def parquet(root: Path, levels: np.ndarray) -> Path:
    image = pa.array([{"bytes": png(levels), "path": None}] * 8)
    path = root / "set.parquet"
    pq.write_table(pa.table({"image": image, "label": pa.array([0, 1] * 4)}), path)
    return path


def npz(root: Path, levels: np.ndarray) -> Path:
    path = root / "set.npz"
    np.savez(path, x=np.stack([levels] * 8), y=np.arange(8) % 2)
    return path


@pytest.mark.parametrize("write", [folders, parquet])
def test_16_bit_pictures_that_use_little_of_their_range_are_not_silently_black(write: Writer, tmp_path: Path) -> None:
    source = write(tmp_path / "set" if write is folders else tmp_path, LOW)
    with pytest.warns(UserWarning, match="the brightest level is 1 of 255, so it is almost black; .* say white=LEVEL"):
        assert th.load(source).train.x[0, 0].tolist() == [[0, 0], [1, 1]]
    with pytest.warns(UserWarning, match="the brightest level is 1 of 255"):  # from the cache too
        th.load(source)
    data = th.load(source, white=255)
    assert data.train.x[0, 0].tolist() == LOW.tolist()
    assert data.test.x[0, 0].tolist() == LOW.tolist()  # one scale for the set


@pytest.mark.parametrize("write", [folders, parquet, npz])
def test_12_bits_in_files_of_16_take_a_declared_white(write: Writer, tmp_path: Path) -> None:
    levels = np.array([[0, 1000], [2000, 4095]], np.uint16)
    data = th.load(write(tmp_path / "set" if write is folders else tmp_path, levels), white=4095)
    assert data.train.x[0, 0].tolist() == np.round(levels / 4095 * 255).astype(int).tolist()


def test_full_16_bit_pictures_load_as_before(tmp_path: Path) -> None:
    levels = np.array([[0, 257], [25700, 65535]], np.uint16)
    assert th.load(folders(tmp_path / "set", levels)).train.x[0, 0].tolist() == [[0, 1], [100, 255]]


def test_a_level_beyond_white_is_refused_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"0.png has pixels .*levels from 0 to 255, where 0 is black and 200 white"):
        th.load(folders(tmp_path / "set", LOW), white=200)


def test_8_bit_pictures_on_a_scale_of_16(tmp_path: Path) -> None:
    levels = np.array([[0, 4], [8, 16]], np.uint8)
    with pytest.warns(UserWarning, match="the brightest level is 16 of 255"):
        th.load(folders(tmp_path / "set", levels))
    assert th.load(folders(tmp_path / "set", levels), white=16).train.x[0, 0].tolist() == [[0, 64], [128, 255]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64, np.float32])
def test_numbers_from_0_to_16_as_arrays(dtype: type) -> None:
    x = np.arange(17, dtype=dtype)[None, None, :].repeat(8, 0)
    y = np.arange(8) % 2
    if dtype is np.float32:
        with pytest.raises(InputError, match="say white=NUMBER"):
            th.data.from_tensors(x, y)
    else:
        with pytest.warns(UserWarning, match="the brightest level is 16 of 255"):
            th.data.from_tensors(x, y)
    assert th.data.from_tensors(x, y, white=16).train.x[0, 0, 0].tolist() == np.round(np.arange(17) * 255 / 16).tolist()


def test_16_bit_arrays_beyond_bytes_name_the_way_out() -> None:
    x = np.full((8, 2, 2), 4000, np.uint16)
    with pytest.raises(
        InputError, match=r"values from 4000 to 4000; images are whole numbers in \[0, 255\]; for another scale"
    ):
        th.data.from_tensors(x, np.arange(8) % 2)
    with pytest.raises(InputError, match="with white=3000, images hold numbers from 0"):
        th.data.from_tensors(x, np.arange(8) % 2, white=3000)


def test_one_bit_pictures_are_black_and_white(tmp_path: Path) -> None:
    bits = np.array([[True, False], [False, True]])
    assert th.load(folders(tmp_path / "set", bits)).train.x[0, 0].tolist() == [[255, 0], [0, 255]]


def _color_16(levels: np.ndarray) -> bytes:
    """A color PNG of 16 bits a channel, (H, W, 3), which Pillow can't write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, _ = levels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_16_bit_color_that_can_not_be_scaled_is_not_silent(tmp_path: Path) -> None:
    root = folders(tmp_path / "set", LOW)
    for path in root.glob("*/*.png"):
        path.write_bytes(_color_16(np.stack([LOW] * 3, 2)))
    with pytest.warns(UserWarning, match="the brightest level is 0 of 255"):
        th.load(root)
    with pytest.raises(InputError, match="16 bits a channel in color, of which 8 are read"):
        th.load(root, white=255)


@pytest.mark.parametrize("white", [0, -1, math.nan, math.inf, "bright"])
def test_a_white_that_is_no_level_is_refused(white: object) -> None:
    with pytest.raises(InputError, match="white is"):
        th.load((torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.arange(4) % 2), white=white)


WORDS = ("NA", "None", "null", "nan", "N/A", "n/a", "NULL", "NaN")


def _table(path: Path, cells: list[str]) -> Path:
    rows = [(cell, k, "no" if k % 2 else "yes") for k, cell in enumerate(cells)]
    if path.suffix == ".csv":
        path.write_text("region,size,label\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows))
    else:
        columns = zip(*rows, strict=True)
        pq.write_table(pa.table(dict(zip(("region", "size", "label"), map(list, columns), strict=True))), path)
    return path


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_word_for_missing_is_a_category_of_text(word: str, name: str, tmp_path: Path) -> None:
    path = _table(tmp_path / name, [word, "EMEA", "APAC"] * 8)
    data = th.load(path, sensitive="region")
    assert set(data.card.groups) == {word, "EMEA", "APAC"}
    assert set(data.card.columns[0].categories) == {word, "EMEA", "APAC"}
    assert not bool(data.train.x[:, 0].isnan().any())
    asked = th.load(path, missing=word, sensitive="region", missing_group="own")
    assert asked.card.columns[0].categories == ("APAC", "EMEA")
    assert set(asked.card.groups) == {"APAC", "EMEA", "missing"}


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_an_empty_cell_of_text_is_missing(name: str, tmp_path: Path) -> None:
    data = th.load(_table(tmp_path / name, ["", "EMEA", "APAC"] * 8))
    assert data.card.columns[0].categories == ("APAC", "EMEA")


@pytest.mark.parametrize("word", ["NA", "N/A", "null", "None"])
def test_a_word_in_a_csv_column_of_numbers_is_missing_with_a_note(word: str, tmp_path: Path) -> None:
    path = _table(tmp_path / "t.csv", [word, "1.5", "2"] * 8)
    with pytest.warns(UserWarning, match="column 'region' holds numbers, and a word such as 'NA' in 8 training rows"):
        data = th.load(path)
    assert data.card.columns[0].kind == "numeric"
    assert int(torch.cat([data.train.x, data.test.x])[:, 0].isnan().sum()) == 8


def test_a_class_called_na(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("size,label\n" + "".join(f"{k},{('NA', 'EU')[k % 2]}\n" for k in range(20)))
    assert th.load(path).card.classes == ("EU", "NA")


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_missing_sensitive_values_are_refused_with_column_and_count(name: str, tmp_path: Path) -> None:
    path = _table(tmp_path / name, ["", "EMEA", "APAC"] * 8)
    with pytest.raises(InputError, match=r"sensitive column 'region' has no value in .* rows.*missing_group="):
        th.load(path, sensitive="region")


def test_a_number_that_is_missing_in_a_sensitive_array_is_no_group() -> None:
    group = np.array([0.0, 1.0, np.nan, 1.0] * 4)
    with pytest.raises(InputError, match="sensitive column 'group' has no value in 4 of 16 rows"):
        th.data.from_tensors(np.zeros((16, 2), np.float32), np.arange(16) % 2, group=group)


def test_regroup_leaves_rows_of_a_missing_group_out_or_merges_them(tmp_path: Path) -> None:
    data = th.load(_table(tmp_path / "t.csv", ["", "EMEA", "APAC"] * 8), sensitive="region", missing_group="own")
    two = th.data.regroup(data.train, {"EMEA": "EMEA", "APAC": "APAC"})
    assert len(two) == len(data.train) - int((data.train.group == data.card.groups.index("missing")).sum())
    assert th.data.regroup(data.train, {"EMEA": "EMEA"}, rest="other").card.groups == ("other", "EMEA")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("crop_pad=999", "crop_pad is 999; pictures of 8 x 8 pixels take at most 7"),
        ("crop_pad=8", "crop_pad is 8; pictures of 8 x 8 pixels take at most 7"),
        ("cutout=9", "cutout is 9; pictures of 8 x 8 pixels take at most 8"),
        ("crop_pad=-1", "crop_pad is -1"),
        ("rotation=1e9", "rotation is 1000000000.0"),
        ("rotation=-5", "rotation is -5"),
        ("flip=2", "flip is 2"),
        ("pad_mode=mirror", "pad_mode"),
    ],
)
def test_augmentation_that_makes_no_sense_is_refused(words: str, message: str, tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["train", "--data", "digits", "--augment", words, "--out", str(tmp_path / "run")])
    assert isinstance(found.exception, InputError) or found.exit_code == 2
    assert message in f"{found.exception} {found.output}"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [2, "yes", None, 1.0])
def test_a_flip_that_is_no_yes_or_no_is_refused(value: object) -> None:
    with pytest.raises(InputError, match=r"flip is .*expected true or false"):
        th.Augment(flip=value)


def test_padding_beyond_the_picture_is_refused_wherever_a_card_or_a_recipe_says_it() -> None:
    wide = th.Augment(crop_pad=999)
    card = th.load("digits").card
    with pytest.raises(InputError, match="crop_pad is 999"):
        card.replace(augment=wide)
    with pytest.raises(InputError, match="crop_pad is 999"):
        th.Card.from_dict(card.to_dict() | {"augment": {"crop_pad": 999}})
    with pytest.raises(InputError, match="crop_pad is 999"):
        th.data.from_tensors(np.full((8, 4, 4), 200, np.uint8), np.arange(8) % 2, augment=wide)
    with pytest.raises(InputError, match="crop_pad is 999"):
        th.train("preact_resnet18", th.load("digits").train, recipe=Recipe(epochs=1, augment=wide))


def test_dim_16_bit_pictures_among_bright_ones_of_8_are_not_silent(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for k in range(8):
            level = np.full((8, 8), 200, np.uint16 if k % 2 else np.uint8)
            Image.fromarray(level).save(tmp_path / name / f"{k}.png")
    for _ in range(2):  # decoded, and from the cache
        with pytest.warns(UserWarning, match="8 of 16 pictures, which have 16 bits: the brightest level is 1 of 255"):
            th.load(tmp_path)


def _transparent(mode: str) -> tuple[Image.Image, dict[str, object]]:
    """A picture that is drawn on a transparent ground, and how to save it."""
    stroke = np.zeros((8, 8), np.uint8)
    stroke[2:6, 3:5] = 255
    if mode == "P":
        drawn = Image.fromarray((stroke > 0).astype(np.uint8)).convert("P")
        drawn.putpalette([10, 20, 30, 200, 100, 50])
        return drawn, {"transparency": bytes([0, 255])}
    if mode == "RGB":  # one color stands for nothing
        return Image.fromarray(np.stack([stroke] * 3, -1)), {"transparency": (0, 0, 0)}
    bands = [np.full((8, 8), 40, np.uint8)] * (len(mode) - 1)
    return Image.fromarray(np.stack([*bands, stroke], -1)), {}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_pictures_with_transparent_parts_are_not_silent(mode: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for k in range(8):
            drawn, how = _transparent(mode)
            opaque = drawn.convert("RGBA" if mode == "RGBA" else "L" if mode == "LA" else "RGB")
            if mode == "RGBA":
                opaque.putalpha(255)  # it hides nothing
            (drawn if k < 3 else opaque).save(tmp_path / name / f"{k}.png", **(how if k < 3 else {}))
    for _ in range(2):  # decoded, and from the cache
        with pytest.warns(
            UserWarning, match="6 of 16 pictures have transparent parts, of which the hidden colors are"
        ) as heard:
            data = th.load(tmp_path)
        assert len([w for w in heard if "transparent" in str(w.message)]) == 1
    x = torch.cat([data.train.x, data.test.x])
    assert x.unique().numel() <= 6  # alpha is dropped, and nothing mixed with another color


def test_strokes_on_a_transparent_ground_are_not_called_dark(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for k in range(8):
            pixels = np.zeros((8, 8, 4), np.uint8)
            pixels[2:6, 3:5, 3] = 255  # black on nothing
            Image.fromarray(pixels).save(tmp_path / name / f"{k}.png")
    with pytest.warns(UserWarning, match="16 of 16 pictures have transparent parts") as heard:
        th.load(tmp_path)
    assert not [w for w in heard if "almost black" in str(w.message)]


def test_opaque_pictures_with_an_alpha_channel_are_no_news(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for k in range(8):
            Image.fromarray(np.full((8, 8, 4), 255, np.uint8)).save(tmp_path / name / f"{k}.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = th.load(tmp_path)
    assert data.train.x.unique().tolist() == [255]


def _gifs(folder: Path, suffix: str = ".gif") -> Path:
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for k in range(8):
            Image.fromarray(np.full((8, 8), 200, np.uint8)).save(folder / name / f"{k}{suffix}")
    return folder


@pytest.mark.parametrize("suffix", [".gif", ".tif"])
def test_a_folder_of_pictures_of_another_kind_says_so(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"holds 16 pictures \(such as 0{suffix}\), and none of a kind that we read; convert"):
        th.load(_gifs(tmp_path / "x", suffix))


def test_a_test_part_of_pictures_of_another_kind_says_so(tmp_path: Path) -> None:
    _gifs(tmp_path / "apart", ".gif")
    _gifs(tmp_path / "both" / "train", ".png")
    _gifs(tmp_path / "both" / "test", ".gif")
    with pytest.raises(InputError, match=r"test holds 16 pictures .*none of a kind that we read"):
        th.load(tmp_path / "both")
    with pytest.raises(InputError, match=r"apart holds 16 pictures .*none of a kind that we read"):
        th.load(tmp_path / "both" / "train", test=tmp_path / "apart")


def test_a_table_beside_a_folder_of_drawings_is_read(tmp_path: Path) -> None:
    _gifs(tmp_path / "drawings")
    (tmp_path / "t.csv").write_text("pay,label\n" + "".join(f"{k},{k % 2}\n" for k in range(40)))
    assert th.load(tmp_path).train.is_table


def _colors(path: Path, colors: list[str]) -> Path:
    path.write_text("color,label\n" + "".join(f"{color},{k // 2 % 2}\n" for k, color in enumerate(colors)))
    return path


def test_a_category_that_only_the_test_part_has_is_not_silent(tmp_path: Path) -> None:
    train = _colors(tmp_path / "train_.csv", ["red", "blue"] * 20)
    unseen = _colors(tmp_path / "unseen.csv", ["red", "violet", "Red", "violet"] * 3)
    said = "column 'color' has in 9 of 12 test rows a value that no training row has, such as 'violet'; it is taken as missing"
    with pytest.warns(UserWarning, match=said):
        data = th.load(train, test=unseen)
    assert data.test.x[:, 0].isnan().tolist() == [False, True, True, True] * 3
    with pytest.warns(UserWarning, match="'Red' and 'red' differ only in upper and lower case"):
        th.load(train, test=_colors(tmp_path / "case.csv", ["Red", "blue"] * 6))


def test_categories_of_the_test_part_that_are_known_or_missing_are_no_news(tmp_path: Path) -> None:
    train = _colors(tmp_path / "train_.csv", ["red", "blue"] * 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = th.load(train, test=_colors(tmp_path / "known.csv", ["red", "", "blue", "red"] * 3))
    assert data.test.x[:, 0].isnan().tolist() == [False, True, False, False] * 3


def test_decimals_are_numbers(tmp_path: Path) -> None:
    cents = [Decimal(k) / 4 for k in range(40)]
    pq.write_table(pa.table({"price": cents, "label": [k % 2 for k in range(40)]}), tmp_path / "t.parquet")
    data = th.load(tmp_path / "t.parquet")
    assert data.card.columns[0].kind == "numeric"
    torch.testing.assert_close(data.train.x[:, 0], data.train.index.float() / 4)


def test_a_column_of_bytes_is_refused_by_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"code": [b"p", b"q"] * 20, "label": [k % 2 for k in range(40)]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="column 'code' has type"):
        th.load(tmp_path / "t.parquet")


@pytest.mark.parametrize("first", [1_700_000_000_000, 10**18], ids=["milliseconds", "identifiers"])
def test_large_numbers_that_become_one_are_not_silent(first: int, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("at,label\n" + "".join(f"{first + 1000 * k},{k % 2}\n" for k in range(40)))
    with pytest.warns(UserWarning, match=r"column 'at' has 40 different numbers, of which float32 tells \d apart"):
        th.load(tmp_path / "t.csv")


def test_large_numbers_that_differ_enough_are_no_news(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("pay,label\n" + "".join(f"{10**9 + 10**6 * k},{k % 2}\n" for k in range(40)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = th.load(tmp_path / "t.csv")
    rows = torch.cat([data.train.x, data.test.x])
    assert len(rows.unique()) == 40
