"""Closed-form triggers: pure functions from a batch of stored rows to a batch of stored rows.

Arithmetic happens in a wide type, then clip, then cast, so nothing wraps around.
"""

from __future__ import annotations

import torch

from theriac.core.errors import InputError
from theriac.triggers._tiles import by_tiles


def stamp_patch(x: torch.Tensor, patch: torch.Tensor, top: int, left: int, opacity: float | torch.Tensor = 1.0) -> torch.Tensor:
    """Overwrite a rectangle, or mix a patch into it.

    Args:
        x: Images, uint8 (B, C, H, W).
        patch: uint8 (C, h, w).
        top: First row; negative counts from the bottom edge.
        left: First column; negative counts from the right edge.
        opacity: Share of the patch, or of each of its pixels (h, w), rounded to the nearest level; at 1 it overwrites.

    Raises:
        InputError: If the patch does not lie inside the image.
    """
    height, width = x.shape[2:]
    h, w = patch.shape[1:]
    top, left = (top + height if top < 0 else top), (left + width if left < 0 else left)
    if not (0 <= top <= height - h and 0 <= left <= width - w):
        raise InputError(f"a patch of {h} x {w} at row {top}, column {left} does not fit into {height} x {width}")
    out = x.clone()
    there = out[:, :, top : top + h, left : left + w]
    opaque = not isinstance(opacity, torch.Tensor) and opacity == 1
    there.copy_(patch.to(x.device) if opaque else blend(there, patch, opacity))
    return out


def blend(x: torch.Tensor, picture: torch.Tensor, alpha: float | torch.Tensor, *, truncate: bool = False) -> torch.Tensor:
    """``(1 - alpha) x + alpha picture``, as whole levels; uint8 (B, C, H, W) in and out.

    Args:
        x: Images.
        picture: What is mixed in, (C, H, W) in levels 0 to 255.
        alpha: One share, or one for each pixel (H, W).
        truncate: Cut off the fraction, as released code does, instead of rounding to the nearest level.
    """
    alpha = alpha.to(x.device) if isinstance(alpha, torch.Tensor) else alpha
    share = picture.to(x.device).float() * alpha

    def mix(part: torch.Tensor) -> torch.Tensor:
        if truncate:  # in double precision, so that rounding errors do not cost a whole level
            exact = part.double().mul_(1 - alpha).add_(picture.to(x.device).double() * alpha)
            return exact.add_(1e-9).floor_().clamp_(0, 255).to(torch.uint8)
        return part.float().mul_(1 - alpha).add_(share).round_().clamp_(0, 255).to(torch.uint8)

    return by_tiles(x, mix)
