from __future__ import annotations

import random
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from theriac.bench import Group, Store, rows, run
from theriac.bench.tables import misleading
from theriac.cli._sweeps import write_page
from theriac.cli.main import app
from theriac.core.errors import InputError
from theriac.report.figures import write_figure
from theriac.report.page import style
from theriac.report.sweeps import (
    DARK,
    LIGHT,
    STEPS,
    Comparison,
    Number,
    SweepCell,
    front,
    headline,
    label_places,
    shade,
    write_sweep,
)

CHROMIUM = shutil.which("chromium")


def cell(attack: str, defense: str, role: str = "defended", **numbers: Any) -> SweepCell:
    made = {
        name: v if isinstance(v, Number) else Number(v, v, v, "seeds") for name, v in numbers.items() if name != "degenerate"
    }
    facts: dict[str, Any] = {
        "setting": "digits, mlp",
        "role": role,
        "seeds": (3, 3),
        "environment": "cpu",
        "keys": ("k" * 12,) * 3,
    }
    return SweepCell(attack=attack, defense=defense, numbers=made, degenerate=numbers.get("degenerate", ()), **facts)


def matrix(text: str, name: str) -> list[list[str]]:
    (table,) = re.findall(rf'<table class="matrix" data-name="{name}">.*?</table>', text, re.DOTALL)
    lines = re.findall(r"<tr>(.*?)</tr>", re.sub(r"<small>.*?</small>", "", table), re.DOTALL)
    return [[unescape(text) for text in re.findall(r"<t[hd][^>]*>([^<]*)", line)] for line in lines]


def browse(page: Path, home: Path, script: str = "") -> str:
    """The page as a browser has it, after a script that is put at its end."""
    if CHROMIUM is None:
        pytest.skip("no chromium")
    page.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
    words = [CHROMIUM, "--headless", "--no-sandbox", f"--user-data-dir={home}", "--dump-dom", page.as_uri()]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout


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
    assert "<small>1 of 2</small>" in text  # the edge of a line that is not full says so
    assert matrix(text, "acc")[-1] == ["worst", "80.0", "70.0", "", ""]
    assert "it &lt;broke&gt;" in text
    assert "<b>" not in text.split("</h1>")[0].split("<body>")[1]


def test_one_seed_has_no_interval_over_seeds_and_the_page_says_so(tmp_path: Path) -> None:
    one = cell("p", "x", asr=Number(0.1, 0.05, 0.2, "rows"), der=Number(0.9))
    text = write_sweep("t", [one], tmp_path / "a.html").read_text()
    table = text.split('class="matrix"')[1].split("</table>")[0]
    assert "<small>1 seed</small>" in table
    assert "5.0 to 20.0" not in table
    assert "10.0 [5.0 to 20.0]" in text.split('id="cells"')[1]
    assert "90.0 (" not in text


def test_degenerate_results_are_said_before_good_ones(tmp_path: Path) -> None:
    good, bad = (
        cell("p", "x", asr=0.0, acc=0.9),
        cell("p", "y", asr=0.0, acc=0.1, degenerate=("It answers '0' for every row.",)),
    )
    assert headline([good]).startswith("x has the lowest worst attack success: 0.0 %")
    assert headline([cell("p", "x", asr=0.8)]).startswith("No defense holds: the lowest worst attack success is 80.0 % (x")
    assert headline([good, bad]) == "1 of 2 cells carry a warning (†); lowest worst attack success: 0.0 % (x)."
    worse = cell("p", "x", asr=0.1, acc=0.9)
    assert headline([worse, bad]) == "1 of 2 cells carry a warning (†)."  # the lowest is that of a useless model
    text = write_sweep("t", [good, bad], tmp_path / "a.html").read_text()
    assert text.index("It answers") < text.index('class="matrix"')
    assert "0.0 †" in text


def test_what_is_missing_is_said_before_what_is_best(tmp_path: Path) -> None:
    good = cell("p", "x", asr=0.0, acc=0.9)
    lacking = replace(cell("q", "x"), numbers={}, seeds=(0, 1))
    bad = replace(good, defense="y", degenerate=("It answers '0' for every row.",))
    assert headline([good, lacking]) == "1 of 2 cells have no result yet."
    assert headline([good, lacking, bad]) == "1 of 3 cells have no result yet; 1 carry a warning (†)."
    assert "1 of 2 cells have no result" in write_sweep("t", [good, lacking], tmp_path / "a.html").read_text()


