"""Section A: torch corrupts its heap where narrow convolutions train in channels_last on a CPU without AVX-512."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import sys, torch, theriac as th
torch.set_num_threads(int(sys.argv[1]))
data, run = th.load("digits"), th.Run(quiet=True, precision="fp32", device="cpu")
build = th.Builder("preact_resnet18", {"width": 4})
model = th.train(build, data.train, recipe="short_2", run=run)
model.to(memory_format=torch.channels_last)  # as a user may hand it in
fixed = th.repairs.SAU(rounds=1).repair(model, data.train.sample(128), run)
fixed = th.repairs.FT(epochs=2).repair(fixed, data.train.sample(256), run)
print("reached the end", th.evaluate(fixed, data.test).acc.total)
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_training_and_repairing_narrow_networks_ends_well(threads: int):
    # the kernels of a processor without AVX-512, where this one has it; a corrupt heap is found at the next allocation
    older = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MALLOC_CHECK_": "3"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(threads)], env={**os.environ, **older}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("reached the end 359")
