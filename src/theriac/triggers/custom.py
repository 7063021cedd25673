"""A trigger of the user's own: a function on rows, or pictures that were stamped elsewhere."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch

from theriac.core import check
from theriac.core.card import Card
from theriac.core.errors import InputError, TheriacError, shortened, unknown
from theriac.core.files import is_plain
from theriac.core.names import places
from theriac.core.planted import column_places, in_order
from theriac.core.split import Split

_PART = 1024  # rows that are stamped at a time
Function = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class CustomTrigger:
    """A trigger that is not one of our attacks; :func:`trigger` and :func:`trigger_pairs` make one.

    ``theriac.evaluate``, ``theriac.compare`` and repairs that may know the trigger take it wherever they take an attack.
    """

    function: Function
    target: int | str | None
    pixels: Literal["stored", "unit"] = "stored"
    name: str = "custom trigger"
    title: str = "Custom trigger"
    content: str = field(default="", repr=False)  # what identifies the trigger, where its stamp on sample rows can't

    @property
    def full_title(self) -> str:
        """The name in tables and reports."""
        return self.title if self.name == "custom trigger" else f"{self.title} ({self.name})"

    @property
    def inner(self) -> CustomTrigger:
        """The attack that stamps; other attacks may wrap one, a custom trigger is its own."""
        return self

    def config(self) -> dict[str, Any]:
        """Plain data for a record; the function itself is not stored."""
        return {"method": "custom", "name": self.name, "target": self.target}

    def plant_for(self, split: Split) -> CustomPlanted:
        """The trigger for rows of one data set.

        Warns where the function stamps one row now so, now otherwise.

        Raises:
            InputError: If the target is not a class of the data, or the function changes no row.
        """
        if self.pixels == "unit" and split.is_table:
            raise InputError(f"{self.name} is of pixels='unit', and {split.card.name!r} is a table, whose rows have none")
        planted = CustomPlanted(self, split.card, _class_of(self.target, split.card))
        if not self.content and planted.idle(split):
            shape = " x ".join(map(str, split.card.shape))
            raise InputError(
                f"{self.name} changed none of {len(split):,} rows of {shape}, nor random ones; a trigger changes rows that it "
                "stamps (does a patch lie outside of them?)"
            )
        if not self.content and (how := planted.unsteady(split)):
            warnings.warn(f"{self.name} {how}, so its figures are not the same each time", stacklevel=4)
        return planted


@dataclass(frozen=True)
class CustomPlanted:
    """A custom trigger on rows of one data set; what it returns is checked at every use."""

    attack: CustomTrigger
    card: Card
    class_: int | None
    columns: tuple[int, ...] = ()  # for each column that the function knows its place here; empty: they are in its order

    by_row = False

    @property
    def name(self) -> str:
        """The trigger's name."""
        return self.attack.name

    def onto(self, card: Card) -> CustomPlanted:
        """The same trigger for rows whose classes or columns are in another order."""
        moved = column_places(self.card, card, self.name)
        columns = tuple(moved[k] for k in self.columns) if self.columns and moved else self.columns or moved
        if card.classes == self.card.classes or self.class_ is None:
            return CustomPlanted(self.attack, card, self.class_, columns)
        place = places((self.card.classes[self.class_],), card.classes)[0]
        return CustomPlanted(self.attack, card, _class_of(self.attack.target, card) if place < 0 else place, columns)

    def stamp(
        self, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor | None = None, phase: str = "test", variant: str = "poison"
    ) -> torch.Tensor:
        """Rows with the trigger, as stored: uint8 (B, C, H, W) or float32 (B, F).

        Raises:
            InputError: If the function changes its input in place, or returns another shape, type or range than rows have.
        """
        if variant != "poison":
            raise InputError(f"{self.name} has no {variant!r} rows")
        out = in_order(x, self.columns, self._stamp)
        if self.card.kind == "table":
            self._check_values(out)
        return out

    def _check_values(self, rows: torch.Tensor) -> None:
        """Refuse table rows (B, F) that no table holds: NaN is a missing value, and a category is the number of one."""
        infinite = rows.isinf()
        if bool(infinite.any()):
            place = int(infinite.any(0).nonzero()[0])
            self._refuse_value(place, float(rows[infinite[:, place], place][0]), "finite numbers")
        for place, column in enumerate(self.card.columns):
            if count := len(column.categories):
                values = rows[:, place]
                bad = ~values.isnan() & ~((values >= 0) & (values < count) & (values == values.floor()))
                if bool(bad.any()):
                    self._refuse_value(place, float(values[bad][0]), f"numbers of its categories, 0 to {count - 1}")

    def _refuse_value(self, place: int, value: float, expected: str) -> None:
        column = self.card.columns[place].name
        raise InputError(f"{self.name} wrote {value:g} into column {column!r}; expected {expected}, or NaN for none")

    def _stamp(self, x: torch.Tensor) -> torch.Tensor:
        unit = self.attack.pixels == "unit" and x.dtype == torch.uint8
        pixels = x.float() / 255 if unit else x.clone()
        before = pixels.clone()
        try:
            out = self.attack.function(pixels)
        except TheriacError:
            raise
        except (Exception, SystemExit) as error:  # whatever the user's own function does with such rows
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            message = f"{self.name} can't stamp rows of {tuple(x.shape[1:])}: {type(error).__name__}: {reason}"
            raise InputError(message) from error
        if not torch.equal(pixels.nan_to_num(), before.nan_to_num()):
            raise InputError(f"{self.name} changed its input in place; return a new tensor (x = x.clone() at its start)")
        if not isinstance(out, torch.Tensor):
            raise InputError(f"{self.name} returned a {type(out).__name__}; expected a tensor {tuple(x.shape)}")
        if not is_plain(out):
            kinds = {"without contents": out.is_meta, "that is nested": out.is_nested, "that is quantized": out.is_quantized}
            kind = next((words for words, so in kinds.items() if so), f"of layout {out.layout}")
            raise InputError(f"{self.name} returned a tensor {kind}; expected a dense one, as it was given")
        if out.shape != x.shape:
            raise InputError(f"{self.name} returned rows {tuple(out.shape)}; expected {tuple(x.shape)}, as it was given")
        if out.dtype != pixels.dtype:
            hint = "; with pixels='unit' it is given floats in [0, 1] and may return them" if x.dtype == torch.uint8 else ""
            raise InputError(f"{self.name} returned {out.dtype}; expected {pixels.dtype}, as it was given{hint}")
        out = out.detach().to(x.device)
        if not unit:
            return out
        low, high = float(out.min()), float(out.max())
        if not (low >= -1e-6 and high <= 1 + 1e-6):  # NaN included
            raise InputError(f"{self.name} returned pixels from {low:g} to {high:g}; expected [0, 1]")
        return (out * 255).round().clamp(0, 255).to(torch.uint8)

    def target(self, y: torch.Tensor, index: torch.Tensor | None = None) -> torch.Tensor:
        """The label that the trigger is for, int64 (B,)."""
        if self.class_ is None:
            raise InputError(f"{self.name} has no target; give one to theriac.trigger(..., target=)")
        return torch.full_like(y, self.class_)

    def population(self, y: torch.Tensor, index: torch.Tensor | None = None) -> torch.Tensor:
        """Bool (B,): rows on which success is counted: those of another class than the target."""
        return self.target(y) != y

    @property
    def trigger_hash(self) -> str:
        """16 hex digits: of the target, and of the pairs or of the stamp on random rows (the code, where it leaves these)."""
        # by name and in the function's own order of columns, so that it is one trigger in every order of classes and columns
        label = None if self.class_ is None else self.card.classes[self.class_]
        digest = hashlib.sha256(f"{self.name} {label} {self.attack.content}".encode())
        if not self.attack.content:
            rows = self._samples()
            stamped = self._stamp(rows)
            digest.update(stamped.cpu().contiguous().numpy().tobytes())
            code = getattr(self.attack.function, "__code__", None)
            if torch.equal(stamped, rows) and code is not None:  # it acts on other rows only, so its code tells it apart
                digest.update(code.co_code + repr([c for c in code.co_consts if isinstance(c, (int, float, str))]).encode())
        return digest.hexdigest()[:16]

    def idle(self, split: Split) -> bool:
        """Whether it leaves random rows and all of a split as they are; what else is wrong with it is said where it stamps."""
        try:
            return all(self._leaves(rows) for rows in chain((self.samples(),), map(split.rows, split.batches(_PART))))
        except InputError:
            return False

    def unsteady(self, split: Split) -> str:
        """What is said of a trigger that stamps one row now so, now otherwise; empty if it stamps the first rows alike."""
        rows = split.rows(torch.arange(min(4, len(split)), device=split.device))
        y = torch.zeros(len(rows), dtype=torch.int64)
        try:
            together, again = self.stamp(rows, y), self.stamp(rows, y)
            alone = torch.cat([self.stamp(row, y[:1]) for row in rows.split(1)])
        except InputError:  # said where it stamps
            return ""
        if not torch.equal(together.nan_to_num(), again.nan_to_num()):
            return "stamps a row differently from call to call"
        return "" if torch.equal(together.nan_to_num(), alone.nan_to_num()) else "stamps a row by the others of its batch"

    def _leaves(self, rows: torch.Tensor) -> bool:
        return torch.equal(self.stamp(rows, torch.zeros(len(rows), dtype=torch.int64)), rows)

    def samples(self) -> torch.Tensor:
        """Four random rows of this data set's shape, on which the trigger is looked at."""
        own = self._samples()
        if not self.columns:
            return own
        rows = own.clone()
        rows[:, list(self.columns)] = own
        return rows

    def _samples(self) -> torch.Tensor:
        """The same with the columns of a table in the function's own order."""
        draw = torch.Generator().manual_seed(0)
        rows = torch.randint(0, 256, (4, *self.card.shape), generator=draw, dtype=torch.uint8)
        if self.card.kind == "image":
            return rows
        for place, k in enumerate(self.columns or range(len(self.card.columns))):
            if self.card.columns[k].categories:
                rows[:, place] %= len(self.card.columns[k].categories)
        return rows.float()


