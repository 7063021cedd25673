"""What happens in a sweep, while it happens: one line of JSON for the start and end of each job and for each epoch."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from theriac.core.errors import unknown
from theriac.core.files import read_json_lines
from theriac.core.paths import as_path
from theriac.core.run import Sink
from theriac.runs.sinks import JsonLines, TensorBoard

FILE = "events.jsonl"
LIMIT = 1 << 30  # bytes of the file that are read
SINKS = ("tensorboard",)  # beside the file


class JobEvents:
    """Tells of one job: its start and its epochs where it is done, its end where work is handed out.

    Args:
        store: The store's folder.
        key: The job's key.
        label: What tables call it.
        kind: What is done.
        beside: Names of sinks beside the file.
    """

    def __init__(self, store: Path, key: str, label: str, kind: str, beside: Sequence[str] = ()) -> None:
        self.kind = kind
        self.lines = JsonLines(store / FILE, key=key, job=label)
        where = f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', label)[:80]}-{key[:8]}"
        self.boards = [TensorBoard(store / name / where) for name in beside]

    @property
    def sinks(self) -> tuple[Sink, ...]:
        """What the job's run is handed."""
        return (self.lines, *self.boards)

    def say(self, status: str, **more: Any) -> None:
        """Tell what becomes of the job: "started", "resumed", or the status of its answer."""
        self.lines.write(event="job", time=round(time.time(), 3), status=status, kind=self.kind, **more)

    @contextlib.contextmanager
    def open(self, home: Path) -> Iterator[JobEvents]:
        """Say that it starts, or goes on in its run folder, and close what was opened for it."""
        self.say("resumed" if (home / "events.jsonl").exists() else "started")
        try:
            yield self
        finally:
            for board in self.boards:
                board.close()


def check_sinks(names: Sequence[str]) -> None:
    """Refuse a sink that nobody knows or whose package is missing, before any work.

    Raises:
        InputError: Saying which.
    """
    for name in names:
        if name not in SINKS:
            raise unknown("event sink", name, SINKS)
        TensorBoard(name)


def read_events(store: str | Path) -> list[dict[str, Any]]:
    """What happened in a sweep so far, in order; it may still run.

    A job that was killed tells again what it had told since its last checkpoint. Those lines are left out, so that each epoch
    of a job stands here once.

    Args:
        store: Folder of results that ``theriac bench`` writes.

    Raises:
        InputError: If the folder has no such file, or one that is too large.

    Examples:
        >>> import tempfile
        >>> from theriac.bench import run
        >>> spec = {"data": {"name": "digits", "rows": 200}, "models": {"name": "preact_resnet18", "width": 4}}
        >>> sweep = run(spec | {"recipes": "short_2"}, tempfile.mkdtemp(), quiet=True)
        >>> [line.get("status") or (line["event"], line["epoch"]) for line in read_events(sweep.store)]
        ['started', ('train', 1), ('train', 2), 'done']
    """
    alive: dict[int, dict[str, Any]] = {}
    epochs: dict[Any, list[int]] = {}  # places of the epochs of each job
    for place, record in enumerate(read_json_lines(as_path("store", store) / FILE, LIMIT)):
        if not isinstance(record, dict) or not _is_sound(record):
            continue
        key, own = record.get("key"), epochs.setdefault(record.get("key"), [])
        if record.get("event") == "forget":
            loop, after = record.get("loop"), record.get("after")
            epochs[key] = [i for i in own if (alive[i]["event"], alive[i]["epoch"] > after) != (loop, True)]
        elif record.get("status") == "started":  # in a new folder: whatever it told before is gone
            epochs[key] = []
        if len(epochs[key]) < len(own):
            for i in set(own) - set(epochs[key]):
                del alive[i]
        if record.get("event") != "forget":
            alive[place] = record
            if "epoch" in record:
                epochs[key].append(place)
    return list(alive.values())


def _is_sound(record: Mapping[str, Any]) -> bool:
    """Whether the facts that decide about a line are of their kinds, as in every line that Theriac writes."""
    epochs = [record[name] for name in ("epoch", "after") if name in record]
    named = "after" in record if record.get("event") == "forget" else "event" in record or not epochs
    return named and isinstance(record.get("key"), (str, type(None))) and all(isinstance(epoch, int) for epoch in epochs)
