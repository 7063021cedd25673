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


def is_ours(pid: int) -> bool:
    """Whether a process descends from this one."""
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if pid == os.getpid():
            return True
    return False


def task_processes() -> list[int]:
    """Processes that the Ray of this test started and that are at a task of the bench."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().startswith(b"ray::_do") and is_ours(int(path.parent.name)):
                pids.append(int(path.parent.name))
    return pids


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Any:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def test_ray_counts_the_same_and_a_killed_worker_changes_nothing(quick: dict[str, Any], tmp_path: Path) -> None:
    spec = quick | {"seeds": [0, 1, 2]}
    run(spec, tmp_path / "here", quiet=True)
    run(spec, tmp_path / "ray", quiet=True, engine="ray", workers=2)
    assert scores(tmp_path / "ray") == scores(tmp_path / "here")
    killed: list[int] = []

    def kill() -> None:
        until = time.monotonic() + 60
        while not killed and time.monotonic() < until:
            for pid in task_processes():
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                return
            time.sleep(0.01)

    thread = threading.Thread(target=kill)
    thread.start()
    sweep = run(spec, tmp_path / "killed", quiet=True, engine="ray", workers=2)
    thread.join()
    assert killed
    assert (sweep.done, sweep.failed) == (sweep.jobs, {})
    assert scores(tmp_path / "killed") == scores(tmp_path / "here")
    with Store(tmp_path / "killed", make=False) as store:
        assert store.db.execute("SELECT count(*) FROM jobs WHERE status = 'done'").fetchone() == (sweep.jobs,)
