"""A result is never written over what it was made from, over a folder or under an ending that misleads; said before work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import theriac as th
from theriac.cli.main import app
from theriac.core.card import Card, Column
from theriac.core.errors import InputError
from theriac.core.paths import new_file
from theriac.core.split import Split
from theriac.report import page as pages


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "in.csv"
    lines = [f"{i},{i % 7},{'yes' if i % 3 else 'no'}" for i in range(90)]
    path.write_text("\n".join(["a,b,label", *lines]) + "\n")
    return path


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--drop-list", "in.csv"),
        ("--page", "in.csv"),
        ("--page", "rows.txt"),
        ("--drop-list", ""),
        ("--page", ""),
        ("--drop-list", "drop.txt"),
    ],
)
def test_scan_data_refuses_before_it_trains(table: Path, option: str, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("theriac.scanning.rows.train", lambda *_, **__: pytest.fail("work began"))
    before = table.read_bytes()
    done = CliRunner().invoke(app, ["scan-data", str(table), option, str(table.parent / name), "-q"])
    assert done.exit_code == 2
    assert option in done.stderr
    assert table.read_bytes() == before


def test_scan_refuses_its_own_model_as_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = tmp_path / "w.json"
    model.write_bytes(b"weights")
    monkeypatch.setattr("theriac.scanning.models._scan", lambda *_: pytest.fail("work began"))
    for report, words in ((model, "written over"), (tmp_path, "a folder"), (tmp_path / "w.pt", "ends in .sarif")):
        with pytest.raises(InputError, match=words):
            th.scan(model, sarif=report)
    assert model.read_bytes() == b"weights"


def test_a_new_file_is_told_from_others_by_what_it_is(tmp_path: Path):
    (tmp_path / "a.csv").write_text("x")
    (tmp_path / "b.csv").symlink_to(tmp_path / "a.csv")
    with pytest.raises(InputError, match="is the data too"):
        new_file("--out", tmp_path / "b.csv", apart_from={"the data": str(tmp_path / "a.csv")})
    with pytest.raises(InputError, match="is --page too"):  # neither is there yet
        new_file("--out", tmp_path / "n.html", apart_from={"--page": tmp_path / "n.html"})
    assert new_file("--out", tmp_path / "new" / "n.HTML", endings=(".html",), apart_from={"rows": object()}).parent.is_dir()
    assert new_file("--out", "/dev/null", endings=(".html",)) == Path("/dev/null")


def test_a_report_is_a_page_or_a_folder_and_nothing_that_looks_like_another_file(tmp_path: Path):
    with pytest.raises(InputError, match=r"rep\.txt.*an \.html file"):
        pages.write(tmp_path, tmp_path / "rep.txt")
    assert not (tmp_path / "rep.txt").exists()


def test_results_keep_their_store(tmp_path: Path, table: Path):
    spec = tmp_path / "s.yaml"
    spec.write_text(
        f"name: s\ndata: {table}\nmodels: mlp\nrecipes: adam_3\nattacks: {{name: tabular_value, count: 2}}\ncontrols: false\n"
    )
    assert CliRunner().invoke(app, ["bench", str(spec), "--store", str(tmp_path / "st"), "-q"]).exit_code == 0
    store = tmp_path / "st" / "store.sqlite"
    before = store.read_bytes()
    for target in (store, spec, tmp_path):
        done = CliRunner().invoke(app, ["results", str(tmp_path / "st"), "--page", str(target)])
        assert (done.exit_code, "--page" in done.stderr) == (2, True)
    assert store.read_bytes() == before


def test_a_file_inside_of_the_data_is_not_written_over(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text("x")
    with pytest.raises(InputError, match="a file of the data"):
        new_file("--drop-list", tmp_path / "data" / "train.csv", apart_from={"the data": tmp_path / "data"})
    assert new_file("--drop-list", tmp_path / "data" / "drop.csv", apart_from={"the data": tmp_path / "data"})


def test_a_table_of_few_different_rows_may_have_clean_rows_from_elsewhere():
    columns = tuple(Column(name=name) for name in "abc")
    card = Card(kind="table", classes=("no", "yes"), columns=columns)
    x = (torch.arange(400)[:, None] // torch.tensor([1, 2, 4]) % 2).float()
    rows, clean = Split(x, (x.sum(1) > 1).long(), card=card), Split(x[:80], (x[:80].sum(1) > 1).long(), card=card)
    assert th.scan_data(rows, clean=clean, detectors=["spectral"], recipe="adam_3").verdict in (
        "clean",
        "suspicious",
        "abstains",
    )
    with pytest.raises(InputError, match="the scanned rows themselves"):
        th.scan_data(rows, clean=rows, detectors=["spectral"])
