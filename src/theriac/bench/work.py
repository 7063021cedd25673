"""One piece of a plan's work, in whatever process: do it, measure what it takes, and write its result to the store."""

from __future__ import annotations

import contextlib
import io
import shutil
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from theriac.attacks import Planted
from theriac.attacks.store import load_planted
from theriac.auditing import audit
from theriac.bench.events import JobEvents
from theriac.bench.plans import Loader, Node
from theriac.bench.store import Store
from theriac.core.errors import BusyError, InputError, NothingToDoError, StoppedError
from theriac.core.interrupts import noted
from theriac.core.paths import DiskFullError, owned, unmake
from theriac.core.run import Run
from theriac.core.split import Data, Split
from theriac.metrics import evaluate
from theriac.models import load_model
from theriac.models.network import RowPasses, row_passes, to_levels
from theriac.models.store import digest
from theriac.runs import Job, Opened, Source, data_key, execute
from theriac.runs.folder import RECORD, read, section
from theriac.runs.job import reading
from theriac.runs.provenance import hardware, versions

LEAST = 64  # pixels of a picture's side in the gallery
WEIGHTS = "model.safetensors"
TIMES = 10  # the difference is shown so many times enlarged

# what of a record is the result of the job, beside its scores
_RESULT = (
    "evaluation",
    "before",
    "der",
    "der_interval",
    "degenerate",
    "outcome",
    "notes",
    "poison",
    "clean",
    "verdict",
    "fairness",
)


