"""What was counted of a model, and two of them side by side: ACC, ASR, RA, target accuracy, DER, excess ASR."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from theriac.core.errors import InputError
from theriac.core.ranges import Fraction, typed
from theriac.core.text import line
from theriac.metrics._degenerate import ClassCount, degenerate, percent, worst_class
from theriac.metrics.intervals import Difference, Rate


@dataclass(frozen=True)
class Evaluation:
    """Rates of one model on one test split, under one attack (``asr`` and ``ra`` are None without an attack)."""

    acc: Rate
    asr: Rate | None = None
    ra: Rate | None = None
    target_acc: Rate | None = None  # accuracy on clean rows of the attack's target class(es)
    attack: str = ""
    data: str = ""
    rows: str = ""  # hash of the test rows and labels, so that only like is compared with like; "" = not known
    trigger: str = ""  # hash of what decides the stamp, likewise
    classes: tuple[ClassCount, ...] = field(default=(), repr=False)  # clean rows of each, in card order; () = no record
    targets: tuple[str, ...] = ()  # names of the classes that the attack wants
    notes: tuple[str, ...] = ()  # what a reader of the figures must know, in sentences
    # "fp64", "fp32", "bf16" or "fp16": in which the logits were computed, which moves a row or two; "" = not known
    precision: str = ""

    def __str__(self) -> str:
        lines = [*self.degenerate, f"ACC  {self.acc}{'; ' * bool(self.worst)}{self.worst}"]
        if self.asr is not None and self.ra is not None:
            lines += [f"ASR  {self.asr}", f"RA   {self.ra}"]
        if self.target_acc is not None:
            lines.append(f"accuracy on the target class  {self.target_acc}")
        lines += self.circumstances
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    @property
    def circumstances(self) -> list[str]:
        """Attack, data and precision, as far as they are known, as one line or none."""
        words = [f"under {self.attack}"] if self.attack else []
        words += [f"on {self.data}"] if self.data else []
        words += [f"in {self.precision}"] if self.precision else []
        return [", ".join(words)] if words else []

    @property
    def degenerate(self) -> list[str]:
        """What explains this result beside its rates, in sentences; see :func:`theriac.metrics.degenerate`."""
        return degenerate(self)

    @property
    def worst(self) -> str:
        """The class with the lowest accuracy, in words; empty if classes were not counted."""
        lowest = worst_class(self.classes)
        if lowest is None:
            return ""
        return f"worst class: {line(lowest.name)!r} {percent(lowest.hits, lowest.rows)} of {lowest.rows}"

    def excess_asr(self, benign: Evaluation) -> Difference:
        """ASR beyond that of a benign model trained the same way, on the same stamped rows.

        Raises:
            InputError: If one of the two was evaluated without an attack, or the populations differ.
        """
        if self.asr is None or benign.asr is None:
            raise InputError("excess ASR needs two evaluations under the same attack; one has no ASR")
        if not self.same_trigger(benign):
            raise InputError(f"the triggers differ: {self.named_trigger} and {benign.named_trigger}")
        if self.asr.total != benign.asr.total or not self.same_rows(benign):
            raise InputError(
                f"the populations differ: {self.asr.total} of {self.named_rows} and {benign.asr.total} of {benign.named_rows}"
            )
        return Difference(benign.asr, self.asr)

    @property
    def named_rows(self) -> str:
        """The test rows in words."""
        return f"{self.data or f'{self.acc.total} rows'}{f' ({self.rows})' if self.rows else ''}"

    def same_rows(self, other: Evaluation) -> bool:
        """Whether both are of the same rows, as far as is known: by content, else by name and number."""
        if self.rows and other.rows:
            return self.rows == other.rows
        return self.acc.total == other.acc.total and self.data == other.data

    @property
    def named_trigger(self) -> str:
        """The attack in words."""
        return f"{self.attack!r}{f' ({self.trigger})' if self.trigger else ''}"

    def same_trigger(self, other: Evaluation) -> bool:
        """Whether both are under the same attack with the same stamp, as far as is known; whatever its poison rate."""
        known = bool(self.trigger and other.trigger)
        return self.attack == other.attack and (not known or self.trigger == other.trigger)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a record."""
        rates = {"acc": self.acc, "asr": self.asr, "ra": self.ra, "target_acc": self.target_acc}
        return {
            **{name: None if rate is None else rate.to_dict() for name, rate in rates.items()},
            "attack": self.attack,
            "data": self.data,
            "rows": self.rows,
            "trigger": self.trigger,
            "classes": [c.to_dict() for c in self.classes],
            "targets": list(self.targets),
            "notes": list(self.notes),
            "precision": self.precision,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Evaluation:
        """The inverse of :meth:`to_dict`; a record from before classes were counted has none."""
        rates = {
            name: None if data.get(name) is None else Rate(data[name]["hits"], data[name]["total"], data[name]["of"])
            for name in ("acc", "asr", "ra", "target_acc")
        }
        if rates["acc"] is None:
            raise InputError("the record of an evaluation has no 'acc'")
        words = (data["attack"], data["data"], data.get("rows", ""), data.get("trigger", ""))
        classes = tuple(ClassCount.from_dict(c) for c in data.get("classes", ()))
        named, notes = tuple(data.get("targets", ())), tuple(map(str, data.get("notes", ())))
        more = (classes, named, notes, str(data.get("precision", "")))
        return cls(rates["acc"], rates["asr"], rates["ra"], rates["target_acc"], *words, *more)


@dataclass(frozen=True)
class Comparison:
    """A model before and after a repair, on the same rows."""

    before: Evaluation
    after: Evaluation

    @property
    def der(self) -> float:
        """Defense effectiveness: (max(0, ASR drop) - max(0, ACC drop) + 1) / 2, in [0, 1]; 0.5 means no effect."""
        if self.before.asr is None or self.after.asr is None:
            raise InputError("DER needs evaluations under an attack; one of the two has no ASR")
        return der(self.before.acc.value, self.after.acc.value, self.before.asr.value, self.after.asr.value)

    @property
    def der_interval(self) -> tuple[float, float]:
        """95 % interval of :attr:`der`, from those of the two changes (Zou and Donner, Statistics in Medicine 2008).

        A drop counts as none where it is below zero, there and at the ends of its interval. Where an end is cut off so, chance
        moves the counted drop to one side only, and the two parts are added there instead of combined by squares.
        """
        if self.asr is None:
            raise InputError("DER needs evaluations under an attack; one of the two has no ASR")
        (won, won_low, won_high), (lost, lost_low, lost_high) = _drop(self.asr), _drop(self.acc)
        low = self.der - _joined(won - won_low, lost_high - lost, cut=won_low == 0) / 2
        high = self.der + _joined(won_high - won, lost - lost_low, cut=lost_low == 0) / 2
        return max(0.0, low), min(1.0, high)

    @property
    def acc(self) -> Difference:
        """Change of clean accuracy."""
        return Difference(self.before.acc, self.after.acc)

    @property
    def asr(self) -> Difference | None:
        """Change of attack success."""
        if self.before.asr is None or self.after.asr is None:
            return None
        return Difference(self.before.asr, self.after.asr)

    @property
    def ra(self) -> Difference | None:
        """Change of the share of stamped rows that are recognized."""
        if self.before.ra is None or self.after.ra is None:
            return None
        return Difference(self.before.ra, self.after.ra)

    @property
    def in_place(self) -> bool:
        """Whether the attack works as before: it did so on a tenth of the rows or more, and its change is within chance."""
        change = self.asr
        return change is not None and change.before.value >= 0.1 and change.interval[0] <= 0 <= change.interval[1]

    @property
    def degenerate(self) -> list[str]:
        """What explains this change beside its rates, in sentences; see :func:`theriac.metrics.degenerate`."""
        return degenerate(self.after, self.before)

    def __str__(self) -> str:
        changes = {"ACC": self.acc, "ASR": self.asr, "RA": self.ra}
        if self.before.target_acc is not None and self.after.target_acc is not None:
            changes["target class"] = Difference(self.before.target_acc, self.after.target_acc)
        rows = [("", "before", "after", "change")]
        rows += [(name, str(c.before), str(c.after), str(c)) for name, c in changes.items() if c is not None]
        widths = [max(len(row[column]) for row in rows) + 2 for column in range(3)]
        lines = [*self.degenerate]
        lines += ["".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) + row[3] for row in rows]
        if self.after.worst:
            lines.append(f"{self.after.worst}, after")
        if self.asr is not None:
            lines.append("DER  {:.3f} (95 % {:.3f} to {:.3f})".format(self.der, *self.der_interval))
        lines += self.after.circumstances
        return "\n".join(lines)


