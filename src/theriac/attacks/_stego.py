"""A small steganographic pair: an encoder that hides bits in an image, and the decoder that it is trained against."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F


class Encoder(nn.Module):
    """U-Net from an image and bits to a residual; the shape is StegaStamp's (Tancik et al., CVPR 2020), narrower.

    Args:
        shape: (C, H, W) of the images.
        bits: Length of the secret.
        width: Channels of the first level; they double from the third on.
        level: Root mean square of the residual (pixels in [0, 1]), no pixel above three times that; 0 leaves it free.
    """

    def __init__(self, shape: tuple[int, ...], bits: int, width: int, level: float) -> None:
        super().__init__()
        channels, height, side = shape
        self.shape, self.level = (channels, height, side), level
        depth = max(1, min(4, int(math.log2(min(height, side))) - 1))
        wide = [width, *(width * 2**k for k in range(depth))]
        self.secret = nn.Linear(bits, channels * height * side)
        self.entry = nn.Conv2d(2 * channels, wide[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(wide))
        self.up = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1) for a, b in pairwise(wide))
        skip = [2 * channels, *([0] * (depth - 1))]  # the highest level sees the input once more
        self.merge = nn.ModuleList(nn.Conv2d(2 * a + s, a, 3, padding=1) for a, s in zip(wide[:-1], skip, strict=True))
        self.out = nn.Conv2d(wide[0], channels, 1)

    def forward(self, x: torch.Tensor, secret: torch.Tensor) -> torch.Tensor:
        """Residual (B, C, H, W) for pixels in [0, 1] and bits (B, bits)."""
        # StegaStamp has a ReLU here; without it opposite bits draw opposite pictures, and training does not stall
        spread = self.secret(secret - 0.5).view(-1, *self.shape)
        inputs = torch.cat([spread, x - 0.5], 1)
        levels = [F.relu(self.entry(inputs))]
        for layer in self.down:
            levels.append(F.relu(layer(levels[-1])))
        out = levels[-1]
        for k in reversed(range(len(self.up))):
            out = F.relu(self.up[k](F.interpolate(out, size=levels[k].shape[2:])))
            parts = [out, levels[k], inputs] if k == 0 else [out, levels[k]]
            out = F.relu(self.merge[k](torch.cat(parts, 1)))
        residual: torch.Tensor = self.out(out)
        if not self.level:
            return residual
        # a fixed energy leaves only the direction to learn: neither silence nor a saturated bound stops the training
        scale = residual.square().mean((1, 2, 3), keepdim=True).add(1e-12).rsqrt()
        return self.level * (residual * scale).clamp(-3, 3)


class Stego(nn.Module):
    """Encoder and decoder together."""

    def __init__(self, shape: tuple[int, ...], bits: int, width: int, level: float) -> None:
        super().__init__()
        self.encoder = Encoder(shape, bits, width, level)
        steps = max(1, min(3, int(math.log2(min(shape[1:]))) - 1))
        layers: list[nn.Module] = []
        now = shape[0]
        for k in range(steps):
            after = width * 2**k
            layers += [nn.Conv2d(now, after, 3, 2, 1), nn.ReLU(), nn.Conv2d(after, after, 3, padding=1), nn.ReLU()]
            now = after
        height, side = (math.ceil(s / 2**steps) for s in shape[1:])
        layers += [nn.Flatten(), nn.Linear(now * height * side, 8 * width), nn.ReLU(), nn.Linear(8 * width, bits)]
        self.decoder = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor, secret: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Residual (B, C, H, W), and logits of the bits read from the stamped image (B, bits)."""
        residual = self.encoder(x, secret)
        return residual, self.decoder((x + residual).clamp(0, 1) - 0.5)


def ssim(a: torch.Tensor, b: torch.Tensor, window: int = 7) -> torch.Tensor:
    """Structural similarity (Wang et al., 2004) of pixels in [0, 1], with a flat window; mean over everything."""
    side = min(window, *a.shape[2:])

    def mean(x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x, side, 1)

    ma, mb = mean(a), mean(b)
    va, vb, both = mean(a * a) - ma * ma, mean(b * b) - mb * mb, mean(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * ma * mb + c1) * (2 * both + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2))).mean()
