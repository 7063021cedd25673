"""The demo, as a newcomer runs it, with a fraction of its epochs: real victims, honest numbers, one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from theriac.attacks import BadNets
from theriac.cli import demo
from theriac.core.errors import InputError, StoppedError
from theriac.models import load_model
from theriac.repairs import FT
from theriac.report import Result, Study, findings, folders, html
from theriac.runs import Job

TINY = demo.Plan("short_1", (FT(epochs=1, batch_size=64),), (BadNets(),))


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    out = tmp_path_factory.mktemp("demo") / "new"
    return demo.run_demo(out, device="cpu", seed=1, quick=True, quiet=True), out


def test_victims_are_real_and_the_control_is_not(quick: tuple[Study, Path]) -> None:
    control, *victims = [r for r in quick[0].results if r.repair is None]
    assert control.victim == "benign control"
    assert control.before.acc.value >= 0.95
    assert [v.victim for v in victims] == ["BadNets", "Blended"]
    for victim in victims:
        assert victim.before.asr is not None
        assert victim.control is not None
        assert victim.control.asr is not None
        assert victim.before.acc.value >= 0.93
        assert victim.before.asr.value >= 0.9
        assert victim.control.asr.value <= 0.1
        assert victim.control.acc == control.before.acc  # the same model on the same rows
        assert victim.before.asr.total == victim.control.asr.total == 359 - 36  # test rows that are not zeros already


def test_every_victim_meets_every_repair(quick: tuple[Study, Path]) -> None:
    pairs = [(r.victim, r.repair_name) for r in quick[0].repairs]
    assert pairs == [(v, m) for v in ("BadNets", "Blended") for m in ("ft", "antidote")]
    for r in quick[0].repairs:
        assert r.rows == 288  # 20 % of 1,438
        assert r.history
        assert r.after is not None
        assert r.before == next(v.before for v in quick[0].results if v.victim == r.victim)


def test_antidote_works_where_fine_tuning_fails(quick: tuple[Study, Path]) -> None:
    left = {(r.victim, r.repair_name): r.scores.asr for r in quick[0].repairs}
    for (victim, method), asr in left.items():
        assert asr is not None
        if method == "antidote":
            assert asr.value <= 0.3, victim  # even a fraction of the updates
        else:
            assert asr.value >= 0.5, victim
    assert "Fine-tuning left both backdoors" in findings.summary(quick[0])
    assert len(findings.headline(quick[0]).split()) <= 15


def test_files_are_complete(quick: tuple[Study, Path]) -> None:
    study, out = quick
    assert Study.read(out) == study
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page == html(study)
    for r in study.results:
        assert f"{r.scores.acc.hits:,}/{r.scores.acc.total:,}" in page
    assert page.count("data:image/png;base64,") == 2 * 3 * 9  # two triggers; clean, stamped, difference; nine other classes
    assert "quick run" in page
    victims = ["badnets", "badnets-antidote", "badnets-ft", "blended", "blended-antidote", "blended-ft"]
    assert sorted(p.name for p in out.iterdir()) == sorted([*victims, "benign", "report.html", "study.json"])
    for name in ("badnets", "badnets-antidote"):
        assert load_model(out / name).card.name == "digits"
    of_folders = folders.of_folder(out)  # what `theriac report` says of the same folders
    assert [r.scores for r in of_folders.repairs] == [r.scores for r in sorted(study.repairs, key=_folder)]


def _folder(result: Result) -> str:
    return f"{result.victim}-{result.repair_name}".lower()


def test_the_benign_control_stands_beside_both_victims(quick: tuple[Study, Path]) -> None:
    assert [e.victim for e in quick[0].exhibits] == ["BadNets", "Blended"]
    for shown in quick[0].exhibits:
        assert shown.models == ["victim", "after Fine-tuning", "after Antidote", "benign control"]


def test_a_stopped_demo_goes_on_and_a_finished_one_is_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "QUICK", TINY)
    work, done = demo.execute, []

    def stops(job: Job, folder: Path, **options: Any) -> Any:
        if job.kind == "repair":
            raise StoppedError("stopped")
        return work(job, folder, **options)

    def counts(job: Job, folder: Path, **options: Any) -> Any:
        record = work(job, folder, **options)  # raises if there is nothing to do
        done.append(folder.name)
        return record

    monkeypatch.setattr(demo, "execute", stops)
    with pytest.raises(StoppedError):
        demo.run_demo(tmp_path, device="cpu", seed=4, quick=True, quiet=True)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["badnets", "benign"]
    monkeypatch.setattr(demo, "execute", counts)
    first = demo.run_demo(tmp_path, device="cpu", seed=4, quick=True, quiet=True)
    assert done == ["badnets-ft"]
    assert capsys.readouterr().err == ""  # quiet
    second = demo.run_demo(tmp_path, device="cpu", seed=4, quick=True, quiet=False)
    assert done == ["badnets-ft"]  # nothing twice
    assert first == second
    loud = capsys.readouterr()
    assert "trained BadNets before" in loud.err
    for text in ("benign control", "BadNets", "Fine-tuning", "ACC", "report.html"):
        assert text in loud.out
    counted = second.results[0].before.acc
    assert f"{counted.hits}/{counted.total}" in loud.out
    with pytest.raises(InputError, match="seed is 4 there and 5 here"):
        demo.run_demo(tmp_path, device="cpu", seed=5, quick=True, quiet=True)
    monkeypatch.setattr(demo, "QUICK", demo.Plan("short_1", (), ()))
    demo.run_demo(tmp_path, device="cpu", seed=4, quick=True, quiet=True, force=True)
    assert done == ["badnets-ft", "benign"]


def test_it_leaves_other_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        demo.run_demo(tmp_path, quick=True, quiet=True)
    with pytest.raises(InputError, match="is a file"):
        demo.run_demo(tmp_path / "thesis.txt", quick=True, quiet=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_bad_input_writes_nothing(tmp_path: Path) -> None:
    for bad in ({"device": "abacus"}, {"seed": -1}):
        with pytest.raises(InputError):
            demo.run_demo(tmp_path / "new", quick=True, quiet=True, **bad)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
