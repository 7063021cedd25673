"""Clocks, floors and processes of the speed suite."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

Work = Callable[[], Any]
ROOT = Path(__file__).resolve().parents[1]


def clocked(work: Work, device: torch.device) -> float:
    """Seconds of a call: of the processor, or, on a CUDA device, of the clock on the wall with everything finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        return time.perf_counter() - began
    began = time.process_time()
    work()
    return time.process_time() - began


# as where a package is installed: Python keeps what it compiled, whatever this process was told
BYTECODE = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(ROOT / "runs" / "bytecode")}


def started(words: Sequence[str], source: Path = ROOT / "src", **settings: str) -> tuple[float, float]:
    """A Python process of its own on one thread: its processor seconds, and the most memory that it held, in MB.

    Raises:
        RuntimeError: If it fails, with what it said.
    """
    own = {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", **BYTECODE, **settings}
    process = subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, **own}
    )
    assert process.stderr is not None
    said = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"a measured process failed: {said[-2000:]}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def matmul_rate(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Operations a second of a square matrix product."""
    size = 1024 if device.type == "cpu" else 8192
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    return 2 * size**3 / min(clocked(lambda: a @ b, device) for _ in range(5))


def copy_rate(device: torch.device) -> float:
    """Bytes a second that a copy reads and writes, beyond every cache."""
    a = torch.zeros(1 << 26, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * a.numel() / min(clocked(lambda: b.copy_(a), device) for _ in range(5))


def operations(model: nn.Module, x: torch.Tensor) -> int:
    """Floating point operations of a forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return int(counter.get_total_flops())
