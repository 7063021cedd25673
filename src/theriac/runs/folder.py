"""The run folder: who owns it, whether it can go on, and what is written when a run is done."""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from theriac.attacks import Planted
from theriac.core.card import Card
from theriac.core.errors import InputError, NothingToDoError, StoppedError
from theriac.core.files import read_json, write_json
from theriac.core.method import KINDS, methods
from theriac.core.paths import DiskFullError, make_folder, owned, unmake, writing
from theriac.core.run import Run
from theriac.core.split import Data
from theriac.core.text import json_text
from theriac.data import align
from theriac.models.network import weight_bytes
from theriac.models.store import FORMAT, read_record
from theriac.runs.provenance import provenance as described
from theriac.runs.recording import architecture, data_hash, write_run

PLAN = "plan.json"
RECORD = "run.json"
_OURS = (
    PLAN,
    RECORD,
    "model.safetensors",
    "events.jsonl",
    "planted.json",
    "planted.safetensors",
    "report.html",
    "audit.json",
    "audit.html",
    "scan.json",
    "scan-before.html",
    "scan-after.html",
    "*.checkpoint.pt",
)


@contextlib.contextmanager
def claim(out: Path, identity: Mapping[str, Any], *, force: bool, size: int = 0) -> Iterator[bool]:
    """Own the folder ``out`` for one run while it works.

    If the run fails before its first checkpoint, the folder is left as it was; a finished run that ``force`` replaces is kept
    aside until the new one is done. After Ctrl-C the folder keeps plan and checkpoints, so that the same command goes on.

    Args:
        out: The run folder; made if missing.
        identity: Plain data that determine the result; two runs are the same if these are equal.
        force: Start anew if the folder holds a run.
        size: Bytes that the run will write.

    Yields:
        Whether the work goes on from an earlier start.

    Raises:
        NothingToDoError: If the folder holds exactly this run, complete.
        InputError: If it holds something else, another process owns it, or it can't be written.
        StoppedError: If the disk became full, or the run was stopped, and the folder can go on.
    """
    plan = {"format": 1, "identity": json.loads(json_text(identity))}
    aside = out / f".old-{uuid.uuid4().hex[:8]}"
    with writing("--out", out):
        if not _moved_aside(out):  # else the finished run decides, once it is back
            _settle(out, plan["identity"], force=force)  # refuses, or has nothing to do, before anything is written
    made = make_folder("--out", out, size)
    try:
        with owned(out):
            with writing("--out", out):
                _rescue(out)
                goes_on = _settle(out, plan["identity"], force=force)
                if not goes_on:
                    _move(out, aside)
                    write_json(out / PLAN, plan)
            try:
                yield goes_on
            except KeyboardInterrupt:
                if aside.exists() and not _resumable(out, plan):  # nothing to go on from, and a finished run to lose
                    _put_back(aside, out)
                    raise StoppedError(f"stopped; {out} is as it was") from None
                there = (
                    f"go on from where {out} stands" if _resumable(out, plan) else f"begin anew: {out} holds no checkpoint yet"
                )
                raise StoppedError(f"stopped; run the same command again to {there}") from None
            except Exception as error:
                if _resumable(out, plan):
                    if isinstance(error, DiskFullError):
                        raise StoppedError(
                            f"{error}; {out} keeps its last checkpoint: make room, and run the same command again to go on"
                        ) from None
                elif not goes_on:  # leave everything as it was
                    _put_back(aside, out)
                raise
            for old in out.glob(".old-*"):
                shutil.rmtree(old, ignore_errors=True)
    finally:
        unmake(made)  # those that are empty


def _resumable(out: Path, plan: Mapping[str, Any]) -> bool:
    """Whether a run can go on from a checkpoint; its plan is written again if the folder was deleted under it."""
    if not any(out.glob("*.checkpoint.pt")):
        return False
    if not (out / PLAN).is_file():
        with contextlib.suppress(OSError):
            write_json(out / PLAN, plan)
    return True


def size_of(model: nn.Module) -> int:
    """Bytes that a run needs for a model: its weights, and a checkpoint of it with its optimizer's state."""
    return 3 * weight_bytes(model)


def write(out: Path, model: nn.Module, planted: Planted | None, record: Mapping[str, Any], run: Run) -> None:
    """Write a finished run; ``run.json`` is written last, before cleaning up, so a folder that has one is complete.

    Afterward the folder holds one clean history of events, and neither plan nor checkpoints.
    """
    with writing("--out", out):
        write_run(out, model, planted, record, run)
    for pattern in (PLAN, "*.checkpoint.pt", ".*.part"):
        for path in out.glob(pattern):
            path.unlink(missing_ok=True)


