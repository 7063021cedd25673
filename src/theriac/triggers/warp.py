"""Smooth warping fields, and images seen through them."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from theriac.triggers._tiles import by_tiles


def identity_grid(size: tuple[int, int]) -> torch.Tensor:
    """Sampling places that leave an image as it is, float32 (H, W, 2) of (x, y) in [-1, 1], pixel centers at the ends."""
    rows, columns = torch.linspace(-1, 1, size[0]), torch.linspace(-1, 1, size[1])
    return torch.stack([columns.expand(size), rows[:, None].expand(size)], -1)


def smooth_field(lattice: int, size: tuple[int, int], seed: int) -> torch.Tensor:
    """Random shifts on a ``lattice`` x ``lattice`` control grid, scaled to mean size 1, bicubic in between.

    Returns:
        float32 (H, W, 2).
    """
    return smooth_fields(1, lattice, size, torch.Generator().manual_seed(seed))[0].contiguous()


def smooth_fields(number: int, lattice: int, size: tuple[int, int], draw: torch.Generator) -> torch.Tensor:
    """Several such fields, each scaled by itself, float32 (number, H, W, 2)."""
    noise = torch.rand(number, 2, lattice, lattice, generator=draw) * 2 - 1
    noise = noise / noise.abs().mean((1, 2, 3), keepdim=True)
    return F.interpolate(noise, size=size, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)


def warp(x: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Images sampled bilinearly at ``grid``.

    Args:
        x: Images, uint8 (rounded to the nearest level) or float (B, C, H, W).
        grid: (H, W, 2) for all, or (B, H, W, 2), of (x, y) in [-1, 1]; places outside are moved to the edge.
    """
    places = grid.to(x.device, torch.float32).clamp(-1, 1)

    def sample(part: torch.Tensor, at: torch.Tensor = places) -> torch.Tensor:
        spread = at.expand(len(part), *at.shape[-3:])
        out = F.grid_sample(part.float(), spread, mode="bilinear", padding_mode="border", align_corners=True)
        return out.round_().clamp_(0, 255).to(torch.uint8) if x.dtype == torch.uint8 else out

    return by_tiles(x, sample) if places.dim() == 3 else sample(x)
