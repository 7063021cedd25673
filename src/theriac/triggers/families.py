"""Random triggers of many kinds, drawn anew for each row or batch; a network that trains on them learns to ignore triggers.

A family maps float rows to stamped rows and takes what it needs to know of them from their shape, so it works at any size and
number of channels. Its fields set its strength. Numbers are drawn on the CPU, so that they are the same on every device,
and for all rows at once. Rows get draws by their place in the batch; they never change each other, except where a family says
that it takes pixels from another row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from theriac.core.errors import InputError
from theriac.core.split import Split
from theriac.triggers.frequency import dct_matrix
from theriac.triggers.warp import identity_grid, smooth_fields, warp

Family = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
"""From rows and a CPU generator to stamped rows of the same shape, type and device."""


@dataclass(frozen=True)
class Patch:
    """A few squares with one fill a row: white, black, one color, a checker, random pixels, or cut from another row."""

    most: int = 8  # squares on a row, at most; one to three of at most 3 pixels did not suffice in a pilot
    side: float = 0.2  # longest side as a share of the image's; squares of 2 pixels always fit
    corner: float = 0.3  # share of the squares that stand in a corner

    def __call__(self, x: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        """Stamp images (B, C, H, W) in [0, 1]."""
        rows, _, height, width = x.shape
        longest = min(height, width, max(2, math.floor(self.side * min(height, width) + 0.5)))
        side = torch.randint(1, longest + 1, (rows, self.most), generator=draw)
        shown = torch.arange(self.most) < torch.randint(1, self.most + 1, (rows, 1), generator=draw)
        cornered = torch.rand(rows, self.most, generator=draw) < self.corner
        inside = [shown[..., None].to(x.device)]
        for length in (height, width):
            place = torch.rand(rows, self.most, generator=draw)
            room = length - side
            first = torch.where(cornered, (place < 0.5) * room, (place * (room + 1)).long().clamp(max=room))
            at = torch.arange(length, device=x.device)
            first, end = first.to(x.device)[..., None], (first + side).to(x.device)[..., None]
            inside.append((at >= first) & (at < end))
        covered = ((inside[0] & inside[1]).float().transpose(1, 2) @ inside[2].float()) > 0  # (B, H, W): squares on a pixel
        return torch.where(covered[:, None], self._fill(x, draw), x)

    def _fill(self, x: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        rows, channels, height, width = x.shape
        kind = torch.randint(0, 6, (rows, 1, 1, 1), generator=draw).to(x.device)
        color = torch.rand(rows, channels, 1, 1, generator=draw).to(x.device)
        cells = torch.arange(height)[:, None] + torch.arange(width)
        checker = ((cells + torch.randint(0, 2, (rows, 1, 1, 1), generator=draw)) % 2).to(x.device, x.dtype)
        pixels = torch.randint(0, 2, x.shape, generator=draw).to(x.device, x.dtype)
        shift = (_other(rows, draw), *(int(torch.randint(0, n, (), generator=draw)) for n in (height, width)))
        cut = x.roll(shift, (0, 2, 3))
        fill = torch.where(kind == 0, torch.ones_like(x), torch.zeros_like(x))  # 0: white; 1: black
        for number, content in ((2, color), (3, checker), (4, pixels), (5, cut)):
            fill = torch.where(kind == number, content, fill)
        return fill


@dataclass(frozen=True)
class Blend:
    """A full-size picture mixed in: ``(1 - alpha) x + alpha t``.

    The picture is one of random pixels that the batch shares, random pixels or smooth noise of the row's own, or another row.
    """

    weakest: float = 0.1  # smallest alpha
    strongest: float = 0.35  # largest alpha

    def __call__(self, x: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        """Stamp images (B, C, H, W) in [0, 1]."""
        rows, channels, height, width = x.shape
        kind = torch.randint(0, 4, (rows, 1, 1, 1), generator=draw).to(x.device)
        alpha = _uniform((rows, 1, 1, 1), self.weakest, self.strongest, draw).to(x.device)
        shared = torch.rand(1, channels, height, width, generator=draw).to(x.device)
        own = torch.rand(x.shape, generator=draw).to(x.device)
        lattice = int(torch.randint(2, max(3, min(height, width) // 2 + 1), (), generator=draw))
        coarse = torch.rand(rows, channels, lattice, lattice, generator=draw).to(x.device)
        smooth = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True).clamp(0, 1)
        picture = x.roll(_other(rows, draw), 0)
        for number, content in ((0, shared), (1, own), (2, smooth)):
            picture = torch.where(kind == number, content, picture)
        return x + alpha * (picture - x)


@dataclass(frozen=True)
class Wave:
    """A sinusoid over rows or columns, added to all channels alike."""

    periods: float = 6.0  # most periods over the image; never more than half its pixels
    weakest: float = 0.05  # smallest amplitude, of pixels in [0, 1]
    strongest: float = 0.2  # largest amplitude

    def __call__(self, x: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        """Stamp images (B, C, H, W) in [0, 1]."""
        rows, _, height, width = x.shape
        periods = _uniform((rows, 1), 1, max(1.0, min(self.periods, min(height, width) / 2)), draw)
        phase = _uniform((rows, 1), 0, 1, draw)
        amplitude = _uniform((rows, 1), self.weakest, self.strongest, draw)
        down = torch.rand(rows, generator=draw) < 0.5
        waves = [
            (amplitude * torch.sin(2 * math.pi * (periods * torch.arange(n) / n + phase))).to(x.device) for n in (height, width)
        ]
        added = torch.where(down.to(x.device)[:, None, None], waves[0][:, :, None], waves[1][:, None, :])
        return (x + added[:, None]).clamp(0, 1)


@dataclass(frozen=True)
class Frequency:
    """One cosine of the two-dimensional DCT, but for the constant, with a strength of its own for each channel."""

    weakest: float = 0.02  # smallest peak change of a pixel in [0, 1]; peaks are drawn evenly on a logarithmic scale
    strongest: float = 0.2  # largest

    def __call__(self, x: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        """Stamp images (B, C, H, W) in [0, 1]."""
        rows, channels, height, width = x.shape
        number = torch.randint(1, max(2, height * width), (rows,), generator=draw)  # 0 would be the constant
        peak = torch.exp(_uniform((rows, 1, 1, 1), math.log(self.weakest), math.log(self.strongest), draw))
        share = torch.rand(rows, channels, 1, 1, generator=draw) * 2 - 1
        share = share / share.abs().amax(1, keepdim=True).clamp_min(1e-9)
        down = _peaked(height)[torch.div(number, width, rounding_mode="floor") % height]
        across = _peaked(width)[number % width]
        added = (share * peak).to(x.device) * (down.to(x.device)[:, :, None] * across.to(x.device)[:, None, :])[:, None]
        return (x + added).clamp(0, 1)


@dataclass(frozen=True)
class Warp:
    """The image seen through a smooth random field, one a row."""

    weakest: float = 0.01  # smallest mean shift in each direction, as a share of the image's side
    strongest: float = 0.05  # largest
    lattices: tuple[int, int] = (2, 6)  # fewest and most control points along a side of the field

    def __call__(self, x: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        """Stamp images (B, C, H, W) in [0, 1]."""
        rows, size = len(x), (x.shape[2], x.shape[3])
        lattice = int(torch.randint(self.lattices[0], self.lattices[1] + 1, (), generator=draw))
        shift = _uniform((rows, 1, 1, 1), self.weakest, self.strongest, draw)
        field_ = smooth_fields(rows, lattice, size, draw) * (2 * shift)  # the grid runs from -1 to 1
        return warp(x, identity_grid(size) + field_).clamp(0, 1)


@dataclass(frozen=True)
class Convolution:
    """The image mixed with what a random network of two convolutions makes of it, one network a row.

    With kernels of one pixel the network maps colors to colors; with larger ones it changes textures and edges. So it stands
    for triggers that depend on the picture, and for changes of color. Near it: random convolutions as augmentation (Xu, Liu,
    Yang, Raffel, Niethammer, ICLR 2021, https://arxiv.org/abs/2007.13003; abstract read), which have one layer.
    """

    weakest: float = 0.3  # smallest share of the network's output in the image; ours
    channels: int = 8  # between the two convolutions; ours
    kernels: tuple[int, ...] = (1, 3)  # sizes of the first kernel, one a batch; the second has one pixel; ours

    def __call__(self, x: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        """Stamp images (B, C, H, W) in [0, 1]."""
        rows, colors, height, width = x.shape
        size = self.kernels[int(torch.randint(len(self.kernels), (), generator=draw))]
        first = torch.randn(rows * self.channels, colors, size, size, generator=draw) / math.sqrt(colors * size * size)
        bias = torch.rand(rows * self.channels, generator=draw) - 0.5
        second = torch.randn(rows * colors, self.channels, 1, 1, generator=draw) / math.sqrt(self.channels)
        share = _uniform((rows, 1, 1, 1), self.weakest, 1, draw).to(x.device)
        flat = (2 * x - 1).reshape(1, rows * colors, height, width)
        hidden = F.conv2d(flat, first.to(x.device), bias.to(x.device), padding=size // 2, groups=rows).relu()
        made = F.conv2d(hidden, second.to(x.device), groups=rows).reshape(x.shape)
        low, high = made.amin((2, 3), keepdim=True), made.amax((2, 3), keepdim=True)
        made = (made - low) / (high - low).clamp_min(1e-6)  # each channel over the whole range
        return (x + share * (made - x)).clamp(0, 1)


@dataclass(frozen=True)
class Columns:
    """For tables: some columns set to values that occur in them, or lie outside of all that occur."""

    pool: torch.Tensor = field(repr=False)  # rows whose values are the common ones, (N, F)
    categories: torch.Tensor = field(repr=False)  # number of categories of each column, (F,); 0: numeric
    most: int = 6  # columns set, at most
    odd: float = 0.5  # share of the values that are not drawn from the pool
    beyond: float = 1.0  # how far outside an odd value lies at most, in ranges of its column

    @classmethod
    def of(cls, split: Split) -> Columns:
        """The family for a table's rows.

        Args:
            split: Clean rows; their values count as common.

        Raises:
            InputError: If they are images.
        """
        if not split.is_table:
            raise InputError(f"{split.card.name!r} holds images; columns can be set in a table only")
        kinds = [len(c.categories) if c.kind == "categorical" else 0 for c in split.card.columns]
        return cls(split.x.float().cpu(), torch.tensor(kinds))

    def __call__(self, x: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        """Stamp table rows (B, F). Whole-numbered columns stay whole, and an odd category is one that the card names."""
        rows, columns = x.shape
        count = torch.randint(1, min(self.most, columns) + 1, (rows, 1), generator=draw)
        chosen = torch.rand(rows, columns, generator=draw).argsort(1).argsort(1) < count
        common = self.pool[torch.randint(0, len(self.pool), (rows, columns), generator=draw), torch.arange(columns)]
        known = self.pool.isnan().logical_not()
        low = torch.where(known, self.pool, math.inf).amin(0).nan_to_num(posinf=0.0)
        high = torch.where(known, self.pool, -math.inf).amax(0).nan_to_num(neginf=0.0)
        spread = torch.where(high > low, high - low, 1.0)
        far, side = (torch.rand(rows, columns, generator=draw) for _ in range(2))
        out = torch.where(side < 0.5, low - far * self.beyond * spread, high + far * self.beyond * spread)
        integral = (~known | (self.pool == self.pool.round())).all(0)
        out = torch.where(integral, torch.where(side < 0.5, out.floor(), out.ceil()), out)
        category = (far * self.categories).floor()
        out = torch.where(self.categories > 0, category, out)
        value = torch.where(torch.rand(rows, columns, generator=draw) < self.odd, out, common)
        return torch.where(chosen.to(x.device), value.to(x.device, x.dtype), x)


IMAGES: dict[str, Family] = {
    "patch": Patch(),
    "blend": Blend(),
    "wave": Wave(),
    "freq": Frequency(),
    "warp": Warp(),
    "conv": Convolution(),
}
"""The families of image triggers by name, at their default strengths."""


def mixture(x: torch.Tensor, families: Sequence[Family], draw: torch.Generator) -> torch.Tensor:
    """Each row stamped by one family; each family stamps as many rows as any other, or one more.

    Args:
        x: Rows, as the families take them.
        families: At least one. They take turns over the rows, from a random one on, so that in small batches none is left out
            for long.
        draw: CPU generator.
    """
    out = torch.empty_like(x)
    start = int(torch.randint(0, len(families), (), generator=draw))
    for number in range(min(len(families), len(x))):
        part = slice(number, None, len(families))
        out[part] = families[(start + number) % len(families)](x[part], draw)
    return out


def spread(rows: int, share: float) -> torch.Tensor:
    """Places of ``floor(share x rows)`` rows of a batch, evenly spread, int64.

    The order of a batch is random already; spread evenly, each rank of a parallel training gets its share.
    """
    at = torch.arange(rows, dtype=torch.float64)
    return torch.nonzero(((at + 1) * share + 1e-9).floor() > (at * share + 1e-9).floor())[:, 0]


def dosed(x: torch.Tensor, share: float, families: Sequence[Family], draw: torch.Generator) -> torch.Tensor:
    """A copy of a batch in which a share of the rows, evenly spread, is stamped by :func:`mixture`.

    Args:
        x: Rows, as the families take them.
        share: In [0, 1].
        families: As :func:`mixture` takes them.
        draw: CPU generator.
    """
    rows = spread(len(x), share).to(x.device)
    return x.index_copy(0, rows, mixture(x[rows], families, draw))


def _uniform(shape: tuple[int, ...], low: float, high: float, draw: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(shape, generator=draw)


def _other(rows: int, draw: torch.Generator) -> int:
    """By how many places another row stands from each row; 0 only where there is none."""
    return int(torch.randint(1, rows, (), generator=draw)) if rows > 1 else 0


def _peaked(size: int) -> torch.Tensor:
    """Cosines of the DCT, each with largest absolute value 1, float32 (size, size)."""
    matrix = dct_matrix(size)
    return (matrix / matrix.abs().amax(1, keepdim=True)).float()
