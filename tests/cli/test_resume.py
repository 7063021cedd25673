"""A run that is stopped goes on from where it was, and ends where it would have ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import theriac as th
from theriac.core.files import load_tensors_safely
from theriac.core.run import Run
from theriac.models import make
from theriac.training import cross_entropy_step, loop

Theriac = Callable[..., Any]


class _Killed(BaseException):
    """Ends the process's work without a chance to tidy up, as a kill or a power cut does."""


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Stop the next run when an epoch is done; checkpoints are written after every epoch."""
    monkeypatch.setattr("theriac.training.checkpoint._EVERY_S", 0.0)
    tell = Run.event

    def arm(label: str, epoch: int, how: BaseException) -> None:
        def event(self: Run, name: str, **fields: Any) -> None:
            tell(self, name, **fields)
            if name == label and fields.get("epoch") == epoch:
                monkeypatch.setattr(Run, "event", tell)
                raise how

        monkeypatch.setattr(Run, "event", event)

    return arm


@pytest.mark.parametrize("how", [KeyboardInterrupt(), _Killed()], ids=["ctrl-c", "kill"])
def test_training_goes_on_bit_for_bit(
    theriac: Theriac, stop: Callable[..., None], pictures: Callable[..., Path], tmp_path: Path, how: BaseException
) -> None:
    words = ("train", "--data", pictures(), "--width", "4", "--recipe", "short_4", "--attack", "badnets", "--device", "cpu")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert theriac(*words, "--out", whole).code == 0

    stop("train", 3, how)
    if isinstance(how, KeyboardInterrupt):
        stopped = theriac(*words, "--out", broken)
        assert stopped.code == 130
        assert "run the same command again" in stopped.err
    else:
        with pytest.raises(_Killed):
            theriac(*words, "--out", broken)
    assert not (broken / "run.json").exists()
    assert (broken / "train.checkpoint.pt").exists()
    unfinished = theriac("eval", broken)
    assert unfinished.code == 2
    assert "stopped" in unfinished.err

    # another configuration does not touch it; the same one goes on, and not from the start
    assert theriac(*words, "--seed", "1", "--out", broken).code == 2
    with pytest.MonkeyPatch.context() as patch:
        trained = _count_epochs(patch)
        assert theriac(*words, "--out", broken).code == 0
    assert trained == [3, 4]
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert _epochs(broken) == _epochs(whole) == [1, 2, 3, 4]
    assert {p.name for p in broken.iterdir()} == {p.name for p in whole.iterdir()}
    assert theriac(*words, "--out", broken).code == 3


def test_a_repair_goes_on_bit_for_bit(theriac: Theriac, stop: Callable[..., None], victim: Path, tmp_path: Path) -> None:
    words = ("repair", victim, "--method", "ft", "--option", "epochs=4", "--clean", "64", "--device", "cpu")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert theriac(*words, "--out", whole).code == 0
    stop("ft", 2, KeyboardInterrupt())
    assert theriac(*words, "--out", broken).code == 130
    assert theriac(*words, "--out", broken).code == 0
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.filterwarnings("ignore:CBD")  # so few steps make no healthy f_B
@pytest.mark.parametrize(("label", "epoch"), [("cbd_stage1", 1), ("cbd", 2)])
def test_a_training_time_defense_goes_on_bit_for_bit(
    theriac: Theriac, stop: Callable[..., None], pictures: Callable[..., Path], tmp_path: Path, label: str, epoch: int
) -> None:
    words = ("train", "--data", pictures(), "--width", "4", "--attack", "badnets", "--poison-rate", "0.3", "--device", "cpu")
    words += ("--defense", "cbd", "--defense-option", "stage1_steps=3", "--defense-option", "epochs=3")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert theriac(*words, "--out", whole).code == 0
    stop(label, epoch, KeyboardInterrupt())
    assert theriac(*words, "--out", broken).code == 130
    assert theriac(*words, "--out", broken).code == 0
    for name in ("model.safetensors", "cbd_rows.safetensors"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    assert {p.name for p in broken.iterdir()} == {p.name for p in whole.iterdir()}


def test_ctrl_c_in_a_real_process(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ["train", "--width", "4", "--recipe", "short_500", "--device", "cpu", "--out", str(folder)]
    process = subprocess.Popen(
        [sys.executable, "-m", "theriac", *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ,
        # a shell that runs the tests in the background has them ignore the signal, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        until = time.monotonic() + 300
        while (
            not (folder / "events.jsonl").exists() or len(_epochs(folder)) < 2
        ):  # of the last one, the state may not be held yet
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert err.strip().splitlines()[-1] == f"stopped; run the same command again to go on from where {folder} stands"
    assert out == ""
    assert not (folder / "run.json").exists()
    assert json.loads((folder / "plan.json").read_text())["identity"]["recipe"]["epochs"] == 500
    kept = load_tensors_safely(folder / "train.checkpoint.pt")  # though its epochs took less than the time between two
    assert kept["done"] >= 1


def test_a_run_that_is_stopped_in_its_first_epoch_says_that_nothing_is_kept(
    theriac: Any, tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("theriac.training.epochs.set_mode", stopped)
    done = theriac("train", *tiny, "--out", tmp_path / "run", "--json")
    assert done.code == 130
    assert "run the same command again to begin anew" in done.err
    assert json.loads(done.out) == {"status": "stopped", "error": done.err.strip().splitlines()[-1]}


def test_held_state_is_that_of_the_epoch_s_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle of the third epoch, with no checkpoint written before: the weights are those after two."""
    data = th.load("digits").train.sample(100, stratified=True)
    build = th.Builder("wrn_16_1", {"depth": 10})
    monkeypatch.setattr("theriac.training.checkpoint._HOLD_S", 0.0)
    steps, seen = 2, list[int]()

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        seen.append(batch.epoch)
        if seen.count(2) == steps:
            raise KeyboardInterrupt
        loss: torch.Tensor = cross_entropy_step(model, batch)
        return loss

    recipe = th.training.recipe("short_3").replace(batch_size=25)
    run = th.Run(quiet=True, folder=tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        loop(make(build, data, run), data, run, recipe, step=step)
    kept = load_tensors_safely(tmp_path / "run" / "train.checkpoint.pt")
    assert kept["done"] == 2
    resumed = loop(make(build, data, run), data, run, recipe)
    whole = loop(make(build, data, th.Run(quiet=True)), data, th.Run(quiet=True), recipe)
    assert all(torch.equal(a, b) for a, b in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True))


