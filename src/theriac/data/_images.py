"""Encoded pictures to pixels: bounded, in threads, batch by batch."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.nn import functional as F

from theriac.core.errors import InputError
from theriac.core.files import UNPACKED_RATIO, read_bytes
from theriac.core.names import few
from theriac.core.paths import as_path
from theriac.core.progress import each
from theriac.core.ranges import typed
from theriac.data._cache import Pixels, Shape

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM")  # a short list keeps rarely tested decoders away from hostile files
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm")
MAX_PIXELS = 64_000_000  # a larger picture is taken for a decompression bomb
MAX_FILE = 256 << 20  # bytes of one encoded picture
MAX_PER_BYTE = 600  # bytes of a set's pixels for each byte of its files; gray drawings resized 8-fold stay below
MAX_PIXELS_PER_BYTE = 128  # decoded for each byte; photos have about 10, drawings 50, nothing but one color 500
FLOOR, PIXEL_FLOOR = 256 << 20, 128 << 20  # bytes and pixels up to which this does not matter
LARGE = 8_000_000  # pixels; larger pictures are decoded one at a time
CHUNK = 4 << 20  # bytes of decoded pixels that are held at a time
DARK = 64  # levels of 255; 14 bits in files of 16 come out at 64
WORKERS = 2  # Pillow lets go of the interpreter lock while it decodes

Blob = bytes | Path
_TURN = threading.Lock()  # held while a large picture is decoded


@dataclass(frozen=True)
class Notes:
    """What was noticed about pictures while they were decoded, which their pixels do not show afterward."""

    deep: int = 0  # pictures of 16 bits
    brightest: int = 0  # level of 255 in these
    transparent: int = 0  # pictures with a pixel that is not opaque

    def __add__(self, other: Notes) -> Notes:
        brightest = max(self.brightest, other.brightest)
        return Notes(self.deep + other.deep, brightest, self.transparent + other.transparent)


class Allowance:
    """How many pixels a set of pictures may still decode to."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.encoded = sum(path.stat().st_size for path in files)
        self.room = max(FLOOR, MAX_PER_BYTE * self.encoded)
        self.most = max(PIXEL_FLOOR, MAX_PIXELS_PER_BYTE * self.encoded)
        self.left = self.most
        self.held = 0
        self.notes = Notes()
        self.lock = threading.Lock()

    def spend(self, pixels: int, where: str, held: int = 0) -> None:
        """Refuse a picture that makes the set decode to far more than it is.

        Raises:
            InputError: Naming it.
        """
        with self.lock:
            self.left -= pixels
            self.held += held
            if self.held > max(FLOOR, UNPACKED_RATIO * self.encoded):
                raise InputError(
                    f"the pictures up to {where} have {self.held:,} bytes in files of {self.encoded:,}; "
                    "they may be a decompression bomb"
                )
            if self.left < 0:
                raise InputError(
                    f"the pictures up to {where} have more than {self.most:,} pixels in files of {self.encoded:,} bytes; "
                    "they may be a decompression bomb"
                )

    def note(self, more: Notes) -> None:
        """Count a picture, or several."""
        with self.lock:
            self.notes = self.notes + more


class NeedsColorError(Exception):
    """A color picture came up in a set that looked gray so far."""


class UnreadableError(InputError):
    """A picture is missing, empty or damaged."""


class Pictures(Protocol):
    """Encoded pictures in a fixed order."""

    @property
    def count(self) -> int:
        """Number of pictures."""
        ...

    @property
    def files(self) -> Sequence[Path]:
        """The files that hold them; their contents are the cache's key."""
        ...

    @property
    def selector(self) -> str:
        """What else decides which pictures these are, such as the column's name."""
        ...

    def where(self, row: int) -> str:
        """How an error names a row."""
        ...

    def batches(self, rows: int) -> Iterator[Sequence[Blob | None]]:
        """All pictures in order, at most ``rows`` at a time."""
        ...


