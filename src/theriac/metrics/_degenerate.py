"""Results that mislead when only their headline number is read: one class predicted, a class lost, success without a trigger.

Everything here is a pure function of counts. A sentence has at most 15 words and names the class and the figure that explain
the result, so that every output can put it first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Protocol

from theriac.core.errors import InputError
from theriac.metrics.intervals import Difference, Rate, wilson

NEARLY_ALL = 0.9  # of the rows of other classes that are predicted as one class
FALL = 0.1  # a class that fell by no more is not named
LOST = 0.3  # how far the target class lies below the other classes when it counts as lost
SELDOM = 0.75  # answers of a lost class as a share of its rows: a rare class is recognized less and still answered as often
ASTRAY = 0.2  # share of stamped rows, beyond the clean error, that go to a class that is neither theirs nor the attack's
FREE = 0.05  # attack success below which a target class that is never answered explains it
GONE = 0.05  # accuracy of a class that counts as lost
LONGEST_NAME = 40  # letters of a class name that are shown


@dataclass(frozen=True)
class ClassCount:
    """What was counted of one class on the clean test rows.

    Args:
        name: Its name.
        hits: Rows of the class that were classified as it.
        rows: Rows of the class; 0 if the test rows lack it.
        predicted: Rows of any class that were classified as it.
    """

    name: str
    hits: int
    rows: int
    predicted: int

    def __post_init__(self) -> None:
        if not 0 <= self.hits <= min(self.rows, self.predicted):
            raise InputError(f"class {self.name!r}: {self.hits} hits of {self.rows} rows, {self.predicted} predicted, can't be")

    @property
    def rate(self) -> Rate | None:
        """Its accuracy; None if there is no row of it."""
        return Rate(self.hits, self.rows, f"clean rows of class {self.name!r}") if self.rows else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a record."""
        return {"name": self.name, "hits": self.hits, "rows": self.rows, "predicted": self.predicted}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ClassCount:
        """The inverse of :meth:`to_dict`."""
        return cls(data["name"], data["hits"], data["rows"], data["predicted"])


def worst_class(classes: Sequence[ClassCount]) -> ClassCount | None:
    """The class with the lowest accuracy among those that have rows; the first of several; None if there is none."""
    counted = [c for c in classes if c.rows]
    return min(counted, key=lambda c: c.hits / c.rows) if counted else None


def fallen(before: Sequence[ClassCount], after: Sequence[ClassCount]) -> list[tuple[ClassCount, ClassCount]]:
    """Classes whose accuracy fell by more than 10 points and by more than chance explains; the deepest fall first.

    A fall counts if Newcombe's interval of the difference leaves out zero at a level that is corrected for the number of
    classes (Bonferroni), so that of 1,000 classes none is named by chance. Both are of the same rows, which makes the
    interval conservative.

    Args:
        before: Counts by class, before.
        after: Counts by class, after, matched by name.
    """
    others = {c.name: c for c in after}
    pairs = [(old, others[old.name]) for old in before if old.rows and old.name in others and others[old.name].rows]
    z = corrected(len(pairs))
    fell = []
    for old, new in pairs:
        assert old.rate is not None
        assert new.rate is not None
        change = Difference(old.rate, new.rate)
        if change.value < -FALL and change.at(z)[1] < 0:
            fell.append((change.value, (old, new)))
    return [pair for _, pair in sorted(fell, key=lambda entry: entry[0])]


def corrected(count: int) -> float:
    """The normal point of a two-sided 95 % statement about ``count`` things together (Bonferroni)."""
    return NormalDist().inv_cdf(1 - 0.05 / (2 * max(1, count)))


