"""The readers of strangers' files, fuzzed with a few hundred inputs by what code they reach, where atheris is installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

INPUTS = 300  # the corpus has 70; a quiet machine takes a few seconds, and a busy one as many of them


def test_no_input_that_reaches_new_code_is_read_wrongly(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    script = Path(__file__).parents[2] / "coverage_fuzz.py"
    command = [sys.executable, str(script), "--inputs", str(INPUTS), "--seconds", "120", "--keep", str(tmp_path / "kept")]
    surroundings = {**os.environ, "TMPDIR": str(tmp_path)}  # what it leaves goes with the test's folder
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=surroundings)
    assert done.returncode == 0, done.stderr[-3000:]
    counted = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert counted is not None
    assert int(counted[1]) >= INPUTS
    assert any((tmp_path / "kept").iterdir())  # inputs that reached new code
