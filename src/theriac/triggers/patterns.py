"""Trigger pictures of our own, drawn for the resolution at hand from a seed; nothing is downloaded."""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from theriac.core import check


def noise(channels: int, size: tuple[int, int], seed: int) -> torch.Tensor:
    """Uniform random pixels, uint8 (C, H, W)."""
    return torch.randint(0, 256, (channels, *size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def picture(channels: int, size: tuple[int, int], seed: int) -> torch.Tensor:
    """A cartoon-like scene: a few flat, soft-edged disks of saturated colors on a gradient, uint8 (C, H, W).

    It stands in for the copyrighted picture of the literature: large regions of one color, sharp outlines, no texture.
    """
    return _painted(channels, size, seed).clone()


@lru_cache(maxsize=32)
def _painted(channels: int, size: tuple[int, int], seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    height, width = size
    y = (torch.arange(height) + 0.5) / height
    x = (torch.arange(width) + 0.5) / width
    corners = torch.rand(2, channels, generator=draw)
    canvas = corners[0, :, None, None] * (1 - y)[None, :, None] + corners[1, :, None, None] * y[None, :, None]
    canvas = canvas.expand(channels, height, width).clone()
    edge = 1.0 / min(size)
    for _ in range(7):
        cx, cy, radius = (float(v) for v in torch.rand(3, generator=draw))
        radius = 0.10 + 0.22 * radius
        color = (torch.rand(channels, generator=draw) > 0.5).float()
        distance = torch.hypot(x[None, :] - cx, y[:, None] - cy)
        for r, paint in ((radius + 1.5 * edge, torch.zeros(channels)), (radius, color)):  # dark outline, then the disk
            cover = ((r - distance) / edge + 0.5).clamp(0, 1)
            canvas = canvas * (1 - cover) + paint[:, None, None] * cover
    return (canvas * 255).round().to(torch.uint8)


def patch(kind: str, channels: int, side: int) -> torch.Tensor:
    """A ``side`` x ``side`` patch, uint8 (C, side, side): "white", or "checker" (white at the corners)."""
    check.one_of("pattern", kind, ("white", "checker"))
    square = torch.full((side, side), 255, dtype=torch.uint8)
    if kind == "checker":
        at = torch.arange(side)
        square = ((at[:, None] + at[None, :]) % 2 == 0).to(torch.uint8) * 255
    return square.expand(channels, side, side).clone()


def default_patch_side(size: tuple[int, int]) -> int:
    """3 pixels at 32, as in the literature, in proportion elsewhere, and at least 2."""
    return max(2, math.floor(3 * min(size) / 32 + 0.5))