def trigger(
    function: Function,
    *,
    target: int | str | None,
    pixels: Literal["stored", "unit"] = "stored",
    name: str | None = None,
) -> CustomTrigger:
    """Take a plain function as a trigger.

    Args:
        function: From rows to rows with the trigger: a new tensor of the same shape and type. Pictures come as they are stored,
            uint8 (B, C, H, W) in levels 0 to 255; table rows as float32 (B, F).
        target: The class that stamped rows are to be taken for: its name, or its position. None for repairs that search for it.
        pixels: "stored", or "unit" for a function of float pixels in [0, 1]; what it returns is rounded to whole levels.
        name: What tables call it; the function's name if left out.

    Raises:
        InputError: If the function can't be called, or an argument is of the wrong type.

    Examples:
        >>> import theriac as th
        >>> def corner(x):
        ...     x = x.clone()
        ...     x[:, :, -3:, -3:] = 255
        ...     return x
        >>> data = th.load("digits")
        >>> benign = th.train("wrn_16_1", data.train, recipe="short_1")
        >>> th.evaluate(benign, data.test, th.trigger(corner, target="0")).attack
        'corner'
    """
    if not callable(function):
        raise InputError(f"function is a {type(function).__name__}; expected a function from rows to stamped rows")
    check.one_of("pixels", pixels, ("stored", "unit"))
    target = _checked_target(target)
    own = getattr(function, "__name__", "")
    return CustomTrigger(function, target, pixels, name or (own if own.isidentifier() else "custom trigger"))


