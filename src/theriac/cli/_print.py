"""Where texts, tables and JSON of commands go; importing it does not import torch.

Standard output holds results alone. What anything else prints while a command works, such as a user's own network, goes to
standard error, so that ``--json`` is JSON. A reader that leaves early (``| head``) changes nothing, least of all the exit code,
which may be the answer.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from theriac.cli import _options as opt
from theriac.core.text import clean

_results: ContextVar[TextIO | None] = ContextVar("results", default=None)


@contextlib.contextmanager
def results_alone() -> Iterator[None]:
    """Keep standard output for what this module writes; other prints go to standard error."""
    stream = sys.stdout or io.StringIO()  # None where the caller has closed it (>&-)
    token = _results.set(stream)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _results.reset(token)
        _flush(stream)


class _Forgiving:
    """Standard error for notes and hints: that nobody can read them, or its disk is full, changes no answer."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def forgive_errors() -> None:
    """From now on a standard error that is closed, or can't be written, is passed over."""
    sys.stderr = io.StringIO() if sys.stderr is None else _Forgiving(sys.stderr)


class Command(TyperCommand):
    """A command whose standard output holds its result alone."""

    def invoke(self, ctx: Any) -> Any:
        """Do its work."""
        with results_alone():
            return super().invoke(ctx)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Go on without a reader; rich would end the program with code 1."""
        self.quiet = True
        _unread(self.file)


def console(*, err: bool = False) -> Console:
    """A console; outside a terminal it is wide enough for every table and free of colors."""
    stream = sys.stderr if err else _output()
    return _Console(file=stream, width=None if stream.isatty() else 120, highlight=False, soft_wrap=False)


def as_json(data: Any) -> None:
    """Machine-readable result on standard output."""
    say(json.dumps(data, indent=1, allow_nan=False))


def say(text: str) -> None:
    """A line of the result on standard output."""
    stream = _output()
    try:
        stream.write(text + "\n")
    except BrokenPipeError:
        _unread(stream)


def tell(text: str) -> None:
    """One line on standard error, unless quiet."""
    if not opt.quiet():
        console(err=True).print(Text(clean(text)), soft_wrap=True)


def rows(title: str, head: Sequence[str], body: Sequence[Sequence[str]]) -> None:
    """A plain table of texts, the first column in bold."""
    table = Table(title=Text(clean(title), "bold"), title_justify="left", box=None, pad_edge=False, header_style="dim")
    for name in head:
        table.add_column(name, overflow="fold")
    for row in body:
        table.add_row(Text(clean(row[0]), "bold"), *(Text(clean(cell)) for cell in row[1:]))
    console().print(table)
    console().print()


def _output() -> TextIO:
    return _results.get() or sys.stdout


def _flush(stream: TextIO) -> None:
    try:
        stream.flush()
    except BrokenPipeError:
        _unread(stream)


def _unread(stream: Any) -> None:
    """Send what else is written to nowhere, since nobody reads it."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
