"""Picture sets of any origin: decode through the cache, hold in memory or map, and make splits."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.split import Data
from theriac.data import _cache
from theriac.data._assemble import assemble
from theriac.data._cache import Entry, Make, Pixels, Shape
from theriac.data._images import NeedsColorError, Notes, Pictures, decode, warn_if_dark
from theriac.data._known import known, policy
from theriac.data._labels import ROWS, Codes, Factor, arrange, cells_of, classes_of
from theriac.data._options import Options

MIXED = {"channels": 3}  # remembered of parts whose pictures begin gray and are not all gray


@dataclass(frozen=True)
class PicturePart:
    """One part of a source ("train", "test" or "val"): pictures with labels and sensitive columns."""

    pictures: Pictures
    label: Factor
    groups: Mapping[str, Factor] = field(default_factory=dict)


def picture_data(
    parts: Mapping[str, PicturePart],
    name: str,
    options: Options,
    *,
    column: str = "label",
    class_names: Sequence[str] | None = None,
    group_names: Mapping[str, Sequence[str]] | None = None,
    source: str = "",
) -> Data:
    """Make the splits of a picture set.

    Args:
        parts: At least "train".
        name: The data set's name; that of a known set decides about augmentation and license.
        options: The keywords of ``load``.
        column: How errors call the label.
        class_names: Where the source declares them.
        group_names: Names of the sensitive columns' values, where the source declares them.
        source: For the card.

    Raises:
        InputError: On bad labels, unreadable pictures, or pictures of several sizes without ``size``.
    """
    options.refuse("this is a set of pictures, not a table", "categorical", "missing")
    for part, pictures in parts.items():
        if not len(pictures.label):
            raise InputError(f"the {ROWS[part]} part of {name!r} is empty; a split needs at least one row")
    labels, classes = classes_of(column, {p: v.label for p, v in parts.items()}, class_names)
    groups: dict[str, Codes] | None = None
    cells: tuple[str, ...] = ()
    if options.sensitive:
        columns = {c: {p: v.groups[c] for p, v in parts.items()} for c in options.sensitive}
        groups, cells = cells_of(columns, group_names or {}, options.missing_group)
    rows = arrange(labels, options.test_share, options.val_share, options.seed)
    library = _Library({p: v.pictures for p, v in parts.items()}, options, options.size or known(name).size)
    shape = library.shape
    card = Card(
        name=options.name or name,
        classes=classes,
        groups=cells,
        channels=shape[0],
        size=shape[1:],
        augment=policy(name, shape[1:], options.augment),
        source=source,
        license=known(name).license,
    )
    # dark pictures with transparent parts are most likely what lies under these, which was said, and on no other scale
    white = 255.0 if options.white is None and library.notes("train").transparent else options.white
    return assemble(rows, labels, groups, library.pick, card, key=library.key, white=white)


class _Library:
    """Decoded pictures of all parts, of one shape, in memory or mapped."""

    def __init__(self, parts: Mapping[str, Pictures], options: Options, size: tuple[int, int] | None) -> None:
        self.parts, self.size, self.budget, self.white = parts, size, options.memory_budget, options.white
        self.contents = {part: _cache.content_of(pictures.files) for part, pictures in parts.items()}
        self.channels = dict.fromkeys(parts, options.channels)
        self.noticed: dict[str, Notes] = {}  # by key, where the cache can't be written
        self.entries = {part: self._ensure(part) for part in parts}
        depths = {entry.shape[1] for entry in self.entries.values()}
        if len(depths) > 1:  # one part is gray, another in color
            for part, entry in self.entries.items():
                if entry.shape[1] == 1:
                    self.channels[part] = 3
                    self.entries[part] = self._ensure(part)
        sides = {part: entry.shape[2:] for part, entry in self.entries.items()}
        for part, side in sides.items():
            if side != sides["train"]:
                raise InputError(
                    f"{ROWS[part]} pictures are {side[0]} x {side[1]} pixels and training pictures "
                    f"{sides['train'][0]} x {sides['train'][1]}; pass size={sides['train'][0]} to resize all"
                )
        self._warn()
        self.mapped = sum(entry.nbytes for entry in self.entries.values()) > self.budget
        self.open: dict[str, torch.Tensor] = {}

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.entries["train"].shape
        return channels, height, width

    @property
    def key(self) -> str:
        """What determines the training pictures."""
        return self.entries["train"].key

    def pick(self, part: str, at: Codes | None) -> torch.Tensor:
        """Rows of a part; a choice from a mapped part is written to the cache and mapped in turn."""
        if part not in self.open:
            entry = self.entries[part]
            self.open[part] = _cache.read(entry, self.mapped, self._make(part, entry.key), self.budget)
        x = self.open[part]
        if at is None:
            return x
        if not self.mapped:
            return x[torch.from_numpy(at)]

        def gather() -> tuple[Shape, Iterator[Pixels]]:
            step = max(1, (32 << 20) // x[0].numel())
            return (len(at), *x.shape[1:]), (x[torch.from_numpy(p)].numpy() for p in _pieces(at, step))

        key = _cache.key_of(self.entries[part].key, at.tolist())
        return _cache.read(_cache.ensure(key, gather, self.budget), True, gather, self.budget)

    def _make(self, part: str, key: str) -> Make:
        def tell(notes: Notes) -> None:
            self.noticed[key] = notes
            _cache.note(_cache.key_of(key, "noticed"), dataclasses.asdict(notes))

        return lambda: decode(self.parts[part], self.size, self.channels[part], self.white, tell)

    def notes(self, part: str) -> Notes:
        """What was noticed when the pictures of a part were decoded, now or for the cache."""
        key = self.entries[part].key
        if key not in self.noticed:
            record = _cache.recall(_cache.key_of(key, "noticed"))
            names = {field.name for field in dataclasses.fields(Notes)}
            fits = set(record) == names and all(type(count) is int for count in record.values())
            self.noticed[key] = Notes(**record) if fits else Notes()
        return self.noticed[key]

    def _warn(self) -> None:
        """Warn of what the pixels do not show, at every load: most are from the cache."""
        for part, pictures in self.parts.items():
            notes = self.notes(part)
            if 0 < notes.deep < pictures.count:  # where all are, the set is looked at
                what = f"{notes.deep:,} of {pictures.count:,} pictures, which have 16 bits"
                warn_if_dark(notes.brightest, what, "store all pictures in 8 bits")
        clear, total = sum(self.notes(part).transparent for part in self.parts), sum(p.count for p in self.parts.values())
        if clear:
            warnings.warn(
                f"{clear:,} of {total:,} pictures have transparent parts, of which the hidden colors are read (often black); "
                "flatten them first if that is not meant",
                stacklevel=3,
            )

    def _ensure(self, part: str) -> Entry:
        scale = () if self.white is None else (self.white,)
        key = _cache.key_of(self.contents[part], self.parts[part].selector, self.size, self.channels[part], *scale)
        if _cache.recall(key) != MIXED:
            try:
                return _cache.ensure(key, self._make(part, key), self.budget)
            except NeedsColorError:
                _cache.note(key, MIXED)
        self.channels[part] = 3
        return self._ensure(part)


def _pieces(at: Codes, step: int) -> list[Codes]:
    return [at[i : i + step] for i in range(0, len(at), step)]
