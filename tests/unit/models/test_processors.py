"""Image processors of transformers: their own pipeline on pictures, and the adapted model's inputs and logits for the same."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import theriac as th
from theriac.core.errors import InputError
from theriac.models import open_found
from theriac.models._processors import wrapping_of

transformers = pytest.importorskip("transformers")

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.5]
CUT = {"height": 40, "width": 40}
PLAIN = {"do_resize": False, "do_center_crop": False}


def pictures(height: int = 32, width: int = 32) -> th.Split:
    """Smooth ones, of which ways of resizing make nearly the same."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, 3, 4, 4, generator=draw)
    fine = nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False).clamp(0, 1)
    return th.Split((fine * 255).round().to(torch.uint8), torch.arange(4))


def network() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_channels=3, num_labels=4
    )
    return transformers.ResNetForImageClassification(config).eval()


def made(kind: str, options: dict[str, Any]) -> Any:
    """A processor of the library; the variant that needs Pillow alone computes the same."""
    name = f"{kind}ImageProcessor"
    return getattr(transformers, f"{name}Pil" if hasattr(transformers, f"{name}Pil") else name)(**options)


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("ConvNext", {"do_resize": False}, 1e-5),
        ("ConvNext", {"do_resize": False, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}, 1e-5),
        ("ConvNext", {"do_resize": False, "do_rescale": False, "image_mean": [127.5] * 3, "image_std": [63.75] * 3}, 1e-5),
        ("ConvNext", {"do_resize": False, "do_normalize": False}, 1e-5),
        ("ConvNext", {"do_resize": False, "do_normalize": False, "rescale_factor": 1 / 100}, 1e-5),
        ("ConvNext", {"size": {"shortest_edge": 48}, "crop_pct": 1.0, "resample": 2}, 0.03),
        ("ConvNext", {"size": {"shortest_edge": 384}, "resample": 2}, 0.03),
        ("MobileViT", PLAIN, 1e-5),
        ("MobileViT", {**PLAIN, "do_flip_channel_order": False}, 1e-5),
        ("MobileViT", {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}, "resample": 2}, 0.03),
        ("Bit", {**PLAIN, "image_mean": MEAN, "image_std": STD}, 1e-5),
        ("Bit", {"size": {"shortest_edge": 48}, "do_center_crop": False, "resample": 2}, 0.03),
        ("Bit", {"do_resize": False, "crop_size": {"height": 32, "width": 32}}, 1e-5),
        ("Levit", {"size": {"shortest_edge": 42}, "do_center_crop": False, "resample": 2}, 0.03),
        ("PoolFormer", {"size": {"shortest_edge": 36}, "crop_pct": 0.75, "do_center_crop": False, "resample": 2}, 0.03),
        ("PoolFormer", {"size": {"height": 36, "width": 36}, "crop_pct": 0.75, "do_center_crop": False, "resample": 2}, 0.03),
        ("EfficientNet", {**PLAIN, "image_mean": MEAN, "image_std": STD}, 1e-5),
        ("EfficientNet", {**PLAIN, "include_top": False, "rescale_factor": 1 / 127.5, "rescale_offset": True}, 1e-5),
        ("EfficientNet", {**PLAIN, "do_normalize": False, "image_std": STD}, 1e-5),
        ("ViT", {"size": {"height": 40, "width": 48}, "resample": 2}, 0.03),
    ],
)
def test_a_network_gets_what_the_library_s_own_processor_gives_it(
    kind: str, options: dict[str, Any], tolerance: float, tmp_path: Path
):
    size, came = compared(kind, options, tolerance, pictures(), tmp_path)
    assert size in (None, came)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ConvNext", {"size": {"shortest_edge": 384}, "resample": 2}),
        ("Bit", {"size": {"shortest_edge": 30}, "do_center_crop": False, "resample": 2}),
        ("Levit", {"size": {"shortest_edge": 30}, "do_center_crop": False, "resample": 2}),
        ("PoolFormer", {"size": {"height": 30, "width": 40}, "crop_pct": 0.75, "do_center_crop": False, "resample": 2}),
        ("ViT", {"size": {"height": 30, "width": 40}, "resample": 2}),
    ],
)
@pytest.mark.parametrize("shape", [(24, 36), (36, 24)])
def test_pictures_that_are_no_squares(kind: str, options: dict[str, Any], shape: tuple[int, int], tmp_path: Path):
    size, came = compared(kind, options, 0.03, pictures(*shape), tmp_path)
    assert size in (None, came)


def compared(kind: str, options: dict[str, Any], tolerance: float, rows: th.Split, folder: Path) -> tuple[Any, Any]:
    """The network's inputs and logits: from the library's pipeline, and from the folder as it is opened here.

    Returns the size that pictures are brought to here, if any, and that of the library's.
    """
    net, processor = network(), made(kind, options)
    net.save_pretrained(folder)
    processor.save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # all of it can be said
        wrapping = wrapping_of(folder, rows.card)
    model = open_found(folder, card=rows.card)
    assert model is not None
    given = processor([Image.fromarray(x.permute(1, 2, 0).numpy()) for x in rows.x], return_tensors="pt")["pixel_values"]
    x = rows.x / 255
    torch.testing.assert_close(model.prepare(x), given, atol=tolerance, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model(x), net(given).logits, atol=tolerance, rtol=1e-4)
    return wrapping.get("size"), tuple(given.shape[2:])


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (
            "Bit",
            {"size": {"shortest_edge": 48}, "resample": 2, "crop_size": {"height": 40, "width": 40}},
            ["do_center_crop", "40 x 40"],
        ),
        ("MobileViT", {"size": {"shortest_edge": 48}, "resample": 3}, ["do_center_crop", "256 x 256", "resample 3"]),
        ("Bit", {"size": {"shortest_edge": 48}, "do_center_crop": False, "resample": 3}, ["resample 3"]),
        ("ConvNext", {"size": {"shortest_edge": 56}, "resample": 2}, ["crop_pct", "56 x 56"]),
        ("Bit", {"size": {"shortest_edge": 48, "longest_edge": 50}, "do_center_crop": False, "resample": 2}, ["longest_edge"]),
        ("Bit", {**PLAIN, "do_pad": True}, ["do_pad"]),
    ],
)
def test_what_can_t_be_said_is_named_in_one_warning(kind: str, options: dict[str, Any], said: list[str], tmp_path: Path):
    made(kind, options).save_pretrained(tmp_path)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        wrapping_of(tmp_path, pictures().card)
    assert len(heard) == 1
    assert all(word in str(heard[0].message) for word in [*said, "preprocessor_config.json"])


@pytest.mark.parametrize("factor", [0, -1, "x", None, True, [1], 1e400])
def test_a_factor_that_makes_no_sense_is_refused(factor: Any, tmp_path: Path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"rescale_factor": factor}))
    with pytest.raises(InputError, match=r"rescale_factor in .*expected a number above 0|not JSON|Infinity"):
        wrapping_of(tmp_path, pictures().card)


@pytest.mark.parametrize("value", [0, -1, "x", None, True, [1], {"height": "x"}, {"shortest_edge": -3}, [], {}])
def test_any_other_value_is_taken_or_passed_over(value: Any, tmp_path: Path):
    keys = ("size", "crop_size", "image_mean", "image_std", "resample", "do_resize", "do_center_crop", "do_pad")
    for key in keys:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_center_crop": True, key: value}))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert set(wrapping_of(tmp_path, pictures().card)) <= {"size", "mean", "std", "order"}
