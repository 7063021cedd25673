"""Ray as the engine; skipped where Ray is not installed."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from theriac.bench import Store, run

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray and what it imports


def scores(folder: Path) -> list[Any]:
    with Store(folder, make=False) as store:
        return store.db.execute("SELECT key, stage, name, hits, total FROM scores ORDER BY 1, 2, 3").fetchall()


def task_processes(raylet: int) -> list[int]:
    """Processes that a node of the cluster of this test started and that are at a task of the bench."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            parent = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == raylet and path.read_bytes().startswith(b"ray::_do"):
                pids.append(int(path.parent.name))
    return pids


@pytest.fixture(scope="module")
def cluster() -> Any:
    """Two nodes of one processor each, by Ray's own tools for tests; the second one may be lost."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    made.wait_for_nodes()
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.mark.parametrize("lost", ["nothing", "a worker", "a node"])
def test_ray_counts_the_same_whatever_is_lost(lost: str, cluster: Any, quick: dict[str, Any], tmp_path: Path) -> None:
    spec = quick | {"seeds": [0, 1, 2], "recipes": {"name": "adam_200", "lr": 0.05}}  # long enough to be met at work
    run(spec, tmp_path / "here", quiet=True)
    (second,) = cluster.worker_nodes
    raylet = second.all_processes["raylet"][0].process.pid
    killed: list[int] = []

    def kill() -> None:
        until = time.monotonic() + 60
        while not killed and time.monotonic() < until:
            for pid in task_processes(raylet):
                killed.append(pid)
                if lost == "a worker":
                    os.kill(pid, signal.SIGKILL)
                else:
                    cluster.remove_node(second, allow_graceful=False)
                return
            time.sleep(0.01)

    thread = threading.Thread(target=kill)
    if lost != "nothing":
        thread.start()
    sweep = run(spec, tmp_path / "ray", quiet=True, engine="ray", workers=2)
    if lost != "nothing":
        thread.join()
        assert killed
    assert (sweep.done, sweep.failed) == (sweep.jobs, {})
    assert scores(tmp_path / "ray") == scores(tmp_path / "here")
    with Store(tmp_path / "ray", make=False) as store:
        assert store.db.execute("SELECT count(*) FROM jobs WHERE status = 'done'").fetchone() == (sweep.jobs,)