def read(folder: Path) -> dict[str, Any]:
    """The record of a complete run folder.

    Raises:
        InputError: If there is none, or it is not a record.
    """
    if not folder.exists():
        raise InputError(f"{folder} does not exist; expected a run folder (theriac train makes one)")
    if not (folder / RECORD).is_file():
        stopped = " (its run was stopped: run the same command again to finish it)" if (folder / PLAN).is_file() else ""
        raise InputError(f"{folder} holds no {RECORD}; expected the folder of a finished run{stopped}")
    return dict(read_record(folder / RECORD, FORMAT, ("model", "card")))


def section(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One part of a record from outside; empty if it is missing or ill-formed."""
    part = record.get(name)
    return part if isinstance(part, dict) else {}


def provenance(run: Run, command: str, model: nn.Module, recipe: str, started: float) -> dict[str, Any]:
    """Where, how and with what a result was made, as a report shows it."""
    facts = described(run, model=architecture(model), recipe=recipe, command=command, started=started)
    return facts | {"seconds": max(facts["seconds"] or 0.0, spent(run))}


def spent(run: Run) -> float:
    """Seconds of all epochs, those before an interruption included."""
    seconds = [float(e["seconds"]) for e in run.events if "epoch" in e and isinstance(e.get("seconds"), (int, float))]
    return round(sum(seconds), 1)


def _settle(out: Path, identity: Mapping[str, Any], *, force: bool) -> bool:
    """Whether there is something to go on from; refuses folders that are not for this run."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out is {str(out)!r}, which is a file; expected a folder")
    if not out.is_dir():
        return False
    done, begun = (out / RECORD).is_file(), (out / PLAN).is_file()
    if not done and not begun:
        foreign = [p.name for p in out.iterdir() if not p.name.startswith(".")]
        if foreign:
            raise InputError(
                f"--out is {str(out)!r}, which holds other files ({foreign[0]}); expected a new or an empty folder"
            )
        return False
    if force:
        return False
    held = read_json(out / (RECORD if done else PLAN))
    held = held.get("identity") if isinstance(held, Mapping) else None
    if held != identity:
        raise InputError(
            f"--out is {str(out)!r}, which holds another run ({_difference(held, identity)}); "
            "take another folder, or --force to start anew in this one"
        )
    if done:
        raise NothingToDoError(out)
    return True


def _difference(old: Any, new: Mapping[str, Any], where: str = "") -> str:
    """The first difference between two identities, in words."""
    if not isinstance(old, Mapping):
        return "of unknown origin"
    for key in [*new, *(k for k in old if k not in new)]:
        before, after = old.get(key), new.get(key)
        if before != after:
            if isinstance(before, Mapping) and isinstance(after, Mapping):
                return _difference(before, after, f"{where}{key} ")
            where = where.removesuffix(f"{key} ")  # options of a method hold its name, as "method"
            return f"{where}{key} is {_short(before)} there and {_short(after)} here"
    return "of another kind"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _files(folder: Path) -> list[Path]:
    left = {pattern for kind in KINDS for method in methods(kind).values() for pattern in method.leaves}
    return [path for pattern in (*_OURS, *sorted(left)) for path in folder.glob(pattern)]


def _move(source: Path, target: Path) -> None:
    """Move a run's files from one folder to another."""
    for path in _files(source):
        target.mkdir(exist_ok=True)
        path.replace(target / path.name)


def _put_back(aside: Path, out: Path) -> None:
    """Replace what a new run has begun by the run that was moved aside."""
    for path in _files(out):
        path.unlink(missing_ok=True)
    _move(aside, out)
    unmake([aside])


def _moved_aside(out: Path) -> list[Path]:
    """Finished runs that were moved aside by one that was killed before it had anything to show."""
    if not out.is_dir() or (out / RECORD).is_file() or any(out.glob("*.checkpoint.pt")):
        return []
    return [p for p in out.glob(".old-*") if (p / RECORD).is_file()]


def _rescue(out: Path) -> None:
    """Bring the last of them back."""
    if old := _moved_aside(out):
        _put_back(max(old, key=lambda p: p.stat().st_mtime), out)


def as_recorded(record: Mapping[str, Any], data: Data) -> Data | None:
    """The data of a run folder, loaded again, with classes and columns numbered as its model has them; None of other data.

    A run on a model whose classes stand in another order was made with rows that were renumbered for it.

    Args:
        record: Of the folder.
        data: As its source gives them now.
    """
    known = section(record, "data").get("hash")
    if data_hash(data) == known:
        return data
    try:
        card = Card.from_dict(section(record, "card"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # who uses the rows is told
            parts = [None if split is None else align(split, card) for split in (data.train, data.test, data.val)]
    except InputError:
        return None
    assert parts[0] is not None
    assert parts[1] is not None
    there = Data(parts[0], parts[1], parts[2], data.held_out)
    return there if data_hash(there) == known else None
