"""What can be refused is refused before work, and what goes wrong later leaves a folder that can go on."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import theriac as th
from theriac.cli import main
from theriac.cli.main import app
from theriac.core import files, paths
from theriac.core.errors import InputError
from theriac.core.paths import DiskFullError, as_path, make_folder, owned
from theriac.core.run import Run
from theriac.runs.provenance import provenance

TINY = ("--model", "preact_resnet18", "--width", "8", "--recipe", "short_2", "--device", "cpu", "--precision", "fp32", "-q")


def call(*words: object):
    found = CliRunner().invoke(app, [str(w) for w in words])
    return found.exit_code, found.stderr


@pytest.fixture
def never_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("work began before the refusal")

    monkeypatch.setattr("theriac.training.plain.loop", refuse)


@pytest.mark.parametrize("seed", [2**80, 2**63, -1])
def test_a_seed_that_no_record_holds_is_refused_before_work(seed, never_trains, tmp_path):
    code, told = call("train", *TINY, "--seed", seed, "--out", tmp_path / "run")
    assert code == 2
    assert "seed is" in told
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="streams"):
        Run(streams={"poison": seed})


def test_the_largest_seed_has_a_record(run):
    run.seed = 2**63 - 1
    assert provenance(run)["seed"] == 2**63 - 1


def test_a_clock_that_goes_backwards(monkeypatch, run):
    started = time.time()
    monkeypatch.setattr(time, "time", lambda: started - 86400)
    assert provenance(run, started=started)["seconds"] >= 0
    assert provenance(run, started=1e20)["started"] == ""  # set to no year at all


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no /proc here")
@pytest.mark.parametrize("words", [("demo", "--quick"), ("train", *TINY)], ids=["demo", "train"])
def test_a_place_that_takes_no_files_is_refused_before_work(words, never_trains):
    code, told = call(*words, "--out", "/proc/x")
    assert code == 2
    assert "can't be written" in told


@pytest.mark.parametrize(
    ("out", "text"),
    [
        ("", "expected a path"),
        ("a" * 300, "too long"),
        ("/".join(["b" * 200] * 30), "too long"),
        ("~nosuchuser/x", "no such user"),
        ("a\0b", "zero byte"),
    ],
)
def test_paths_that_can_be_none(out, text, never_trains):
    code, told = call("train", *TINY, "--out", out)
    assert code == 2
    assert text in told
    for command in (("eval", out), ("repair", out), ("report", out), ("train", *TINY, "--data", out)):
        assert call(*command)[0] == 2, command


def test_a_disk_with_too_little_room_is_refused_before_work(never_trains, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(paths.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    code, told = call("train", *TINY, "--out", tmp_path / "run")
    assert code == 2
    assert "are needed" in told
    assert not (tmp_path / "run").exists()


def fill_up(monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    """No file whose name contains ``pattern`` can be written any more."""
    replace = os.replace

    def full(source: object, target: object) -> None:
        if pattern in str(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", full)


@pytest.mark.parametrize("pattern", ["model.safetensors", "run.json"])
def test_a_disk_that_fills_up_leaves_a_folder_that_goes_on(pattern, monkeypatch, tmp_path):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        fill_up(patch, pattern)
        code, told = call("train", *TINY, "--out", folder)
    assert code == 130
    assert "the disk is full" in told
    assert "go on" in told
    assert call("train", *TINY, "--out", folder) == (0, "")
    assert th.load_model(folder)
    assert not list(folder.glob(".*")), "nothing hidden is left"


def test_the_first_checkpoint_that_does_not_fit(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        fill_up(patch, "checkpoint")
        code, told = call("train", *TINY, "--out", tmp_path / "run")
    assert code == 2
    assert "the disk is full" in told
    assert not (tmp_path / "run").exists()


def test_events_that_can_not_be_written_cost_no_work(tmp_path):
    (tmp_path / "file").write_text("")
    run = Run(device="cpu", folder=tmp_path / "file" / "run", quiet=True)
    with pytest.warns(UserWarning, match="kept in memory"):
        run.event("train", epoch=1)
    run.event("train", epoch=2)  # said once
    assert len(run.history("train")) == 2


def _save_with_a_limit(folder: str, queue) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    net = th.adapt(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 1000)), classes=1000, channels=1, size=8)
    for what, save in (
        ("model", lambda: th.save(net, folder)),
        ("checkpoint", lambda: files.write_atomically(Path(folder, "c.pt"), lambda p: torch.save(net.state_dict(), p))),
    ):
        try:
            save()
            queue.put((what, "saved", ""))
        except Exception as error:
            queue.put((what, type(error).__name__, str(error)))


def test_a_file_that_may_not_grow_is_a_full_disk(tmp_path):
    pytest.importorskip("resource")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_save_with_a_limit, args=(str(tmp_path), queue))
    process.start()
    told = [queue.get(timeout=60) for _ in range(2)]
    process.join()
    assert [kind for _, kind, _ in told] == ["DiskFullError"] * 2, told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", ["the disk is full: nothing can be written", "the disk is full; make room, and go on"])
def test_a_full_disk_is_told_with_one_cure(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main._explain(DiskFullError(words), []) == 2
    assert capsys.readouterr().err.count("make room") == 1


def test_a_folder_deleted_during_the_run_is_made_again(monkeypatch, tmp_path):
    folder = tmp_path / "run"
    evaluate = th.metrics.evaluate

    def deletes(*args: object, **kwargs: object):
        shutil.rmtree(folder)
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(th, "evaluate", deletes, raising=False)
    assert call("train", *TINY, "--out", folder)[0] == 0
    assert th.load_model(folder)


def _hold(folder: str, ready, go) -> None:
    with owned(Path(folder)):
        ready.set()
        go.wait(60)


def test_a_folder_in_use_is_refused_and_a_crash_frees_it(tmp_path):
    context = multiprocessing.get_context("fork")
    folder, ready, go = tmp_path / "run", context.Event(), context.Event()
    folder.mkdir()
    process = context.Process(target=_hold, args=(str(folder), ready, go))
    process.start()
    assert ready.wait(60)
    code, told = call("train", *TINY, "--out", folder)
    assert code == 2
    assert f"in use by process {process.pid}" in told
    process.kill()
    process.join()
    with owned(folder):
        pass
    assert not list(folder.iterdir())


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(paths.fcntl, "flock", refuse)
    with owned(tmp_path):
        (tmp_path / "one").write_text("1")
    monkeypatch.setattr(paths, "fcntl", None)
    with owned(tmp_path):
        (tmp_path / "two").write_text("2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_a_finished_run_can_be_read_while_it_is_in_use(tmp_path):
    assert call("train", *TINY, "--out", tmp_path / "run")[0] == 0
    with owned(tmp_path / "run"):
        assert th.load_model(tmp_path / "run")
        assert call("eval", tmp_path / "run", "-q")[0] == 0


def test_making_a_folder_leaves_nothing_behind_when_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="which is a file"):
        make_folder("out", tmp_path / "file")
    with pytest.raises(InputError, match="can't be written"):
        make_folder("out", tmp_path / "file" / "below")
    with pytest.raises(DiskFullError):
        make_folder("out", tmp_path / "a" / "b", 1 << 62)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_home_folder_is_found():
    assert as_path("out", "~/x") == Path.home() / "x"


def test_a_command_line_of_odd_bytes_is_recorded(tmp_path):
    word = os.fsdecode(b"\xff\xfe")
    code, _ = call("train", *TINY, "--out", tmp_path / f"run{word}")
    assert code == 0
    record = json.loads((tmp_path / f"run{word}" / "run.json").read_text())
    record["provenance"]["command"].encode()  # whole characters only


def test_a_result_is_written_over_nothing_but_a_result(tmp_path, trained):
    run = th.save(trained, tmp_path / "run")
    (tmp_path / "note.txt").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    words = ("eval", run, "--data", "digits", "--device", "cpu", "-q", "--out")
    held = {path: path.read_bytes() for path in (*run.iterdir(), tmp_path / "note.txt")}
    for page in (*held, tmp_path):
        code, told = call(*words, page)
        assert code == 2
        assert "--out is" in told
    code, told = call(*words, tmp_path / "pipe")
    assert code == 2
    assert "a pipe that no process reads" in told
    assert {path: path.read_bytes() for path in held} == held
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "new.json").touch()
    for _ in range(2):  # over an empty file, and over its own result
        assert call(*words, tmp_path / "new.json")[0] == 0
    assert json.loads((tmp_path / "new.json").read_text())["status"] == "done"


def test_no_file_comes_in_the_place_of_a_device(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(InputError, match="a pipe that no process reads"):
        files.write_json(tmp_path / "pipe.json", {})
    assert (tmp_path / "pipe.json").is_fifo()
