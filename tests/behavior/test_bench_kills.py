"""A sweep that is killed at random moments, driver or worker, ends with the database of an undisturbed one."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from theriac.bench import Store, read_events, run
from theriac.bench.engines import Workers
from theriac.core.errors import StoppedError

KILLS = 20
CONTEXT: Any = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
SAME = (
    "SELECT key, kind, label, options, status, error FROM jobs ORDER BY key",
    "SELECT * FROM scores ORDER BY key, stage, name",
    "SELECT * FROM needs ORDER BY key, place",
    "SELECT key, name, sha256, bytes FROM files ORDER BY key, name",
    "SELECT * FROM cells ORDER BY place",
)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Thirty jobs on a small table; a training has forty epochs, so that most kills come in the middle of one."""
    draw = np.random.default_rng(0)
    lines = [f"{x:.3f},{y:.3f},{int(x + 0.3 * draw.normal() > 0)}" for x, y in draw.normal(size=(200, 2))]
    path = tmp_path_factory.mktemp("data") / "people.csv"
    path.write_text("\n".join(["height,weight,hired", *lines]) + "\n")
    return {
        "name": "killed",
        "data": {"name": str(path), "label": "hired"},
        "models": {"name": "mlp", "hidden": [8]},
        "recipes": {"name": "adam_40", "lr": 0.05},
        "attacks": [{"name": "tabular_value", "count": 2, "rates": [0.1, 0.2]}],
        "defenses": [{"name": "ft", "epochs": 10}, {"name": "ft", "epochs": 20}],
        "clean": 0.5,
        "seeds": [0, 1],
        "precision": "fp32",
    }


def content(folder: Path) -> list[Any]:
    with Store(folder, make=False) as store:
        assert store.db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert store.db.execute("PRAGMA foreign_key_check").fetchall() == []
        return [store.db.execute(query).fetchall() for query in SAME]


def drive(spec: dict[str, Any], folder: Path, workers: int) -> None:
    """A driver, as a process of its own, which says the numbers of its workers in a file."""
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def engine(settings: Any) -> Workers:
        made = Workers(settings, workers, threads=1, start="fork")
        (folder / "workers.json").write_text(json.dumps([seat.process.pid for seat in made.seats]))
        return made

    with contextlib.suppress(StoppedError):
        run(spec, folder, quiet=True, engine=engine if workers else "process", say=lambda _: None)


def made_times(folder: Path) -> dict[str, int]:
    """When each finished run folder was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("runs/*/run.json")}


def epochs(folder: Path) -> dict[str, list[int]]:
    """Epochs of the trainings that are finished, in the order in which they were told."""
    told = {}
    for path in folder.glob("runs/*/run.json"):
        events = [json.loads(line) for line in (path.parent / "events.jsonl").read_text().splitlines()]
        told[path.parent.name] = [event["epoch"] for event in events if "epoch" in event]
    return told


def streamed(folder: Path) -> dict[str, list[int]]:
    """The same from the sweep's own events, without what was told twice."""
    epochs: dict[str, list[int]] = {}
    for event in read_events(folder):
        if "epoch" in event:
            epochs.setdefault(event["key"], []).append(event["epoch"])
    return epochs


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes as Linux does")
def test_twenty_kills_change_nothing(spec: dict[str, Any], tmp_path: Path) -> None:
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    began = time.monotonic()
    run(spec, calm, quiet=True)
    long = (time.monotonic() - began) / 6  # so that most kills come while there is work
    draw, kills, finished = random.Random(0), 0, {}
    rough.mkdir()
    while kills < KILLS:
        workers, sign = draw.choice([(0, signal.SIGKILL), (0, signal.SIGINT), (2, signal.SIGKILL), (2, signal.SIGKILL)])
        at_worker = workers and draw.random() < 0.5
        (rough / "workers.json").unlink(missing_ok=True)
        driver = CONTEXT.Process(target=drive, args=(spec, rough, workers))
        driver.start()
        time.sleep(draw.uniform(0.02, long))
        victim = driver.pid
        if at_worker and (rough / "workers.json").exists():
            victim = json.loads((rough / "workers.json").read_text() or "[0]")[0] or victim
        if driver.is_alive():  # else it was done already, and the kill does not count
            kills += 1
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, sign)
        if victim != driver.pid:  # the driver goes on with a new worker; it is killed a moment later
            time.sleep(draw.uniform(0.02, long))
            kills += driver.is_alive()
            driver.kill()
        driver.join()
        if (rough / "store.sqlite").exists():  # what was finished stays as it was
            now = made_times(rough)
            assert {key: now.get(key) for key in finished} == finished
            finished = now
        if len(finished) == len(made_times(calm)):  # all models are there: a new sweep takes the rest of the kills
            run(spec, rough, quiet=True)
            assert content(rough) == content(calm)
            rough, finished = tmp_path / f"rough{kills}", {}
            rough.mkdir()
    sweep = run(spec, rough, quiet=True)
    assert (sweep.done, sweep.failed) == (sweep.jobs, {})
    assert content(rough) == content(calm)
    assert epochs(rough) == epochs(calm)  # each epoch is told once, in order
    assert streamed(rough) == streamed(calm) == epochs(calm)
