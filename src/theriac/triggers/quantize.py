"""Fewer levels per channel, plainly or with the error passed on to the neighbors (Floyd and Steinberg)."""

from __future__ import annotations

import torch

from theriac.core import check
from theriac.triggers._tiles import by_tiles

_CHUNK = 512  # planes dithered at a time: what fits into the cache runs fastest


def levels(count: int) -> torch.Tensor:
    """``count`` evenly spaced levels from 0 to 255, rounded to bytes, float64 (count,)."""
    check.integer("count", count, 2, 256)
    return (torch.arange(count, dtype=torch.float64) * 255 / (count - 1)).round()


def quantize(x: torch.Tensor, count: int) -> torch.Tensor:
    """Each pixel of uint8 images (B, C, H, W) moved to the nearest of ``count`` levels; twice is the same as once."""
    check.integer("count", count, 2, 256)

    # no pixel lies halfway between two levels (2 x (count - 1) is even, an odd multiple of 255 is not), so float32 is exact
    def nearest(part: torch.Tensor) -> torch.Tensor:
        step = part.float().mul_((count - 1) / 255).round_()
        return step.mul_(255).div_(count - 1).round_().to(torch.uint8)

    return by_tiles(x, nearest)


def dither(x: torch.Tensor, count: int) -> torch.Tensor:
    """Floyd-Steinberg dithering of uint8 images (B, C, H, W) to ``count`` levels.

    A pixel waits for its left neighbor and for three pixels above. With row ``y`` set back by ``2 y`` columns all that have
    the same column wait for earlier columns only, so W + 2 H steps on whole columns replace H W steps on single pixels.
    Errors are taken against levels rounded to bytes, so that dithering twice is the same as once.

    Returns:
        uint8 (B, C, H, W).
    """
    height, width = x.shape[2:]
    planes = x.reshape(-1, height, width)
    done = [_dither(part, count) for part in planes.split(_CHUNK)]
    return (torch.cat(done) if done else planes.clone()).view(x.shape)


def _dither(planes: torch.Tensor, count: int) -> torch.Tensor:
    number, height, width = planes.shape
    table = levels(count).to(planes.device)
    columns = width + 2 * (height - 1)
    row = torch.arange(height, device=planes.device)
    # skew: (column + 2 row, row, plane), with three more columns for errors that leave the image
    skew = torch.zeros(columns + 3, height, number, dtype=torch.float64, device=planes.device)
    at = (torch.arange(width, device=planes.device)[:, None] + 2 * row[None, :], row.expand(width, height))
    skew[at] = planes.permute(2, 1, 0).double()
    for t in range(columns):
        inside = ((t - 2 * row >= 0) & (t - 2 * row < width))[:, None]
        level = (skew[t] * ((count - 1) / 255)).round_().clamp_(0, count - 1).long()
        new = table[level]
        error = (skew[t] - new) * inside
        skew[t] = new
        skew[t + 1] += error * (7 / 16)
        skew[t + 1, 1:] += error[:-1] * (3 / 16)
        skew[t + 2, 1:] += error[:-1] * (5 / 16)
        skew[t + 3, 1:] += error[:-1] * (1 / 16)
    return skew[at].permute(2, 1, 0).to(torch.uint8)
