"""Attacks on pictures and classes that are unlike those of the benchmarks, and options that can't fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import theriac as th
from theriac import attacks as A
from theriac.cli.main import app
from theriac.core.errors import InputError
from theriac.core.split import Split
from theriac.triggers.additive import add


def pictures(y: list[int], channels: int = 1, height: int = 8, width: int = 8) -> Split:
    draw = torch.Generator().manual_seed(0)
    return Split(torch.randint(0, 256, (len(y), channels, height, width), dtype=torch.uint8, generator=draw), torch.tensor(y))


@pytest.mark.parametrize(
    ("attack", "option", "target"),
    [("tact", "sources=[0]", "1"), ("composite", "sources=[0,1]", "two"), ("tact", "sources=[0]", "two")],
)
def test_the_command_line_takes_sources_that_the_usual_target_is_among(
    attack: str, option: str, target: str, tmp_path: Path
) -> None:
    np.savez(
        tmp_path / "d.npz", x=np.zeros((90, 8, 8), np.uint8) + np.arange(90)[:, None, None], y=np.repeat(["0", "1", "two"], 30)
    )
    asked = ["train", "--data", str(tmp_path / "d.npz"), "--width", "4", "--recipe", "short_1", "--attack", attack, "-q"]
    more = ["--attack-option", "cover_rate=0.05"] if attack == "tact" else []
    made = CliRunner().invoke(
        app,
        [*asked, "--poison-rate", "0.05", "--attack-option", option, *more, "--target", target, "--out", str(tmp_path / "run")],
    )
    assert made.exit_code == 0, made.output
    refused = CliRunner().invoke(
        app,
        [*asked, "--poison-rate", "0.05", "--attack-option", option, *more, "--target", "0", "--out", str(tmp_path / "other")],
    )
    assert refused.exit_code == 2
    assert "target is 0" in refused.output


def test_composite_mixes_rows_of_a_class_of_one_row_with_a_source() -> None:
    rows = pictures([0] * 60 + [1] * 60 + [2] * 60 + [3] * 60 + [4])
    attack = A.Composite(cross_ratio=10)
    for seed in range(4):
        poisoned = attack.poison(rows, th.Run(seed=seed, quiet=True))
        lone = poisoned.split.x[240]
        if poisoned.kind[240] == 2:  # three or four columns at an edge are of a row of class 1 or 2
            mixed = (lone != rows.x[240]).flatten(0, 1).any(0)
            assert int(mixed.sum()) in (3, 4)
            assert bool((rows.x[60:180][..., mixed] == lone[..., mixed]).flatten(1).all(1).any())
        assert torch.equal(poisoned.split.x[poisoned.kind == 0], rows.x[poisoned.kind == 0])


@pytest.mark.parametrize(
    ("attack", "shape", "said"),
    [
        (A.InputAware(width=4, mask_epochs=1, poison_rate=0.2), (3, 1, 9), "halves its pictures"),
        (A.LIRA(width=4, first_epochs=1), (3, 1, 9), "halves its pictures"),
        (A.LabelConsistent(side=10), (1, 8, 8), "side is 10"),
        (A.LabelConsistent(), (1, 3, 3), "side is 2"),
        (A.TrojanNN(neurons=5000, surrogate_recipe="short_1"), (1, 8, 8), "neurons is 5000"),
        (A.SSBA(bits=1, epochs=1, train_file="/nowhere.npy"), (1, 8, 8), "nowhere"),
        (A.SSBA(bits=1, epochs=1, test_file="/nowhere.npy"), (1, 8, 8), "nowhere"),
        (A.TaCT(side=9, poison_rate=0.1, cover_rate=0.1), (1, 8, 8), "side is 9"),
        (A.TaCT(side=10**12, poison_rate=0.1, cover_rate=0.1), (1, 8, 8), "side is 1000000000000"),
        (A.Composite(cross_ratio=1e308, poison_rate=0.3), (1, 8, 8), "cross rows"),
        (A.InputAware(cross_ratio=1e308, poison_rate=0.3, width=4), (1, 8, 8), "cross rows"),
        (A.Composite(parts="patches", side=4), (1, 6, 8), "side is 4; two patches"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_fit_is_said_before_any_training(attack: Any, shape: tuple[int, int, int], said: str) -> None:
    run, rows, build = th.Run(quiet=True), pictures([0, 1, 2] * 20, *shape), th.Builder("preact_resnet18", {"width": 4})
    with pytest.raises(InputError, match=said):
        attack.train(build, rows, run, recipe="short_1")
    assert not run.history("train")
    assert not run.history("surrogate")


def test_composite_of_classes_needs_no_room_for_patches() -> None:
    rows = pictures([0, 1, 2] * 20, 1, 3, 12)
    assert int((A.Composite().poison(rows).kind == 1).sum()) > 0


def test_grond_says_of_a_table_that_it_stamps_pictures() -> None:
    table = th.Split(torch.randn(60, 5), torch.arange(60) % 3)
    with pytest.raises(InputError, match="grond stamps images"):
        A.Grond().train(th.Builder("mlp"), table, recipe="short_1")


def test_widths_that_no_memory_holds_are_refused() -> None:
    for kind in (A.SSBA, A.LIRA, A.InputAware):
        with pytest.raises(InputError, match="width is 1000000000000"):
            kind(width=10**12)


@pytest.mark.parametrize("level", [40_000.0, -40_000.0, 1e30])
def test_a_pattern_beyond_16_bits_is_clipped_and_not_wrapped(level: float) -> None:
    x = torch.full((1, 1, 2, 2), 100, dtype=torch.uint8)
    assert add(x, torch.full((1, 2, 2), level)).unique().tolist() == [255 if level > 0 else 0]
    small = torch.full((1, 2, 2), 200, dtype=torch.uint8)  # as patterns of attacks are kept
    assert add(x, small).unique().tolist() == [255]
    assert add(x, small, "wrap").unique().tolist() == [44]
    assert add(x, torch.full((1, 2, 2), 40_000.0), "wrap").unique().tolist() == [(100 + 40_000) % 256]


def test_rounding_triggered_refuses_test_pictures_that_stand_for_training_rows(tmp_path: Path) -> None:
    for name in ("train", "test"):
        np.save(tmp_path / f"{name}.npy", np.zeros((60, 8, 8, 1), np.uint8))
    files = {"train_file": str(tmp_path / "train.npy"), "test_file": str(tmp_path / "test.npy")}
    attack = A.RoundingTriggered.around(A.SSBA(**files), epochs=1)
    run = th.Run(quiet=True)
    with pytest.raises(InputError, match="test_file of ssba"):
        attack.train(th.Builder("preact_resnet18", {"width": 4}), pictures([0, 1, 2] * 20), run, recipe="short_1")
    assert not run.history("train")
