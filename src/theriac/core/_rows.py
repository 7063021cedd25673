"""Checks of rows and labels, and what can be read off them: pixel moments and a minimal card."""

from __future__ import annotations

import torch

from theriac.core.card import Card, Column
from theriac.core.errors import InputError

MAX_NUMBER = 1_000_000  # of a class or group without a name; each takes room of its own


def check_rows(x: torch.Tensor) -> None:
    """Refuse anything but uint8 images (N, C, H, W) or float32 table rows (N, F)."""
    if not isinstance(x, torch.Tensor):
        raise InputError(f"x is a {type(x).__name__}; expected a tensor")
    if x.dim() == 4:
        if x.dtype != torch.uint8:
            hint = "; multiply pixels in [0, 1] by 255, round and cast" if x.is_floating_point() else ""
            raise InputError(f"x is {x.dtype}; images are uint8 in [0, 255]{hint}")
        if x.shape[1] not in (1, 3):
            raise InputError(f"x has shape {tuple(x.shape)}; images are (N, C, H, W) with 1 or 3 channels")
    elif x.dim() == 2:
        if x.dtype != torch.float32:
            raise InputError(f"x is {x.dtype}; table rows are float32 (N, F)")
        if bool(torch.isinf(x).any()):
            raise InputError("x holds infinite values; table rows are finite numbers, or NaN where a value is missing")
    else:
        raise InputError(f"x has shape {tuple(x.shape)}; expected images (N, C, H, W) or a table (N, F)")
    if not len(x):
        raise InputError("x has no rows; a split needs at least one")


def check_overlay(positions: torch.Tensor, rows: torch.Tensor, x: torch.Tensor) -> None:
    """Refuse replacement rows that do not fit ``x``, and positions that are not ascending."""
    if positions.dim() != 1 or len(positions) != len(rows) or rows.shape[1:] != x.shape[1:]:
        raise InputError(f"overlay has {tuple(positions.shape)} positions for rows of shape {tuple(rows.shape)}")
    if rows.dtype != x.dtype:
        raise InputError(f"overlay has {rows.dtype} rows; expected {x.dtype}, as x has")
    if positions.dtype != torch.int64 or not bool((positions[1:] > positions[:-1]).all()):
        raise InputError("overlay positions are not ascending int64 without repeats")
    if len(positions) and not 0 <= int(positions[0]) <= int(positions[-1]) < len(x):
        raise InputError(f"overlay positions run from {int(positions[0])} to {int(positions[-1])}; x has {len(x)} rows")


def check_labels(name: str, y: torch.Tensor, rows: int, classes: int | None) -> torch.Tensor:
    """The labels as int64 (N,), or a refusal that names the argument."""
    if not isinstance(y, torch.Tensor) or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        got = str(y.dtype) if isinstance(y, torch.Tensor) else type(y).__name__
        raise InputError(f"{name} is {got}; expected int64 ({rows},)")
    if tuple(y.shape) != (rows,):
        raise InputError(f"{name} has shape {tuple(y.shape)}; expected ({rows},), one entry for each row")
    y = y.to(torch.int64)
    low, high = int(y.min()), int(y.max())
    if name != "index" and classes is None and high >= MAX_NUMBER:
        raise InputError(f"{name} holds {high:,}; expected numbers from 0 to at most {MAX_NUMBER - 1:,}, without large gaps")
    if low < 0 or (classes is not None and high >= classes):
        expected = "0 or more" if classes is None else f"[0, {classes - 1}]"
        raise InputError(f"{name} holds values from {low} to {high}; expected {expected}")
    return y


def card_for(x: torch.Tensor, y: torch.Tensor) -> Card:
    """A minimal card for tensors that came without one."""
    y = check_labels("y", y, len(x), None)
    classes = tuple(str(k) for k in range(max(2, int(y.max()) + 1)))
    if x.dim() == 2:
        return Card(kind="table", classes=classes, columns=tuple(Column(name=f"f{i}") for i in range(x.shape[1])))
    mean, std = pixel_moments(x)
    size = (int(x.shape[2]), int(x.shape[3]))
    return Card(kind="image", classes=classes, size=size, channels=int(x.shape[1]), mean=mean, std=std)


def chunk_size(x: torch.Tensor) -> int:
    """Rows to look at at once: about four million numbers, so that large pictures need no large copies."""
    return max(1, (1 << 22) // max(1, x[0].numel()))


def pixel_moments(x: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in [0, 1], from exact 256-bin histograms (no big float copy)."""
    levels = torch.arange(256, dtype=torch.float64)
    means, stds = [], []
    for c in range(x.shape[1]):
        histogram = torch.zeros(256, dtype=torch.float64)
        for chunk in x[:, c].split(chunk_size(x)):
            histogram += torch.bincount(chunk.flatten(), minlength=256).cpu()
        total = histogram.sum()
        mean = (histogram * levels).sum() / total
        variance = (histogram * (levels - mean) ** 2).sum() / total
        means.append(round(float(mean / 255), 6))
        stds.append(round(max(float(variance.sqrt() / 255), 1e-3), 6))  # a constant channel must not divide by zero
    return tuple(means), tuple(stds)
