"""Runs: named streams, device and precision, events."""

from __future__ import annotations

import json

import pytest
import torch

from theriac.core.errors import InputError
from theriac.core.run import STREAMS, Run, native_bf16


def draw(run: Run, stream: str, *salt: object) -> list[float]:
    return torch.rand(4, generator=run.generator(stream, *salt)).tolist()


def test_a_stream_repeats_and_salt_makes_another():
    run = Run(seed=3, device="cpu")
    assert draw(run, "order") == draw(run, "order") == draw(Run(seed=3, device="cpu"), "order")
    assert draw(run, "order") != draw(run, "order", 1)
    assert draw(run, "order", 1) != draw(run, "order", "1")
    assert draw(run, "order", 1, 2) != draw(run, "order", 2, 1)
    assert draw(run, "order") != draw(Run(seed=4, device="cpu"), "order")


def test_streams_are_independent():
    run = Run(device="cpu")
    assert len({tuple(draw(run, s)) for s in STREAMS}) == len(STREAMS)


@pytest.mark.parametrize("changed", STREAMS)
def test_changing_one_stream_leaves_the_others(changed):
    base, other = Run(device="cpu"), Run(device="cpu", streams={changed: 1})
    for stream in STREAMS:
        assert (draw(base, stream) == draw(other, stream)) == (stream != changed)
    assert draw(other, changed) == draw(Run(seed=1, device="cpu"), changed)


def test_seeds_fit_into_63_bits_and_spread():
    seeds = [Run(seed=s, device="cpu").stream_seed("order") for s in range(200)]
    assert len(set(seeds)) == 200
    assert all(0 <= s < 2**63 for s in seeds)
    assert sum(s >= 2**62 for s in seeds) in range(70, 131)


def test_init_scope_seeds_and_restores():
    run = Run(device="cpu")
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with run.init_scope():
        first = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    with run.init_scope():
        assert torch.equal(torch.rand(2), first)
    with run.init_scope("other"):
        assert not torch.equal(torch.rand(2), first)
    with pytest.raises(RuntimeError, match="inside"), run.init_scope():
        raise RuntimeError("inside")
    torch.manual_seed(0)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"seed": True}, "seed is True"),
        ({"seed": "1"}, "seed is '1'"),
        ({"streams": {"ordr": 1}}, "unknown random stream 'ordr'; did you mean 'order'"),
        ({"streams": {"order": "x"}}, "stream"),
        ({"streams": {"order": -1}}, "stream"),
        ({"precision": "fp16"}, "unknown precision 'fp16'"),
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"device": "cuda:x"}, "device is 'cuda:x'"),
        ({"device": 1.5}, "device is 1.5"),
    ],
)
def test_bad_options_are_refused(options, text):
    with pytest.raises(InputError, match=text):
        Run(**{"device": "cpu", **options})


def test_an_unknown_stream_is_refused_when_drawn():
    with pytest.raises(InputError, match="unknown random stream"):
        Run(device="cpu").generator("odrer")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu_is_refused():
    with pytest.raises(InputError, match="sees no CUDA device"):
        Run(device="cuda")
    assert Run(device="auto").device.type == "cpu"


def test_precision_and_its_reason(monkeypatch):
    assert Run(device="cpu", precision="fp32").dtype == torch.float32
    monkeypatch.setattr("theriac.core.run.native_bf16", lambda device: False)
    slow = Run(device="cpu")
    assert (slow.dtype, slow.precision_reason) == (torch.float32, "fp32: cpu has no native bfloat16")
    with pytest.raises(InputError, match="no native bfloat16"):
        Run(device="cpu", precision="bf16")
    monkeypatch.setattr("theriac.core.run.native_bf16", lambda device: True)
    fast = Run(device="cpu")
    assert fast.dtype == torch.bfloat16
    assert "natively" in fast.precision_reason
    assert Run(device="cpu", precision="bf16").dtype == torch.bfloat16


def test_autocast_follows_the_precision(monkeypatch):
    monkeypatch.setattr("theriac.core.run.native_bf16", lambda device: True)
    layer, x = torch.nn.Linear(4, 4), torch.zeros(2, 4)
    with Run(device="cpu", precision="fp32").autocast():
        assert layer(x).dtype == torch.float32
    with Run(device="cpu", precision="bf16").autocast():
        assert layer(x).dtype == torch.bfloat16
    assert native_bf16(torch.device("meta")) is False


def test_events_are_kept_and_written(tmp_path):
    run = Run(device="cpu", folder=tmp_path / "new")
    run.event("train", epoch=1, loss=0.5)
    run.event("other")
    run.event("train", epoch=2, loss=0.25)
    assert [e["loss"] for e in run.history("train")] == [0.5, 0.25]
    lines = [json.loads(line) for line in (tmp_path / "new" / "events.jsonl").read_text().splitlines()]
    assert lines == run.events
    Run(device="cpu").event("nowhere")  # no folder, no file


def test_only_the_first_rank_writes_events(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    run = Run(device="cpu", folder=tmp_path)
    run.event("train", epoch=1)
    assert len(run.events) == 1
    assert not (tmp_path / "events.jsonl").exists()


def test_epochs_that_come_again_are_forgotten(tmp_path):
    run = Run(device="cpu", folder=tmp_path)
    for epoch in (1, 2, 3):
        run.event("train", epoch=epoch)
        run.event("other", epoch=epoch)
    with (tmp_path / "events.jsonl").open("a") as sink:
        sink.write('{"event": "train", "epo')  # cut off
    run.forget("train", 1)
    expected = [("train", 1), ("other", 1), ("other", 2), ("other", 3)]
    assert [(e["event"], e["epoch"]) for e in run.events] == expected
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [(e["event"], e["epoch"]) for e in map(json.loads, lines)] == expected


def test_text_says_where_and_how():
    assert "cpu" in repr(Run(device="cpu", precision="fp32"))
    assert "fp32" in repr(Run(device="cpu", precision="fp32"))
