"""Two ranks train as one process does with the same total batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from theriac.core.errors import InputError
from theriac.training._parallel import Ranks, init_from_environment
from theriac.training.step import Batch

SCRIPT = """
import os
import sys
import torch
from torch import nn
from theriac.core.card import Augment
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.training import Recipe, loop
from theriac.training._parallel import init_from_environment


def work(sam_rho=0.0):
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (300, 1, 8, 8), generator=draw, dtype=torch.uint8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    run, sizes = Run(device="cpu", precision="fp32", quiet=True), set()

    def step(net, batch):
        sizes.add(len(batch.y))
        return nn.functional.cross_entropy(net(batch.x), batch.y)

    policy = Augment(crop_pad=1, flip=True)
    recipe = Recipe(epochs=2, batch_size=128, lr=0.05, weight_decay=1e-3, drop_last=True, augment=policy, sam_rho=sam_rho)
    loop(model, Split(x, torch.arange(300) % 4), run, recipe, step=step)
    return {"weights": model.state_dict(), "loss": [e["loss"] for e in run.history("train")], "sizes": sorted(sizes)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    assert init_from_environment()
    torch.save({"plain": work(), "flat": work(0.5)}, sys.argv[1])
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # gloo's threads now and then abort an interpreter that shuts down in order
"""


def start(out: Path, rank: int, port: int) -> subprocess.Popen[str]:
    environment = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment["OMP_NUM_THREADS"] = "1"
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    command = [sys.executable, "-c", SCRIPT, str(out)]
    return subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors[-2000:]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_two_ranks_equal_one_process(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [start(tmp_path / f"rank{r}.pt", r, port) for r in (0, 1)]
    try:
        for process in processes:
            finish(process)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
    here: dict[str, Any] = {"__name__": "script"}
    exec(SCRIPT, here)
    ranks = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1)]
    for how, rho in (("plain", 0.0), ("flat", 0.5)):  # sharpness-aware steps climb together, too
        single, first, second = here["work"](rho), ranks[0][how], ranks[1][how]
        assert (single["sizes"], first["sizes"], second["sizes"]) == ([128], [64], [64])
        for name, value in single["weights"].items():
            torch.testing.assert_close(first["weights"][name], value, atol=1e-5, rtol=0)
            assert torch.equal(first["weights"][name], second["weights"][name])
        assert first["loss"] == pytest.approx(single["loss"], abs=1e-5)
        assert first["loss"] == second["loss"]
    assert not torch.equal(ranks[0]["plain"]["weights"]["0.weight"], ranks[0]["flat"]["weights"]["0.weight"])


def test_without_torchrun_nothing_happens(monkeypatch, run):
    monkeypatch.delenv("RANK", raising=False)
    assert not init_from_environment()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not init_from_environment()
    model = nn.Linear(2, 2)
    ranks = Ranks(model)
    assert ranks.model is model
    batch = Batch(torch.zeros(3, 2), torch.zeros(3), torch.arange(3), 0, 0, run)
    assert ranks.part(batch) is batch


def test_each_rank_takes_its_own_part(run):
    parts = []
    for rank in (0, 1, 2):
        ranks = Ranks(nn.Linear(2, 2))
        ranks.size, ranks.rank = 3, rank
        batch = Batch(torch.arange(6.0)[:, None], torch.arange(6), torch.arange(6) * 10, 0, 0, run)
        part = ranks.part(batch)
        assert torch.equal(part.position, part.y * 10)
        assert torch.equal(part.x[:, 0].long(), part.y)
        parts.append(part.y)
    assert torch.equal(torch.cat(parts), torch.arange(6))


def test_an_uneven_batch_is_refused(run):
    ranks = Ranks(nn.Linear(2, 2))
    ranks.size = 2
    batch = Batch(torch.zeros(3, 2), torch.zeros(3), torch.arange(3), 0, 0, run)
    with pytest.raises(InputError, match="3 rows does not divide over 2 ranks"):
        ranks.part(batch)