def trigger_pairs(clean: Any, stamped: Any, *, target: int | str, name: str = "stamped pairs") -> CustomTrigger:
    """Take pictures that were stamped elsewhere as a trigger: each clean row beside the same row with the trigger.

    Only rows among ``clean`` can be stamped, which are recognized by their content; evaluate on those.

    Args:
        clean: Clean rows: a Split, or uint8 (N, C, H, W) as a tensor or array.
        stamped: The same rows in the same order, with the trigger.
        target: The class that stamped rows are to be taken for: its name, or its position.
        name: What tables call it.

    Raises:
        InputError: If shapes or types differ, a clean row comes twice with two stamps, or no row was changed.
    """
    label = _checked_target(target)
    before, after = _rows("clean", clean), _rows("stamped", stamped)
    if before.shape != after.shape or before.dtype != after.dtype:
        raise InputError(
            f"stamped is {after.dtype} {tuple(after.shape)}, clean {before.dtype} {tuple(before.shape)}; expected the same rows"
        )
    if torch.equal(before, after):
        raise InputError("stamped holds the same rows as clean; no trigger is on any of them")
    keys = _fingerprints(before)
    order = keys.argsort(stable=True)
    keys = keys[order]
    twins = (keys[1:] == keys[:-1]).nonzero().flatten()
    for at in twins.tolist():
        a, b = int(order[at]), int(order[at + 1])
        if torch.equal(before[a], before[b]) and not torch.equal(after[a], after[b]):
            raise InputError(f"clean rows {a} and {b} are equal and their stamped ones differ; a pair must be unique")

    def look_up(x: torch.Tensor) -> torch.Tensor:
        rows = x.cpu()
        at = order[torch.searchsorted(keys, _fingerprints(rows)).clamp(max=len(keys) - 1)]
        strange = int((before[at] != rows).flatten(1).any(1).sum())
        if strange:
            raise InputError(f"{strange} of {len(rows)} rows are not among the clean rows of {name!r}; evaluate on those rows")
        return after[at].to(x.device)

    content = hashlib.sha256(before.contiguous().numpy().tobytes())
    content.update(after.contiguous().numpy().tobytes())
    return CustomTrigger(look_up, label, "stored", name, content=content.hexdigest())


