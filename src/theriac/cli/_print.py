"""Where texts, tables and JSON of commands go; importing it does not import torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from theriac.cli import _options as opt
from theriac.core.text import clean


def console(*, err: bool = False) -> Console:
    """A console; outside a terminal it is wide enough for every table and free of colors."""
    stream = sys.stderr if err else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else 120, highlight=False, soft_wrap=False)


def as_json(data: Any) -> None:
    """Machine-readable result on standard output."""
    sys.stdout.write(json.dumps(data, indent=1, allow_nan=False) + "\n")


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