def test_a_figure_takes_names_with_dollar_signs(tmp_path: Path) -> None:
    path = write_figure([cell("$a_{$", "cost $", asr=0.1)], tmp_path / "a.svg", "asr")
    assert "cost $" in path.read_text()


def test_the_front_is_what_nothing_beats() -> None:
    assert front([(0.1, 0.9), (0.2, 0.8), (0.05, 0.7), (0.3, 0.95), (0.1, 0.85)]) == [2, 0, 3]
    assert front([(0.1, 0.9), (0.1, 0.9), (0.1, 0.8), (0.2, 0.9)]) == [0, 1]  # equal ones together


def test_two_strengths_and_two_data_sets_have_pictures_of_their_own(tmp_path: Path) -> None:
    data = [{"name": "digits", "rows": number, "as": name} for name, number in (("a", 200), ("b", 220))]
    spec = {"name": "two", "data": data, "models": {"name": "preact_resnet18", "width": 4}, "recipes": "short_1"}
    spec |= {"attacks": [{"name": "blended", "strengths": [0.1, 0.4]}], "controls": False}
    run(spec, tmp_path, quiet=True)
    with Store(tmp_path) as store:
        text = write_page(store, rows(store), tmp_path / "a.html").read_text()
    images = dict(re.findall(r"<figcaption>([^<]*)</figcaption><img alt=\"[^\"]*\" src=\"([^\"]*)\"", text))
    assert list(images) == [f"{d}: Blended alpha {s}" for d in "ab" for s in (0.1, 0.4)]
    assert len(set(images.values())) == 2  # both data sets have the same test rows


@pytest.mark.parametrize("ending", ["svg", "pdf", "png"])
def test_figures_are_the_same_bytes_each_time(ending: str, tmp_path: Path) -> None:
    cells = [cell("p", "x", asr=0.1), cell("q", "x", asr=0.5)]
    one, two = (write_figure(cells, tmp_path / f"{name}.{ending}") for name in "ab")
    assert one.read_bytes() == two.read_bytes()
    if ending == "svg":
        texts = re.findall(r"<text[^>]*>([^<]*)", one.read_text())
        assert {"10.0", "50.0", "30.0", "p", "q", "x", "worst"} <= set(texts)


def test_what_is_no_figure_is_refused(tmp_path: Path) -> None:
    cells = [cell("p", "x", asr=0.1)]
    with pytest.raises(InputError, match="unknown ending of path"):
        write_figure(cells, tmp_path / "a.gif")
    with pytest.raises(InputError, match="did you mean 'asr'"):
        write_figure(cells, tmp_path / "a.svg", "as")
    with pytest.raises(InputError, match="that has acc; there are: none"):
        write_figure(cells, tmp_path / "a.svg", "acc")


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_texts_have_the_contrast_of_wcag_aa() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for palette in (LIGHT, DARK):
        for step in range(STEPS):
            assert min(contrast(shade(palette, step), text) for text in palette[3:]) >= 4.5
    for part in style().split("prefers-color-scheme: dark"):
        colors = dict(re.findall(r"--([\w-]+): (#\w{6});", part.split("}")[0]))
        assert min(contrast(colors["page"], colors[name]) for name in ("ink", "soft", "accent")) >= 4.5
        assert contrast(colors["accent-wash"], colors["accent"]) >= 4.5


def test_400_cells_of_three_seeds_are_under_3_mb(tmp_path: Path) -> None:
    one = Number(0.5, 0.4567, 0.5433, "seeds")
    numbers = dict.fromkeys(("asr", "acc", "ra", "der", "seconds"), one)
    names = [f"defense number {j} with a long name" for j in range(20)]
    cells = [cell(f"attack number {i} 10 %", name, **numbers) for i in range(20) for name in names]
    pairs = [(a, b, 20, 3, 0.1, 0.04, f"{a} is higher") for a in names for b in names if a < b]
    made = [Comparison(quantity=q, pairs=pairs, ranks=dict.fromkeys(names, 10.5), attacks=20) for q in ("asr", "der")]
    pictures = {f"attack number {i}": b"\0" * 20_000 for i in range(20)}
    assert write_sweep("large", cells, tmp_path / "a.html", pictures=pictures, comparisons=made).stat().st_size < 3_000_000


