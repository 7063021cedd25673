"""Where, how and with what a result was made, as plain data of a record."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from theriac.core.run import Run
from theriac.core.text import LONG, as_utf8
from theriac.core.version import VERSION


def provenance(
    run: Run,
    *,
    model: str = "",
    recipe: str = "",
    command: str = "",
    started: float | None = None,
    times: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Seed, versions, hardware and times of a piece of work.

    Args:
        run: Gives seed, device and precision.
        model: Architecture with its options, in words.
        recipe: Training recipe, in words.
        command: What to type to do it again.
        started: ``time.time()`` at the start; with it, the record holds how old the run is, too.
        times: Seconds by what was done.
    """
    return {
        "seed": run.seed,
        "seeds": [],
        "model": bounded(model),
        "recipe": bounded(recipe),
        "versions": versions(),
        "hardware": hardware(run.device),
        "device": str(run.device),
        "precision": run.precision_reason,
        "threads": torch.get_num_threads(),
        "started": "" if started is None else _utc(started),
        "seconds": None if started is None else round(time.monotonic() - run.began, 1),
        "command": bounded(command),
        "times": [{"what": what, "seconds": round(seconds, 2)} for what, seconds in (times or {}).items()],
    }


def _utc(moment: float) -> str:
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))
    except (OverflowError, OSError, ValueError):  # a clock that is set to no year at all
        return ""


def bounded(text: str) -> str:
    """A text as a record can hold it: no half characters of odd file names, and not longer than a record allows."""
    text = as_utf8(text)
    return text if len(text) <= LONG else f"{text[: LONG - 4]} ..."


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    import numpy

    return {
        "theriac": VERSION,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
    }


def hardware(device: torch.device) -> str:
    """The processor that did the work, in words."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8") as lines:  # Linux only
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{name}, {cores} core{'s' if cores != 1 else ''}, {platform.system()}"
