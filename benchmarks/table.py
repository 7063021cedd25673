"""Committed results: one table a plan, ``results/<plan>.jsonl``, one record a line, sorted by key. Read and written only here.

A record is plain data with a ``key`` that no other of its table has; what else it must hold is checked in :data:`FIELDS`.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from theriac.core.errors import InputError
from theriac.core.files import write_atomically

RESULTS = Path(__file__).resolve().parent / "results"
FIELDS = ("command", "machine")  # what every measured record must say about itself

Record = dict[str, Any]


class Table:
    """The table of one plan.

    Args:
        path: The file; it need not exist yet.

    Raises:
        InputError: When it is read: if a line is no record, has no key, or a key comes twice.
    """

    _read: dict[Path, tuple[int, dict[str, Record]]] = {}  # noqa: RUF012 (shared on purpose: every card looks through all tables)

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, plan: str, results: Path = RESULTS) -> Table:
        """The table of a plan by its name."""
        return cls(results / f"{plan}.jsonl")

    def __contains__(self, key: str) -> bool:
        return key in self._records()

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records().values())

    def get(self, key: str) -> Record | None:
        """The record of a key, or None."""
        return self._records().get(key)

    def put(self, key: str, record: Mapping[str, Any]) -> None:
        """Add a record, or replace the one of its key; other processes may write other records at the same time.

        Raises:
            InputError: If the record does not say with what command and on what machine it was made.
        """
        missing = [name for name in FIELDS if name not in record]
        if missing:
            raise InputError(f"the record {key!r} lacks {', '.join(missing)}")
        with self._locked():
            records = {**self._records(), key: {"key": key, **record}}
            lines = [json.dumps(records[name], allow_nan=False) + "\n" for name in sorted(records)]
            write_atomically(self.path, lambda path: path.write_text("".join(lines), encoding="utf-8"))

    def _records(self) -> dict[str, Record]:
        if not self.path.exists():
            return {}
        changed = self.path.stat().st_mtime_ns
        known = self._read.get(self.path)
        if known is None or known[0] != changed:
            records: dict[str, Record] = {}
            for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), 1):
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise InputError(f"{self.path.name}, line {number} is not JSON: {error}") from None
                key = record.get("key") if isinstance(record, dict) else None
                if not isinstance(key, str) or key in records:
                    raise InputError(f"{self.path.name}, line {number} has the key {key!r}; expected a text that comes once")
                records[key] = record
            known = self._read[self.path] = (changed, records)
        return known[1]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(f".{self.path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def tables(results: Path = RESULTS) -> dict[str, Table]:
    """Every table, by the name of its plan."""
    return {path.stem: Table(path) for path in sorted(results.glob("*.jsonl"))}
