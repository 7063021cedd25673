"""Where events of work go as they happen, beside the run folder's own ``events.jsonl``: one file of many runs, TensorBoard."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from theriac.core.errors import InputError
from theriac.core.paths import as_path
from theriac.core.text import json_text


class JsonLines:
    """Appends a line of JSON for each event of an epoch to a file that many runs and processes may share.

    An epoch that was told before a kill may come again; a line ``{"event": "forget", "loop": NAME, "after": EPOCH}`` comes
    first then, and voids the lines of that loop's later epochs.

    Args:
        path: The file; its folder is there.
        about: What each line says beside the event, such as whose it is.

    Examples:
        >>> import json
        >>> import tempfile
        >>> import theriac as th
        >>> path = Path(tempfile.mkdtemp(), "all.jsonl")
        >>> run = th.Run(quiet=True, sinks=[JsonLines(path, model="small")])
        >>> for epoch in (1, 2):  # as a training loop does, with learning rate, seconds and accuracy besides
        ...     run.event("train", epoch=epoch, loss=1 / epoch)
        >>> [(line["model"], line["epoch"], line["loss"]) for line in map(json.loads, path.read_text().splitlines())]
        [('small', 1, 1.0), ('small', 2, 0.5)]
    """

    def __init__(self, path: str | Path, **about: Any) -> None:
        self.path, self.about, self.warned = as_path("path", path), about, False

    def event(self, record: Mapping[str, Any]) -> None:
        """Append the event of an epoch; others are left to the run folder."""
        if "epoch" in record:
            self.write(**record)

    def forget(self, name: str, after: int) -> None:
        """Say which lines are void."""
        self.write(event="forget", loop=name, after=after)

    def write(self, **record: Any) -> None:
        """Append one line by one write, so that lines of several processes do not mix."""
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in {**record, **self.about}.items()}
        line = json_text(plain) + "\n"
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                end = os.lseek(handle, 0, os.SEEK_END)
                if end and (os.lseek(handle, end - 1, os.SEEK_SET), os.read(handle, 1))[1] != b"\n":
                    line = "\n" + line  # a process was killed, or the disk was full, in the middle of the last line
                os.write(handle, line.encode())
            finally:
                os.close(handle)
        except OSError as error:  # no reason to lose the work
            if not self.warned:
                self.warned = True
                warnings.warn(f"events can't be written to {self.path}: {error.strerror}", stacklevel=2)


class TensorBoard:
    """Writes the numbers of each epoch for TensorBoard, one run a loop: loss, accuracy, learning rate, seconds.

    What a killed process told beyond its last checkpoint is purged when the loop goes on.

    Args:
        folder: For ``tensorboard --logdir``; made if missing.

    Raises:
        InputError: If TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = as_path("folder", folder)
        self.writers: dict[str, Any] = {}
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError("TensorBoard is not installed; pip install 'theriac[tensorboard]'") from None
        self.make = SummaryWriter

    def event(self, record: Mapping[str, Any]) -> None:
        """Write the numbers of an epoch."""
        numbers = {k: v for k, v in record.items() if k not in ("epoch", "time") and type(v) in (int, float)}
        if "epoch" not in record or not numbers:
            return
        writer = self._writer(record["event"])
        for name, value in numbers.items():
            writer.add_scalar(name, value, record["epoch"], walltime=record["time"])
        writer.flush()

    def forget(self, name: str, after: int) -> None:
        """Purge later epochs."""
        self._writer(name, purge_step=after + 1)

    def _writer(self, name: str, **options: Any) -> Any:
        if options and name in self.writers:
            self.writers.pop(name).close()
        return self.writers.get(name) or self.writers.setdefault(name, self.make(str(self.folder / name), **options))

    def close(self) -> None:
        """Close its files; a later event opens new ones."""
        while self.writers:
            self.writers.popitem()[1].close()