@dataclass(frozen=True)
class Answer:
    """What became of a piece of work.

    Args:
        key: Its key.
        status: "done"; "there" if another process did it; "failed"; "busy" if another process is at it; "full" if the disk
            is; "stopped" by hand; "died" with its process.
        error: What went wrong, in a sentence.
    """

    key: str
    status: Literal["done", "there", "failed", "busy", "full", "stopped", "died"]
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How work is done, the same for all of it.

    Args:
        store: The store's folder.
        device: "auto", or a torch device.
        quiet: No progress of single jobs.
        command: What was typed, for the records.
        events: Names of sinks of events beside the store's ``events.jsonl``.
    """

    store: str
    device: str = "auto"
    quiet: bool = True
    command: str = ""
    events: tuple[str, ...] = ()


class Worker:
    """Does work; keeps the data and the connection between pieces of it.

    Args:
        settings: How.
        load: Gives the rows of a source; left out: it is loaded once.
    """

    def __init__(self, settings: Settings, load: Callable[[Source], Data] | None = None) -> None:
        self.settings, self.load = settings, load or Loader()
        self.store = Store(settings.store, make=False)
        self.contents: dict[str, str] = {}  # hash of the rows of each source
        self.measured: tuple[Any, dict[Any, Any]] = (None, {})  # by the last audit of its victim and benign model, and of which

    def do(self, node: Node, *, again: bool = False) -> Answer:
        """Do a piece of work, unless its result is there.

        Args:
            node: The work, whose needs are done.
            again: Make its model again although the result is there.
        """
        home = self.store.home(node.key)
        if self.store.status(node.key) == "done":
            if not again or intact(self.store, node, by_content=True):
                return Answer(node.key, "there")
            if (home / RECORD).is_file():  # what is left of a finished model would pass for the whole
                shutil.rmtree(home, ignore_errors=True)
        events = JobEvents(self.store.folder, node.key, str(node.cell), node.kind, self.settings.events)
        with events.open(home), row_passes() as passes:
            return self._do(node, home, events, _Cost(self.settings.device, passes))

    def _do(self, node: Node, home: Path, events: JobEvents, cost: _Cost) -> Answer:
        came: list[int] = []
        try:
            with noted(came), self._alone(node):
                if node.kind == "judge" and self.store.status(node.key) == "done":  # by another process, meanwhile
                    return Answer(node.key, "there")
                with _silent():
                    self.load(node.job.data)
                    cost.begin()  # what the first job of a worker reads is read for all of them
                    self._check_precision(node)
                    result, picture = (self._judged(node), None) if node.kind == "judge" else self._executed(node, events)
                files = self.store.keep(home) if node.kind != "judge" else []
                self.store.done(node.key, result, facts=cost.facts(self._run(node), result), files=files, picture=picture)
        except (BusyError, DiskFullError, StoppedError, KeyboardInterrupt) as error:
            full = isinstance(error, DiskFullError) or "disk is full" in str(error)
            return Answer(node.key, "busy" if isinstance(error, BusyError) else "full" if full else "stopped", str(error))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            if came or "KeyboardInterrupt" in reason:  # Ctrl-C inside of a library, which made an error of its own of it
                return Answer(node.key, "stopped", reason)
            trace, facts = traceback.format_exc(), None
            with contextlib.suppress(InputError):  # a device that this process does not have, which may be what failed
                facts = cost.facts(self._run(node), {})
            self.store.failed(node.key, reason, trace, facts)
            return Answer(node.key, "failed", reason)
        return Answer(node.key, "done")

    def _run(self, node: Node) -> Run:
        return Run(device=self.settings.device, precision=node.job.precision, seed=node.job.seed, quiet=True)

    @contextlib.contextmanager
    def _alone(self, node: Node) -> Iterator[None]:
        """Hold what no other process may do at once; a model's run folder has a lock of its own.

        Raises:
            BusyError: If another process is at it.
        """
        if node.kind != "judge":
            yield
            return
        place = self.store.folder / "judging" / node.key
        place.mkdir(parents=True, exist_ok=True)
        try:
            with owned(place):
                yield
        finally:
            unmake([place, place.parent])

    def _check_precision(self, node: Node) -> None:
        """Refuse work that was planned for another precision: its result would stand under the key of another."""
        run = self._run(node)
        if node.dtype and str(run.dtype) != node.dtype:
            came, planned = (name.removeprefix("torch.") for name in (str(run.dtype), node.dtype))
            raise InputError(
                f"{run.device} of this machine computes in {came}, and the work was planned in {planned}, elsewhere; set "
                "precision in the spec"
            )

    def _executed(self, node: Node, events: JobEvents) -> tuple[dict[str, Any], bytes | None]:
        job, home, data = node.job, self.store.home(node.key), self._data(node)
        if node.kind == "repair":
            job = replace(job, victim=self._opened(node, data), judge=None)
        planted = None
        try:
            made = execute(
                job,
                home,
                device=self.settings.device,
                quiet=self.settings.quiet,
                command=self.settings.command,
                data=data,
                sinks=events.sinks,
            )
            assert made is not None  # in the only process
            record, planted = made.data, made.planted
        except NothingToDoError:  # its process was killed before the result was in the database
            record = read(home)
            if (home / "planted.json").is_file():
                planted = load_planted(home)
        result = {name: record[name] for name in _RESULT if record.get(name) is not None}
        if isinstance(result.get("clean"), dict):
            result["clean"] = {k: v for k, v in result["clean"].items() if k != "index"}
        result["seconds"] = section(record, "provenance").get("seconds")
        own = node.kind == "train" and planted is not None and job.defense is None
        return result, gallery(planted, data.test) if own and planted is not None else None

    def _opened(self, node: Node, data: Data) -> Opened:
        """The model that a repair is given, with the trigger that counts."""
        home = self.store.home(node.needs[0])
        whose = self.store.home(node.needs[-1])
        victim = node.job.victim
        attacked = node.job.judge is not None or (isinstance(victim, Job) and victim.attack is not None)
        planted = load_planted(whose) if attacked else None
        parts: dict[str, Any] = {
            "record": read(home),
            "folder": home,
            "weights": self._weights(node.needs[0]),
            "data": data,
            "source": node.job.data,
            "path": home,
        }
        return Opened(model=load_model(home), name=home.name[:12], planted=planted, **parts)

    def _data(self, node: Node) -> Data:
        """The rows of a job.

        Raises:
            InputError: If they, or other files that it reads, are not those that the work was planned for: its result would
                stand for others.
        """
        source, data = repr(node.job.data), self.load(node.job.data)
        if source not in self.contents:
            self.contents[source] = data_key(data)
        if node.content and reading(node.job, self.contents[source]) != node.content:
            raise InputError(
                f"{data.card.name!r}, its clean rows or a trigger's file was changed since this work was planned; run the "
                "sweep again, which plans for what is there now"
            )
        return data

    def _weights(self, key: str) -> str:
        """Hash of a model's weights.

        Raises:
            InputError: If they are not those that were kept.
        """
        path = self.store.home(key) / WEIGHTS
        sha, (before, _) = digest(path), self.store.tensors_of(key).get(WEIGHTS, ("", 0))
        if before and sha != before:
            raise InputError(
                f"{path} was changed: its sha256 is {sha[:12]}, it was {before[:12]} (--retry-failed makes it again)"
            )
        return sha

    def _judged(self, node: Node) -> dict[str, Any]:
        """What a model that is there does under the trigger of another's attack: counts, or an audit."""
        model, trigger, *others = (self.store.home(key) for key in node.needs)
        data, run = self._data(node), self._run(node)
        self._weights(node.needs[0])
        if node.audit is None:
            scores = evaluate(load_model(model), data.test, load_planted(trigger), run=run)
            return {"evaluation": scores.to_dict(), "degenerate": scores.degenerate}
        for key in node.needs[1:]:
            self._weights(key)
        benign = load_model(others[0]) if others else None
        same = (node.needs[1:], node.content, run.seed, node.audit)
        if self.measured[0] != same:
            self.measured = (same, {})
        beside: dict[str, Any] = {"victim": load_model(trigger), "benign": benign, "measured": self.measured[1]}
        return {"audit": audit(load_model(model), data, load_planted(trigger), **beside, run=run, options=node.audit).to_dict()}