def test_the_command_writes_a_page_that_a_browser_reads_sorts_and_filters(quick: dict[str, Any], tmp_path: Path) -> None:
    spec, store = tmp_path / "quick.yaml", tmp_path / "store"
    attacks = [{"name": "tabular_value", "poison_rate": 0.2, "count": count, "as": f"{count} values"} for count in (1, 2)]
    spec.write_text(str({**quick, "attacks": attacks, "controls": False}))
    result = CliRunner().invoke(app, ["bench", str(spec), "--store", str(store)])
    assert result.exit_code == 0, result.output
    page = store / "quick.html"
    assert page.is_file()
    again = tmp_path / "page.html"
    assert CliRunner().invoke(app, ["results", str(store), "--page", str(again)]).exit_code == 0
    text = page.read_text()
    assert again.read_text() == text
    drawn = CliRunner().invoke(app, ["results", str(store), "--figure", str(tmp_path / "a.svg")])
    assert drawn.exit_code == 0, drawn.output
    before = matrix(text, "seconds")
    assert len(before) == 5  # head, two attacks, mean, worst
    assert "http" not in text
    script = """document.querySelectorAll('[data-name=seconds] thead th')[1].click();
    const box = document.getElementById('defenses'); box.value = 'ft'; box.dispatchEvent(new Event('input'));"""
    dom = browse(again, tmp_path / "browser", script)
    after = matrix(dom, "seconds")
    assert [float(line[1]) for line in after[1:3]] == sorted(float(line[1]) for line in before[1:3])
    hidden = re.findall(r'<th scope="col"[^>]*hidden=""[^>]*>([^<]*)', dom)
    assert set(hidden) == {"none"}


def test_numbers_that_mislead_are_said_before_the_table(quick: dict[str, Any], tmp_path: Path) -> None:
    """Without one step a model answers one class for every row; its attack success says nothing."""
    spec, store = tmp_path / "quick.yaml", tmp_path / "store"
    spec.write_text(str({**quick, "recipes": {"name": "adam_1", "lr": 1e-12}, "controls": False}))
    result = CliRunner().invoke(app, ["bench", str(spec), "--store", str(store)])
    assert result.exit_code == 0, result.output
    assert "(victim): " in result.stdout.split("defense")[0]
    again = CliRunner().invoke(app, ["results", str(store)])
    assert again.stdout.split("defense")[0] == result.stdout.split("defense")[0]
    for ending, mark in (("md", "†"), ("tex", r"\dag{}")):
        written = tmp_path / f"made.{ending}"
        made = CliRunner().invoke(app, ["results", str(store), "--out", str(written), "--figure", str(tmp_path / "a.svg")])
        assert made.exit_code == 0, made.output
        line, *_, note = [line for line in written.read_text().splitlines() if mark in line]
        assert f" {mark} " in line
        assert "(defended): The model answers" in note
    assert "†: a degenerate model" in (tmp_path / "a.svg").read_text()


def test_sentences_of_several_seeds_are_said_once_with_their_number() -> None:
    one, two = "ASR 0.0 % is free: the target class '0' is never answered.", "The model answers '8' for every row."
    rows = [{"status": "done", "degenerate": text} for text in (f"{two} {one}", one, "")]
    group = Group(("d", "m", "r", "patch", "FT", "5 %"), "defended", rows)
    assert group.degenerate == [f"{two[:-1]} (1 of 3 results).", f"{one[:-1]} (2 of 3 results)."]
    assert replace(group, rows=rows[:1]).degenerate == [two, one]
    assert misleading([group])[0].startswith("patch · FT 5 % (defended): The model")


def test_numbers_of_a_plot_cover_neither_numbers_nor_dots() -> None:
    generator = random.Random(0)
    crowd = [(round(generator.gauss(420, 8), 1), round(generator.gauss(40, 4), 1)) for _ in range(12)]  # most fail alike
    spots = [*crowd, crowd[0], (60.0, 30.0), (200.0, 130.0)]
    labels = label_places(spots)
    assert len(labels) == len(spots)
    for i, (x, y) in enumerate(labels):
        assert all(abs(x - a) >= 15 or abs(y - b) >= 12 for a, b in labels[:i]), i
        assert all(abs(x - a) >= 11 or abs(y - b) >= 10 for a, b in spots), i
    assert labels[-1] == (213.0, 130.0)  # alone: beside it


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("--workers", "-3", "workers is -3"), ("--events", "wrong", "'wrong'"), ("--engine", "foo", "unknown engine 'foo'")],
)
def test_a_plan_refuses_what_its_sweep_would(option: str, value: str, said: str, quick: dict[str, Any], tmp_path: Path) -> None:
    spec = tmp_path / "quick.yaml"
    spec.write_text(str(quick))
    result = CliRunner().invoke(app, ["bench", str(spec), "--store", str(tmp_path / "store"), "--plan", option, value])
    assert result.exit_code == 2
    assert said in result.output
