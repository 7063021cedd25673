"""JSON from outside: bounded in bytes, values, depth and digits before and while it is parsed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from theriac.core.errors import InputError
from theriac.core.files.gate import read_bytes, shown
from theriac.core.text import HALVES, line

MAX_JSON = 32 << 20  # bytes of a file
MAX_VALUES = 2_000_000  # commas and brackets: each value of a text needs one, and takes some hundred bytes in memory
MAX_DEPTH = 64  # levels
MAX_DIGITS = 40  # of a whole number


def read_json(path: str | Path, limit: int = MAX_JSON) -> Any:
    """Read a JSON file of at most ``limit`` bytes.

    Raises:
        InputError: If it is missing, no regular file, too large, nested too deeply, or not JSON.
    """
    return parse_json(read_bytes(path, limit), shown(path))


def read_json_lines(path: str | Path, limit: int = MAX_JSON) -> list[Any]:
    """Read a file with one JSON value a line; lines without one, such as a last line that a kill cut short, are left out.

    Raises:
        InputError: If it is missing, no regular file, or too large.
    """
    data = read_bytes(path, limit)
    if data.count(b"\n") + sum(data.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
        raise InputError(f"{shown(path)} holds more than {MAX_VALUES:,} values")
    lines = []
    for text in data.splitlines():
        try:
            lines.append(parse_json(text, shown(path)))
        except InputError:
            continue
    return lines


def parse_json(data: bytes | str, what: str) -> Any:
    """The value of a JSON text.

    Args:
        data: The text, as UTF-8 where it is bytes.
        what: How an error calls it.

    Raises:
        InputError: If it is not JSON, repeats a name, or goes beyond the bounds of this module.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        if sum(text.count(mark) for mark in ",[{") > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES:,} values")
        value = json.loads(text, parse_int=_int, object_pairs_hook=_object)
        _refuse_depth(value)
        if HALVES.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # half a character can't be written or shown
    except RecursionError:
        raise InputError(f"{what} is not valid JSON: it is nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{what} is not valid JSON: {line(str(error))[:200]}") from None
    return value


def _int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1) if len(names) < 1000 else names[0]
        raise ValueError(f"the name {twice[:80]!r} comes twice")
    return members


def _refuse_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            v for held in level if isinstance(held, (dict, list)) for v in (held.values() if isinstance(held, dict) else held)
        ]
        if not level:
            return
    raise ValueError("it is nested too deeply")
