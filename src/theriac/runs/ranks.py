"""Under ``torchrun``: the rank of this process. In a single process all of this does nothing."""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist

from theriac.training._parallel import init_from_environment, world


def join(device: str) -> tuple[int, str]:
    """Join the other ranks, if there are any; this process's rank (0 alone) and device."""
    if not init_from_environment():
        return 0, device
    atexit.register(dist.destroy_process_group)
    if device == "auto" and torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    return world()[1], device


@contextlib.contextmanager
def first(rank: int, owner: AbstractContextManager[bool]) -> Iterator[bool]:
    """Let rank 0 own the run folder while the others wait until it does."""
    alone = not dist.is_initialized()
    with owner if rank == 0 else contextlib.nullcontext(True) as goes_on:
        if not alone:
            dist.barrier()
        yield goes_on
