"""Rows of one source among those of another, told by their content."""

from __future__ import annotations

import math

import torch

from theriac.core.split import Split

_MARKED = 2**21  # numbers that are worked on at a time


def row_marks(rows: Split) -> torch.Tensor:
    """A number for the content of each row, int64 (N,); equal rows have equal ones."""
    numbers = math.prod(rows.card.shape)
    weights = torch.randint(-(2**62), 2**62, (numbers,), generator=torch.Generator().manual_seed(0))

    def marks(at: torch.Tensor) -> torch.Tensor:
        x = rows.rows(at).cpu().flatten(1)
        x = x.view(torch.int32) if x.dtype == torch.float32 else x  # all bits count
        return (x.long() * weights).sum(1)

    return torch.cat([marks(at) for at in torch.arange(len(rows)).split(max(1, _MARKED // numbers))])


def among(rows: Split, others: Split) -> int:
    """How many rows are, by their content, among others of the same shape; rows of few columns are so by chance, too."""
    return int(torch.isin(row_marks(rows), row_marks(others)).sum())
