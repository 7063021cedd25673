"""The generated parts of the pages: up to date, complete, true to the results and to the triggers."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from theriac.core.errors import InputError
from theriac.core.method import KINDS, methods

ROOT = Path(__file__).resolve().parents[1]
for folder in ("benchmarks", "docs"):
    sys.path.insert(0, str(ROOT / folder))

import build  # noqa: E402
import pictures  # noqa: E402
import site_hooks  # noqa: E402
import table  # noqa: E402
from result_tables import attacks, for_card, reading, repairs, words  # noqa: E402
from result_tables import pages as result_pages  # noqa: E402

AGAIN = "run: python docs/build.py"
EVERY = [name for kind in KINDS for name in methods(kind)]


@pytest.fixture(scope="module")
def pages() -> dict[Path, str]:
    return build.pages()


def test_pages_are_up_to_date(pages: dict[Path, str]) -> None:
    stale = [p.name for p, text in pages.items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    assert not stale, AGAIN


def test_tables_are_up_to_date() -> None:
    stale = [path.name for path, text in result_pages().items() if path.read_text(encoding="utf-8") != text]
    assert not stale, "run: python benchmarks/make_tables.py"


@pytest.mark.parametrize("name", EVERY)
def test_every_card_is_complete(name: str) -> None:
    text = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    for part in ("Idea", "Threat model", "Source", "Needs", "Presets", "Cost", "Measured"):
        assert text.count(f"**{part}.**") == 1, (part, AGAIN)


def test_prose_stays_and_generated_parts_are_renewed(tmp_path: Path) -> None:
    page = "# Title\n\nBy hand.\n\n<!-- generated: facts -->\nold\n<!-- end -->\n\nAlso by hand.\n"
    text = build.fill(page, {"facts": "new", "measured": "numbers"}, ["facts", "measured"], tmp_path)
    assert text.startswith("# Title\n\nBy hand.\n\n<!-- generated: facts -->\n\nnew\n\n<!-- end -->\n\nAlso by hand.\n")
    assert "old" not in text
    assert text.endswith("<!-- generated: measured -->\n\nnumbers\n\n<!-- end -->\n")
    assert build.fill(text, {"facts": "new", "measured": "numbers"}, ["facts", "measured"], tmp_path) == text


@pytest.mark.parametrize("page", ["<!-- generated: nonsense -->\n<!-- end -->\n", "<!-- generated: facts -->\nno end\n"])
def test_a_broken_page_is_refused(page: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="generated part"):
        build.fill(page, {"facts": "new"}, [], tmp_path)


# the site


def test_every_page_is_in_the_navigation() -> None:
    """A page that is not is in no menu of the site, and ends the strict build."""
    plan = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    listed = {*re.findall(r": ([\w/-]+\.md)$", plan, re.M), *(page for _, page in site_hooks.METHOD.findall(index))}
    docs = ROOT / "docs"
    assert {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")} == listed


def test_examples_are_under_the_heading_that_the_site_knows() -> None:
    """Under "Example:" the reference showed them as one paragraph of text within quotations."""
    texts = {path: path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")}
    assert not [path for path, text in texts.items() if re.search(r"^ *Example:$", text, re.M)]
    assert sum(len(re.findall(r"^ *Examples:$", text, re.M)) for text in texts.values()) > 90


def test_links_to_measured_tables_stay_within_the_site() -> None:
    def turned(text: str) -> str:
        return site_hooks.on_page_markdown(text, page=None)

    assert turned("[t](../benchmarks/results/a.md)") == "[t](benchmarks/results/a.md)"  # from docs/
    assert turned("[t](../../benchmarks/results/a.md#b)") == "[t](../benchmarks/results/a.md#b)"  # from docs/methods/
    assert turned("[t](../../docs/metrics.md)") == "[t](../../metrics.md)"  # from benchmarks/results/
    assert turned("[t](../attacks.md)") == "[t](../attacks.md)"


@pytest.mark.parametrize(
    ("tag", "fetches"),
    [
        ('<script src="https://example.org/a.js"></script>', True),
        ("<link rel=stylesheet href=//example.org/a.css>", True),
        ('<img alt="x" src="http://example.org/a.png">', True),
        ('<link rel="canonical" href="https://example.org/">', False),
        ('<a href="https://example.org/">paper</a>', False),
        ('<script src="../assets/a.js"></script>', False),
    ],
)
def test_the_site_would_notice_what_is_fetched(tag: str, fetches: bool, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(f"<html>{tag}</html>")
    assert bool(site_hooks.fetched(tmp_path)) is fetches


def test_the_site_would_notice_a_public_name_without_reference(tmp_path: Path) -> None:
    lacking = site_hooks.unexplained(tmp_path)
    assert {"theriac.repairs.SAU", "theriac.data.load", "theriac.metrics.fairness"} <= set(lacking)
    (tmp_path / "repairs.html").write_text('<h2 id="theriac.repairs.SAU">')
    assert set(lacking) - set(site_hooks.unexplained(tmp_path)) == {"theriac.repairs.SAU"}


# measured tables, from records whose rates are counted by hand


def repair_record(name: str = "v-ft", seed: int = 0, hits: int = 10, **changes: Any) -> dict[str, Any]:
    def rates(acc: int, asr: int, ra: int) -> dict[str, Any]:
        pairs = {"acc": (acc, 100), "asr": (asr, 90), "ra": (ra, 90)}
        return {k: {"hits": h, "total": n, "value": h / n} for k, (h, n) in pairs.items()} | {"attack": "badnets"}

    return {
        "name": name,
        "victim": {"data": "toys", "attack": {"name": "badnets"}, "seed": 0, "recipe": "short_8", "key": "v"},
        "repair": {**methods("repair")["ft"]().config(), "lr": 0.02},
        "before": rates(95, 90, 0),
        "after": rates(92, hits, 60),
        "der": 0.9,
        "seconds": 1.0,
        "clean_rows": 50,
        "seed": seed,
        "precision": "fp32: asked for",
        "command": f"python benchmarks/repairs.py benchmarks/plans/toy.yaml --only {name}",
        **changes,
    }


Write = Callable[..., Path]


@pytest.fixture
def results(tmp_path: Path) -> Write:
    def write(plan: str, *records: dict[str, Any]) -> Path:
        for record in records:
            about = {"command": "a test", "machine": {}}
            table.Table.of(plan, tmp_path).put(record["name"], {**about, **record})
        return tmp_path

    return write


FT = methods("repair")["ft"]


def test_one_run_is_told_with_counts(results: Write) -> None:
    text = for_card(FT, results("toy", repair_record()))
    row = "| toys: badnets | preact_resnet18, width 16, short_8 | `official`, lr 0.02; fp32 | 50 | 95.0 → 92.0 (92/100) | "
    assert row + "100.0 → 11.1 (10/90) | 0.0 → 66.7 (60/90) | 0 |" in text
    assert "`benchmarks/repairs.py` of commit 1ed9b97, plan `toy`" in text


def test_runs_that_differ_in_seeds_become_one_row(results: Write) -> None:
    records = [repair_record(f"v-ft{'' if not i else f'-seed{i}'}", i, hits) for i, hits in enumerate((9, 18, 27))]
    other = repair_record("v-ft-long", 0, 9)
    other["repair"]["epochs"] = 200
    folder = results("toy", *records, other)
    text = for_card(FT, folder)
    assert "100.0 → 20.0, sd 10.0 (10.0 to 30.0)" in text  # 9, 18 and 27 of 90
    assert "| 0, 1, 2 (victim 0) |" in text
    assert text.count("toys: badnets") == 2
    table = repairs.page("toy", reading.repair_plans(folder)["toy"])
    assert "| **ft, 3 seeds** |" in table
    assert "20.0, sd 10.0 (10.0 to 30.0)" in table
    assert table.count("seeds**") == 1


def sweep_record(attack: str, role: str, seed: int, asr: int, defense: str = "none", **changes: Any) -> dict[str, Any]:
    options = {} if defense == "none" else {"defense": {**methods("repair")["ft"]().config(), "lr": 0.1}}
    labels = {"data": "toys", "model": "narrow", "recipe": "short_8", "attack": attack, "defense": defense, "clean": ""}
    if role == "defended":
        labels["clean"] = "10 %"
    numbers = {"acc": 0.9 if role == "victim" else 0.85, "asr": asr / 100, "ra": 0.5, "degenerate": False, "cpu_seconds": 2.0}
    name = f"{attack} {defense} {role} {seed}"
    return {**labels, **numbers, "name": name, "role": role, "seed": seed, "status": "done", "job": name, "sweep": "toy"} | {
        "options": json.dumps(options),
        **changes,
    }


def test_cards_tell_what_sweeps_measured(results: Write) -> None:
    victims = [sweep_record(attack, "victim", seed, 99) for attack in ("BadNets", "Blended") for seed in (0, 1)]
    repaired = [
        sweep_record("BadNets", "defended", 0, 10, "FT 0.1"),
        sweep_record("BadNets", "defended", 1, 30, "FT 0.1"),
        sweep_record("Blended", "defended", 0, 50, "FT 0.1", degenerate="The model answers '3' for every row."),
        sweep_record("Blended", "defended", 1, 70, "FT 0.1", outcome="abstained"),
    ]
    folder = results("sweep_toy", *victims, *repaired)
    text = for_card(FT, folder)
    link, setting = "[toy](../../benchmarks/results/sweep_toy.md)", "toys, narrow, short_8, 10 % clean"
    told = "FT 0.1, which abstained in 1 of 4 | 2 | 0, 1 | 40.0 | 70.0 (Blended, seed 1) | -5.0 | 50.0 | 1 of 4 | 0 of 4 | 2"
    assert f"| {link} | {setting} | {told} |" in text
    assert for_card(methods("repair")["clp"], folder) == ""  # its method is told by the options, not by the label


def test_cards_of_detectors_tell_what_they_suspected(results: Write) -> None:
    def told(verdict: str, flagged: int, right: int, auroc: float | None) -> dict[str, Any]:
        return {"strip": {"verdict": verdict, "flagged": flagged, "right": right, "auroc": auroc}}

    folder = results(
        "rows",
        {"name": "a", "poisoned": 20, "detectors": told("suspicious", 10, 8, 0.9)},
        {"name": "b", "poisoned": 20, "detectors": told("clean", 0, 0, 0.6)},
        {"name": "c", "poisoned": 0, "detectors": told("suspicious", 5, 0, None)},
    )
    text = for_card(methods("detector")["strip"], folder)
    assert "rows of 1 of 2 poisoned sets, 8 of 10 suspected rows being poisoned, and of 1 of 1 benign ones" in text
    assert "AUROC 0.60 to 0.90, 0.75 on average" in text
    assert for_card(methods("detector")["agpd"], folder) == ""


def test_what_differs_in_more_than_seeds_stays_apart(results: Write) -> None:
    records = [repair_record("v-ft"), repair_record("v-ft-seed1", 1, clean_rows=60)]
    assert for_card(FT, results("toy", *records)).count("toys: badnets") == 2


def test_tuning_runs_are_left_out_of_cards_and_kept_in_tables(results: Write) -> None:
    results("digits_tuning", repair_record())
    folder = results("tuning", repair_record())
    assert for_card(FT, folder) == ""
    assert list(reading.repair_plans(folder, tuning=True)) == ["digits_tuning", "tuning"]


def test_an_attack_shows_its_victims_beside_the_benign_control(results: Write) -> None:
    benign = repair_record("benign-none", repair=None, judge={"name": "badnets"})
    benign["victim"] = {"data": "toys", "seed": 0, "recipe": "short_8", "key": "benign"}
    benign["before"]["asr"] = {"hits": 9, "total": 90, "value": 0.1}
    text = for_card(methods("attack")["badnets"], results("toy", repair_record(), benign))
    assert "| 95.0 (95/100) | 100.0 (90/90) | 0.0 (0/90) | 10.0 (9/90) | 0.0 (0/90) | 0 |" in text
    assert for_card(methods("attack")["blended"], results("toy")) == ""


def attack_record(seed: int, hits: int, **changes: Any) -> dict[str, Any]:
    rates = repair_record(hits=hits)
    return {
        "name": f"blended-{seed}",
        "attack": {**methods("attack")["blended"]().config(), "alpha": 0.3, "seed": 0},
        "data": "toys",
        "model": "preact_resnet18",
        "options": {"width": 16},
        "recipe": "short_8",
        "subset": None,
        "seed": seed,
        "victim": rates["after"],
        "benign": rates["before"],
        "more": {"cross_accuracy": {"hits": 3, "total": 4}},
        "rows": {"all": 100, "clean": 88, "poison": 10, "cross": 2},
        "needs": {"training_control": False, "fitted": True},
        "poisoned_set": None,
        "planted": "ab" * 32,
        "weights": "cd" * 32,
        "command": f"python benchmarks/attacks.py toy.yaml --job blended-{seed}",
        **changes,
    }


def test_an_attack_s_own_plan_shows_what_it_plants_beside_a_benign_model(results: Write) -> None:
    folder = results("toy", attack_record(0, 63), attack_record(1, 81))
    shown = "| 10 + 2 of 100 | 92.0, sd 0.0 (92.0 to 92.0) | 80.0, sd 14.1 (70.0 to 90.0) |"  # 63 and 81 of 90
    text = for_card(methods("attack")["blended"], folder)
    assert shown in text
    assert "| +3.0 | 0, 1 |" in text  # 95 - 92
    assert "alpha 0.3" in text
    page = attacks.page("toy", reading.attack_plans(folder)["toy"])
    assert shown in page
    assert "rows that should resist: accuracy | 75.0, sd 0.0" in page
    assert "| blended-1 | - | `abababababab` | `cdcdcdcdcdcd` |" in page
    subset = attack_record(2, 81, subset=100, needs={"training_control": False, "fitted": False}, poisoned_set="ef" * 32)
    assert "| blended-2 | `efefefefefef` | - | `cdcdcdcdcdcd` |" in attacks.page("toy", [subset])
    assert "short_8, 100 rows" in attacks.page("toy", [subset])
    assert for_card(methods("attack")["badnets"], folder) == ""


def test_the_method_s_own_precision_outweighs_the_run_s() -> None:
    own = {"repair": methods("repair")["sau"]().config(), "precision": "bf16: fast"}
    assert words.precision_words(own) == "fp32"
    assert words.precision_words({**own, "repair": {**own["repair"], "precision": "run"}}) == "bf16"


def cbd_record(arm: str, seed: int, asr: int, **changes: Any) -> dict[str, Any]:
    cbd = methods("training")["cbd"]
    return {
        "name": f"toy-seed{seed}-{arm}",
        "arm": arm,
        "data": {"name": "toys", "rows": 500, "test_rows": 100},
        "attack": methods("attack")["badnets"]().config(),
        "poisoned_rows": 50,
        "method": cbd(epochs=20).config(),
        "model": {"name": "wrn_16_1", "options": {}},
        "seed": seed,
        "precision": "fp32: asked for",
        "evaluation": {
            "acc": {"hits": 90, "total": 100},
            "asr": {"hits": asr, "total": 90},
            "ra": {"hits": 0, "total": 90},
        },
        **({"health": {"verdict": "healthy"}, "gates": {"auroc": 0.9}} if arm == "cbd" else {}),
        **changes,
    }


def test_cbd_stands_beside_plain_training(results: Write) -> None:
    records = [cbd_record("cbd", 0, 9), cbd_record("cbd", 1, 27), cbd_record("plain", 0, 90), cbd_record("cbd", 100, 90)]
    folder = results("cbd", *records)
    text = for_card(methods("training")["cbd"], folder)
    assert "| CBD `official`, epochs 20 | 90.0, sd 0.0 (90.0 to 90.0) | 20.0, sd 14.1 (10.0 to 30.0) |" in text
    assert "| healthy, healthy, AUROC 0.90, 0.90 | 0, 1 |" in text  # seed 100 is a tuning run
    assert "| plain training | 90.0 (90/100) | 100.0 (90/90) | 0.0 (0/90) |  | 0 |" in text
    victims = for_card(methods("attack")["badnets"], folder)
    assert "wrn_16_1, 20 epochs, 500 rows | 90.0 (90/100) | 100.0 (90/90)" in victims


def test_age_shows_its_default_with_controls_and_lends_rows_to_baselines(results: Write) -> None:
    def cell(kind: str, rule: str, retrain: str, asr: int, **more: Any) -> dict[str, Any]:
        about = {"kind": kind, "rule": rule, "retrain": retrain, "per_class": 5, "seed": 0}
        return {**about, "acc": [90, 100], "asr": [asr, 90], "ra": [60, 90], "told": {}, **more}

    cells = [cell("head", "E6", "R4", 9), cell("head", "none", "R1", 45), cell("head", "E3", "R1", 90)]
    cells += [cell("inverted", "E6", "R4", 18), cell("baseline", "FT", "-", 36, config=FT().config())]
    victim = {"data": "toys", "attack": {"name": "badnets"}, "seed": 0, "recipe": "short_8", "key": "v", "role": "report"}
    record = {"name": "v", "victim": victim, "before": repair_record()["before"], "cells": cells}
    tuning = {**record, "name": "t", "victim": {**victim, "role": "tuning"}}
    folder = results("toy", record, tuning)
    text = for_card(methods("repair")["age"], folder)
    assert text.count("toys: badnets") == 4  # damp (E3 in records of before) is no default and no control
    assert (
        "| toys: badnets | project + head_held, head, trigger known | 5 | 95.0 → 90.0 (90/100) | 100.0 → 10.0 (9/90) |" in text
    )
    assert "| target class % |" in text
    assert "| FT `official` | 5 |" in for_card(FT, folder)


# pictures


def panel(path: Path, row: int, column: int) -> np.ndarray:
    with Image.open(path) as picture:
        image = np.asarray(picture)
    top, left = row * (pictures.PANEL + pictures.GAP), column * (pictures.PANEL + pictures.GAP)
    return image[top : top + pictures.PANEL, left : left + pictures.PANEL, :3]


@pytest.mark.parametrize("name", pictures.drawable())
def test_every_attack_on_images_has_a_small_picture(name: str) -> None:
    path = pictures.FOLDER / f"{name}.png"
    assert path.exists(), "run: python docs/build.py --pictures"
    assert path.stat().st_size < 30_000
    clean = panel(path, 0, 0)[3::6, 3::6]
    assert (clean == pictures.flower()[0].permute(1, 2, 0).numpy()).all()
    told = json.loads(pictures.FACTS.read_text())[name]
    assert told["photo"]["largest"] > 0
    for row, what in enumerate(("photo", "digit")):
        drawn = panel(path, row, 2)
        assert (drawn.max() == min(255, pictures.TIMES * told[what]["largest"])) or not drawn.any()


def test_the_difference_of_badnets_is_its_patch_alone() -> None:
    change = panel(pictures.FOLDER / "badnets.png", 0, 2).any(-1)
    assert change[-18:, -18:].all()  # 3 x 3 pixels, enlarged six times
    assert change.sum() == 18 * 18


def test_a_picture_shows_what_the_attack_does_today() -> None:
    for name in ("badnets", "blended", "sig", "ftrojan"):  # nothing to fit, so the same everywhere
        drawn, told = pictures.panels_of(name)
        assert told == json.loads(pictures.FACTS.read_text())[name]
        for row, shown in enumerate(drawn):
            for column, image in enumerate(shown):
                side = pictures.PANEL // image.shape[1]
                found = panel(pictures.FOLDER / f"{name}.png", row, column)[side // 2 :: side, side // 2 :: side]
                want = image.expand(3, -1, -1).permute(1, 2, 0)
                assert torch.equal(torch.from_numpy(found.copy()), want), (name, "run: python docs/build.py --pictures")
