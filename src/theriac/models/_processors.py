"""Image processors of ``transformers``: what their ``preprocessor_config.json`` says, as options of :func:`theriac.adapt`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from theriac.core.card import Card
from theriac.core.errors import InputError, shortened
from theriac.core.files import is_regular, read_json, shown

PROCESSOR = "preprocessor_config.json"
_LIMIT = 4 << 20  # bytes
_MOST = 64  # numbers of a normalization
_BILINEAR = 2  # as Pillow numbers ways of resizing
_LARGE = 384  # pixels from which on ConvNext's processor takes whole pictures
_EDGE = (
    "ConvNext",
    "Bit",
    "CLIP",
    "ChineseCLIP",
    "Levit",
    "MobileNet",
    "MobileViT",
    "PoolFormer",
)  # processors that take a size of one number as an edge
_SAID = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_flip_channel_order")
_NO_MATTER = ("do_convert_rgb", "do_reduce_labels")  # of the pixels of a stored picture

Size = tuple[int, int]


def wrapping_of(folder: Path, card: Card) -> dict[str, Any]:
    """Options of :func:`theriac.adapt` under which pictures reach the network as its image processor hands them over.

    The steps are those of the library: resize, cut out the middle, rescale, normalize, and exchange red and blue. What has no
    option, such as another way of resizing, is said in one warning.

    Args:
        folder: Where ``preprocessor_config.json`` lies, or does not.
        card: The pictures, which all have its size.

    Raises:
        InputError: If a number there makes no sense, with its key.
    """
    path = folder / PROCESSOR
    data = read_json(path, _LIMIT) if is_regular(path) else {}
    if not isinstance(data, Mapping) or not data:
        return {}
    return _Processor(data, shown(path), card).options()


@dataclass(frozen=True)
class _Processor:
    data: Mapping[str, Any]
    where: str
    card: Card

    def options(self) -> dict[str, Any]:
        """All of them; warns of what they can't say."""
        options: dict[str, Any] = self._values()
        unsaid: list[str] = []
        if self.data.get("do_flip_channel_order"):
            options["order"] = "bgr"
        if self.card.kind == "image":
            resized = self._resized(self.card.size)
            size, unsaid = self._cut(resized)
            if size is not None:
                options["size"] = size
            if resized not in (None, self.card.size) and self.data.get("resample", _BILINEAR) not in (_BILINEAR, None):
                unsaid.append(f"resample {shortened(self.data['resample'])}, and pictures are resized bilinearly")
        known = (*_SAID, *_NO_MATTER)
        unsaid += [key[:40] for key, value in self.data.items() if key.startswith("do_") and value and key not in known]
        if unsaid:
            warnings.warn(
                f"{self.where} asks for what is not done here, so logits differ from those of transformers: "
                + "; ".join(unsaid),
                stacklevel=5,
            )
        return options

    def _is(self, *names: str) -> bool:
        """Whether it is of one of these classes of the library, or of an older name of them."""
        held = (str(self.data.get(key, "")) for key in ("image_processor_type", "feature_extractor_type"))
        return any(name.startswith(names) for name in held)

    # values

    def _values(self) -> dict[str, Any]:
        """Mean and deviation in units of pixels from 0 to 1; none where pixels are taken as they are."""
        unit = 255 * self._number("rescale_factor", 1 / 255) if self.data.get("do_rescale", True) else 255.0
        unit = 1.0 if math.isclose(unit, 1.0, rel_tol=1e-5) else unit
        offset = self._is("EfficientNet") and self.data.get("rescale_offset") and self.data.get("do_rescale", True)
        mean, std = self._numbers("image_mean"), self._numbers("image_std")
        once = mean is not None and std is not None and self.data.get("do_normalize", True) and not self._is("MobileViT")
        means, stds = (mean, std) if once else ((0.0,), (1.0,))
        assert means is not None
        assert stds is not None
        again = self.data.get("include_top") and std is not None and self._is("EfficientNet")  # which divides once more
        channels = max(len(means), len(stds), len(std or ()) if again else 1)  # one number stands for all
        means = tuple(means[k % len(means)] + (1.0 if offset else 0.0) for k in range(channels))
        extra = std if again and std is not None else (1.0,)
        stds = tuple(stds[k % len(stds)] * extra[k % len(extra)] for k in range(channels))
        if unit == 1.0 and not any(means) and all(value == 1.0 for value in stds):
            return {"mean": means, "std": stds} if once else {}
        return {"mean": tuple(value / unit for value in means), "std": tuple(value / unit for value in stds)}

    def _number(self, key: str, default: float) -> float:
        value = self.data.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise InputError(f"{key} in {self.where} is {shortened(value)}; expected a number above 0")
        return float(value)

    def _numbers(self, key: str) -> tuple[float, ...] | None:
        value = self.data.get(key)
        values = value if isinstance(value, (list, tuple)) else [value]
        numbers = tuple(v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v))
        return numbers if 0 < len(values) == len(numbers) <= _MOST else None

    # sizes

    def _resized(self, size: Size) -> Size | None:
        """Height and width after resizing; None where it is not said."""
        if not self.data.get("do_resize", True):
            return size
        edge, (height, width) = self._edge(), _sides(self.data.get("size"))
        if self._is("PoolFormer") and self.data.get("crop_pct") is not None:
            share = self._number("crop_pct", 1.0)
            edge, height, width = (None if side is None else int(side / share) for side in (edge, height, width))
            edge = height if height == width and height is not None else edge
        if edge is not None and self._is("Levit"):
            edge = int(256 / 224 * edge)
        elif edge is not None and self._is("ConvNext"):
            if edge >= _LARGE:
                return edge, edge
            edge = int(edge / self._number("crop_pct", 224 / 256))
        if edge is not None:
            other = int(edge * max(size) / max(1, min(size)))
            return (edge, other) if size[0] <= size[1] else (other, edge)
        return None if height is None or width is None else (height, width)

    def _edge(self) -> int | None:
        """The length of the shorter side, where the longer one follows from the picture."""
        size = self.data.get("size")
        if isinstance(size, Mapping):
            edge = size.get("shortest_edge")
            return edge if type(edge) is int and edge > 0 else None
        return size if type(size) is int and size > 0 and self._is(*_EDGE) else None

    def _cut(self, resized: Size | None) -> tuple[Size | None, list[str]]:
        """Height and width that the network gets, and what of the cut is not done."""
        unsaid, size = [], self.data.get("size")
        cut: tuple[int | None, int | None] = (None, None)
        if self.data.get("do_center_crop"):
            cut = _sides(self.data.get("crop_size"))
        elif self._is("ConvNext") and self.data.get("do_resize", True) and (edge := self._edge()) and edge < _LARGE:
            cut = edge, edge
        if resized is None and isinstance(size, Mapping) and size and self.data.get("do_resize", True):
            unsaid.append(f"size {shortened(dict(size))}")
        elif isinstance(size, Mapping) and "longest_edge" in size and self.data.get("do_resize", True):
            unsaid.append("size.longest_edge")
        height, width = cut
        if height is None or width is None or (height, width) == resized:
            return resized, unsaid
        key = "do_center_crop" if self.data.get("do_center_crop") else "crop_pct"
        unsaid.append(f"{key}, and whole pictures are resized to {height} x {width}")
        return (height, width), unsaid


def _sides(size: Any) -> tuple[int | None, int | None]:
    """Height and width of a size as the library writes it: of names, or one number for both."""
    sides = (size.get("height"), size.get("width")) if isinstance(size, Mapping) else (size, size)
    height, width = (side if type(side) is int and side > 0 else None for side in sides)
    return height, width
