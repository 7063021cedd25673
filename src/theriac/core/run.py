"""The run: device, precision, named random streams, progress and events of one piece of work."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

from theriac.core.device import as_device
from theriac.core.errors import InputError, shortened, unknown
from theriac.core.files import parse_json, read_bytes, write_atomically
from theriac.core.outcome import Outcome
from theriac.core.paths import as_path
from theriac.core.progress import Tick, each, progress
from theriac.core.ranges import Seed, typed
from theriac.core.text import json_text

T = TypeVar("T")

STREAMS = ("data", "poison", "init", "order", "augment", "method")
"""Named random streams. Changing the seed of one leaves the draws of the others as they were."""
_EVENTS = 256 << 20  # bytes of events.jsonl that are read


_ALONE = threading.RLock()  # torch's global generator and default type, and Python's warnings, are of the whole process


@contextlib.contextmanager
def own_terms() -> Iterator[None]:
    """Gradients, no autocast, and float32 as torch's default, whatever surrounds a call; afterward all is as it was.

    A notebook may have turned gradients off for good, or set another default type; results must not depend on that. Nor on
    other threads: such calls wait for each other.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_ALONE)
        stack.enter_context(usual_dtype())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextlib.contextmanager
def usual_dtype() -> Iterator[None]:
    """Float32 as torch's default, whatever it was; afterward it is that again."""
    before = torch.get_default_dtype()
    if before == torch.float32:
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@runtime_checkable
class Sink(Protocol):
    """Where the events of a run go beside its own ``events.jsonl``, as they happen; :mod:`theriac.runs.sinks` has some."""

    def event(self, record: Mapping[str, Any]) -> None:
        """Take an event: its name under ``event``, the time, and what else it says."""

    def forget(self, name: str, after: int) -> None:
        """Epochs of ``name`` beyond ``after`` that were told before are void; the loop tells them again."""


