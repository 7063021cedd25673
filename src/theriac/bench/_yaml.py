"""YAML with the line of every value, so that an error in a spec names its line."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from theriac.core.errors import InputError, shortened
from theriac.core.files import read_bytes

LIMIT = 1 << 20  # bytes of a spec
MOST = 20_000  # values in it, those of aliases counted each time
DEEPEST = 32
_ODD = re.compile(r"[-+]?(0[0-9_]+|[0-9_]+(:[0-9_.]+)+)")  # 0400 is 256 to YAML 1.1, and 1:30 is 90
MERGE = "tag:yaml.org,2002:merge"

Where = tuple[str | int, ...]


class PlacedError(InputError):
    """A refusal whose message already has the place of the fault."""


@dataclass(frozen=True)
class Marked:
    """Plain data from a file, and the line on which each value begins; data that come from Python have no lines.

    Args:
        data: Mappings, lists, texts, numbers.
        file: Its name; empty for data from Python.
        lines: Line by path, such as ``("attacks", 0, "name")``.
    """

    data: Any
    file: str = ""
    lines: dict[Where, int] = field(default_factory=dict)

    def place(self, where: Where) -> str:
        """File, line and path of a value, as a message begins."""
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(".")
        if not self.file:
            return path
        line = next((self.lines[where[:n]] for n in range(len(where), -1, -1) if where[:n] in self.lines), 1)
        return f"{self.file}, line {line}{': ' if path else ''}{path}"

    @contextlib.contextmanager
    def at(self, *where: str | int) -> Iterator[None]:
        """Put the place in front of what is refused inside.

        Raises:
            InputError: As refused, with the place.
        """
        try:
            yield
        except PlacedError:
            raise
        except InputError as error:
            place = self.place((*where, *self._named(where, str(error))))
            raise PlacedError(f"{place}: {error}" if place else str(error)) from None

    def _named(self, where: Where, text: str) -> Where:
        """The key below a place that a message is about, if it names one; that has a line of its own."""
        keys = [w[-1] for w in self.lines if w[:-1] == where and len(w) == len(where) + 1 and isinstance(w[-1], str)]
        words = set(re.findall(r"\w+", text.partition(";")[0]))
        return next(((key,) for key in keys if key in words and key != "name"), ())


def read(path: Path) -> Marked:
    """Read a YAML file. Numbers such as ``1e-3`` are numbers, and a key that comes twice is refused.

    Raises:
        InputError: If it is missing, too large, or no YAML of plain values; with the line.
    """
    try:
        text = read_bytes(path, LIMIT).decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text in UTF-8") from None
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = 1 if error.problem_mark is None else error.problem_mark.line + 1
        raise InputError(f"{path}, line {line}: {error.problem or 'not YAML'}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path} is not YAML: {str(error).splitlines()[0]}") from None
    lines: dict[Where, int] = {}
    if tree is None:
        raise InputError(f"{path} is empty; expected a spec")
    return Marked(_plain(tree, (), lines, str(path)), str(path), lines)


def _plain(node: yaml.Node, where: Where, lines: dict[Where, int], file: str) -> Any:
    line = node.start_mark.line + 1
    lines[where] = line
    if not node.tag.startswith("tag:yaml.org,2002:") or ":python/" in node.tag:  # else it would be ignored without a word
        raise InputError(f"{file}, line {line}: the tag {shortened(node.tag)} is not taken; expected plain values")
    if len(lines) > MOST or len(where) > DEEPEST:
        raise InputError(f"{file}, line {line}: expected at most {MOST:,} values, nested at most {DEEPEST} deep")
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*where, i), lines, file) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        made: dict[str, Any] = {}
        merged: list[yaml.Node] = []
        for key, value in node.value:
            if key.tag == MERGE and not merged:
                merged = value.value if isinstance(value, yaml.SequenceNode) else [value]
                continue
            name = _scalar(key, file)
            if not isinstance(name, str):
                raise InputError(f"{file}, line {key.start_mark.line + 1}: {shortened(name)} is no name; expected NAME: VALUE")
            if name in made:
                raise InputError(f"{file}, line {key.start_mark.line + 1}: {name} comes twice")
            made[name] = _plain(value, (*where, name), lines, file)
        for i, item in enumerate(merged):
            made = {**_merged(item, (*where, "<<", i), lines, file), **made}
        return made
    return _scalar(node, file)


def _merged(node: yaml.Node, where: Where, lines: dict[Where, int], file: str) -> dict[str, Any]:
    """What ``<<: *NAME`` brings to a mapping, whose lines are known at the mapping too.

    Of several, the first that says something counts. Each use of a name counts as values of its own, so the limit holds.
    """
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{file}, line {node.start_mark.line + 1}: << does not name a mapping; expected <<: *NAME of one")
    before = len(lines)
    brought: dict[str, Any] = _plain(node, where, lines, file)
    new = list(itertools.islice(reversed(lines.items()), len(lines) - before))  # all others would be looked at for each use
    for place, line in reversed(new):
        lines.setdefault((*where[:-2], *place[len(where) :]), line)
    return brought


def _scalar(node: yaml.Node, file: str) -> Any:
    line = node.start_mark.line + 1
    if not isinstance(node, yaml.ScalarNode):
        raise InputError(f"{file}, line {line}: a list or mapping stands where a name belongs")
    if node.tag == "tag:yaml.org,2002:str":
        if node.style is None and any(c.isdigit() for c in node.value):
            with contextlib.suppress(ValueError):
                return float(node.value)  # YAML 1.1 takes 1e-3 for a text
        return node.value
    if _ODD.fullmatch(node.value) and node.tag.endswith((":int", ":float")):
        raise InputError(
            f"{file}, line {line}: {node.value} is read as base 8 or 60 by some; expected a plain number, or quotes"
        )
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (yaml.YAMLError, ValueError, OverflowError):
        raise InputError(f"{file}, line {line}: {shortened(node.value)} is not a plain value") from None