def intact(store: Store, node: Node, *, by_content: bool = False) -> bool:
    """Whether the folder of a finished model holds what was kept: its record, its trigger, and tensors of the same size.

    Args:
        store: The store.
        node: A job that makes a model.
        by_content: Read all of it, and compare the tensors' hashes.
    """
    home = store.home(node.key)
    attacked = node.kind == "train" and node.job.attack is not None
    if not all((home / name).is_file() for name in (RECORD, WEIGHTS, *(["planted.json"] if attacked else []))):
        return False
    tensors = store.tensors_of(node.key)
    if not all((home / name).is_file() and (home / name).stat().st_size == size for name, (_, size) in tensors.items()):
        return False
    if not by_content:
        return True
    try:
        read(home)
        if attacked:
            load_planted(home)
    except InputError:
        return False
    return all(digest(home / name) == sha for name, (sha, _) in tensors.items())


def gallery(planted: Planted, rows: Split) -> bytes | None:
    """A test row clean, stamped, and ten times the difference, side by side as a PNG; None for tables."""
    if rows.is_table:
        return None
    counted = planted.population(rows.y, rows.index).nonzero().flatten()[:1]
    if not len(counted):
        return None
    x = rows.rows(counted)
    stamped = planted.stamp(x, rows.y[counted], rows.index[counted], "test")
    shown = to_levels(stamped)  # of some attacks inputs in [0, 1], finer than a level
    change = TIMES * (shown - x.float()).abs()
    strip = torch.cat([x, *(part.round().clamp(0, 255).to(torch.uint8) for part in (shown, change))], dim=3)[0].cpu()
    pixels = np.ascontiguousarray(strip.permute(1, 2, 0).numpy())
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels[:, :, :3])
    times = max(1, -(-LEAST // min(x.shape[2:])))
    picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    sink = io.BytesIO()
    picture.save(sink, "PNG", optimize=True)
    return sink.getvalue()


class _Cost:
    """Time, memory and row passes from where it begins; until then, from where it was made."""

    def __init__(self, device: str, passes: RowPasses) -> None:
        self.passes, self.cuda = passes, torch.cuda.is_available() and device != "cpu"
        self.begin()

    def begin(self) -> None:
        """Count from here on."""
        self.wall, self.cpu = time.monotonic(), time.process_time()
        with contextlib.suppress(OSError):  # Linux: the peak counts from here
            Path("/proc/self/clear_refs").write_text("5")
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()

    def facts(self, run: Run, result: dict[str, Any]) -> dict[str, Any]:
        """Columns of the job's row; a run that was interrupted counts all of its epochs."""
        seconds = max(time.monotonic() - self.wall, result.pop("seconds", None) or 0.0)
        peak = torch.cuda.max_memory_allocated() if self.cuda else _peak()
        return {
            "seconds": round(seconds, 3),
            "cpu_seconds": round(time.process_time() - self.cpu, 3),
            "peak_mb": None if peak is None else round(peak / 1e6, 1),
            "row_passes": self.passes.rows,
            "machine": hardware(run.device),
            "device": str(run.device),
            "precision": run.precision_reason.partition(":")[0],
            "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        }


def _peak() -> float | None:
    """Most memory that this process had at once, in bytes; None where the system does not say."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024.0 * int(line.split()[1])
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # pragma: no cover - not on this system
        return None
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Warnings go into the records and nowhere else."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda *_, **__: None
        yield
