"""RandAugment, batched: some operations drawn for each picture, all of one strength.

Paper: Cubuk, Zoph, Shlens, Le, "RandAugment: practical automated data augmentation with a reduced search space", NeurIPS 2020,
https://arxiv.org/abs/1909.13719. Its fourteen operations; how far each goes at a magnitude is as in common ports (grade R:
recalled): 30 is a rotation by 30 degrees, a shear of 0.3, a shift of 45 % of the side, a factor of 0.1 or 1.9 for color,
contrast, brightness and sharpness, four bits for posterize, threshold 0 for solarize. Rotation, shear, shift and the four
factors go either way by chance.

Operations run once for all pictures that drew them, so a batch costs fourteen operations a round and not one a picture. They
are those of Pillow to within one level of 255.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

MOST = 30  # magnitude; the scale of the paper's code
_GRAY = (0.299, 0.587, 0.114)


def randaugment(x: torch.Tensor, operations: int, magnitude: float, generator: torch.Generator) -> torch.Tensor:
    """Apply ``operations`` random operations to each picture, one after the other.

    Args:
        x: Images, uint8 (B, C, H, W), or float in [0, 1].
        operations: How many; each is drawn anew, so one may come twice.
        magnitude: From 0, where most do nothing, to 30.
        generator: Where the randomness comes from (a CPU generator).

    Returns:
        New images of the same shape, dtype and device.
    """
    levels = x.float() if x.dtype == torch.uint8 else x.float() * 255
    share = magnitude / MOST
    for _ in range(operations):
        kinds = torch.randint(0, len(OPERATIONS), (len(x),), generator=generator)
        signs = (torch.randint(0, 2, (len(x),), generator=generator) * 2 - 1).to(x.device)
        changed = levels.clone()
        for number in kinds.unique().tolist():
            at = (kinds == number).nonzero().flatten().to(x.device)
            changed[at] = OPERATIONS[number](levels[at], share, signs[at]).clamp(0, 255)
        levels = changed
    return levels.round().to(x.dtype) if x.dtype == torch.uint8 else (levels / 255).to(x.dtype)


def identity(x: torch.Tensor, share: float, sign: torch.Tensor) -> torch.Tensor:
    """The picture as it is."""
    return x


def autocontrast(x: torch.Tensor, share: float, sign: torch.Tensor) -> torch.Tensor:
    """Each channel stretched to all levels."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, ((x - low) * (255 / (high - low).clamp_min(1e-6))).floor(), x)


