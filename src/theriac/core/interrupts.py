"""Ctrl-C and a polite kill, as one ``KeyboardInterrupt`` that comes out as such."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

AGAIN = 0.05  # seconds until an interrupt that came within an import is sent again
PATIENCE = 20.0  # seconds after which it is raised all the same: a user's module may never end

STOPPED = 130  # exit code of a command that was stopped

_began = threading.Event()  # whether there is something to undo
_waits: list[float] = []  # when the interrupt came that waits for the end of an import; empty where none does


def take_interrupts() -> None:
    """Let SIGINT and SIGTERM end a command at once, or raise ``KeyboardInterrupt`` once there is something to undo.

    Most of a command's first seconds are imports. An exception in the midst of one leaves a library half loaded: numpy and
    torch then end in errors of any kind, or in an abort, and some modules swallow it. So it is raised after
    :func:`something_to_undo` alone, and in a later import the signal is sent again until that is over. Does nothing outside of
    the main thread, which alone may set handlers.
    """
    with contextlib.suppress(ValueError, OSError):  # not in the main thread, or not on this system
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell asks of what it runs in the background
                signal.signal(number, _interrupt)


def something_to_undo() -> None:
    """From now on an interrupt is raised: there is a folder, a file or a display that must not be left as it is."""
    _began.set()


@contextlib.contextmanager
def noted(came: list[int]) -> Iterator[None]:
    """Note interrupts beside raising them: compiled code that calls Python may turn the exception into any other.

    Args:
        came: To which the numbers of the signals are added.
    """
    if threading.current_thread() is not threading.main_thread():  # no other thread may set handlers
        yield
        return
    handlers = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    raising = {n: h for n, h in handlers.items() if callable(h) and h in (signal.default_int_handler, _interrupt)}

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raising[number](number, frame)

    for number in raising:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in raising.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not _began.is_set():
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # no stderr, or in the midst of a write to it
            sys.stderr.write("stopped\n")
            sys.stderr.flush()
        os._exit(STOPPED)
    now = time.monotonic()
    if _imports(frame) and (not _waits or now - _waits[0] < PATIENCE):
        if not _waits:
            _waits.append(now)
        timer = threading.Timer(AGAIN, _send, (number,))
        timer.daemon = True
        timer.start()
        return
    _waits.clear()
    raise KeyboardInterrupt


def _send(number: int) -> None:
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, number)  # wakes the main thread where it waits
    else:  # pragma: no cover - not on this system
        signal.raise_signal(number)


def _imports(frame: FrameType | None) -> bool:
    """Whether an import is under way in this frame or one that called it."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib._bootstrap"):
            return True
        frame = frame.f_back
    return False
