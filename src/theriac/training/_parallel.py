"""Data-parallel plain training with PyTorch's own DDP, when started under ``torchrun``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

from theriac.core.errors import InputError

if TYPE_CHECKING:
    from theriac.training.step import Batch


def world() -> tuple[int, int]:
    """How many ranks there are, and which one this is."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size(), dist.get_rank()
    return 1, 0


class Ranks:
    """Splits each batch over the ranks and averages gradients; does nothing in a single process.

    Every rank draws the whole batch's order and augmentation and keeps its own part, so that N ranks train as one process
    does with the same total batch (exactly so without BatchNorm).
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.size, self.rank = world()
        if self.size > 1:
            self.model = nn.parallel.DistributedDataParallel(model)

    def part(self, batch: Batch) -> Batch:
        """This rank's share of the batch."""
        if self.size == 1:
            return batch
        if len(batch.y) % self.size:
            raise InputError(f"a batch of {len(batch.y)} rows does not divide over {self.size} ranks; use drop_last")
        share = len(batch.y) // self.size
        mine = slice(self.rank * share, (self.rank + 1) * share)
        batch.x, batch.y, batch.position = batch.x[mine], batch.y[mine], batch.position[mine]
        batch.beside = {name: values[mine] for name, values in batch.beside.items()}
        return batch

    def mean(self, sums: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Averages of the reported sums over the ranks."""
        average(sums.values())
        return sums


def average(values: Iterable[torch.Tensor]) -> None:
    """Average each tensor over the ranks, in place; nothing to do in a single process."""
    size, _ = world()
    if size > 1:
        for value in values:
            dist.all_reduce(value)
            value /= size


def init_from_environment() -> bool:
    """Join the process group that ``torchrun`` announces in the environment; True if there is one.

    Uses NCCL on CUDA and gloo elsewhere.
    """
    import os

    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return False
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return True
