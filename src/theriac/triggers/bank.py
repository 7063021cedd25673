"""Several triggers of one kind, of which each row gets one (or none): what debiasing plants."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from torch import nn

from theriac.core import check
from theriac.core.card import Card, Column
from theriac.core.errors import InputError
from theriac.core.split import Split
from theriac.triggers.static import stamp_patch

Kind = Literal["squares", "mosaic", "sinusoid"]
SQUARE_AREA = 625 / (218 * 178)  # share of the picture: 25 x 25 of 218 x 178 pixels (released DwB code, grade A)
_COLORS = ((255, 0, 0), (0, 0, 255), (0, 255, 0), (255, 255, 0), (0, 255, 255), (255, 0, 255), (255, 255, 255), (255, 128, 0))


class TriggerBank(ABC):
    """``len(bank)`` triggers; ``apply(x, which)`` stamps row ``i`` with trigger ``which[i]``, and with none where it is -1."""

    def __init__(self, names: tuple[str, ...], *tensors: torch.Tensor) -> None:
        self.names = names
        self._tensors = tensors

    def narrowed(self, card: Card | None) -> Card | None:
        """The card of ordinary rows, by that of a network that may take stamped ones."""
        return card

    def on(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """The tensors of the triggers on a device; they stay there."""
        if self._tensors[0].device != device:
            self._tensors = tuple(t.to(device) for t in self._tensors)
        return self._tensors

    def __len__(self) -> int:
        return len(self.names)

    def apply(self, x: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        """Stamp a batch.

        Args:
            x: Rows as stored or as a model takes them: uint8 or float in [0, 1] (N, C, H, W), or a table (N, F).
            which: int64 (N,) in [-1, len(bank)); or (N, S) for S stamps one after the other.

        Returns:
            New rows of the same dtype: images of the same shape, table rows (N, F + len(bank)).

        Raises:
            InputError: On rows or numbers that do not fit.
        """
        if which.dtype != torch.int64 or which.dim() not in (1, 2) or len(which) != len(x):
            raise InputError(f"which is {which.dtype} {tuple(which.shape)}; expected int64 ({len(x)},), a trigger for each row")
        # looked at on the CPU only: on an accelerator it would wait for the device in every step
        if which.device.type == "cpu" and len(which) and not -1 <= int(which.min()) <= int(which.max()) < len(self):
            raise InputError(f"which runs from {int(which.min())} to {int(which.max())}; the bank has {len(self)} triggers")
        self.check_rows(x)
        which = which.to(x.device)
        for stamp in which[:, None].unbind(1) if which.dim() == 1 else which.unbind(1):
            x = self._stamp(x, stamp)
        return x

    @abstractmethod
    def check_rows(self, x: torch.Tensor) -> None:
        """Refuse rows that the bank was not made for."""

    @abstractmethod
    def _stamp(self, x: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        """One stamp a row."""


class ImageBank(TriggerBank):
    """Triggers that change each pixel linearly: ``x * scale + offset``, with x in [0, 1].

    Args:
        names: Of the triggers.
        scale: float32 (T, C, H, W).
        offset: Likewise.
    """

    def __init__(self, names: tuple[str, ...], scale: torch.Tensor, offset: torch.Tensor) -> None:
        same = torch.ones(1, *scale.shape[1:])  # for rows with -1
        super().__init__(names, torch.cat([same, scale]), torch.cat([0 * same, offset]))
        self.shape = tuple(scale.shape[1:])

    def check_rows(self, x: torch.Tensor) -> None:
        """Refuse rows that the bank was not made for."""
        if tuple(x.shape[1:]) != self.shape:
            raise InputError(f"x has rows of shape {tuple(x.shape[1:])}; the bank is for images {self.shape}")

    def _stamp(self, x: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        scale, offset = (v[which + 1] for v in self.on(x.device))
        if x.dtype == torch.uint8:
            return torch.addcmul(offset * 255, x.float(), scale).round_().clamp_(0, 255).to(torch.uint8)
        return torch.addcmul(offset.to(x.dtype), x, scale.to(x.dtype))


class ColumnBank(TriggerBank):
    """Triggers of a table: appended columns, zero but for that of the row's trigger.

    Args:
        features: Columns of an ordinary row.
        values: What trigger t writes into its column, (T,).
    """

    def __init__(self, features: int, values: tuple[float, ...]) -> None:
        super().__init__(tuple(f"column {t}" for t in range(len(values))), torch.tensor(values, dtype=torch.float32))
        self.features = features

    def check_rows(self, x: torch.Tensor) -> None:
        """Refuse rows that the bank was not made for."""
        if x.dim() != 2 or x.shape[1] not in (self.features, self.features + len(self)):
            raise InputError(f"x has shape {tuple(x.shape)}; expected (N, {self.features}), or {len(self)} columns more")

    def narrowed(self, card: Card | None) -> Card | None:
        """Without the trigger columns."""
        return None if card is None else card.replace(columns=card.columns[: self.features])

    def widened(self, x: torch.Tensor) -> torch.Tensor:
        """Rows (N, F + T): ordinary ones get zeros, wide ones stay."""
        return x if x.shape[1] > self.features else torch.cat([x, x.new_zeros(len(x), len(self))], 1)

    def _stamp(self, x: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        at = torch.arange(len(self), device=x.device)
        chosen = which[:, None] == at
        wide = self.widened(x)
        columns = torch.where(chosen, self.on(x.device)[0].to(x.dtype), wide[:, self.features :])
        return torch.cat([wide[:, : self.features], columns], 1)

    def widen(self, split: Split) -> Split:
        """The split with the trigger columns, all zero: what a network that shall see them is built for."""
        added = tuple(Column(name=f"trigger_{t}") for t in range(len(self)))
        card = split.card.replace(columns=(*split.card.columns, *added))
        return Split(self.widened(split.x), split.y, group=split.group, index=split.index, card=card)


class TriggerColumns(nn.Module):
    """A table model with trigger columns that takes the user's plain rows, and then feeds zeros for the columns.

    Args:
        model: Rows (N, F + T) to logits.
        bank: Says how many columns of which kind there are.
    """

    def __init__(self, model: nn.Module, bank: ColumnBank) -> None:
        super().__init__()
        self.model = model
        self.bank = bank

    @property
    def card(self) -> Card | None:
        """Of the ordinary rows, by whose names others are matched; None if the network carries none."""
        return self.bank.narrowed(getattr(self.model, "card", None))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits for ordinary rows (N, F), or stamped ones (N, F + T)."""
        self.bank.check_rows(x)
        logits: torch.Tensor = self.model(self.bank.widened(x))
        return logits


