"""Triggers that add a fixed pattern: a sinusoid, a few frequencies, corner marks, or anything fitted elsewhere."""

from __future__ import annotations

import math

import torch

from theriac.core import check
from theriac.core.errors import InputError
from theriac.triggers._tiles import by_tiles


def add(x: torch.Tensor, pattern: torch.Tensor, overflow: str = "clip", *, truncate: bool = False) -> torch.Tensor:
    """``x + round(pattern)``: pixels are whole, so this is the sum rounded to the nearest level.

    Args:
        x: Images, uint8 (B, C, H, W).
        pattern: Gray levels to add, (C, H, W) or (B, C, H, W), any real dtype.
        overflow: "clip" stays in [0, 255]; "wrap" counts modulo 256, a fault of released code that some presets keep.
        truncate: Cut off the fraction of the sum, as released code does, instead of rounding it.

    Raises:
        InputError: If the pattern does not fit the images.
    """
    check.one_of("overflow", overflow, ("clip", "wrap"))
    if tuple(pattern.shape[-3:]) != tuple(x.shape[1:]):
        raise InputError(f"pattern has shape {tuple(pattern.shape)}; the images are {tuple(x.shape[1:])}")
    exact = pattern.to(x.device)
    exact = (exact.floor() if truncate else exact.round()) if exact.is_floating_point() else exact.long()
    # what goes beyond 16 bits has the same effect as this
    levels = (exact.remainder(256) if overflow == "wrap" else exact.clamp(-255, 255)).to(torch.int16)

    def shift(part: torch.Tensor, by: torch.Tensor = levels) -> torch.Tensor:
        total = part.to(torch.int16).add_(by)
        return total.remainder_(256).to(torch.uint8) if overflow == "wrap" else total.clamp_(0, 255).to(torch.uint8)

    return by_tiles(x, shift) if levels.dim() == 3 else shift(x)


def sinusoid(channels: int, size: tuple[int, int], delta: float, frequency: float) -> torch.Tensor:
    """``delta sin(2 pi j frequency / width)`` in column ``j`` of every row and channel, float32 (C, H, W)."""
    height, width = size
    at = torch.arange(width, dtype=torch.float64)
    wave = delta * torch.sin(2 * math.pi * frequency / width * at)
    return wave.float().expand(channels, height, width).clone()


def corners(channels: int, size: tuple[int, int], side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The label-consistent mark: in each corner a block that is black but for some white pixels.

    The literature's block has 3 x 3 pixels. Larger blocks repeat each of its pixels; smaller ones, for very small images, are
    its upper left part.

    Returns:
        Gray levels, uint8 (C, H, W), and where they stand, bool (H, W).

    Raises:
        InputError: If four blocks do not fit into the image.
    """
    height, width = size
    if side < 1 or 2 * side > min(size):
        raise InputError(f"side is {side}; four corner blocks of it do not fit into {height} x {width}")
    # corner (bottom, right) to the (row, column) of its white pixels; facts from THUYimingLi/BackdoorBox @ af3afd1 (grade A)
    white = {
        (0, 0): ((0, 0), (1, 1), (2, 2), (2, 0)),
        (0, 1): ((0, 2), (1, 1), (2, 0), (2, 2)),
        (1, 0): ((0, 0), (1, 1), (2, 0), (2, 2)),
        (1, 1): ((0, 2), (1, 1), (2, 0), (2, 2)),
    }
    level = torch.zeros(height, width, dtype=torch.uint8)
    where = torch.zeros(height, width, dtype=torch.bool)
    grow = torch.div(torch.arange(side) * 3, max(side, 3), rounding_mode="floor")  # block pixel behind each image pixel
    for (bottom, right), pixels in white.items():
        block = torch.zeros(3, 3, dtype=torch.uint8)
        for row, column in pixels:
            block[row, column] = 255
        rows = slice(height - side, height) if bottom else slice(0, side)
        columns = slice(width - side, width) if right else slice(0, side)
        level[rows, columns] = block[grow][:, grow]
        where[rows, columns] = True
    return level.expand(channels, height, width).clone(), where
