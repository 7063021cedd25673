"""Clean rows of another distribution: by their formulas, and in sweeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import theriac as th
from theriac.bench import grouped, make_plan, read_spec, rows, run
from theriac.bench.store import Store
from theriac.core.errors import InputError
from theriac.core.split import Split
from theriac.data import SHIFTS, shifted
from theriac.runs import Clean


def test_pixels_are_shifted_as_the_formulas_say() -> None:
    x = torch.randint(0, 256, (50, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(x, torch.arange(50) % 2)
    bright = (x.double() + 255 * 0.15).round().clamp(0, 255)
    assert torch.equal(shifted(split, "brightness").x.double(), bright)
    middle = x.double().mean((1, 2, 3), keepdim=True)
    flat = (middle + 0.4 * (x - middle)).round().clamp(0, 255)
    assert (shifted(split, "contrast").x.double() - flat).abs().max() <= 1
    noisy = shifted(split, "noise", seed=3)
    inner = (x > 80) & (x < 175)
    change = (noisy.x.double() - x)[inner]
    assert abs(float(change.std()) - 0.08 * 255) < 1.5
    assert abs(float(change.mean())) < 1.5
    assert torch.equal(noisy.x, shifted(split, "noise", seed=3).x)
    assert not torch.equal(noisy.x, shifted(split, "noise", seed=4).x)
    assert torch.equal(split.x, x)


@pytest.mark.parametrize("kind", SHIFTS)
def test_rows_labels_and_numbers_stay_but_for_what_the_shift_changes(kind: str, digits: th.Data) -> None:
    moved = shifted(digits.train, kind)
    assert moved.content_hash() != digits.train.content_hash()
    if kind in ("brightness", "contrast", "noise"):
        assert torch.equal(moved.y, digits.train.y)
        assert torch.equal(moved.index, digits.train.index)


def test_tables_and_unknown_shifts_are_refused() -> None:
    table = Split(torch.randn(20, 3), torch.arange(20) % 2)
    with pytest.raises(InputError, match="the shift 'noise' changes pixels"):
        shifted(table, "noise")
    with pytest.raises(InputError, match="unknown shift 'noisy'; did you mean 'noise'"):
        Clean(shift="noisy")


def test_a_sweep_repairs_with_shifted_rows_beside_others_and_tells_them_apart(tmp_path: Path) -> None:
    spec = {
        "name": "shift",
        "data": {"name": "digits", "rows": 200},
        "models": {"name": "preact_resnet18", "width": 4},
        "recipes": "short_1",
        "attacks": ["badnets"],
        "defenses": [{"name": "ft", "epochs": 1, "batch_size": 32}],
        "clean": [0.2, {"amount": 0.2, "shift": "noise"}],
        "controls": False,
    }
    before = make_plan(read_spec({**spec, "clean": [0.2]}))
    assert before.nodes.keys() <= make_plan(read_spec(spec)).nodes.keys()  # keys of rows as they are stay
    sweep = run(spec, tmp_path, quiet=True)
    assert sweep.done == sweep.jobs
    with Store(tmp_path) as store:
        labels = [group.labels[5] for group in grouped(rows(store)) if group.role == "defended"]
        hashes = {
            th.models.load_model(store.home(r["key"])).net.conv1.weight.sum().item() for r in rows(store, role="defended")
        }
    assert labels == ["20 %", "20 %, noise"]
    assert len(hashes) == 2
