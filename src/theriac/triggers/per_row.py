"""Random numbers that belong to a row: the same for a row number in whatever batch, order or device it comes."""

from __future__ import annotations

import math

import torch

_MASK = 0xFFFFFFFF
_CHUNK = 1 << 15  # numbers hashed at a time on a CPU: what fits into the cache runs fastest


def uniform(index: torch.Tensor, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Numbers in [0, 1) by counting instead of drawing, float32 (B, *shape).

    A 32-bit integer hash of (seed, row number, place), after the published constants of "lowbias32". It looks like noise; it
    is not cryptographic.

    Args:
        index: Row numbers in the source, int64 (B,), not negative.
        shape: What one row gets.
        seed: Another seed gives other numbers.
    """
    place = _low(torch.arange(math.prod(shape), device=index.device) * 0x9E3779B9)
    row = _mix(_low(index) ^ _mix(_low((index >> 32) + seed % 0x7FFFFFFF)))
    out = torch.empty((len(index), len(place)), device=index.device)
    rows = max(1, _CHUNK // max(1, len(place))) if index.device.type == "cpu" else max(1, len(index))
    for some, numbers in zip(row.split(rows), out.split(rows), strict=True):
        bits = _mix(some[:, None] + place[None])
        numbers.copy_(bits.bitwise_right_shift_(8).bitwise_and_(0xFFFFFF)).mul_(2.0**-24)
    return out.view(len(index), *shape)


def pick(index: torch.Tensor, high: int, seed: int) -> torch.Tensor:
    """One whole number in [0, high) for each row, int64 (B,)."""
    return (uniform(index, (1,), seed)[:, 0].double() * high).long()


def _low(x: torch.Tensor) -> torch.Tensor:
    """The low 32 bits of int64 numbers, as int32."""
    x = x & _MASK
    return torch.where(x > 0x7FFFFFFF, x - (1 << 32), x).to(torch.int32)


def _mix(x: torch.Tensor) -> torch.Tensor:
    """The hash of int32 numbers, in place. Products wrap; a right shift brings in copies of the sign, which are masked."""
    x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).mul_(0x7FEB352D)
    x.bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF)).mul_(0x846CA68B - (1 << 32))
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))