class Counted(Protocol):
    """What an :class:`~theriac.metrics.Evaluation` holds, as far as it is looked at here."""

    @property
    def acc(self) -> Rate:
        """Clean accuracy."""

    @property
    def asr(self) -> Rate | None:
        """Attack success."""

    @property
    def ra(self) -> Rate | None:
        """Share of stamped rows that are recognized."""

    @property
    def target_acc(self) -> Rate | None:
        """Accuracy on clean rows of the target classes."""

    @property
    def classes(self) -> tuple[ClassCount, ...]:
        """Counts by class."""

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the classes that the attack wants."""


def degenerate(scores: Counted, before: Counted | None = None) -> list[str]:
    """What explains a result beyond its rates; empty for an ordinary one.

    Args:
        scores: The counts of the model that is judged.
        before: The counts of the same model before a repair, on the same rows.

    Returns:
        Sentences of at most 15 words, the gravest first.
    """
    sentences = _collapse(scores, before)
    if before is not None:
        sentences += [f"Before the repair already: {text}" for text in _collapse(before)[:1]]
    collapsed = bool(sentences)
    sentences += _free(scores)
    of_target = [] if collapsed else _target(scores, before)
    gone = [] if collapsed else _gone(scores, bool(of_target))
    sentences += of_target + _lost(gone)
    sentences += [] if before is None else _fell(scores, before, bool(of_target), {c.name for c in gone})
    return sentences + ([] if collapsed else _astray(scores)) + _unknown_target(scores)


_HOLLOW = re.compile(
    r"The model answers |ACC [\d.]+ % (is below|can't be told from) guessing|ACC fell from .* below guessing"
    r"|ASR [\d.]+ % (needs no trigger|is free)|The (target class '.*'|\d+ target classes) (is|are) lost"
    r"|Class '.*': \d+ of \d+ rows right|\d+ classes are lost"
)
_FELL_TO = re.compile(r"(?:(?:The target c|C)lass '.*' fell|\d+ classes fell beyond chance; most '.*'): .* % to ([\d.]+) %\.")


def hollow(sentence: str) -> bool:
    """Whether one of these sentences says that the other figures stand for nothing: one class, a class lost, no trigger needed.

    A class that fell and is still recognized, or stamped rows that stay misread, are harm and no such case. In records of
    earlier versions a lost class may be said to have fallen to at most 5 %.

    Examples:
        >>> hollow("The model answers '3' for every row."), hollow("Class '3' fell: 97.2 % to 72.2 %.")
        (True, False)
    """
    fell = _FELL_TO.match(sentence)
    return _HOLLOW.match(sentence) is not None or (fell is not None and float(fell[1]) <= 100 * GONE)


def short(name: str) -> str:
    """A class name as a sentence can hold it: in quotes, which count as one word, and at most 40 letters with its end."""
    name = " ".join(name.split()) or "?"
    half = LONGEST_NAME // 2
    return f"'{name}'" if len(name) <= LONGEST_NAME else f"'{name[: half - 1]}…{name[-half:]}'"


def percent(hits: int, total: int) -> str:
    """A share with one decimal; 0 and 100 only where every row says so."""
    return Rate(hits, total).percent


def one_class(classes: Sequence[ClassCount]) -> ClassCount | None:
    """The class that nearly every row is predicted as, those of other classes too."""
    if not classes:
        return None
    total = sum(c.rows for c in classes)
    most = max(classes, key=lambda c: c.predicted)
    others = total - most.rows
    if others == 0 or most.predicted < NEARLY_ALL * total:
        return None
    taken = Rate(most.predicted - most.hits, others)
    return most if taken.value >= NEARLY_ALL and taken.interval[0] > 0.5 else None


def how_many(predicted: int, total: int) -> str:
    """Rows that one class is answered for, in words."""
    return "every row" if predicted == total else f"{percent(predicted, total)} of rows"


def _collapse(scores: Counted, before: Counted | None = None) -> list[str]:
    one, total = one_class(scores.classes), scores.acc.total
    if one is not None:
        return [f"The model answers {short(one.name)} for {how_many(one.predicted, total)}."]
    if not scores.classes:
        return []
    guessed = sum(c.predicted * c.rows for c in scores.classes) / total**2  # accuracy of predictions that ignore the row
    several = len([c for c in scores.classes if c.rows]) > 1
    if several and scores.acc.interval[1] < guessed:
        right = percent(scores.acc.hits, total)
        if before is not None and not _collapse(before):  # the order of classes was right, so the repair did it
            was = percent(before.acc.hits, before.acc.total)
            return [f"ACC fell from {was} to {right}, which is below guessing ({100 * guessed:.1f} %)."]
        return [f"ACC {right} is below guessing ({100 * guessed:.1f} %): are classes in another order?"]
    if several and scores.acc.interval[0] <= guessed:
        return [f"ACC {percent(scores.acc.hits, total)} can't be told from guessing ({100 * guessed:.1f} %)."]
    return []


def _targets(scores: Counted) -> list[ClassCount]:
    """The classes that the attack wants; empty if it wants all of them, or none is known."""
    targets = [c for c in scores.classes if c.name in scores.targets]
    return targets if len(targets) < len(scores.classes) else []


def _of_target(targets: Sequence[ClassCount]) -> str:
    return f"target class {short(targets[0].name)}" if len(targets) == 1 else f"{len(targets)} target classes"


def _target(scores: Counted, before: Counted | None) -> list[str]:
    """Clean rows of the target class that a model no longer recognizes, though it does those of other classes."""
    own, targets = scores.target_acc, _targets(scores)
    rest = 0 if own is None else scores.acc.total - own.total
    if own is None or not targets or not rest:
        return []
    others = Rate(scores.acc.hits - own.hits, rest)
    gap = Difference(others, own)
    fell = None if before is None or before.target_acc is None else Difference(before.target_acc, own)
    name, are = _of_target(targets), "is" if len(targets) == 1 else "are"
    # of several, one may be lost and the others fine; it is named by itself then
    rare = len(targets) == 1 and targets[0].predicted < SELDOM * targets[0].rows
    if (own.value < 0.5 or rare) and gap.value <= -LOST and gap.interval[1] < -LOST / 2:
        return [f"The {name} {are} lost: {percent(own.hits, own.total)} right; others {percent(others.hits, others.total)}."]
    if fell is not None and fell.value < -FALL and fell.interval[1] < 0:
        was = fell.before
        return [f"The {name} fell: {percent(was.hits, was.total)} to {percent(own.hits, own.total)}."]
    return []


def _gone(scores: Counted, said: bool) -> list[ClassCount]:
    """Classes that are hardly ever recognized, though others are.

    Args:
        scores: The counts.
        said: Whether there is a sentence about the target classes already.
    """
    z, targets = corrected(len(scores.classes)), {c.name for c in _targets(scores)} if said else set()
    return [
        c
        for c in scores.classes
        if c.rows and c.hits <= GONE * c.rows and wilson(c.hits, c.rows, z)[1] < scores.acc.value / 2
        if c.name not in targets
    ]


def _lost(gone: Sequence[ClassCount]) -> list[str]:
    if not gone:
        return []
    first = f"{short(gone[0].name)}: {gone[0].hits} of {gone[0].rows} rows right"
    return [f"Class {first}." if len(gone) == 1 else f"{len(gone)} classes are lost, such as {first}."]


def _fell(scores: Counted, before: Counted, said: bool, gone: set[str]) -> list[str]:
    """Classes that fell, but for those that were named already: the target class, and those that are lost."""
    named = gone | ({scores.targets[0]} if said and len(scores.targets) == 1 else set())
    fell = [pair for pair in fallen(before.classes, scores.classes) if pair[0].name not in named]
    if not fell:
        return []
    old, new = fell[0]
    moved = f"{percent(old.hits, old.rows)} to {percent(new.hits, new.rows)}"
    if len(fell) == 1:
        return [f"Class {short(old.name)} fell: {moved}."]
    return [f"{len(fell)} classes fell beyond chance; most {short(old.name)}: {moved}."]


def _free(scores: Counted) -> list[str]:
    """Attack success that says nothing about a trigger: clean rows get the same predictions."""
    targets = _targets(scores)
    if scores.asr is None or not targets:
        return []
    one = one_class(scores.classes)
    if one is not None and one in targets and scores.asr.value > 0.5:  # less: the trigger drives rows away from it
        return [f"ASR {percent(scores.asr.hits, scores.asr.total)} needs no trigger: clean rows get that answer too."]
    never = any(c.rows for c in targets) and not any(c.predicted for c in targets)
    if never and scores.asr.value < FREE:  # more on stamped rows alone is a backdoor's doing
        return [f"ASR {percent(scores.asr.hits, scores.asr.total)} is free: the {_of_target(targets)} is never answered."]
    return []


def _astray(scores: Counted) -> list[str]:
    """A low ASR whose rows do not get their true label back."""
    if scores.asr is None or scores.ra is None or scores.asr.value >= 0.5:
        return []
    total = scores.ra.total
    lost = Rate(total - scores.ra.hits - scores.asr.hits, total) if scores.ra.hits + scores.asr.hits <= total else None
    if lost is None:
        return []
    beyond = Difference(Rate(scores.acc.total - scores.acc.hits, scores.acc.total), lost)
    if beyond.value <= ASTRAY or beyond.interval[0] <= 0:
        return []
    right = f"RA {percent(scores.ra.hits, total)}"
    return [f"Stamped rows stay misread: {right}, though ASR is {percent(scores.asr.hits, scores.asr.total)}."]


def _unknown_target(scores: Counted) -> list[str]:
    missing = [c for c in _targets(scores) if not c.rows]
    return [f"No test row is of {_of_target(missing)}, so its accuracy is unknown."] if missing else []