def equalize(x: torch.Tensor, share: float, sign: torch.Tensor) -> torch.Tensor:
    """Each channel's histogram made flat, by Pillow's integer rule."""
    batch, channels, height, width = x.shape
    levels = x.round().long().clamp(0, 255).view(batch * channels, -1)
    counts = torch.zeros(len(levels), 256, dtype=torch.long, device=x.device)
    counts.scatter_add_(1, levels, torch.ones_like(levels))
    last = counts.gather(1, levels.amax(1, keepdim=True))  # rows of the brightest level, which do not count
    step = (height * width - last) // 255
    table = ((counts.cumsum(1) - counts + step // 2) // step.clamp_min(1)).clamp(0, 255)
    return torch.where(step > 0, table.gather(1, levels), levels).view_as(x).to(x.dtype)


def solarize(x: torch.Tensor, share: float, sign: torch.Tensor) -> torch.Tensor:
    """Levels from a threshold on turned around."""
    return torch.where(x >= 256 * (1 - share), 255 - x, x)


def posterize(x: torch.Tensor, share: float, sign: torch.Tensor) -> torch.Tensor:
    """Fewer bits a level, from 8 down to 4."""
    size = 1 << round(4 * share)
    return (x.round() / size).floor() * size


def brightness(x: torch.Tensor, share: float, sign: torch.Tensor) -> torch.Tensor:
    """Toward black or away from it."""
    return _blend(x, torch.zeros_like(x), share, sign)


def contrast(x: torch.Tensor, share: float, sign: torch.Tensor) -> torch.Tensor:
    """Toward the picture's mean gray or away from it."""
    return _blend(x, _gray(x).mean((2, 3), keepdim=True).round(), share, sign)


def color(x: torch.Tensor, share: float, sign: torch.Tensor) -> torch.Tensor:
    """Toward the gray picture or away from it; gray pictures stay."""
    return _blend(x, _gray(x), share, sign)


def sharpness(x: torch.Tensor, share: float, sign: torch.Tensor) -> torch.Tensor:
    """Toward a smoothed picture or away from it; the outermost pixels stay."""
    if min(x.shape[2:]) < 3:
        return x
    kernel = x.new_ones(3, 3)
    kernel[1, 1] = 5
    smooth = x.clone()
    inner = F.conv2d(x.flatten(0, 1)[:, None], (kernel / kernel.sum())[None, None])
    smooth[:, :, 1:-1, 1:-1] = inner.view(*x.shape[:2], *inner.shape[2:]).round()
    return _blend(x, smooth, share, sign)


def rotate(x: torch.Tensor, share: float, sign: torch.Tensor) -> torch.Tensor:
    """About the center, by at most 30 degrees."""
    angle = sign * share * math.radians(30)
    cos, sin = angle.cos(), angle.sin()
    return _moved(x, cos, -sin, sin, cos)


def shear_x(x: torch.Tensor, share: float, sign: torch.Tensor) -> torch.Tensor:
    """Rows moved sideways, by at most 0.3 pixels a row."""
    one = torch.ones_like(sign, dtype=x.dtype)
    return _moved(x, one, 0.3 * share * sign, 0 * one, one)


def shear_y(x: torch.Tensor, share: float, sign: torch.Tensor) -> torch.Tensor:
    """Columns moved up or down, by at most 0.3 pixels a column."""
    one = torch.ones_like(sign, dtype=x.dtype)
    return _moved(x, one, 0 * one, 0.3 * share * sign, one)


def translate_x(x: torch.Tensor, share: float, sign: torch.Tensor) -> torch.Tensor:
    """Moved sideways by whole pixels, at most 150 / 331 of the width."""
    return _shifted(x, share, sign, 3)


def translate_y(x: torch.Tensor, share: float, sign: torch.Tensor) -> torch.Tensor:
    """Moved up or down by whole pixels, at most 150 / 331 of the height."""
    return _shifted(x, share, sign, 2)


OPERATIONS: tuple[Callable[[torch.Tensor, float, torch.Tensor], torch.Tensor], ...] = (
    identity,
    autocontrast,
    equalize,
    solarize,
    posterize,
    brightness,
    contrast,
    color,
    sharpness,
    rotate,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
)


def _blend(x: torch.Tensor, other: torch.Tensor, share: float, sign: torch.Tensor) -> torch.Tensor:
    """``other`` at factor 0, the picture at 1, and beyond it above."""
    factor = (1 + 0.9 * share * sign)[:, None, None, None]
    return (other + factor * (x - other)).clamp(0, 255).floor()


def _gray(x: torch.Tensor) -> torch.Tensor:
    """One channel of brightness; pictures without three channels are averaged."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return (x * x.new_tensor(_GRAY)[:, None, None]).sum(1, keepdim=True).round()


def _moved(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """Each picture through a linear map of pixels about the center: column a u + b v and row c u + d v of the source."""
    height, width = x.shape[2:]
    zero = torch.zeros_like(a)
    matrix = torch.stack([torch.stack([a, b * height / width, zero], 1), torch.stack([c * width / height, d, zero], 1)], 1)
    grid = F.affine_grid(matrix.to(x.dtype), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def _shifted(x: torch.Tensor, share: float, sign: torch.Tensor, axis: int) -> torch.Tensor:
    amount = int(share * 150 / 331 * x.shape[axis])
    if amount == 0:
        return x
    empty = torch.zeros_like(x.narrow(axis, 0, amount))
    left = torch.cat([x.narrow(axis, amount, x.shape[axis] - amount), empty], axis)
    right = torch.cat([empty, x.narrow(axis, 0, x.shape[axis] - amount)], axis)
    return torch.where((sign > 0)[:, None, None, None], right, left)
