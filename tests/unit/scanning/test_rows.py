"""Scans of rows: several detectors together, files, lists, pages, and the command."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import theriac as th
from theriac.cli.main import app
from theriac.core.errors import InputError
from theriac.core.outcome import Finding
from theriac.scanning.rows import _clean_rows, combine, places, share_interval, usual_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 60 dark or bright pictures; ten of class "a" carry a white square and come from "b"."""
    root, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for k, name in enumerate("ab"):
        (root / name).mkdir()
        for i in range(60):
            pixels = np.clip(draw.normal(60 + 120 * k, 20, (8, 8)), 0, 255)
            if k == 0 and i < 10:
                pixels = np.clip(draw.normal(180, 20, (8, 8)), 0, 255)
                pixels[5:, 5:] = 255
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i:02d}.png")
    return root


def finding(flagged: tuple[int, ...], scores: torch.Tensor, verdict: str = "suspicious") -> Finding:
    return Finding(verdict=verdict if flagged else "clean", reason="by hand", rows=scores, flagged=flagged)  # type: ignore[arg-type]


def test_places_are_mean_places_of_equals():
    assert places(torch.tensor([5.0, 1, 5, 7])).tolist() == [0.625, 0.25, 0.625, 1.0]


def test_a_scan_that_finds_nothing_names_the_classes_that_a_detector_left_out(digits):
    clean = digits.test.where((digits.test.y != 5) & (digits.test.y != 6))
    model = th.train("wrn_16_1", digits.train, recipe="short_2")
    scan = th.scan_data(digits.train.sample(400), model, clean, detectors=["repaired_twin"])
    assert scan.findings["repaired_twin"].reason.endswith("2 of 10 classes were not judged: 5, 6")
    assert scan.reason.endswith("none suspects a group; repaired_twin did not judge 5, 6")


def test_rows_that_half_of_the_suspecting_detectors_suspect_are_suspected(digits):
    rows = digits.train.take(torch.arange(100))
    scores = torch.arange(100).double()
    three = {
        "a": finding((99, 98), scores),
        "b": finding((99, 97), scores),
        "c": finding((99, 96), scores),
        "d": finding((), scores),
    }
    scan = combine(rows, three, {})
    assert scan.flagged == (99,)  # two of three suspect it, and all of the others only one does
    assert scan.share == 0.01
    assert scan.interval[0] <= 0.01 <= scan.interval[1]
    assert scan.exit_code == 1
    assert len(scan.cleaned_rows()) == 99
    none = combine(rows, {"d": finding((), scores)}, {})
    assert (none.verdict, none.share, none.exit_code) == ("clean", None, 0)
    silent = Finding(verdict="abstains", reason="too few rows")
    assert combine(rows, {"e": silent}, {}).exit_code == 3


def test_the_repaired_twin_is_the_answer_where_it_suspects_rows(digits):
    rows = digits.train.take(torch.arange(100))
    scores = torch.arange(100, 0, -1).double()
    others = {"a": finding((1, 2, 3), scores.flip(0)), "b": finding((1, 2), scores.flip(0))}
    scan = combine(rows, {"repaired_twin": finding((7, 8), scores), **others}, {})
    assert sorted(scan.flagged) == [7, 8]
    assert "suspected by repaired_twin; 3 detectors looked" in scan.reason
    assert torch.equal(scan.scores, places(scores))  # the order is its own, too
    clean = combine(rows, {"repaired_twin": finding((), scores), **others}, {})
    assert sorted(clean.flagged) == [1, 2, 3]  # each by half of those that suspect rows


def test_few_rows_are_trained_on_longer():
    def rows(count):
        return th.Split(torch.zeros(count, 1, 4, 4, dtype=torch.uint8), torch.arange(count) % 4)

    # 600 updates of 128 rows, within 15 to 60 epochs
    assert [usual_recipe(rows(n)) for n in (60, 1437, 3000, 20000)] == ["short_60", "short_55", "short_27", "short_15"]
    assert usual_recipe(th.Split(torch.rand(50, 3), torch.arange(50) % 2)) == "adam_30"


def test_of_both_halves_of_a_class_the_smaller_is_suspected(digits):
    rows = digits.train.where(digits.train.y < 2).take(torch.arange(200))
    zeros = (rows.y == 0).nonzero().flatten().tolist()
    scores = torch.rand(200, generator=torch.Generator().manual_seed(0)).double()
    scan = combine(rows, {"a": finding(tuple(zeros[:20]), scores), "b": finding(tuple(zeros[20:]), scores)}, {})
    assert sorted(scan.flagged) == zeros[:20]


@pytest.mark.parametrize(("count", "share"), [(400, 0.05), (400, 0.0125), (160, 0.03)])
def test_the_interval_of_the_share_holds_the_true_share_as_often_as_it_says(count, share):
    """Rows are drawn anew; some are poisoned, six deviations away."""
    hits, cases, widths, draw = 0, 0, 0.0, torch.Generator().manual_seed(3)
    for trial in range(100):
        poison = torch.rand(count, generator=draw) < share
        scores = torch.randn(count, generator=draw).double() + 6 * poison
        if not bool((scores > 3).any()):  # nobody suspects anything
            continue
        low, high = share_interval(scores, count, scores > 3, seed=trial)
        hits, cases, widths = hits + (low <= share <= high), cases + 1, widths + high - low
    assert hits >= 0.885 * cases  # 95 %, less three deviations of chance
    assert widths / cases < 0.07


