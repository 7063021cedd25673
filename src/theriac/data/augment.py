"""Batched augmentation of uint8 images, with an explicit generator and no per-image Python.

All parameters are drawn on the CPU for the whole batch, one independent draw per image, so that the same generator state
gives the same pictures on every device and under data-parallel training.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from theriac.core.card import Augment
from theriac.core.errors import InputError
from theriac.data.randaugment import randaugment


def augment(x: torch.Tensor, policy: Augment, generator: torch.Generator) -> torch.Tensor:
    """Apply a policy to a batch.

    Args:
        x: Images, uint8 or float (B, C, H, W). Floats keep their range; padding and cutout fill with 0.
        policy: What may be done.
        generator: Where the randomness comes from (a CPU generator).

    Returns:
        New images of the same shape, dtype and device.
    """
    if policy.randaugment:
        x = randaugment(x, policy.randaugment, policy.magnitude, generator)
    if policy.rotation:
        x = rotate(x, policy.rotation, generator)
    if policy.crop_pad:
        x = pad_and_crop(x, policy.crop_pad, policy.pad_mode, generator)
    if policy.flip:
        x = flip(x, generator)
    if policy.cutout:
        x = cutout(x, policy.cutout, generator)
    return x


def pad_and_crop(x: torch.Tensor, pad: int, mode: str, generator: torch.Generator) -> torch.Tensor:
    """Pad every side by ``pad`` ("zero" or "reflect") and crop back to size at a random place of each image."""
    batch, channels, height, width = x.shape
    if mode == "reflect" and pad >= min(height, width):
        raise InputError(f"crop_pad is {pad}; reflection needs less than the image side {min(height, width)}")
    top = torch.randint(0, 2 * pad + 1, (batch, 1), generator=generator).to(x.device)
    left = torch.randint(0, 2 * pad + 1, (batch, 1), generator=generator).to(x.device)
    rows = top + torch.arange(height, device=x.device) - pad  # source coordinates, may lie outside
    cols = left + torch.arange(width, device=x.device) - pad
    if mode == "reflect":
        rows, cols = _reflect(rows, height), _reflect(cols, width)
        inside = None
    else:
        inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((cols >= 0) & (cols < width))[:, None, None, :]
        rows, cols = rows.clamp(0, height - 1), cols.clamp(0, width - 1)
    flat = (rows[:, :, None] * width + cols[:, None, :]).view(batch, 1, -1).expand(-1, channels, -1)
    out = x.reshape(batch, channels, -1).gather(2, flat).view(batch, channels, height, width)
    return out if inside is None else out * inside.to(out.dtype)


def _reflect(at: torch.Tensor, size: int) -> torch.Tensor:
    at = at.abs()
    return torch.where(at >= size, 2 * (size - 1) - at, at)


def flip(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror each image left to right with probability one half."""
    mirrored = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
    return torch.where(mirrored[:, None, None, None], x.flip(3), x)


def cutout(x: torch.Tensor, side: int, generator: torch.Generator) -> torch.Tensor:
    """Set a ``side`` x ``side`` square of each image to zero; its center lies anywhere, so it may stick out."""
    batch, _, height, width = x.shape
    center_y = torch.randint(0, height, (batch, 1), generator=generator).to(x.device)
    center_x = torch.randint(0, width, (batch, 1), generator=generator).to(x.device)
    dy = torch.arange(height, device=x.device) - center_y
    dx = torch.arange(width, device=x.device) - center_x
    half = side // 2
    hole = ((dy >= -half) & (dy < side - half))[:, :, None] & ((dx >= -half) & (dx < side - half))[:, None, :]
    return x * (~hole)[:, None].to(x.dtype)


def rotate(x: torch.Tensor, degrees: float, generator: torch.Generator) -> torch.Tensor:
    """Rotate each image about its center by an angle drawn uniformly from [-degrees, degrees]; corners become 0."""
    angle = (torch.rand(len(x), generator=generator) * 2 - 1).to(x.device) * math.radians(degrees)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    height, width = x.shape[2:]
    matrix = torch.stack(  # grid_sample's coordinates are scaled by side, hence the aspect ratios
        [
            torch.stack([cos, -sin * height / width, zero], 1),
            torch.stack([sin * width / height, cos, zero], 1),
        ],
        1,
    )
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    turned = F.grid_sample(x.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return turned.round().to(x.dtype) if x.dtype == torch.uint8 else turned.to(x.dtype)
