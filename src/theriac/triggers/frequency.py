"""Cosine transforms, luma and chroma, and filters: what frequency triggers are made of. All batched, all by matrix product."""

from __future__ import annotations

import math

import torch

from theriac.core.errors import InputError

# ITU-R BT.601 luma, and the chroma scales that follow from it; rows Y, Cr, Cb. (grade A: the standard's formulas)
_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114
_TO_YCRCB = torch.tensor(
    [
        [_RED, _GREEN, _BLUE],
        [0.5, -0.5 * _GREEN / (1 - _RED), -0.5 * _BLUE / (1 - _RED)],
        [-0.5 * _RED / (1 - _BLUE), -0.5 * _GREEN / (1 - _BLUE), 0.5],
    ],
    dtype=torch.float64,
)
_TO_RGB = torch.linalg.inv(_TO_YCRCB)


def dct_matrix(size: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """The orthonormal DCT-II as a matrix (size, size): row ``k`` holds the cosine of ``k`` half periods."""
    k = torch.arange(size, dtype=torch.float64)[:, None]
    n = torch.arange(size, dtype=torch.float64)[None, :]
    matrix = torch.cos(math.pi * (n + 0.5) * k / size) * math.sqrt(2 / size)
    matrix[0] *= math.sqrt(0.5)
    return matrix.to(dtype)


def dct2(x: torch.Tensor, window: tuple[int, int] | None = None) -> torch.Tensor:
    """Orthonormal two-dimensional DCT-II of float images (..., H, W), in blocks of ``window``, or of the whole image.

    Coefficients stand in the place of the block that they describe.

    Raises:
        InputError: If the window does not tile the image.
    """
    return _by_blocks(x, window, inverse=False)


def idct2(x: torch.Tensor, window: tuple[int, int] | None = None) -> torch.Tensor:
    """The inverse of :func:`dct2`."""
    return _by_blocks(x, window, inverse=True)


def _by_blocks(x: torch.Tensor, window: tuple[int, int] | None, *, inverse: bool) -> torch.Tensor:
    height, width = x.shape[-2:]
    h, w = (height, width) if window is None else window
    if h < 1 or w < 1 or height % h or width % w:
        raise InputError(f"a window of {h} x {w} does not tile an image of {height} x {width}")
    rows, columns = dct_matrix(h, x.dtype).to(x.device), dct_matrix(w, x.dtype).to(x.device)
    if inverse:
        rows, columns = rows.T, columns.T
    blocks = x.reshape(*x.shape[:-2], height // h, h, width // w, w).transpose(-3, -2)
    return (rows @ blocks @ columns.T).transpose(-3, -2).reshape(x.shape)


def rgb_to_ycrcb(x: torch.Tensor) -> torch.Tensor:
    """Float RGB in [0, 255] (B, 3, H, W) to luma, red and blue difference, the differences centered on 128."""
    out = torch.einsum("ij,bjhw->bihw", _TO_YCRCB.to(x.device, x.dtype), x)
    out[:, 1:] += 128
    return out


def ycrcb_to_rgb(x: torch.Tensor) -> torch.Tensor:
    """The exact inverse of :func:`rgb_to_ycrcb`."""
    shift = torch.tensor([0.0, 128.0, 128.0], dtype=x.dtype, device=x.device)[None, :, None, None]
    return torch.einsum("ij,bjhw->bihw", _TO_RGB.to(x.device, x.dtype), x - shift)


# the usual 8-bit conversion counts in units of 2^-14: luma weights, difference scales, and their inverses (the standard's
# factors, rounded to whole units)
_UNIT = 1 << 14
_LUMA, _DIFFERENCE = (4899, 9617, 1868), (11682, 9241)
_BACK = ((22987, 0), (-11698, -5636), (0, 29049))  # of Cr and Cb, for red, green and blue


def rgb_to_ycrcb_bytes(x: torch.Tensor) -> torch.Tensor:
    """Whole-number RGB levels (B, 3, H, W) to whole-number luma, red and blue difference, as image libraries convert bytes."""
    red, green, blue = x.to(torch.int64).unbind(1)
    luma = _rounded(red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2])
    differences = [_rounded((c - luma) * scale) + 128 for c, scale in zip((red, blue), _DIFFERENCE, strict=True)]
    return torch.stack([luma, *differences], 1).clamp_(0, 255)


def ycrcb_bytes_to_rgb(planes: torch.Tensor) -> torch.Tensor:
    """The way back, clipped to [0, 255]; what both ways round is lost."""
    luma, red, blue = planes.to(torch.int64).unbind(1)
    colors = [luma + _rounded((red - 128) * a + (blue - 128) * b) for a, b in _BACK]
    return torch.stack(colors, 1).clamp_(0, 255)


def _rounded(units: torch.Tensor) -> torch.Tensor:
    return torch.div(units + _UNIT // 2, _UNIT, rounding_mode="floor")


def raise_at(
    coefficients: torch.Tensor, window: tuple[int, int], positions: tuple[tuple[int, int], ...], magnitude: float
) -> torch.Tensor:
    """Add ``magnitude`` to the (row, column) ``positions`` of each window of coefficients (..., H, W), in place.

    Raises:
        InputError: If a position lies outside the window.
    """
    for row, column in positions:
        if not (0 <= row < window[0] and 0 <= column < window[1]):
            raise InputError(f"frequency ({row}, {column}) lies outside a window of {window[0]} x {window[1]}")
        coefficients[..., row :: window[0], column :: window[1]] += magnitude
    return coefficients


def cosine_pattern(
    channels: int,
    size: tuple[int, int],
    window: tuple[int, int],
    positions: tuple[tuple[int, int], ...],
    magnitude: float,
) -> torch.Tensor:
    """What raising DCT coefficients by ``magnitude`` adds to an image, in gray levels, float32 (C, H, W).

    Transform and color conversion are linear, so the sum over the chosen (row, column) ``positions`` of each window does not
    depend on the image. On three channels the coefficients are those of both chroma planes; on one, of the image itself.

    Raises:
        InputError: If a position lies outside the window, or the window does not tile the image.
    """
    added = idct2(raise_at(torch.zeros(*size, dtype=torch.float64), window, positions, magnitude), window)
    if channels == 1:
        return added[None].float()
    red_and_blue: torch.Tensor = _TO_RGB[:, 1] + _TO_RGB[:, 2]
    return (red_and_blue[:, None, None] * added).float()


def lowpass(x: torch.Tensor, cutoff: float) -> torch.Tensor:
    """Gaussian low-pass of real images (..., H, W): each frequency is weighted with ``exp(-d^2 / (2 cutoff^2))``.

    Args:
        x: Floats.
        cutoff: Width of the Gaussian, as a share of the sampling frequency (0.5 is the highest an image can hold).
    """
    height, width = x.shape[-2:]
    rows = torch.fft.fftfreq(height, device=x.device, dtype=x.dtype)[:, None]
    columns = torch.fft.rfftfreq(width, device=x.device, dtype=x.dtype)[None, :]
    weight = torch.exp(-(rows**2 + columns**2) / (2 * cutoff**2))
    smooth: torch.Tensor = torch.fft.irfft2(torch.fft.rfft2(x) * weight, s=(height, width))
    return smooth
