"""Memory that is kept within a search, and handed back afterward."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from theriac.core import memory
from theriac.core.memory import AFTERWARD, kept_memory

CPU = torch.device("cpu")


def faults() -> int:
    """Pages that the system had to give for ten buffers one after the other, each larger than what is kept otherwise."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(AFTERWARD[1] // 4 + 4096)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is another one")
def test_freed_memory_is_kept_within_alone():
    with kept_memory(CPU):
        faults()
        within = faults()
    assert within < faults() / 5
    with pytest.raises(ValueError, match="in between"), kept_memory(CPU):
        raise ValueError("in between")
    assert within < faults() / 5


def test_other_devices_and_libraries_are_left_alone(monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr(memory, "_glibc", lambda: asked.append("for the library"))  # and there is none
    with kept_memory(torch.device("cuda")):
        assert not asked
    with kept_memory(CPU):
        assert asked == ["for the library"]
    assert asked == ["for the library"]  # nothing is put back either