class Run:
    """Where and how a piece of work happens.

    Args:
        seed: Seed of all streams.
        streams: Other seeds for single streams, such as ``{"poison": 7}``.
        device: "auto" (CUDA if there is one), or a torch device.
        precision: "auto", "fp32" or "bf16". Auto takes bf16 where the hardware multiplies it natively; weights,
            BatchNorm statistics and losses stay float32 either way.
        folder: Where checkpoints and ``events.jsonl`` go; None keeps everything in memory.
        quiet: No progress. Else a bar where standard error is a terminal, and elsewhere a line at least every half minute.
        sinks: Where its events go, too.

    Raises:
        InputError: On an unknown stream, precision or device.
    """

    @typed("device", "folder")
    def __init__(
        self,
        *,
        seed: Seed = 0,
        streams: Mapping[str, Seed] | None = None,
        device: str | torch.device = "auto",
        precision: str = "auto",
        folder: str | Path | None = None,
        quiet: bool | None = None,
        sinks: Sequence[Sink] = (),
    ) -> None:
        for name in streams or {}:
            if name not in STREAMS:
                raise unknown("random stream", name, STREAMS)
        self.seed = seed
        self.streams = dict(streams or {})
        self.device = as_device(device)
        self.dtype, self.precision_reason = _precision(precision, self.device)
        self.layout_reason = ""  # why the memory format of the model last worked on is what it is; set by theriac.models.layout
        self.folder = None if folder is None else as_path("folder", folder)
        self.quiet = bool(quiet)
        self.sinks = tuple(sinks)
        self.began = time.monotonic()  # a clock that never goes backwards
        self.events: list[dict[str, Any]] = []
        self.warned: set[str] = set()
        self.warnings: list[str] = []  # what was warned about during work on this run, in order; see `listening`
        self.outcome: Outcome | None = None  # what became of the last repair; set by it

    def __repr__(self) -> str:
        return f"Run(seed={self.seed}, device={str(self.device)!r}, {self.precision_reason})"

    @property
    def precision(self) -> str:
        """What "auto" came to: "bf16" or "fp32"."""
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"

    def apart(self, *salt: object) -> Run:
        """A quiet run of its own for work inside a method: same device and precision, a seed from the ``method`` stream."""
        return Run(seed=self.stream_seed("method", *salt), device=self.device, precision=self.precision, quiet=True)

    # randomness

    def stream_seed(self, stream: str, *salt: object) -> int:
        """A 63-bit seed for a stream; ``salt`` (an epoch, a name) gives independent draws that can be resumed."""
        if stream not in STREAMS:
            raise unknown("random stream", stream, STREAMS)
        key = repr((self.streams.get(stream, self.seed), stream, *salt)).encode()
        return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1

    def generator(self, stream: str, *salt: object) -> torch.Generator:
        """A fresh CPU generator for a stream. Draws happen on the CPU, so that they are the same on every device."""
        return torch.Generator().manual_seed(self.stream_seed(stream, *salt))

    @contextlib.contextmanager
    def init_scope(self, *salt: object) -> Iterator[None]:
        """Seed torch's global generator from the ``init`` stream inside the block, and restore it afterward."""
        with _ALONE, torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.stream_seed("init", *salt))
            yield

    @contextlib.contextmanager
    def layer_scope(self, *salt: object) -> Iterator[None]:
        """As :meth:`init_scope`, from the ``method`` stream and on the device too: for what layers draw, such as dropout."""
        devices = [self.device] if self.device.type == "cuda" else []
        with _ALONE, torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.stream_seed("method", "layers", *salt))
            yield

    # numbers

    def autocast(self, model: torch.nn.Module | None = None) -> torch.autocast:
        """Mixed precision for a forward pass; nothing in float32, nor for a model of float16 or float64 numbers.

        The two types of 16 bits don't mix: a layer that autocast leaves alone, such as BatchNorm, would get the other one.
        """
        mixed = self.dtype == torch.bfloat16 and (model is None or self.precision_of(model) == "bf16")
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=mixed)

    def precision_of(self, model: torch.nn.Module) -> str:
        """In which numbers a model's forward pass is computed: "fp64", "fp32", "bf16" or "fp16"."""
        own = {p.dtype for p in model.parameters()}
        for dtype, name in ((torch.float16, "fp16"), (torch.float64, "fp64")):  # autocast leaves both alone
            if dtype in own:
                return name
        return "bf16" if torch.bfloat16 in {*own, self.dtype} else "fp32"

    # events and progress

    def event(self, name: str, **fields: Any) -> None:
        """Record what happened, with the time; also appended to ``events.jsonl`` when there is a folder, by one rank of all."""
        record = {"event": name, "time": round(time.time(), 3), **fields}
        self.events.append(record)
        if not first_rank():
            return
        if self.folder is not None:
            self._write(self.folder, record)
        for sink in self.sinks:  # after the file, which says at a new start what they may have been told
            sink.event(record)

    def _write(self, folder: Path, record: Mapping[str, Any]) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "events.jsonl").open("a", encoding="utf-8") as file:
                file.write(json_text(record) + "\n")
        except OSError as error:  # no reason to lose the work: the events are in memory, and a finished run writes them again
            if "events" not in self.warned:
                self.warned.add("events")
                warnings.warn(f"events can't be written to {folder}: {error.strerror}; they are kept in memory", stacklevel=3)

    @contextlib.contextmanager
    def listening(self) -> Iterator[list[str]]:
        """Collect the warnings of a piece of work in ``warnings``, each once; they are shown as well. Yields that list.

        torch's own warnings are left out.
        """
        heard: list[str] = []
        with _ALONE, warnings.catch_warnings():
            show = warnings.showwarning

            def keep(message: Warning | str, category: type[Warning], filename: str, *place: Any, **more: Any) -> None:
                text = " ".join(str(message).split())
                ours = issubclass(category, UserWarning) and f"{os.sep}torch{os.sep}" not in filename
                if ours and text not in heard:
                    heard.append(text)
                show(message, category, filename, *place, **more)

            warnings.showwarning = keep
            try:
                yield heard
            finally:
                self.warnings += [text for text in heard if text not in self.warnings]

    def forget(self, name: str, after: int) -> None:
        """Drop the events of ``name`` of epochs beyond ``after``, on disk too: a resumed loop records them again."""

        def stale(event: dict[str, Any] | None) -> bool:
            epoch = 0 if event is None else event.get("epoch", 0)
            return event is None or (event["event"] == name and isinstance(epoch, (int, float)) and epoch > after)

        self.events = [e for e in self.events if not stale(e)]
        path = None if self.folder is None else self.folder / "events.jsonl"
        if path is None or not path.exists() or not first_rank():
            return
        before = read_bytes(path, _EVENTS).decode("utf-8", "replace").splitlines()
        lines = [line for line in before if not stale(_parsed(line))]
        if after or len(lines) < len(before):  # else it is the first start
            for sink in self.sinks:  # before the file: killed in between, the next start finds the lines and tells them again
                sink.forget(name, after)
        write_atomically(path, lambda temporary: temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8"))

    def history(self, name: str) -> list[dict[str, Any]]:
        """The recorded events of one name, in order."""
        return [e for e in self.events if e["event"] == name]

    def progress(
        self, label: str, total: int | None = None, *, done: int = 0, early: bool = False
    ) -> AbstractContextManager[Tick]:
        """A scope of long work with progress and time left, silent when quiet; call what it yields with (steps, text).

        Args:
            label: What is done.
            total: Number of steps; None if it is not known.
            done: Steps that an earlier start has done.
            early: Say after the first step already how long it will take, if that is long.
        """
        return progress(label, total, done=done, early=early, quiet=self.quiet)

    def each(self, label: str, items: Iterable[T], total: int | None = None) -> Iterator[T]:
        """The items one by one, each a step of such a scope."""
        return each(label, items, total, quiet=self.quiet)


def as_run(run: object) -> Run:
    """The run that a verb was handed, or a new one for None.

    Raises:
        InputError: On anything else.
    """
    if run is None:
        return Run()
    if not isinstance(run, Run):
        raise InputError(f"run is {shortened(run)}; expected a theriac.Run, or None")
    return run


def first_rank() -> bool:
    """Whether this process is the one of all ranks that writes files; True outside of ``torchrun``."""
    return os.environ.get("RANK", "0") == "0"


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        event = parse_json(line, "an event")
    except InputError:  # cut off when the process was killed
        return None
    return event if isinstance(event, dict) and "event" in event else None


def native_bf16(device: torch.device) -> bool:
    """Whether the hardware itself multiplies bfloat16 (emulation is slower than float32)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        return bool(probe()) if probe is not None else False
    return False


def _precision(precision: str, device: torch.device) -> tuple[torch.dtype, str]:
    if precision == "fp32":
        return torch.float32, "fp32: as asked"
    if precision == "bf16":
        if not native_bf16(device):
            raise InputError(f"precision is 'bf16', but {device} has no native bfloat16; use fp32 or auto")
        return torch.bfloat16, "bf16: as asked"
    if precision != "auto":
        raise unknown("precision", precision, ("auto", "fp32", "bf16"))
    if native_bf16(device):
        return torch.bfloat16, f"bf16: {device.type} multiplies it natively"
    return torch.float32, f"fp32: {device.type} has no native bfloat16"
