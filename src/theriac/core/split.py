"""Rows with labels: ``Split``, and ``Data``, which holds the splits of one set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from theriac.core._rows import card_for, check_labels, check_overlay, check_rows, chunk_size, pixel_moments
from theriac.core.card import Card
from theriac.core.device import as_device
from theriac.core.errors import InputError, shortened
from theriac.core.files import is_plain
from theriac.core.names import few
from theriac.core.ranges import Count, Seed, Share, check_fields, typed

INTEGERS = (torch.int64, torch.int32)  # of positions

if TYPE_CHECKING:
    from collections.abc import Iterator


class Split:
    """Immutable rows with labels.

    Args:
        x: Images, uint8 (N, C, H, W) in [0, 255], or a table, float32 (N, F) of raw numbers and category codes with NaN
            for a missing value. May be memory-mapped; rows are only ever read in batches.
        y: Labels, int64 (N,), in [0, number of classes).
        group: Sensitive group of each row, int64 (N,), or None.
        index: Row number in the source, int64 (N,); 0..N-1 if left out.
        card: What the data are; a minimal one is made from the tensors if left out.
        overlay: Positions, int64 (M,) ascending, and rows (M, ...) that replace those of ``x`` there. This is how a
            poisoned copy of a large set shares its clean rows.

    Raises:
        InputError: On a wrong shape, dtype or range, with the argument's name.
    """

    __slots__ = ("_hashes", "_overlay", "_store", "card", "group", "index", "y")
    _hashes: dict[tuple[object, ...], str]
    _store: torch.Tensor
    _overlay: tuple[torch.Tensor, torch.Tensor] | None
    y: torch.Tensor
    group: torch.Tensor | None
    index: torch.Tensor
    card: Card

    @typed("x", "y", "group", "index")
    def __init__(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        *,
        group: torch.Tensor | None = None,
        index: torch.Tensor | None = None,
        card: Card | None = None,
        overlay: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        check_rows(x)
        card = card_for(x, y) if card is None else card
        if tuple(x.shape[1:]) != card.shape:
            raise InputError(f"x has rows of shape {tuple(x.shape[1:])}; the card of {card.name!r} says {card.shape}")
        y = check_labels("y", y, len(x), card.num_classes)
        if group is not None:
            group = check_labels("group", group, len(x), len(card.groups) or None)
        index = torch.arange(len(x), device=y.device) if index is None else check_labels("index", index, len(x), None)
        if overlay is not None:
            check_overlay(*overlay, x)
        for name, value in (("_store", x), ("_overlay", overlay), ("y", y), ("group", group), ("index", index)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "card", card)
        object.__setattr__(self, "_hashes", {})

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Split is immutable; make a new one instead of setting {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a Split is immutable; {name!r} can't be deleted")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._store, self.y, self.group, self.index, self.card, self._overlay)

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        groups = "" if self.group is None else f", {len(self.card.groups) or len(self.group.unique())} groups"
        return f"Split({self.card.name!r}, {len(self)} rows of {self.card.shape}, {self.card.num_classes} classes{groups})"

    # what it holds

    @property
    def x(self) -> torch.Tensor:
        """All rows. Reads the whole set; inside a loop use :meth:`rows`."""
        return self._store if self._overlay is None else self.rows(torch.arange(len(self), device=self.device))

    @property
    def device(self) -> torch.device:
        """Where the rows live."""
        return self._store.device

    @property
    def is_table(self) -> bool:
        """Whether rows are table rows rather than images."""
        return self.card.kind == "table"

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.card.num_classes

    def rows(self, positions: torch.Tensor) -> torch.Tensor:
        """The rows at ``positions`` (int64 of any shape, such as (B,)), as stored, (B, ...).

        Raises:
            InputError: If they are no whole numbers, or one is not there.
        """
        if not isinstance(positions, torch.Tensor) or positions.dtype not in INTEGERS or not is_plain(positions):
            came = shortened(positions) if not isinstance(positions, torch.Tensor) else f"a tensor of {positions.dtype}"
            raise InputError(f"positions are {came}; expected one of int64 or int32, with contents")
        flat = positions.to(self.device).flatten()
        try:
            # index_select copies whole rows, several times faster than store[positions]
            out = self._store.index_select(0, flat)
        except IndexError:
            raise InputError(f"positions name a row that is not there; the split has rows 0 to {len(self) - 1}") from None
        if self._overlay is not None and len(self._overlay[0]):
            where, new = self._overlay
            at = torch.searchsorted(where, flat).clamp_(max=len(where) - 1)
            hit = where[at] == flat
            if bool(hit.any()):
                out[hit] = new[at[hit]]
        return out if positions.dim() == 1 else out.reshape(*positions.shape, *out.shape[1:])

    @typed()
    def batches(self, size: Count) -> Iterator[torch.Tensor]:
        """Positions of all rows in order, ``size`` at a time."""
        yield from torch.arange(len(self), device=self.device).split(size)

    def count(self) -> torch.Tensor:
        """Rows per class, int64 (K,)."""
        return torch.bincount(self.y, minlength=self.num_classes)

    def content_hash(self, *, groups: bool = True) -> str:
        """sha256 of rows, labels and, if asked for, groups: the same bytes, the same hash, wherever they came from."""
        tensors = [self._store, self.y, *(self._overlay or ()), *([] if self.group is None else [self.group])]
        # a caller may still hold the tensors and write to them; torch counts that, but not of tensors of inference mode
        counted = not any(t.is_inference() for t in tensors)
        key = (groups, *(t._version for t in tensors)) if counted else ()
        if key and key in self._hashes:
            return self._hashes[key]
        digest = hashlib.sha256(repr((tuple(self._store.shape), str(self._store.dtype))).encode())
        for positions in self.batches(chunk_size(self._store)):
            digest.update(self.rows(positions).cpu().contiguous().numpy().data)
        digest.update(self.y.cpu().contiguous().numpy().data)
        if self.group is not None and groups:
            digest.update(self.group.cpu().contiguous().numpy().data)
        if key:
            self._hashes[key] = digest.hexdigest()
        return digest.hexdigest()

    # new ones from it

    def take(self, positions: torch.Tensor | Sequence[int] | npt.NDArray[Any]) -> Split:
        """The rows at ``positions`` (whole numbers from 0: a tensor or an array (M,), a list or a range), in that order.

        Raises:
            InputError: If none is asked for, or one that is not there.
        """
        if not isinstance(positions, torch.Tensor):
            try:
                values = np.asarray(positions)
            except (ValueError, TypeError, OverflowError):  # lists of several lengths
                values = np.empty((0, 0))
            if values.ndim != 1 or (len(values) and values.dtype.kind not in "iu"):
                raise InputError(f"positions are {shortened(positions)}; expected whole numbers from 0, such as [1, 2]")
            positions = torch.from_numpy(values.astype(np.int64))
        if not is_plain(positions):
            raise InputError(f"positions are a tensor of layout {positions.layout}; expected a dense one with contents")
        if positions.dtype == torch.bool or positions.is_floating_point() or positions.is_complex() or positions.dim() != 1:
            hint = "; where() takes a mask" if positions.dtype == torch.bool else ""
            raise InputError(f"positions are {positions.dtype} {tuple(positions.shape)}; expected whole numbers (M,){hint}")
        positions = positions.to(self.device, torch.int64)
        if not len(positions):
            raise InputError("an empty selection was asked for; a split needs at least one row")
        low, high = (int(p) for p in positions.aminmax())
        if low < 0 or high >= len(self):
            raise InputError(f"positions go from {low} to {high}; the split has rows 0 to {len(self) - 1}")
        group = None if self.group is None else self.group[positions]
        return Split(self.rows(positions), self.y[positions], group=group, index=self.index[positions], card=self.card)

    @typed()
    def where(self, mask: torch.Tensor) -> Split:
        """The rows whose entry in ``mask`` (bool (N,)) is set."""
        if mask.dtype != torch.bool or mask.shape != self.y.shape:
            raise InputError(f"mask is {mask.dtype} {tuple(mask.shape)}; expected bool ({len(self)},)")
        if not bool(mask.any()):
            raise InputError("mask selects no row; a split needs at least one row")
        return self.take(mask.nonzero().flatten())

    @typed("rows_or_share")
    def sample(self, rows_or_share: int | float, *, seed: Seed = 0, stratified: bool = False) -> Split:
        """Draw rows without replacement.

        Args:
            rows_or_share: How many rows (a whole number), or what share of them (a float in (0, 1]).
            seed: Seed of the draw.
            stratified: Take the same number of rows from every class, instead of uniformly. Where that can't be, lots decide
                which classes give a row more.
        """
        return self.take(self._draw(rows_or_share, seed, stratified))

    @typed("rows_or_share")
    def cut(
        self, rows_or_share: int | float, *, seed: Seed = 0, stratified: bool = False, most: Share = 1.0
    ) -> tuple[Split, Split]:
        """Two disjoint parts: the drawn rows and the rest, the rest in its old order.

        Args:
            rows_or_share: As for :meth:`sample`.
            seed: Likewise.
            stratified: Likewise.
            most: Share of each class that a stratified draw may take at most, so that the rest keeps rows of rare classes;
                where that leaves too few to draw, fewer are drawn.
        """
        drawn = self._draw(rows_or_share, seed, stratified, most)
        if len(drawn) == len(self):
            raise InputError(
                f"rows_or_share is {rows_or_share}, all {len(self)} rows; a cut leaves at least one for the other part"
            )
        keep = torch.ones(len(self), dtype=torch.bool, device=self.device)
        keep[drawn.to(self.device)] = False
        return self.take(drawn), self.where(keep)

    def _draw(self, rows_or_share: int | float, seed: int, stratified: bool, most: float = 1.0) -> torch.Tensor:
        if isinstance(rows_or_share, bool) or not isinstance(rows_or_share, (int, float)):
            raise InputError(f"rows_or_share is {rows_or_share!r}; expected a whole number or a share in (0, 1]")
        if isinstance(rows_or_share, float):
            if not 0 < rows_or_share <= 1:
                raise InputError(f"rows_or_share is {rows_or_share!r}; a share lies in (0, 1]")
            count = max(1, round(rows_or_share * len(self)))
        else:
            count = rows_or_share
        if not 0 < count <= len(self):
            raise InputError(f"rows_or_share asks for {count} rows; the split has {len(self)}")
        draw = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self), generator=draw)
        if not stratified:
            return order[:count]
        labels = self.y.cpu()[order]
        by_class = torch.argsort(labels, stable=True)
        counts = torch.bincount(labels, minlength=self.num_classes)
        rank = torch.arange(len(self)) - (counts.cumsum(0) - counts)[labels[by_class]]
        # round robin: the r-th row of every class, then r + 1
        turns = torch.argsort(rank, stable=True)
        if most < 1:
            turns = turns[rank[turns] < (most * counts).long()[labels[by_class]][turns]]
            count = min(count, len(turns))
            if not count:
                raise InputError(f"at most {100 * most:g} % of each class are to be drawn, and no class has rows for that")
        last = (rank[turns] == rank[turns[count - 1]]).nonzero().flatten()
        if last[-1] >= count:  # the last round is not for all: lots decide, or the first classes would always have a row more
            drawn = torch.randperm(len(last), generator=draw)[: count - int(last[0])]
            turns = torch.cat([turns[: last[0]], turns[last[drawn].sort().values]])
        return order[by_class[turns[:count]]]

    def to(self, device: str | torch.device) -> Split:
        """The same rows on another device.

        Raises:
            InputError: If there is no such device here.
        """
        device = as_device(device)
        if device == self.device:
            return self
        overlay = None if self._overlay is None else (self._overlay[0].to(device), self._overlay[1].to(device))
        group = None if self.group is None else self.group.to(device)
        return Split(
            self._store.to(device),
            self.y.to(device),
            group=group,
            index=self.index.to(device),
            card=self.card,
            overlay=overlay,
        )

    @typed("y", "group")
    def replace(self, *, y: torch.Tensor | None = None, group: torch.Tensor | None = None, card: Card | None = None) -> Split:
        """The same rows with other labels, groups or card; what is left out stays."""
        return Split(
            self._store,
            self.y if y is None else y,
            group=self.group if group is None else group,
            index=self.index,
            card=self.card if card is None else card,
            overlay=self._overlay,
        )

    @typed()
    def with_overlay(self, positions: torch.Tensor, rows: torch.Tensor, y: torch.Tensor) -> Split:
        """The same rows with those at ``positions`` (ascending) replaced, and new labels ``y`` for all."""
        if self._overlay is not None:  # one overlay of both, so that the rows below stay shared
            check_overlay(positions, rows, self._store)
            older = ~torch.isin(self._overlay[0], positions)
            both = torch.cat([self._overlay[0][older], positions])
            positions, order = both.sort()
            rows = torch.cat([self._overlay[1][older], rows])[order]
        return Split(self._store, y, group=self.group, index=self.index, card=self.card, overlay=(positions, rows))


def _rebuild(
    x: torch.Tensor,
    y: torch.Tensor,
    group: torch.Tensor | None,
    index: torch.Tensor,
    card: Card,
    overlay: tuple[torch.Tensor, torch.Tensor] | None,
) -> Split:
    return Split(x, y, group=group, index=index, card=card, overlay=overlay)


@dataclass(frozen=True)
class Data:
    """The splits of one data set. ``val`` is None where the source has none."""

    train: Split
    test: Split
    val: Split | None = None
    held_out: bool = False  # whether the test rows were drawn from the same source as the training rows

    def __post_init__(self) -> None:
        check_fields(self)
        for name, part in (("test", self.test), ("val", self.val)):
            if part is None:
                continue
            if (part.card.kind, part.card.shape) != (self.card.kind, self.card.shape):
                raise InputError(f"{name} has rows of shape {part.card.shape}; those of train are {self.card.shape}")
            if part.card.classes != self.card.classes:
                raise InputError(
                    f"{name} has the classes {few(part.card.classes)}; those of train are {few(self.card.classes)}"
                )

    @property
    def card(self) -> Card:
        """The card shared by the splits."""
        return self.train.card

    def joined(self) -> Split:
        """All rows of a source whose parts were drawn from it (``held_out``), in its order; of any other the training rows."""
        if not self.held_out or torch.equal(self.train.index, self.test.index):  # of too few rows to divide
            return self.train
        parts = [self.train, self.test] + ([] if self.val is None else [self.val])
        index = torch.cat([part.index for part in parts])
        order = index.argsort()
        x, y = (torch.cat([getattr(part, name) for part in parts])[order] for name in ("x", "y"))
        groups = [part.group for part in parts if part.group is not None]
        group = torch.cat(groups)[order] if len(groups) == len(parts) else None
        return Split(x, y, group=group, index=index[order], card=self.card)

    def handed_in(self) -> Split:
        """The rows that are meant where somebody names these data as clean ones: the test part, or all where it has none."""
        return self.joined() if self.held_out else self.test


def with_moments(split: Split) -> Split:
    """The split as it is, or, if it is of images and its card has no channel moments (one written by hand), with them."""
    if split.is_table or split.card.mean:
        return split
    mean, std = pixel_moments(split.x)
    return split.replace(card=split.card.replace(mean=mean, std=std))
