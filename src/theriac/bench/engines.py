"""Engines, which do the work of a plan. All have one interface, and all of them write to the store themselves."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from theriac.bench.plans import Node
from theriac.bench.specs import Limits
from theriac.bench.store import Store
from theriac.bench.work import Answer, Settings, Worker
from theriac.core.errors import InputError
from theriac.core.method import load_own
from theriac.core.split import Data
from theriac.runs import Source

POLL_S = 0.5  # between looks at limits and progress


class Engine(Protocol):
    """Does work that it is handed, ``slots`` pieces at a time."""

    slots: int

    def submit(self, node: Node, again: bool) -> None:
        """Take on a piece of work, whose needs are done; there is a free slot."""

    def wait(self) -> list[Answer]:
        """Answers since the last call; waits a moment if there are none."""

    def close(self) -> None:
        """Stop at once; unfinished work can go on later."""


class InProcess:
    """One piece of work after the other in this process."""

    slots = 1

    def __init__(self, settings: Settings, load: Callable[[Source], Data] | None = None) -> None:
        self.worker = Worker(settings, load)
        self.work: list[tuple[Node, bool]] = []

    def submit(self, node: Node, again: bool) -> None:
        """Take on a piece of work."""
        self.work.append((node, again))

    def wait(self) -> list[Answer]:
        """Do it."""
        work, self.work = self.work, []
        return [self.worker.do(node, again=again) for node, again in work]

    def close(self) -> None:
        """Close the store."""
        self.worker.store.close()


@dataclass
class _Seat:
    """One worker process and what it does."""

    process: BaseProcess
    pipe: Connection
    node: Node | None = None
    again: bool = False
    since: float = 0.0
    over: str = field(default="")  # the limit that it exceeded when it was killed
    ready: bool = False  # whether it has begun to serve


class Workers:
    """Worker processes of this machine.

    Each has its own data, threads and connection to the store. A worker that dies (memory, a fault in native code) takes only
    its piece of work with it, and a new one takes its place. Workers end by themselves if this process is killed.

    Args:
        settings: How work is done.
        workers: How many processes.
        threads: Threads of torch in each; 0 divides the cores.
        limits: What one piece of work may take.
        start: How processes begin: "spawn" works everywhere, "fork" is quicker and safe only before torch has used threads.
        devices: Devices that the workers share in turn; empty: that of the settings.
    """

    def __init__(
        self,
        settings: Settings,
        workers: int,
        *,
        threads: int = 0,
        limits: Limits | None = None,
        start: str = "spawn",
        devices: tuple[str, ...] = (),
    ) -> None:
        self.settings, self.slots, self.limits = settings, workers, limits or Limits()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.threads = threads or max(1, cores // workers)
        self.context: Any = multiprocessing.get_context(start)
        self.devices = devices or (settings.device,)
        self.seats: list[_Seat] = [self._seat(n) for n in range(workers)]

    def _seat(self, number: int) -> _Seat:
        here, there = self.context.Pipe()
        settings = Settings(**{**vars(self.settings), "device": self.devices[number % len(self.devices)]})
        process = self.context.Process(
            target=_serve, args=(there, settings, self.threads, os.getpid()), name=f"theriac-{number}", daemon=True
        )
        process.start()
        there.close()
        return _Seat(process, here)

    def submit(self, node: Node, again: bool) -> None:
        """Hand a piece of work to a free worker."""
        seat = next(s for s in self.seats if s.node is None)
        seat.node, seat.again, seat.since, seat.over = node, again, time.monotonic(), ""
        with contextlib.suppress(OSError):  # it has died; wait() notices
            seat.pipe.send((node, again))

    def wait(self) -> list[Answer]:
        """Answers, deaths, and pieces of work that went beyond a limit."""
        busy = [seat for seat in self.seats if seat.node is not None]
        ready = wait([*(s.pipe for s in busy), *(s.process.sentinel for s in busy)], POLL_S)
        answers = []
        for number, seat in enumerate(self.seats):
            if seat.node is None:
                continue
            if seat.pipe in ready or seat.process.sentinel in ready:
                answers += self._heard(number, seat)
            else:
                self._police(seat)
        return answers

    def _heard(self, number: int, seat: _Seat) -> list[Answer]:
        node, answer = seat.node, None
        assert node is not None  # the seat is busy
        with contextlib.suppress(EOFError, OSError):
            if seat.pipe.poll():
                answer = seat.pipe.recv()
        if answer is not None and not seat.ready:
            seat.ready, seat.since = True, time.monotonic()
            return []
        if answer is not None:
            seat.node = None
            return [Answer(*answer)]
        seat.process.join()
        code = seat.process.exitcode or 0
        if code > 0 and not seat.ready:
            raise InputError(
                f"a worker process ended before it could begin (exit code {code}); a script must call theriac.bench.run under "
                "if __name__ == '__main__', since its workers read the script, too"
            )
        self.seats[number] = self._seat(number)
        seat.pipe.close()
        if seat.over:
            with Store(self.settings.store, make=False) as store:
                store.failed(node.key, seat.over)
            return [Answer(node.key, "failed", seat.over)]
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return [Answer(node.key, "died", f"its process died ({how})")]

    def _police(self, seat: _Seat) -> None:
        """Kill a worker whose piece of work takes more than it may."""
        spent, limits = (time.monotonic() - seat.since if seat.ready else 0.0), self.limits
        if limits.seconds and spent > limits.seconds:
            seat.over = f"stopped after {spent:.1f} s; the limit is {limits.seconds:g} s"
        elif limits.memory_mb and (used := _resident(seat.process.pid) / 1e6) > limits.memory_mb:
            seat.over = f"stopped at {used:,.0f} MB of memory; the limit is {limits.memory_mb:,.0f} MB"
        if seat.over:
            seat.process.kill()

    def close(self) -> None:
        """Kill the workers; what they did goes on from its last checkpoint when it is done again."""
        for seat in self.seats:
            seat.process.kill()
        for seat in self.seats:
            seat.process.join()
            seat.pipe.close()


def _serve(pipe: Connection, settings: Settings, threads: int, parent: int) -> None:
    """The loop of a worker process."""
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver decides
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    load_own()  # what is received may be a method of it
    worker = Worker(settings)
    pipe.send(())  # ready
    while True:
        try:
            node, again = pipe.recv()
        except (EOFError, OSError):
            return
        answer = worker.do(node, again=again)
        pipe.send((answer.key, answer.status, answer.error))


def _end_with(parent: int) -> None:
    """End this process soon after its parent, however that ended."""
    while os.getppid() == parent:
        time.sleep(0.1)
    os._exit(1)


def _resident(pid: int | None) -> float:
    """Memory of a process in bytes; 0 where the system does not say."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return float(pages * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, IndexError):
        return 0.0


def refuse_limits(limits: Limits, engine: str) -> None:
    """Refuse limits that an engine can't enforce.

    Raises:
        InputError: If there are any.
    """
    if limits:
        raise InputError(f"limits need worker processes, and the engine is {engine!r}; take --engine workers")
