"""A new method is one file: what registers gets listing, card, contracts and command line without another line of code."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import theriac
from theriac.cli.main import app
from theriac.core.method import _REGISTRY, create, methods
from theriac.report.cards import card

FILE = '''"""Toys: a repair and a detector as a user would write them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from theriac.core.errors import InputError
from theriac.core.method import Needs, preset, register
from theriac.core.outcome import Finding, Outcome
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.detectors import Detector
from theriac.models import run_over
from theriac.repairs import Repair


@register
@dataclass(frozen=True, kw_only=True)
class ToyRepair(Repair):
    """Silences the BatchNorm channel of the largest scale in each layer.

    Source: made up.

    Threat model: the model alone.

    Cost: none.

    Examples:
        >>> ToyRepair().title
        'Toy repair'
    """

    name: ClassVar[str] = "toy_repair"
    title: ClassVar[str] = "Toy repair"
    source: ClassVar[str] = "a test"
    needs: ClassVar[Needs] = Needs(labels=False)

    above: float = 1.5  # made up: times the mean

    @classmethod
    @preset
    def bold(cls) -> ToyRepair:
        """Made up: every channel above the mean."""
        return cls(above=1.0)

    def _repair(self, model: nn.Module, clean: Split, run: Run) -> nn.Module:
        count = 0
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                high = layer.weight.detach().abs() > self.above * layer.weight.detach().abs().mean()
                with torch.no_grad():
                    layer.weight[high] = 0
                count += int(high.sum())
        if not count:
            run.outcome = Outcome(status="unchanged", reason="no channel has a large scale")
        return model


@register
@dataclass(frozen=True, kw_only=True)
class ToyDetector(Detector):
    """Scores rows by the loss of the model on them.

    Source: made up.

    Threat model: the model and the rows.

    Cost: one forward pass a row.

    Examples:
        >>> ToyDetector().title
        'Toy detector'
    """

    name: ClassVar[str] = "toy_detector"
    title: ClassVar[str] = "Toy detector"
    source: ClassVar[str] = "a test"
    needs: ClassVar[Needs] = Needs(model=True, rows=True)

    worst: int = 3  # made up: rows to flag

    def _detect(self, model, rows, clean, run):
        losses = nn.functional.cross_entropy(run_over(model, rows, run=run), rows.y.cpu(), reduction="none")
        flagged = losses.argsort(descending=True, stable=True)[: self.worst].tolist()
        return Finding(verdict="suspicious", reason="the loss is high", rows=losses, flagged=tuple(flagged))
'''
KINDS = {"repair": "toy_repair", "detector": "toy_detector"}


@pytest.fixture
def toys(tmp_path: Path) -> Iterator[ModuleType]:
    path = tmp_path / "toy_methods.py"
    path.write_text(FILE)
    spec = importlib.util.spec_from_file_location("toy_methods", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["toy_methods"] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules["toy_methods"]
        for kind, name in KINDS.items():
            _REGISTRY[kind].pop(name, None)


def cli(*words: object) -> str:
    done = CliRunner().invoke(app, [str(w) for w in words])
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_it_is_listed_and_has_a_card(toys):
    for kind, name in KINDS.items():
        cls = methods(kind)[name]
        assert cls.__module__ == "toy_methods"
        assert create(kind, name) == cls()
        listed = json.loads(cli("list", f"{kind}s", "--json"))[f"{kind}s"]
        assert name in [entry["name"] for entry in listed]
        told = card(cls)
        assert (told.title, told.threat[:9]) == (cls.title, "The model")
        assert told.options[0].source.startswith("made up")
        assert cls.title in cli("list", name)
    assert card(toys.ToyRepair).needs == ("the model alone",)
    assert create("repair", "toy_repair:bold").above == 1.0


@pytest.mark.usefixtures("toys")
def test_the_command_line_repairs_with_it_and_draws_no_rows(tmp_path, trained: nn.Module):
    torch.save(trained.net.state_dict(), tmp_path / "theirs.pt")
    fixed = tmp_path / "fixed"
    asked = ("--data", "digits", "--model", "preact_resnet18", "--width", "4", "--device", "cpu", "--precision", "fp32")
    shown = cli("repair", tmp_path / "theirs.pt", *asked, "--method", "toy_repair", "--out", fixed)
    assert "Toy repair without clean rows" in shown
    record = json.loads((fixed / "run.json").read_text())
    assert record["method"] == {"method": "toy_repair", "above": 1.5}
    assert record["clean"] is None
    assert json.loads(cli("eval", fixed, "--attack", "none", "--json"))["evaluation"] == record["evaluation"]


def test_afterwards_it_is_gone():
    assert not any(name in methods(kind) for kind, name in KINDS.items())


def test_the_contracts_hold_for_it_as_soon_as_it_is_registered(tmp_path):
    """In a process of its own, as contract tests read the registry when they are collected."""
    (tmp_path / "toy_methods.py").write_text(FILE)
    folder = Path(__file__).parent
    source = Path(theriac.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "toy_methods", "-k", "toy"]
        + [str(folder / f"test_{what}.py") for what in ("methods", "repairs", "detectors")],
        cwd=folder.parents[1],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(source), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "no tests ran" not in done.stdout
