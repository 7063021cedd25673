"""Random numbers that belong to a row: the same for a row number in whatever batch, order or device it comes."""

from __future__ import annotations

import math

import torch

_MASK = 0xFFFFFFFF


def uniform(index: torch.Tensor, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Numbers in [0, 1) by counting instead of drawing, float32 (B, *shape).

    A 32-bit integer hash of (seed, row number, place), after the published constants of "lowbias32". It passes for noise; it
    is not for secrets.

    Args:
        index: Row numbers in the source, int64 (B,), not negative.
        shape: What one row gets.
        seed: Another seed gives other numbers.
    """
    place = torch.arange(math.prod(shape), device=index.device)
    row = _mix((index & _MASK) ^ _mix((index >> 32) + seed % 0x7FFFFFFF))
    bits = _mix((row[:, None] + place[None] * 0x9E3779B9) & _MASK)
    return (bits >> 8).float().mul_(2.0**-24).view(len(index), *shape)


def pick(index: torch.Tensor, high: int, seed: int) -> torch.Tensor:
    """One whole number in [0, high) for each row, int64 (B,)."""
    return (uniform(index, (1,), seed)[:, 0].double() * high).long()


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = x & _MASK
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * (0x846CA68B - (1 << 32))) & _MASK  # the negative twin of the factor keeps the product in 64 bits
    return x ^ (x >> 16)