@typed()
def der(acc_before: Fraction, acc_after: Fraction, asr_before: Fraction, asr_after: Fraction) -> float:
    """Defense effectiveness rating from four shares in [0, 1]."""
    return (max(0.0, asr_before - asr_after) - max(0.0, acc_before - acc_after) + 1) / 2


def _joined(first: float, second: float, *, cut: bool) -> float:
    return first + second if cut else math.hypot(first, second)


def _drop(change: Difference) -> tuple[float, float, float]:
    """How far a share fell, at least 0, and the ends of its interval."""
    low, high = change.interval
    return max(0.0, -change.value), max(0.0, -high), max(0.0, -low)


@typed()
def pair(before: Evaluation, after: Evaluation) -> Comparison:
    """Set two evaluations of the same rows side by side.

    Raises:
        InputError: If they were made on different rows or attacks.
    """
    stamped = [None if e.asr is None else e.asr.total for e in (before, after)]
    if not before.same_rows(after) or stamped[0] != stamped[1] or not before.same_trigger(after):
        raise InputError(
            f"the evaluations differ in rows ({before.named_rows}, {stamped[0]} stamped; {after.named_rows}, {stamped[1]} "
            f"stamped) or attack ({before.named_trigger} and {after.named_trigger}); compare needs the same of both"
        )
    return Comparison(before, after)
