"""What is prepared for a large card: data packed without loss, rates, a sweep that is stopped in time and goes on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import theriac as th
from theriac.bench import Store, rows
from theriac.core.errors import InputError
from theriac.core.run import Run

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import card
from pack import pack


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_packed_in_parts_without_loss(channels: int, tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (25, channels, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    data = th.data.from_tensors(pixels, torch.arange(25) % 3, classes=("b", "a", "c"), test_share=0.2)
    files = pack(data, tmp_path / "set", rows=8)
    assert sorted(file.name[:6] for file in files) == ["test-0", "train-", "train-", "train-"]
    again = th.load(str(tmp_path / "set"))
    assert again.train.x.equal(data.train.x)
    assert again.test.y.equal(data.test.y)
    assert again.card.classes == ("b", "a", "c")  # the order is that of the numbers
    with pytest.raises(InputError, match="not empty"):
        pack(data, tmp_path / "set")


def test_tables_are_not_packed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="table"):
        pack(th.data.from_tensors(torch.rand(20, 3), torch.arange(20) % 2), tmp_path / "set")


def test_rates_of_training_say_what_share_of_the_device_they_are() -> None:
    run = Run(device="cpu", precision="fp32", quiet=True)
    lines = list(card.training_rates(run, 1e9, rows=64, side=16, widths=(4,), batches=(32, 64)))
    assert [(line["width"], line["batch"]) for line in lines] == [(4, 32), (4, 64)]
    each = {line["share_of_matmul"] / line["images_per_second"] for line in lines}  # 3 x operations of a row / 10^9
    assert len({round(1e6 * value, 6) for value in each}) == 1
    assert card.rates(run)["copy_gbytes"] > 0


def test_a_sweep_is_stopped_in_time_and_goes_on(tmp_path: Path) -> None:
    spec: dict[str, Any] = {**card.TINY, "groups": [{"recipes": [f"short_{n}" for n in (1, 3000)]}]}
    path, store = tmp_path / "card.yaml", tmp_path / "store"
    path.write_text(yaml.safe_dump(spec))
    status: dict[str, str] = {}
    for seconds in (7, 15, 30):  # on a busy machine the first ones end before a job does; the next goes on
        stopped = card.sweep(path, store, "cpu", card.SETTLING + seconds)
        assert stopped["exit"] != 0
        assert stopped["seconds"] < card.SETTLING + seconds
        if (store / "store.sqlite").exists():
            with Store(store, make=False) as opened:
                status = {row["recipe"]: row["status"] for row in rows(opened)}
        if status.get("short_1") == "done":
            break
    assert status == {"short_1": "done", "short_3000": "planned"}