def decode(
    pictures: Pictures,
    size: tuple[int, int] | None,
    channels: int | None,
    white: float | None = None,
    tell: Callable[[Notes], None] | None = None,
) -> tuple[Shape, Iterator[Pixels]]:
    """Decode pictures of one size.

    Args:
        pictures: Where they are.
        size: Height and width to resize to (bilinear, antialiased); None takes them as they are.
        channels: 1 or 3; None takes the first picture's.
        white: Stored level that becomes 255; None takes what each file declares.
        tell: Called after the last chunk with what was noticed.

    Returns:
        The shape (N, C, H, W) and the pixels in chunks. The chunks may raise :class:`NeedsColorError` if ``channels`` is None.

    Raises:
        InputError: On a picture that can't be read, is too large, or differs in size; it names the row.
    """
    allowance = Allowance(pictures.files)
    with _naming_all(pictures):
        image = _header(_first(pictures), pictures.where(0))
        allowance.spend(image.width * image.height, pictures.where(0))
        image = _decoded(image, pictures.where(0))
    auto = channels is None
    depth = (1 if _is_gray(image) else 3) if channels is None else channels
    height, width = size or (image.height, image.width)
    shape = (pictures.count, depth, height, width)
    total = math.prod(shape)
    if total > allowance.room:
        raise InputError(
            f"{pictures.count:,} pictures of {height} x {width} pixels take {total:,} bytes, and their files have "
            f"{allowance.encoded:,}; at most {allowance.room:,} are taken (a smaller size= helps)"
        )
    return shape, _chunks(pictures, shape, size is not None, auto, allowance, white, tell)


