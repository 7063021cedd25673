from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import pytest

from theriac.core.errors import InputError
from theriac.core.run import Run
from theriac.runs.sinks import JsonLines, TensorBoard


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_is_shared_and_says_whose_each_line_is(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    for name in ("first", "second"):
        run = Run(quiet=True, sinks=[JsonLines(path, job=name)])
        run.event("evaluated", acc=0.5)  # belongs to the run folder
        run.event("train", epoch=1, loss=float("nan"))
    assert [(line["job"], line["event"], line["loss"]) for line in lines(path)] == [
        ("first", "train", None),  # what JSON has no number for
        ("second", "train", None),
    ]


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    path.write_text('{"event": "tra')
    JsonLines(path).write(event="job")
    assert path.read_text().splitlines() == ['{"event": "tra', '{"event": "job"}']


def test_epochs_that_come_again_are_announced(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    for _ in range(2):  # the second time as after a kill before the first checkpoint
        run = Run(quiet=True, folder=tmp_path / "run", sinks=[JsonLines(path)])
        run.forget("train", 0)
        run.event("train", epoch=1)
    told = [(line["event"], line.get("epoch", line.get("after"))) for line in lines(path)]
    assert told == [("train", 1), ("forget", 0), ("train", 1)]


def test_a_kill_while_epochs_are_forgotten_loses_no_announcement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "all.jsonl"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for stop in (None, killed, None):  # the second start is killed between the stream and the folder's own file
        run = Run(quiet=True, folder=tmp_path / "run", sinks=[JsonLines(path)])
        if stop is not None:
            with monkeypatch.context() as patch:
                patch.setattr("theriac.core.run.write_atomically", stop)
                with pytest.raises(KeyboardInterrupt):
                    run.forget("train", 0)
            continue
        run.forget("train", 0)
        run.event("train", epoch=1)
    told = [(line["event"], line.get("epoch", line.get("after"))) for line in lines(path)]
    assert told == [("train", 1), ("forget", 0), ("forget", 0), ("train", 1)]


def test_a_file_that_cannot_be_written_costs_no_work(tmp_path: Path) -> None:
    run = Run(quiet=True, sinks=[JsonLines(tmp_path)])
    with pytest.warns(UserWarning, match="events can't be written"):
        run.event("train", epoch=1)
    with warnings.catch_warnings():  # it is told once
        warnings.simplefilter("error")
        run.event("train", epoch=2)
    assert len(run.history("train")) == 2


def test_tensorboard_reads_each_epoch_once(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    home = tmp_path / "run"
    for losses in ([4.0, 3.0, 9.0], [2.0, 1.0]):  # killed in the fourth epoch; the last checkpoint is of the second one
        board = TensorBoard(tmp_path / "board")
        run = Run(quiet=True, folder=home, sinks=[board])
        after = 0 if len(losses) == 3 else 2
        run.forget("train", after)
        for epoch, loss in enumerate(losses, after + 1):
            run.event("train", epoch=epoch, loss=loss, seconds=0.5, note="left out", chosen=True)
            run.event("other", epoch=epoch, loss=0.0)
        board.close()
    seen = reader.EventAccumulator(str(tmp_path / "board" / "train"))
    seen.Reload()
    assert seen.Tags()["scalars"] == ["loss", "seconds"]
    assert [(point.step, point.value) for point in seen.Scalars("loss")] == [(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)]


def test_a_missing_tensorboard_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"theriac\[tensorboard\]"):
        TensorBoard(tmp_path)
