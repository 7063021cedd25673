"""The smoke spec through the real command: killed, resumed, compared with an undisturbed run, its page seen in a browser."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from theriac.bench import Store, rows, run

SMOKE = Path(__file__).parents[2] / "benchmarks" / "specs" / "smoke.yaml"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
TIMES = ("seconds", "cpu_seconds", "peak_mb", "row_passes")  # what two runs do not share


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "theriac", *map(str, words)]


def table(store: Path) -> list[dict[str, Any]]:
    """All rows of a store, without what a clock or a meter says."""
    with Store(store, make=False) as opened:
        return [{name: value for name, value in row.items() if name not in TIMES} for row in rows(opened)]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store that was killed and went on, and the spec: the shipped one with fewer rows and epochs, and no controls."""
    home = tmp_path_factory.mktemp("smoke")
    spec = yaml.safe_load(SMOKE.read_text())
    spec["data"] = {"name": "digits", "rows": 300}
    spec["models"]["width"] = 4
    spec["recipes"] = "short_1"
    spec["defenses"][0] |= {"epochs": 1}
    spec["controls"] = False
    path = home / "smoke.yaml"
    path.write_text(yaml.safe_dump(spec))
    store = home / "rough"
    driver = subprocess.Popen(command("bench", path, "--store", store), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 300
    while driver.poll() is None and time.monotonic() < end and not list(store.glob("runs/*/run.json")):
        time.sleep(0.02)
    os.kill(driver.pid, signal.SIGKILL)  # in the middle: one model is there, most are not
    assert driver.wait() == -signal.SIGKILL
    there = {file: file.stat().st_mtime_ns for file in store.glob("runs/*/run.json")}
    assert 0 < len(there) < 6
    again = subprocess.run(command("bench", path, "--store", store), check=True, capture_output=True, text=True, timeout=300)
    assert "6 of 6 jobs done" in " ".join(again.stderr.split())
    assert {file: file.stat().st_mtime_ns for file in there} == there  # what was finished was not done again
    return store, path


def test_a_killed_sweep_ends_with_the_table_of_an_undisturbed_one(swept: tuple[Path, Path], tmp_path: Path) -> None:
    store, spec = swept
    run(spec, tmp_path, quiet=True)
    assert len(table(tmp_path)) == 6
    assert table(store) == table(tmp_path)


def browse(page: Path, home: Path, *words: str) -> str:
    assert BROWSER is not None
    own = [BROWSER, "--headless", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={home / 'browser'}"]
    return subprocess.run([*own, *words, page.as_uri()], capture_output=True, text=True, timeout=120, check=True).stdout


def lines(dom: str, mark: str) -> list[list[str]]:
    """Rows of one table of the page, without intervals."""
    (found,) = re.findall(rf"<table [^>]*{mark}[^>]*>.*?</table>", dom, re.DOTALL)
    bare = (
        re.sub(r"<caption>.*?</caption>|<small>.*?</small>", "", found, flags=re.DOTALL)
        .replace("&nbsp;", " ")
        .replace("\xa0", " ")
    )
    return [re.findall(r"<t[hd][^>]*>([^<]*)", line) for line in re.findall(r"<tr>(.*?)</tr>", bare, re.DOTALL)]


FRAMES = """<iframe id=wide style="width:1400px;height:500px" src=sorted.html></iframe>
<iframe id=narrow style="width:390px;height:500px" src=sorted.html></iframe><pre id=page></pre><p id=widths></p><script>
onload = () => {
  const [wide, narrow] = ["wide", "narrow"].map((id) => document.getElementById(id).contentDocument.documentElement);
  document.getElementById("widths").textContent = `${wide.scrollWidth} ${narrow.scrollWidth}`;
  document.getElementById("wide").outerHTML = wide.outerHTML;
};</script>"""


def numbers(table: list[list[str]], place: int) -> list[float]:
    """One column of a table without its head."""
    return [float(line[place].split()[0].replace(",", "")) for line in table[1:]]


@pytest.mark.skipif(BROWSER is None, reason="no chromium")
def test_a_browser_reads_sorts_and_draws_its_page(swept: tuple[Path, Path], tmp_path: Path) -> None:
    page, text = swept[0] / "smoke.html", (swept[0] / "smoke.html").read_text()
    matrix = lines(text, 'data-name="acc"')
    assert matrix[0] == ["attack", "none", "FT strong 10 %", "CLP", "mean", "worst"]
    assert [line[0] for line in matrix[1:]] == ["BadNets 10 %", "Blended 10 %", "mean", "worst"]
    before = lines(text, 'id="cells"')
    # seconds may be in falling order by chance; then one click, for rising order, else two
    place = before[0].index("seconds")
    seconds = numbers(before, place)
    falling = seconds != sorted(seconds, reverse=True)
    script = f"const head = document.querySelectorAll('#cells thead th')[{place}]; head.click();" + "head.click();" * falling
    (tmp_path / "sorted.html").write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    (tmp_path / "frames.html").write_text(FRAMES)
    dom = browse(tmp_path / "frames.html", tmp_path, "--allow-file-access-from-files", "--window-size=1900,900", "--dump-dom")
    after = lines(dom, 'id="cells"')
    assert numbers(after, place) == sorted(seconds, reverse=falling)
    if len(set(seconds)) > 1:  # a machine so fast that all cells take the same tenth of a second shows nothing
        assert numbers(after, place) != seconds
    assert sorted(after) == sorted(before)
    (found,) = re.findall(r'<p id="widths">(\d+ \d+)</p>', dom)
    assert found == "1400 390"  # nothing is wider than its window, so the page does not scroll sideways
    for width in (1400, 390):
        picture = tmp_path / f"{width}.png"
        browse(page, tmp_path, f"--window-size={width},1600", f"--screenshot={picture}")
        with Image.open(picture) as drawn:
            assert drawn.size == (width, 1600)
            assert drawn.convert("L").getextrema() != (255, 255)  # something was drawn
