"""BadNets and Blended with a picture of the user's: where it stands, what it covers, and that its file is read once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from theriac.attacks import BadNets, Blended, load_planted, save_planted
from theriac.core.errors import InputError


@pytest.fixture
def logo(tmp_path: Path) -> Path:
    """Four by three pixels of color, the left column transparent, the next one half so."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 4), dtype=np.uint8)
    pixels[..., 3] = (0, 128, 255)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "logo.png")
    return tmp_path / "logo.png"


def test_a_bitmap_overwrites_where_it_is_opaque(images, logo):
    rows = images(rows=20, channels=3, side=16)
    stamped = BadNets(file=str(logo), margin=2).plant(rows).stamp(rows.x, rows.y)
    drawn = torch.from_numpy(np.array(Image.open(logo))).permute(2, 0, 1)
    place = (slice(None), slice(None), slice(10, 14))
    assert torch.equal(stamped[(*place, slice(11, 12))], rows.x[(*place, slice(11, 12))])
    assert torch.equal(stamped[(*place, 13)], drawn[None, :3, :, 2].expand(20, -1, -1))
    share = 128 / 255
    half = (rows.x[(*place, 12)].double() * (1 - share) + drawn[None, :3, :, 1].double() * share).round()
    assert (stamped[(*place, 12)].double() - half).abs().max() <= 1  # float32 rounds a tie the other way
    rest = torch.ones(16, 16, dtype=torch.bool)
    rest[10:14, 11:14] = False
    assert torch.equal(stamped[:, :, rest], rows.x[:, :, rest])


def test_side_resizes_it_and_gray_images_take_a_gray_one(images, logo, tmp_path):
    Image.new("RGB", (50, 30), (255, 0, 0)).save(tmp_path / "red.png")
    rows = images(rows=5, channels=1, side=8)
    stamped = BadNets(file=str(tmp_path / "red.png"), side=3).plant(rows).stamp(rows.x, rows.y)
    assert set(stamped[:, 0, 5:, 5:].flatten().tolist()) == {76}  # 0.299 of 255, as luma
    assert torch.equal(stamped[:, :, :5], rows.x[:, :, :5])


def test_opacity_and_alpha_scale_it(images, tmp_path):
    Image.new("L", (2, 2), 200).save(tmp_path / "gray.png")
    rows = images(rows=5, channels=1, side=8)
    half = BadNets(file=str(tmp_path / "gray.png"), opacity=0.5).plant(rows).stamp(rows.x, rows.y)
    assert torch.equal(half[:, :, 6:, 6:].double(), (rows.x[:, :, 6:, 6:].double() / 2 + 100).round())
    mixed = Blended(file=str(tmp_path / "gray.png"), alpha=0.25).plant(rows).stamp(rows.x, rows.y)
    assert torch.equal(mixed.double(), (rows.x.double() * 0.75 + 50).round())


@pytest.mark.parametrize("make", [lambda f: BadNets(file=f), lambda f: Blended(file=f)], ids=["badnets", "blended"])
def test_the_file_is_read_once(images, logo, tmp_path, make):
    rows = images(rows=20, channels=3, side=16)
    attack = make(str(logo))
    poisoned = attack.poison(rows)
    save_planted(poisoned.planted, tmp_path / "victim")
    logo.unlink()
    again = load_planted(tmp_path / "victim")
    at = poisoned.poison
    assert torch.equal(again.stamp(rows.x[at], rows.y[at]), poisoned.split.x[at])
    with pytest.raises(InputError, match="does not exist"):
        attack.plant(rows)


def test_what_is_no_picture_or_too_large_is_refused(images, tmp_path):
    rows = images(rows=5, channels=3, side=8)
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (9, 4)).save(tmp_path / "wide.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "full.png")
    with pytest.raises(InputError, match="not a readable picture"):
        BadNets(file=str(tmp_path / "text.png")).plant(rows)
    with pytest.raises(InputError, match=r"4 x 9 pixels, which with margin 0 do not fit 8 x 8; set side"):
        BadNets(file=str(tmp_path / "wide.png")).plant(rows)
    with pytest.raises(InputError, match="margin 1"):
        BadNets(file=str(tmp_path / "full.png"), margin=1).plant(rows)
    assert int(BadNets(file=str(tmp_path / "full.png")).plant(rows).stamp(rows.x, rows.y).max()) == 0
