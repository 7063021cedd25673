"""The command line starts fast, and importing the package costs nothing."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

HEAVY = ("torch", "numpy", "pydantic", "sklearn", "matplotlib", "pyarrow")


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
    """Half a second is the aim (0.2 s on a quiet machine); the bound leaves room for a busy one."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "theriac", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - began)
    assert statistics.median(seconds) < 1.0


def test_importing_the_package_imports_no_torch() -> None:
    code = f"import sys, theriac; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    assert _python(code).strip() == "[]"


def test_public_names_come_on_first_use() -> None:
    code = """
import theriac, torch
for name in dir(theriac):
    if not name.startswith("_") and name not in ("annotations", "importlib", "TYPE_CHECKING", "Any"):
        getattr(theriac, name)
print(theriac.train.__module__, theriac.load.__module__, theriac.defenses.SAU().name)
"""
    assert _python(code).split() == ["theriac.training.plain", "theriac.data.load", "sau"]