def _count_epochs(patch: pytest.MonkeyPatch) -> list[int]:
    """Watch which epochs are trained from now on."""
    found: list[int] = []
    tell = Run.event

    def event(self: Run, name: str, **fields: Any) -> None:
        tell(self, name, **fields)
        if name == "train":
            found.append(fields["epoch"])

    patch.setattr(Run, "event", event)
    return found


def _epochs(folder: Path) -> list[int]:
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [e["epoch"] for e in events if e["event"] == "train"]


def test_stopping_a_forced_run_at_once_loses_nothing(theriac: Any, tiny: tuple[str, ...], tmp_path: Path, monkeypatch) -> None:
    import theriac as th

    out = tmp_path / "run"
    assert theriac("train", *tiny, "--out", out).code == 0
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(th.attacks.BadNets, "poison", stopped)
    told = theriac("train", *tiny, "--attack", "badnets", "--poison-rate", "0.2", "--out", out, "--force")
    assert told.code == 130
    assert f"stopped; {out} is as it was" in told.err
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_a_run_that_was_moved_aside_by_a_killed_one_is_back(theriac: Any, tiny: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert theriac("train", *tiny, "--out", out).code == 0
    aside = out / ".old-12345678"
    aside.mkdir()
    for path in [p for p in out.iterdir() if p.is_file()]:
        path.rename(aside / path.name)
    (out / "plan.json").write_text('{"format": 1, "identity": {}}')  # all that the killed one had written
    told = theriac("train", *tiny, "--out", out)
    assert told.code == 3  # the finished run is there
    assert not aside.exists()
