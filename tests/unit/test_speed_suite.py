"""The speed suite: pairs in turn, records that follow from their seconds, the committed table."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from theriac.core.errors import InputError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import speed
from speed_pairs import GROUPS, Pair, Setting
from table import Table

QUICK = Setting(device=torch.device("cpu"), rows=64, side=16, width=8, quick=True)
ABOUT = {"command": "a test", "machine": speed.machine(QUICK)}


def _record(**pair: Any) -> dict[str, Any]:
    turns: list[str] = []
    ways = {"ours": lambda: turns.append("ours"), "reference": lambda: turns.append("reference")}
    record = speed.measured(Pair("a-pair", "adds", "adds slowly", **{**ways, **pair}), 3, QUICK.device)
    assert not turns or turns == ["ours", "reference"] * 4  # one warm-up of each, then in turn
    return {**record, **ABOUT, "key": "a-pair"}


def test_the_sides_run_in_turn_and_the_ratio_is_that_of_as_many_rows():
    record = _record(ours=lambda: (2.0, 100.0), reference=lambda: (3.0, 150.0), rows=10, reference_rows=5, timed=False)
    assert record["times"] == {"median": 3.0, "low": 3.0, "high": 3.0}
    assert record["ours"] == {"rows": 10, "seconds": [2.0, 2.0, 2.0], "megabytes": [100.0, 100.0, 100.0]}
    assert isinstance(speed.check(record), speed.PairRecord)
    assert "LOSS" not in speed.line(record)
    slower = _record(ours=lambda: (2.0, 1.0), reference=lambda: (1.0, 1.0), timed=False)
    assert "LOSS" in speed.line(slower)
    _record()


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("times", "median"), 9.0, "does not follow"),
        (("ours", "seconds"), [1.0], "in turn"),
        (("schema",), 2, "schema"),
        (("clock",), "sun", "clock"),
        (("machine", "threads"), 0, "threads"),
        (("more",), 1, "more"),
    ],
)
def test_a_record_that_readers_do_not_expect_is_refused(place: tuple[str, ...], value: Any, says: str):
    record = copy.deepcopy(_record(ours=lambda: (2.0, 1.0), reference=lambda: (3.0, 1.0), timed=False))
    inner = record
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    with pytest.raises(InputError, match=says):
        speed.check(record)


def test_an_exponent_is_the_slope_in_logarithms():
    assert speed.exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2)
    curve = {"schema": 1, "over": "rows", "points": [[1, 3.0], [2, 12.0], [4, 48.0]], "exponent": 2.0, "clock": "cpu"}
    assert isinstance(speed.check({**curve, **ABOUT, "key": "growth-a"}), speed.CurveRecord)
    with pytest.raises(InputError, match="exponent"):
        speed.check({**curve, **ABOUT, "key": "growth-a", "exponent": 1.0})


def test_both_ways_of_a_quick_pair_do_the_same_work():
    ways = {pair.name: (pair.ours(), pair.reference()) for group in ("core", "evaluate") for pair in GROUPS[group](QUICK)}
    drawn, masked = ways["core-draw"]
    assert len(drawn) == len(masked)
    assert torch.equal(*ways["core-hash"])
    counted, alone = ways["evaluate-items"]
    assert (counted.acc.hits, counted.asr.hits) == tuple(alone)
    counted, larger = ways["evaluate-batch"]
    assert (counted.acc.hits, counted.asr.hits) == (larger.acc.hits, larger.asr.hits)


@pytest.mark.parametrize("group", ["train", "repair"])
def test_both_ways_of_training_run_and_ours_is_a_model(group: str):
    for pair in GROUPS[group](QUICK):
        trained = pair.ours()
        pair.reference()
        assert all(bool(weight.isfinite().all()) for weight in trained.parameters()), pair.name


def test_the_two_ways_of_poisoning_give_the_same_pictures():
    for pair in GROUPS["poison"](QUICK):
        if not pair.name.endswith("-bare") or "dither" in pair.name or "cross" in pair.name:
            continue  # noise of covers is drawn by each way for itself; dithering is compared in the oracles
        alone = torch.stack([torch.from_numpy(image) for image in pair.reference()]).permute(0, 3, 1, 2).int()
        gap = (pair.ours()[: len(alone)].int() - alone).abs()
        assert gap.max() <= 1, pair.name
        assert (gap > 0).float().mean() < 0.01, pair.name


def test_the_command_prints_records_and_refuses_odd_names(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["speed.py", "core-draw", "--quick", "--repeats", "1", "--json"])
    speed.main()
    (line,) = capsys.readouterr().out.splitlines()
    assert speed.check(json.loads(line)).key == "core-draw"
    monkeypatch.setattr(sys, "argv", ["speed.py", "nosuch", "--quick"])
    with pytest.raises(SystemExit, match="nosuch"):
        speed.main()


def test_the_committed_table_is_what_readers_expect():
    for record in Table.of(speed.PLAN):
        speed.check(record)
