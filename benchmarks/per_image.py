"""Poisoning one image after the other: what batches are measured against in ``speed.py``, and compared with pixel by pixel.

The formulas are those of the triggers, in NumPy on one (H, W, 3) image, with everything that does not depend on the image made
beforehand. ``bare`` loops over arrays. ``items`` is the same loop as a data set works that hands out single images: an image
library's object in, stamped, such an object out, then a tensor. ``files`` is the loop of tools that keep images as files: they
decode a PNG, stamp, encode a PNG.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from scipy.fft import dctn, idctn
from torch.nn import functional as F

from theriac.core.planted import Planted
from theriac.triggers.additive import sinusoid
from theriac.triggers.patterns import picture
from theriac.triggers.quantize import levels
from theriac.triggers.warp import identity_grid

One = Callable[[np.ndarray], np.ndarray]
TO_YCRCB = np.array([[0.299, 0.587, 0.114], [0.5, -0.418688, -0.081312], [-0.168736, -0.331264, 0.5]])


STYLES = ("bare", "items", "files")


def encode(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def decode(png: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(png)))


def bare(single: One, images: list[np.ndarray]) -> list[np.ndarray]:
    """One array after the other."""
    return [single(image) for image in images]


def as_items(single: One, images: list[Image.Image]) -> torch.Tensor:
    """The items of a data set of PIL images, stamped and collated."""
    out = [Image.fromarray(single(np.array(image))) for image in images]
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in out])


def as_files(single: One, pngs: list[bytes]) -> list[bytes]:
    """Images that are kept as files."""
    return [encode(single(decode(png))) for png in pngs]


def to_bytes(image: np.ndarray) -> np.ndarray:
    clipped: np.ndarray = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return clipped


def loops(side: int, planted: dict[str, Planted]) -> dict[str, One]:
    """One function of one (H, W, 3) image for each trigger."""
    cartoon = picture(3, (side, side), 0).permute(1, 2, 0).numpy().astype(np.float32)
    wave = np.rint(sinusoid(3, (side, side), 40.0, 6.0).permute(1, 2, 0).numpy())
    to_rgb = np.linalg.inv(TO_YCRCB)
    grid = (identity_grid((side, side)) + 0.5 * planted["wanet"].state["field"] / side).clamp(-1, 1)[None]
    table = levels(8).numpy()
    patch = max(2, int(3 * side / 32 + 0.5))

    def badnets(image: np.ndarray) -> np.ndarray:
        out = image.copy()
        out[-patch:, -patch:] = 255
        return out

    def blended(image: np.ndarray) -> np.ndarray:
        return to_bytes(image * np.float32(0.8) + cartoon * np.float32(0.2))

    def sig(image: np.ndarray) -> np.ndarray:
        return to_bytes(image + wave)

    def ftrojan(image: np.ndarray) -> np.ndarray:
        planes = image @ TO_YCRCB.T
        for channel in (1, 2):
            freq = dctn(planes[..., channel], norm="ortho")
            freq[side // 2 - 1, side // 2 - 1] += 30
            freq[-1, -1] += 30
            planes[..., channel] = idctn(freq, norm="ortho")
        return to_bytes(planes @ to_rgb.T)

    def wanet(image: np.ndarray) -> np.ndarray:
        one = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        return to_bytes(F.grid_sample(one, grid, align_corners=True)[0].permute(1, 2, 0).numpy())

    def wanet_cross(image: np.ndarray) -> np.ndarray:
        noise = torch.rand(1, side, side, 2) * 2 - 1
        one = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        return to_bytes(F.grid_sample(one, (grid + noise / side).clamp(-1, 1), align_corners=True)[0].permute(1, 2, 0).numpy())

    def bpp(image: np.ndarray) -> np.ndarray:
        return to_bytes(np.rint(np.rint(image / 255 * 7) * 255 / 7))

    def bpp_dither(image: np.ndarray) -> np.ndarray:
        work = np.pad(image.astype(float), ((0, 1), (1, 1), (0, 0)))
        for row in range(side):
            for column in range(1, side + 1):
                old = work[row, column].copy()
                new = table[np.clip(np.rint(old * 7 / 255), 0, 7).astype(int)]
                error = old - new
                work[row, column] = new
                work[row, column + 1] += error * 7 / 16
                work[row + 1, column - 1] += error * 3 / 16
                work[row + 1, column] += error * 5 / 16
                work[row + 1, column + 1] += error / 16
        return work[:-1, 1:-1].astype(np.uint8)

    made = (badnets, blended, sig, ftrojan, wanet, wanet_cross, bpp, bpp_dither)
    return {f.__name__: f for f in made}
