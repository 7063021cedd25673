"""A multilayer perceptron for tables; its input is what :class:`~theriac.models.TablePrep` makes of a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Interval
from torch import nn

from theriac.core import check
from theriac.core.errors import InputError
from theriac.core.ranges import Count, typed


class TableMLP(nn.Module):
    """Linear layers with ReLU between: prepared rows (N, ``width_in``) to (N, ``num_classes``) logits.

    Args:
        num_classes: Number of classes, at least 2.
        width_in: Numbers in a prepared row (``TablePrep.width``).
        hidden: Widths of the hidden layers. 128-256-512 is what the released DBA and DwB code uses on tables (grade A: read
            in code).
        dropout: Share of hidden units dropped in training.

    Raises:
        InputError: On no input column, or widths out of range.
    """

    @typed("hidden")
    def __init__(
        self,
        num_classes: int = 2,
        width_in: Count = 1,
        hidden: Sequence[int] = (128, 256, 512),
        dropout: Annotated[float, Interval(ge=0, le=0.95)] = 0.0,
    ) -> None:
        super().__init__()
        if isinstance(hidden, (str, bytes)) or not isinstance(hidden, Sequence) or len(hidden) > 64:
            raise InputError(f"hidden is {str(hidden)[:80]!r}; expected up to 64 widths such as (128, 64)")
        layers: list[nn.Module] = []
        for i, width in enumerate(hidden):
            check.integer(f"hidden[{i}]", width, 1, 65536)
            layers += [nn.Linear(width_in, width), nn.ReLU()]
            layers += [nn.Dropout(dropout)] if dropout else []
            width_in = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width_in, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.body(x))
        return logits
