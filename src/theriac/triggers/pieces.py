"""Triggers in pieces: a picture cut into squares of which some are shown, and several marks at different places."""

from __future__ import annotations

import math

import torch

from theriac.core.errors import InputError
from theriac.triggers.per_row import uniform


def squares(size: tuple[int, int], pieces: int) -> torch.Tensor:
    """Number of the square that each pixel lies in, int64 (H, W); the squares are counted row by row.

    Raises:
        InputError: If ``pieces`` is no square number, or a side has too few pixels.
    """
    root = math.isqrt(pieces)
    if pieces < 1 or root * root != pieces or root > min(size):
        raise InputError(
            f"pieces is {pieces}; expected a square number whose root is at most the side of {size[0]} x {size[1]}"
        )
    rows, columns = (torch.arange(side) * root // side for side in size)
    return rows[:, None] * root + columns[None, :]


def shown_pieces(index: torch.Tensor, pieces: int, dropped: int, seed: int) -> torch.Tensor:
    """Which pieces each row shows, bool (B, ``pieces``): all but ``dropped``, drawn for each row number anew."""
    rank = uniform(index, (pieces,), seed).argsort(1).argsort(1)
    return rank >= dropped


def blend_where(x: torch.Tensor, picture: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``x + weight (picture - x)``, rounded to the nearest level; uint8 (B, C, H, W) in and out.

    Args:
        x: Images.
        picture: uint8, (C, H, W) or (B, C, H, W).
        weight: Share of the picture, in [0, 1]: any shape that broadcasts to the images.
    """
    wide = x.float()
    moved = wide + weight.to(x.device) * (picture.to(x.device).float() - wide)
    return moved.round_().clamp_(0, 255).to(torch.uint8)


def speckle(channels: int, side: int, draw: torch.Generator) -> torch.Tensor:
    """A ``side`` x ``side`` patch of random colors, uint8 (C, side, side): half of a channel is 255, the rest 0."""
    rank = torch.rand(channels, side * side, generator=draw).argsort(1)
    return ((rank < (side * side + 1) // 2).to(torch.uint8) * 255).view(channels, side, side)


def marks(channels: int, size: tuple[int, int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Four marks of our own, drawn for the resolution: two corner blobs, a checker, a square of random colors.

    Blob of 8 pixels (at 32) in the lower right corner, another in the lower left one, a checker of 4 above and left of the
    first, random colors on 6 x 6 in the upper right corner.

    Returns:
        Gray levels, uint8 (4, C, H, W), and where each mark stands, bool (4, H, W).

    Raises:
        InputError: If the image is too small for them.
    """
    height, width = size
    if min(size) < 6:
        raise InputError(f"the marks need images of at least 6 x 6 pixels; these are {height} x {width}")
    draw = torch.Generator().manual_seed(seed)
    level = torch.zeros(4, channels, height, width, dtype=torch.uint8)
    where = torch.zeros(4, height, width, dtype=torch.bool)
    blob, small, square = (max(2, math.floor(side * min(size) / 32 + 0.5)) for side in (8, 4, 6))
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
    bright = torch.randperm(channels, generator=draw)[0]
    for number, from_side in ((0, width - 1 - columns), (1, columns)):
        where[number] = torch.hypot((height - 1 - rows).float(), from_side.float()) < blob
        color = (torch.rand(channels, generator=draw) > 0.5).to(torch.uint8) * 255
        color[(bright + number) % channels] = 255  # never black
        level[number] = color[:, None, None]
    top, left = height - blob - small, width - blob - small
    where[2, top : top + small, left : left + small] = True
    level[2] = ((rows + columns) % 2 * 255).to(torch.uint8)
    where[3, :square, width - square :] = True
    level[3, :, :square, width - square :] = speckle(channels, square, draw)
    return level * where[:, None], where