def image_bank(
    card: Card, triggers: int = 2, kind: Kind = "squares", *, side: int = 0, opacity: float = 1.0, seed: int = 0
) -> ImageBank:
    """Image triggers for a card.

    Args:
        card: Gives size and channels.
        triggers: How many; at least one.
        kind: "squares": one color each, the first red and top left, the second blue and bottom right (white where there is
            one channel); "mosaic": 3 x 3 cells of random colors at the same places; "sinusoid": shading of the whole
            picture, the first from row to row, the second from column to column.
        side: Pixels of a square or mosaic; 0 = 1.6 % of the area for a square (at least 2), a fifth more for a mosaic.
        opacity: In (0, 1]: how much of a pixel is replaced; of a sinusoid: 0.05 times that is the largest loss of light.
        seed: Of the mosaics.

    Raises:
        InputError: If so many do not fit.
    """
    check.one_of("kind", kind, get_args(Kind))
    check.integer("triggers", triggers, 1)
    check.integer("side", side, 0)
    check.between("opacity", opacity, 0, 1, open_low=True)
    names = tuple(f"{kind} {t}" for t in range(triggers))
    if kind == "sinusoid":
        shade = torch.stack([_shading(card.size, t, triggers) for t in range(triggers)])
        scale = (1 - 0.05 * opacity * shade)[:, None].expand(-1, card.channels, -1, -1).contiguous()
        return ImageBank(names, scale, torch.zeros_like(scale))
    height, width = card.size
    plain = max(2, math.floor(math.sqrt(SQUARE_AREA * height * width) + 0.5))
    cell = max(1, math.floor((side or 1.2 * plain) / 3 + 0.5))  # of a mosaic: 30 pixels where a square has 25
    side = (side or plain) if kind == "squares" else 3 * cell
    draw = torch.Generator().manual_seed(seed)
    cover, paint = [], []
    empty = torch.zeros(1, card.channels, height, width, dtype=torch.uint8)
    for t, (top, left) in enumerate(_places(triggers, side, card.size)):
        if kind == "squares":
            color = torch.tensor(_COLORS[t % len(_COLORS)] if card.channels == 3 else (255,), dtype=torch.uint8)
            patch = color[:, None, None].expand(-1, side, side)
        else:
            cells = torch.randint(0, 256, (card.channels, 3, 3), generator=draw, dtype=torch.uint8)
            patch = cells.repeat_interleave(cell, 1).repeat_interleave(cell, 2)
        paint.append(stamp_patch(empty, patch, top, left)[0])
        cover.append(stamp_patch(empty, torch.full_like(patch, 1), top, left)[0])
    covered = torch.stack(cover).float() * opacity
    return ImageBank(names, 1 - covered, torch.stack(paint).float() / 255 * opacity)


def _places(count: int, side: int, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Upper left corners: top left, bottom right, top right, bottom left, then places of a grid between."""
    per_side = max(2, math.ceil(math.sqrt(count))) if count > 1 else 1
    if per_side * side > min(size):
        raise InputError(f"{count} squares of {side} pixels do not fit into {size[0]} x {size[1]} without touching")
    rows, columns = (torch.linspace(0, s - side, per_side).round().int().tolist() if per_side > 1 else [0] for s in size)
    first = [(rows[0], columns[0]), (rows[-1], columns[-1]), (rows[0], columns[-1]), (rows[-1], columns[0])]
    return [*dict.fromkeys([*first, *((r, c) for r in rows for c in columns)])][:count]


def _shading(size: tuple[int, int], t: int, count: int) -> torch.Tensor:
    """Waves in [0, 1] (H, W) whose direction turns from rows to columns; periods in proportion to 218 x 178 pixels."""
    angle = math.pi * t / max(count, 2)
    i = torch.arange(size[0], dtype=torch.float64)[:, None] * (218 / size[0]) * (5 / 21)
    j = torch.arange(size[1], dtype=torch.float64)[None, :] * (178 / size[1]) * (5 / 18)
    return ((1 + torch.sin(math.cos(angle) * i + math.sin(angle) * j)) / 2).float()