def test_a_folder_gives_file_names_lists_copies_and_a_page(folder, tmp_path, run):
    scan = th.scan_data(
        folder,
        run=run,
        detectors=["strip", "scan"],
        recipe="short_4",
        width=4,
        drop_list=tmp_path / "drop.csv",
        cleaned=tmp_path / "cleaned",
        page=tmp_path / "page.html",
    )
    assert len(scan.scores) == 120
    assert len(scan.files) == 120
    listed = list(csv.DictReader((tmp_path / "drop.csv").read_text().splitlines()))
    assert [int(row["index"]) for row in listed] == scan.rows.index[list(scan.flagged)].tolist()
    for row in listed:
        assert Path(row["file"]).parent.name == row["label"]
    assert len(list((tmp_path / "cleaned").rglob("*.png"))) == 120 - len(scan.flagged)
    text = (tmp_path / "page.html").read_text()
    assert text.count("data:image/png;base64,") == 60
    assert "<script" not in text
    scan.write_drop_list(tmp_path / "drop.json")
    assert len(json.loads((tmp_path / "drop.json").read_text())) == len(scan.flagged)
    with pytest.raises(InputError, match="exists"):
        scan.write_cleaned(tmp_path / "cleaned")


def test_bad_input_is_refused_before_work(folder, digits, tmp_path, run):
    poisoned = th.attacks.BadNets().poison(digits.train, run)
    for words, options, message in (
        (poisoned, {}, "poisoned.split"),
        (folder, {"detectors": ["neural_cleanse"]}, "known: activation_clustering, agpd, .*repaired_twin, .*strip$"),
        (folder, {"detectors": []}, "detectors is empty"),
        (digits.train, {"cleaned": tmp_path / "x"}, "--drop-list"),
        (digits.train, {"size": 8}, "loaded already"),
        (digits.train.where(digits.train.y == 1), {}, "one class"),
        (digits.train, {"detectors": ["agpd"]}, r"needs clean rows \(--clean\), and there are none"),
        (digits.train, {"clean": poisoned}, "Poisoned"),
        (digits.train, {"clean": th.Split(torch.zeros(9, 1, 5, 5, dtype=torch.uint8), torch.arange(9))}, "takes image rows"),
    ):
        with pytest.raises(InputError, match=message):
            th.scan_data(words, run=run, **options)


def test_the_command_says_it_and_ends_with_its_code(folder, tmp_path):
    words = ["scan-data", str(folder), "--detector", "scan", "--device", "cpu", "--json", "--quiet"]
    done = CliRunner().invoke(app, words)
    result = json.loads(done.stdout)
    assert result["status"] == "done"
    assert done.exit_code == {"clean": 0, "suspicious": 1, "abstains": 3}[result["verdict"]]
    assert result["rows"] == 120
    assert set(result["detectors"]) == {"scan"}
    assert CliRunner().invoke(app, ["scan-data", str(tmp_path / "nowhere")]).exit_code == 2


def test_clean_rows_come_from_a_folder_too(folder, tmp_path):
    mine = shutil.copytree(folder, tmp_path / "mine")
    for file in sorted(mine.glob("*/*.png"))[::2]:
        file.unlink()
    words = ["scan-data", str(folder), "--detector", "agpd", "--clean", str(mine), "--device", "cpu", "--json"]
    done = CliRunner().invoke(app, words)
    assert "60 of the 60 clean pictures are among the scanned ones" in done.stderr
    result = json.loads(done.stdout)
    assert done.exit_code == {"clean": 0, "suspicious": 1, "abstains": 3}[result["verdict"]]
    assert set(result["detectors"]) == {"agpd"}
    assert len(_clean_rows(str(folder), None, {})) == 120  # all of them: the folder has no test part of its own
    assert len(_clean_rows("digits", None, {})) == len(th.load("digits").test)
    assert CliRunner().invoke(app, [*words[:5], "nowhere"]).exit_code == 2


def test_rank_and_interval_come_from_the_detector_whose_group_is_taken(digits):
    rows = digits.train.where(digits.train.y < 2).take(torch.arange(200))
    zeros = (rows.y == 0).nonzero().flatten()
    small, large = zeros[:20], zeros[20:]
    high, low = torch.zeros(200).double(), torch.zeros(200).double()
    high[small], low[large] = 10.0, 10.0
    # the detector whose group is rejected answers first
    scan = combine(rows, {"b": finding(tuple(large.tolist()), low), "a": finding(tuple(small.tolist()), high)}, {})
    assert sorted(scan.flagged) == small.tolist()
    assert float(scan.scores[small].min()) > float(scan.scores[large].max())
    assert scan.interval[1] < len(large) / 200  # the rejected group is the larger one


def test_a_table_for_spreadsheets_holds_no_formulas_and_no_stray_quotes(digits, tmp_path):
    rows = digits.train.take(torch.arange(30))
    rows = rows.replace(card=rows.card.replace(classes=("=1+1", *rows.card.classes[1:])))
    scores = torch.arange(30).double()
    combine(rows, {"a": finding(tuple(range(30)), scores)}, {}).write_drop_list(tmp_path / "drop.csv")
    records = list(csv.DictReader((tmp_path / "drop.csv").read_text().splitlines()))
    assert {r["label"] for r in records if r["label"].endswith("1+1")} == {"'=1+1"}
    assert {r["file"] for r in records} == {""}


def test_detectors_of_which_no_two_agree_are_all_heard(digits):
    rows = digits.train.take(torch.arange(300))
    scores = torch.arange(300).double()
    places_of = [(rows.y == k).nonzero().flatten().tolist()[:3] for k in range(3)]
    scan = combine(rows, {str(k): finding(tuple(at), scores) for k, at in enumerate(places_of)}, {})
    assert sorted(scan.flagged) == sorted(at for group in places_of for at in group)
    assert scan.classes == ("0", "1", "2")
