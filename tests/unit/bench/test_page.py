from __future__ import annotations

import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from theriac.bench import run
from theriac.cli.main import app
from theriac.report.sweeps import SweepCell, write_sweep

CHROMIUM = shutil.which("chromium")


def cell(attack: str, defense: str, **numbers: float) -> SweepCell:
    intervals = {name: (value, value, value) for name, value in numbers.items()}
    facts: dict[str, Any] = {"setting": "digits, mlp", "role": "defended", "seeds": (3, 3), "seconds": 1.0}
    return SweepCell(attack=attack, defense=defense, numbers=intervals, provenance="cpu; " + "k" * 200, **facts)


def matrix(text: str, name: str) -> list[list[str]]:
    (table,) = re.findall(rf'<table class="matrix" data-name="{name}">.*?</table>', text, re.DOTALL)
    lines = re.findall(r"<tr>(.*?)</tr>", re.sub(r"<small>.*?</small>", "", table), re.DOTALL)
    return [[unescape(text) for text in re.findall(r"<t[hd][^>]*>([^<]*)", line)] for line in lines]


def test_edges_of_the_matrix_by_hand(tmp_path: Path) -> None:
    cells = [cell("p", "x", asr=0.1, acc=0.9), cell("p", "y", asr=0.3, acc=0.7), cell("q", "x", asr=0.5, acc=0.8)]
    text = write_sweep("<b>", cells, tmp_path / "a.html", troubles=[("q, y", "it <broke>")]).read_text()
    assert matrix(text, "asr") == [
        ["attack", "x", "y", "mean", "worst"],
        ["p", "10.0", "30.0", "20.0", "30.0"],
        ["q", "50.0", "", "50.0", "50.0"],
        ["mean", "30.0", "30.0", "", ""],
        ["worst", "50.0", "30.0", "", ""],
    ]
    assert matrix(text, "acc")[-1] == ["worst", "80.0", "70.0", "", ""]
    assert "it &lt;broke&gt;" in text
    assert "<b>" not in text.split("</ul>")[0].split("<body>")[1].split("</h1>")[0]


def test_400_cells_are_under_3_mb(tmp_path: Path) -> None:
    cells = [cell(f"attack {i}", f"defense {j}", asr=0.5, acc=0.5, ra=0.5, der=0.5) for i in range(20) for j in range(20)]
    assert write_sweep("large", cells, tmp_path / "a.html").stat().st_size < 3_000_000


def test_the_command_writes_a_page_that_a_browser_reads(quick: dict[str, Any], tmp_path: Path) -> None:
    run(quick, tmp_path / "store", quiet=True)
    page = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["results", str(tmp_path / "store"), "--page", str(page)])
    assert result.exit_code == 0, result.output
    text = page.read_text()
    assert len(matrix(text, "asr")) == 4  # head, one attack, mean, worst
    assert "http" not in text
    if CHROMIUM is None:
        pytest.skip("no chromium")
    words = [CHROMIUM, "--headless", "--no-sandbox", f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom", page.as_uri()]
    dom = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
    assert matrix(dom, "asr") == matrix(text, "asr")
