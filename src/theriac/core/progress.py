"""Progress and time left on standard error: a bar on a terminal, elsewhere a plain line at least every half minute.

Scopes may lie inside each other (a defense, its stages, their epochs). The clock belongs to the outermost one, so that many
short pieces of one long work are told about, and work that ends within ten seconds prints nothing.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, Protocol, TypeVar

from theriac.core.interrupts import something_to_undo
from theriac.core.text import clean, seconds

FIRST_S, EVERY_S = 10.0, 30.0  # until the first line, and between lines at most

T = TypeVar("T")


class Tick(Protocol):
    """The function that a scope yields."""

    def __call__(self, steps: int = 1, text: str = "") -> None:
        """Count ``steps`` more steps as done, and show ``text`` beside them."""


class _Lines:
    """All open scopes of this process, and when the next line is due."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.due = 0.0
        self.silent = False
        self.bar = False  # whether a bar is on the terminal; there is room for one

    def begin(self) -> None:
        if not self.labels:
            self.due = _now() + FIRST_S

    def enter(self, label: str) -> None:
        self.begin()
        self.labels.append(label)

    def leave(self) -> None:
        self.labels.pop()

    def say(self, line: str) -> None:
        self.due = _now() + EVERY_S
        outer = self.labels[0] if self.labels and not line.startswith(self.labels[0]) else ""
        with contextlib.suppress(OSError, ValueError):  # standard error is closed
            print(clean(f"{outer}{': ' if outer else ''}{line}"), file=sys.stderr, flush=True)


_lines = _Lines()


def silence(value: bool) -> None:
    """Whether all progress of this process is kept off the screen, that of loading data included."""
    _lines.silent = value


def _now() -> float:
    return time.monotonic()


@contextlib.contextmanager
def progress(
    label: str, total: int | None = None, *, done: int = 0, early: bool = False, quiet: bool = False
) -> Iterator[Tick]:
    """A scope of work that may take long.

    Args:
        label: What is done.
        total: Number of steps; None if it is not known.
        done: Steps that an earlier start has done.
        early: Say after the first step already how long it will take, if that is long; for steps that are much alike.
        quiet: Show nothing.
    """
    if quiet or _lines.silent:
        yield _silent
        return
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    if not on_terminal:
        _lines.enter(label)
        try:
            yield _line_tick(label, total, done, early)
        finally:
            _lines.leave()
    elif total is None or _lines.bar:
        yield _silent
    else:
        _lines.bar = True
        something_to_undo()  # a bar hides the cursor
        try:
            with _bar(label, total, done) as tick:
                yield tick
        finally:
            _lines.bar = False


def each(label: str, items: Iterable[T], total: int | None = None, *, quiet: bool = False) -> Iterator[T]:
    """The items one by one, with a plain line at least every half minute; their number is the total if it is known.

    This opens no scope of its own: a loop that an error leaves would never close it.
    """
    if quiet or _lines.silent:
        yield from items
        return
    _lines.begin()
    tick = _line_tick(label, len(items) if total is None and isinstance(items, Sized) else total, 0)
    for item in items:
        tick(0)
        yield item
        tick()


def _silent(steps: int = 1, text: str = "") -> None:
    """Show nothing."""


def _line_tick(label: str, total: int | None, before: int, early: bool = False) -> Tick:
    began, done, shown = _now(), before, ""

    def tick(steps: int = 1, text: str = "") -> None:
        nonlocal done, shown, early
        done, shown = done + steps, text or shown
        now = _now()
        if early and total and done > before:
            early = False
            if (now - began) / (done - before) * (total - done) > FIRST_S:
                _lines.due = now
        if now < _lines.due or (total == 1 and done == before):  # of a single step, "0 of 1" says nothing
            return
        parts = [label]
        if total:
            parts.append(f"{100 * min(done, total) / total:.0f} % ({done:,} of {total:,})")
        elif done:
            parts.append(f"{done:,} steps")
        parts += [shown] if shown else []
        parts.append(f"{seconds(now - began)} so far")
        if total and before < done < total:
            parts.append(f"about {seconds((now - began) / (done - before) * (total - done))} left")
        _lines.say("  ".join(parts))

    return tick


@contextlib.contextmanager
def _bar(label: str, total: int, done: int) -> Iterator[Tick]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total, completed=done, text="")

        def tick(steps: int = 1, text: str = "") -> None:
            more: dict[str, Any] = {"text": text} if text else {}
            bar.update(task, advance=steps, **more)

        yield tick
