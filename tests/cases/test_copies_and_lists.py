"""What a scan of rows writes is true, whole or not there, and can be used: lists, copies, pages."""

from __future__ import annotations

import csv
import errno
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import theriac as th
from theriac.cli.main import app
from theriac.core.errors import InputError
from theriac.core.paths import DiskFullError
from theriac.core.run import Run
from theriac.scanning import DataScan

QUICK: dict[str, Any] = {"detectors": ["scan"], "recipe": "short_1", "width": 4}


def pictures(root: Path, classes: tuple[str, ...] = ("a", "b"), each: int = 20) -> Path:
    draw = np.random.default_rng(0)
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            pixels = np.clip(draw.normal(60 + 120 * k, 20, (8, 8)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:02d}.png")
    return root


def suspecting(folder: Path, *flagged: int) -> DataScan:
    """A scan of a folder that suspects these rows."""
    scan = th.scan_data(folder, run=Run(device="cpu", quiet=True), **QUICK)
    scores = torch.arange(len(scan.rows)).double()
    return DataScan(
        verdict="suspicious",
        reason="by hand",
        scores=scores,
        flagged=flagged,
        classes=("a",),
        share=0.1,
        interval=(0.0, 0.2),
        findings={},
        skipped={},
        rows=scan.rows,
        files=scan.files,
        source=scan.source,
    )


def test_files_are_those_of_the_data_that_were_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    pictures(tmp_path / "digits", each=1000)  # a folder of that name beside the embedded data set
    monkeypatch.chdir(tmp_path)
    with (
        pytest.warns(UserWarning, match="embedded data set"),
        pytest.raises(InputError, match="these rows are none; take --drop-list"),
    ):
        th.scan_data("digits", run=run, cleaned="copy", **QUICK)
    assert not Path("copy").exists()
    monkeypatch.setenv("THERIAC_DATA", str(tmp_path / "shelf"))
    pictures(tmp_path / "shelf" / "mine")
    scan = th.scan_data("mine", run=run, **QUICK)
    assert {file.parent.parent for file in scan.files} == {tmp_path / "shelf" / "mine"}
    assert scan.source == tmp_path / "shelf" / "mine"


def test_a_home_folder_is_found_for_copies_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    pictures(tmp_path / "there")
    scan = th.scan_data("~/there", run=run, cleaned="~/copy", **QUICK)
    assert len(list((tmp_path / "copy").rglob("*.png"))) == 40 - len(scan.flagged)
    with pytest.raises(InputError, match="lies within the data"):
        th.scan_data("~/there", run=run, cleaned="~/there/copy", **QUICK)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"drop_list": "all/drop.csv", "cleaned": "all"}, r"--drop-list is 'all/drop.csv', which lies in --cleaned"),
        ({"drop_list": "same.csv", "cleaned": "same.csv"}, r"--drop-list is 'same.csv', which lies in --cleaned"),
        ({"page": "all/page.html", "cleaned": "all"}, r"--page is 'all/page.html', which lies in --cleaned"),
        ({"drop_list": "new/drop.csv", "page": "other/page.txt"}, r"--page is 'other/page.txt'; expected a file that ends in"),
        ({"drop_list": "new/drop.csv", "cleaned": "data/copy"}, r"--cleaned is 'data/copy', which lies within the data"),
    ],
)
def test_outputs_in_each_others_way_are_refused_before_work(
    outputs: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    pictures(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("theriac.scanning.rows.train", lambda *a, **k: pytest.fail("it trained"))
    with pytest.raises(InputError, match=message):
        th.scan_data("data", run=run, **QUICK, **outputs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_copy_is_whole_or_not_there(error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan, copied, copyfile = suspecting(pictures(tmp_path / "data"), 3, 5), [], shutil.copyfile

    def failing(source: Path, place: Path) -> None:
        copied.append(source)
        if len(copied) == 10:
            raise error
        copyfile(source, place)

    monkeypatch.setattr("theriac.scanning.rows.shutil.copyfile", failing)
    with pytest.raises(DiskFullError if isinstance(error, OSError) else KeyboardInterrupt):
        scan.write_cleaned(tmp_path / "copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
    scan.write_cleaned(tmp_path / "copy")  # and the same call goes through when there is room
    assert len(list((tmp_path / "copy").rglob("*.png"))) == 38
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["a", "b"]


def test_files_of_a_drop_list_are_there_whatever_they_are_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / "data", ("+1", "-1", "=x", "@y"), each=6)
    monkeypatch.chdir(tmp_path / "data")
    scan = suspecting(Path("."), *range(24))
    scan.write_drop_list(tmp_path / "drop.csv")
    listed = [row["file"] for row in csv.DictReader((tmp_path / "drop.csv").read_text().splitlines())]
    assert {Path(file) for file in listed} == set(Path().glob("*/*.png"))
    assert all(file.startswith("./") for file in listed)


def test_a_page_says_how_many_suspected_rows_it_leaves_out(tmp_path: Path) -> None:
    scan = suspecting(pictures(tmp_path / "data", each=40), *range(71))
    text = scan.write_page(tmp_path / "rows.html").read_text()
    assert "<b>11 more suspected rows are not shown</b>; the drop list names all 71." in text
    assert "not shown" not in scan.write_page(tmp_path / "rows.html", most=71).read_text()


def test_all_unreadable_pictures_are_named_at_once(tmp_path: Path) -> None:
    root = pictures(tmp_path / "data")
    for name in ("a/03.png", "b/07.png"):
        (root / name).write_bytes((root / name).read_bytes()[:60])
    (root / "b" / "09.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"a/03.png is not a readable.*3 of 40 pictures can't be read.*03.png.*07.png.*09.png"):
        th.load(root)
    for name in ("a/03.png", "b/07.png"):
        (root / name).unlink()
    with pytest.raises(InputError, match=r"09.png is not a readable picture: it is empty$"):
        th.load(root)


def test_messages_name_the_options_of_both_worlds(tmp_path: Path) -> None:
    root = pictures(tmp_path / "data")
    Image.new("L", (5, 9)).save(root / "b" / "odd.png")
    said = CliRunner().invoke(app, ["scan-data", str(root)]).stderr
    assert "size=8 resizes all (--size 8)" in " ".join(said.split())