def _chunks(
    pictures: Pictures,
    shape: Shape,
    resize: bool,
    auto: bool,
    allowance: Allowance,
    white: float | None,
    tell: Callable[[Notes], None] | None,
) -> Iterator[Pixels]:
    _, depth, height, width = shape
    rows = max(1, min(2048, CHUNK // (depth * height * width)))
    start = 0
    with _naming_all(pictures), ThreadPoolExecutor(WORKERS) as pool:
        for blobs in each("reading pictures", pictures.batches(rows), -(-pictures.count // rows)):
            out = np.empty((len(blobs), depth, height, width), np.uint8)
            step = -(-len(blobs) // WORKERS)
            jobs = [
                pool.submit(
                    _fill, out[low : low + step], blobs[low : low + step], pictures, start + low, resize, auto, allowance, white
                )
                for low in range(0, len(blobs), step)
            ]
            for job in jobs:
                job.result()
            start += len(blobs)
            yield out
    if tell is not None:
        tell(allowance.notes)


@contextlib.contextmanager
def _naming_all(pictures: Pictures) -> Iterator[None]:
    """Where a picture can't be read, look for all others that can't: to learn of one at a time would take many starts."""
    try:
        yield
    except UnreadableError as error:
        unreadable, rows = [], itertools.count()
        for blobs in each("looking for other unreadable pictures", pictures.batches(256), -(-pictures.count // 256)):
            for blob in blobs:
                where = pictures.where(next(rows))
                try:
                    _open(blob, where).close()
                except InputError:
                    unreadable.append(where)
        if len(unreadable) < 2:
            raise
        raise InputError(
            f"{error}; {len(unreadable):,} of {pictures.count:,} pictures can't be read, and have to be repaired or taken out: "
            f"{few(unreadable)}"
        ) from None


def _fill(
    out: Pixels,
    blobs: Sequence[Blob | None],
    pictures: Pictures,
    start: int,
    resize: bool,
    auto: bool,
    allowance: Allowance,
    white: float | None,
) -> None:
    for i, blob in enumerate(blobs):
        where = pictures.where(start + i)
        image = _header(blob, where)
        pixels = image.width * image.height
        allowance.spend(pixels, where, len(blob) if isinstance(blob, bytes) else 0)
        with _TURN if pixels > LARGE else contextlib.nullcontext():
            decoded = _decoded(image, where)
            _into(out[i], decoded, where, resize, auto, white)
            if white is None and image.mode.startswith("I"):
                allowance.note(Notes(deep=1, brightest=int(out[i].max())))
            if _is_transparent(decoded):
                allowance.note(Notes(transparent=1))
            image.close()


def _into(out: Pixels, image: Image.Image, where: str, resize: bool, auto: bool, white: float | None) -> None:
    depth, height, width = out.shape
    gray = _is_gray(image)
    if auto and depth == 1 and not gray:
        raise NeedsColorError
    image = _as_bytes(image, depth, gray, where, white)
    if (image.height, image.width) != (height, width):
        if not resize:
            raise InputError(
                f"{where} is {image.height} x {image.width} pixels and the first picture {height} x {width}; "
                f"size={height} resizes all (--size {height})"
            )
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    out[:] = pixels[None] if depth == 1 else pixels.transpose(2, 0, 1)


def _first(pictures: Pictures) -> Blob | None:
    for blobs in pictures.batches(1):
        return blobs[0]
    raise InputError(f"{pictures.where(0)} does not exist; a split needs at least one picture")


def _open(blob: Blob | None, where: str) -> Image.Image:
    return _decoded(_header(blob, where), where)


def _header(blob: Blob | None, where: str) -> Image.Image:
    """A picture of which the size is known and bounded, and nothing decoded yet."""
    if blob is None:
        raise UnreadableError(f"{where} holds no picture (no bytes)")
    try:
        if isinstance(blob, Path):
            blob = read_bytes(blob, MAX_FILE)
        elif len(blob) > MAX_FILE:
            raise InputError(f"{where} has {len(blob):,} bytes; a picture may have {MAX_FILE:,}")
        if not blob:
            raise UnreadableError(f"{where} is not a readable picture: it is empty")
        image: Image.Image = Image.open(io.BytesIO(blob), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        deep = blob[:4] == b"\x89PNG" and len(blob) > 24 and blob[24] == 16  # bits a channel
        image.info["cut"] = deep and not image.mode.startswith("I")  # Pillow keeps the upper byte of 16-bit colors
        return image
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on hostile bytes
        raise _unreadable(error, where) from None


def _decoded(image: Image.Image, where: str) -> Image.Image:
    try:
        image.load()
        return ImageOps.exif_transpose(image) if "exif" in image.info else image
    except Exception as error:
        raise _unreadable(error, where) from None


def _unreadable(error: Exception, where: str) -> InputError:
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return InputError(f"{where} is larger than {MAX_PIXELS:,} pixels; it may be a decompression bomb")
    kind = f"{type(error).__name__}: {str(error)[:80]}" if str(error) else type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        kind = f"not one of {', '.join(FORMATS)}"
    return UnreadableError(f"{where} is not a readable picture ({kind}); it may be truncated or damaged")


@typed("path")
def read_picture(path: str | Path, channels: int, size: tuple[int, int] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """One picture from a file, and how opaque each of its pixels is.

    Args:
        path: PNG, JPEG and the like.
        channels: 1 or 3.
        size: (height, width) to resize to; None keeps its own.

    Returns:
        Gray levels, uint8 (C, H, W), and opacity in [0, 1], float32 (H, W).

    Raises:
        InputError: If it can't be read.
    """
    path = as_path("path", path)
    if not path.exists():
        raise InputError(f"{path} does not exist; expected a picture file")
    image = _open(path, str(path))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    alpha = image.getchannel("A") if "A" in image.getbands() else Image.new("L", image.size, 255)
    plain = _as_bytes(image, channels, _is_gray(image), str(path))
    if size is not None and (image.height, image.width) != tuple(size):
        plain, alpha = (part.resize((size[1], size[0]), Image.Resampling.BILINEAR) for part in (plain, alpha))
    pixels = torch.from_numpy(np.array(plain))
    if image.mode.startswith("I"):  # of 8 bits, black is black
        warn_if_dark(int(pixels.max()), str(path), "store it in 8 bits a channel")
    opacity = torch.from_numpy(np.array(alpha)).float() / 255
    return (pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()), opacity


def _is_transparent(image: Image.Image) -> bool:
    """Whether a pixel is not opaque, so that its color would not be seen as it is stored."""
    if not image.has_transparency_data:
        return False
    if "A" not in image.getbands():  # a table, or a color that stands for nothing
        try:
            image = image.convert("RGBA")
        except (ValueError, OSError):  # 16 bits among others
            return False
    return bool(np.asarray(image.getchannel("A")).min() < 255)


def _is_gray(image: Image.Image) -> bool:
    if image.mode == "P":
        palette = image.getpalette("RGB") or []
        return palette[0::3] == palette[1::3] == palette[2::3]
    return image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")


def warn_if_dark(brightest: int, what: str, advice: str) -> None:
    """Warn of pictures that hold no level above a quarter of the range: they are on another scale more often than at night."""
    if brightest <= DARK:
        warnings.warn(
            f"{what}: the brightest level is {brightest} of 255, so it is almost black; if another level means white, {advice}",
            stacklevel=3,
        )


def _as_bytes(image: Image.Image, depth: int, gray: bool, where: str, white: float | None = None) -> Image.Image:
    try:
        return _convert(image, depth, gray, white)
    except (ValueError, OSError) as error:
        raise InputError(f"{where} has pixels that can't be read as 8 bits a channel ({error})") from None


def _convert(image: Image.Image, depth: int, gray: bool, white: float | None) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        if image.mode == "F" and white is None:
            raise ValueError("mode F; white=LEVEL says which level is white")
        return _convert(_scaled(image, 65535 if white is None else white), depth, gray, None)  # 16 bits to 8
    if white is not None:
        if image.info.get("cut"):
            raise ValueError("16 bits a channel in color, of which 8 are read; leave white= out")
        return _scaled(_convert(image, depth, gray, None), white)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns of the direct way
    mode = "L" if depth == 1 else "RGB"
    if image.mode == mode:
        return image
    if gray and depth == 3:
        image = image.convert("L")
    return image.convert(mode)


def _scaled(image: Image.Image, white: float) -> Image.Image:
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= white):  # NaN too
        raise ValueError(f"levels from {low:g} to {high:g}, where 0 is black and {white:g} white")
    narrow = np.empty(values.shape, np.uint8)
    step = max(1, CHUNK // values.shape[1])
    for top in range(0, len(values), step):  # in parts, because they take eight times the room meanwhile
        narrow[top : top + step] = np.round(values[top : top + step] / (white / 255))
    return Image.fromarray(narrow)


def recolor(x: torch.Tensor, channels: int) -> torch.Tensor:
    """Pixels with 1 or 3 channels: gray is repeated, color becomes ITU-R 601 luma, rounded as Pillow rounds it."""
    if x.shape[1] == channels:
        return x
    if channels == 3:
        return x.repeat(1, 3, 1, 1)
    parts = []
    for chunk in x.split(4096):
        red, green, blue = chunk.to(torch.int32).unbind(1)
        parts.append(((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8)[:, None])
    return torch.cat(parts)


def rescale(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Pixels resized to (height, width), bilinear and antialiased."""
    if tuple(x.shape[2:]) == size:
        return x
    each = x.shape[1] * size[0] * size[1]
    total, room = len(x) * each, max(FLOOR, MAX_PER_BYTE * x.numel())
    if total > room:
        raise InputError(
            f"size is {size}; {len(x):,} pictures of {tuple(x.shape[2:])} pixels would take {total:,} bytes, "
            f"at most {room:,} are taken"
        )
    out = torch.empty(len(x), x.shape[1], *size, dtype=torch.uint8, device=x.device)
    step = max(1, (4 << 20) // each)
    for target, chunk in zip(out.split(step), x.split(step), strict=True):
        scaled = F.interpolate(chunk.float(), size=size, mode="bilinear", antialias=True, align_corners=False)
        target.copy_(scaled.round_().clamp_(0, 255))
    return out