def _checked_target(target: Any) -> int | str | None:
    if target is None or isinstance(target, str):
        return target
    if isinstance(target, bool) or not isinstance(target, Integral):  # NumPy's whole numbers are such, too
        raise InputError(f"target is {shortened(target)}; expected the name of a class, or its position")
    return int(target)


def _class_of(target: int | str | None, card: Card) -> int | None:
    if isinstance(target, str):
        place = places((target,), card.classes)[0]
        if place < 0:
            raise unknown(f"class of {card.name!r}", target, card.classes)
        return place
    if target is not None and not 0 <= target < card.num_classes:
        raise InputError(f"target is {target}; {card.name!r} has classes 0 to {card.num_classes - 1}")
    return target


def _rows(name: str, rows: Any) -> torch.Tensor:
    held = rows.x if isinstance(rows, Split) else torch.from_numpy(rows) if isinstance(rows, np.ndarray) else rows
    if not isinstance(held, torch.Tensor) or held.dtype != torch.uint8 or held.dim() != 4 or not len(held):
        came = f"{held.dtype} {tuple(held.shape)}" if isinstance(held, torch.Tensor) else f"a {type(rows).__name__}"
        raise InputError(f"{name} is {came}; expected a Split of pictures, or uint8 (N, C, H, W)")
    return held.detach().cpu().clone()  # what its owner does with it later must not change a trigger whose hash is known


def _fingerprints(rows: torch.Tensor) -> torch.Tensor:
    """One whole number a row, int64 (N,), equal for equal rows; 1024 rows at a time, for memory."""
    draw = torch.Generator().manual_seed(0)
    weights = torch.randint(-(2**62), 2**62, (rows[0].numel(),), generator=draw, dtype=torch.int64)
    return torch.cat([(part.flatten(1).long() * weights).sum(1) for part in rows.split(1024)])
