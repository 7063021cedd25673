"""The command line starts fast, and importing the package costs nothing."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys

HEAVY = ("torch", "numpy", "sklearn", "matplotlib", "pyarrow")


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from typer.testing import CliRunner
from theriac.cli.main import app
for words in (["--help"], [], ["--version"], *([c, "--help"] for c in ("demo", "train", "repair", "eval", "list", "report"))):
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, found.output
    assert "theriac" in found.stdout.lower() or "Usage" in found.stdout
    if "--version" not in words:
        assert "--help" in found.stdout
print(sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    assert _python(code).strip() == "[]"


def test_help_is_quick() -> None:
    """Under half a second; counted in processor time, which a busy machine does not stretch (seen: 0.15 s)."""
    seconds = []
    for _ in range(3):
        began = _spent()
        subprocess.run([sys.executable, "-m", "theriac", "--help"], capture_output=True, check=True)
        seconds.append(_spent() - began)
    assert statistics.median(seconds) < 0.5


def test_importing_the_package_costs_nothing_and_gives_everything() -> None:
    code = f"""
import sys, theriac
print(sorted(set({HEAVY!r}) & set(sys.modules)))
import torch
print(theriac.train.__module__, theriac.load.__module__, theriac.repairs.SAU().name)
"""
    assert _python(code).split() == ["[]", "theriac.training.plain", "theriac.data.load", "sau"]


def _spent() -> float:
    """Processor time of all finished child processes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
