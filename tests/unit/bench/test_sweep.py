from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import theriac as th
from theriac.bench import Store, export, forecast, grouped, make_plan, read_events, read_spec, rows, run, tables
from theriac.bench.engines import InProcess, Workers
from theriac.bench.plans import Loader, Node
from theriac.bench.specs import Limits
from theriac.bench.work import Answer, Settings, Worker
from theriac.cli.main import app
from theriac.core.errors import InputError, StoppedError
from theriac.core.paths import DiskFullError
from theriac.core.split import Data
from theriac.models.network import row_passes
from theriac.repairs import FT
from theriac.runs import Source

COUNTS = "SELECT key, stage, name, hits, total FROM scores ORDER BY 1, 2, 3"


def scores(folder: Path) -> list[Any]:
    with Store(folder, make=False) as store:
        return store.db.execute(COUNTS).fetchall()


def forked(settings: Settings, workers: int, limits: Limits | None = None) -> Workers:
    return Workers(settings, workers, threads=1, start="fork", limits=limits)


@pytest.fixture(scope="module")
def finished(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a finished sweep with two seeds. Read only."""
    folder = tmp_path_factory.mktemp("store")
    run(spec_of(people), folder, quiet=True)
    return folder


def spec_of(people: Path, **changes: Any) -> dict[str, Any]:
    spec = {
        "name": "quick",
        "data": {"name": str(people), "label": "hired", "as": "people"},
        "models": {"name": "mlp", "hidden": [8]},
        "recipes": {"name": "adam_20", "lr": 0.05},
        "attacks": [{"name": "tabular_value", "poison_rate": 0.2, "count": 2, "as": "Value"}],
        "defenses": [{"name": "ft", "epochs": 2}],
        "clean": 0.5,
        "precision": "fp32",
        "seeds": [0, 1],
    }
    return spec | changes


def test_a_sweep_is_what_its_parts_are_one_by_one(finished: Path, people: Path) -> None:
    """The bench adds nothing to the numbers: the same cell by hand has the same counts."""
    data = th.load(str(people), label="hired")
    run = th.Run(seed=1, precision="fp32", device="cpu", quiet=True)
    build = th.Builder("mlp", {"hidden": [8]})
    poisoned = th.attacks.TabularValue(poison_rate=0.2, count=2).poison(data.train, run, build)
    victim = th.train(build, poisoned, recipe=th.recipe("adam_20").replace(lr=0.05), run=run)
    clean = data.train.sample(0.5, seed=run.stream_seed("data", "clean"))
    fixed = FT(epochs=2).repair(victim, clean, run)
    by_hand = th.evaluate(fixed, data.test, poisoned, run=run)
    with row_passes() as trained:
        benign = th.train(build, data.train, recipe=th.recipe("adam_20").replace(lr=0.05), run=run)
    with row_passes() as judged:
        control = th.evaluate(benign, data.test, poisoned, run=run)
    with Store(finished, make=False) as store:
        found = {row["role"]: row for row in rows(store) if row["seed"] == 1}
    assert control.acc.value > 0.7  # networks that learned something: equal counts of constants say nothing
    for role, hand in (("defended", by_hand), ("judged", control)):
        assert [found[role][f"{n}_hits"] for n in ("acc", "asr", "ra")] == [hand.acc.hits, hand.asr.hits, hand.ra.hits]
    assert trained.rows == 20 * len(data.train) + 4  # two rows try the network before anything, and two after all
    assert found["judged"]["row_passes"] == judged.rows
    assert found["benign"]["row_passes"] == trained.rows + len(data.test)


def test_nothing_is_done_twice(finished: Path, people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = scores(finished)
    monkeypatch.setattr(InProcess, "submit", lambda *_: pytest.fail("a job was done again"))
    sweep = run(spec_of(people), finished, quiet=True)
    assert (sweep.done, sweep.made, sweep.jobs) == (12, 0, 12)
    assert scores(finished) == before


def test_more_seeds_add_their_own_jobs_only(finished: Path, people: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "store")
    sweep = run(spec_of(people, seeds=[0, 1, 2]), tmp_path / "store", quiet=True)
    assert (sweep.done, sweep.made) == (18, 6)


def test_a_result_that_is_not_in_the_database_is_taken_from_its_folder(finished: Path, people: Path, tmp_path: Path) -> None:
    """As after a kill between the run folder and the database."""
    shutil.copytree(finished, tmp_path / "store")
    with Store(tmp_path / "store") as store:
        store.db.execute("DELETE FROM scores")
        store.db.execute("UPDATE jobs SET status = 'planned', result = NULL")
    folders = {p: (p / "run.json").stat().st_mtime_ns for p in (tmp_path / "store" / "runs").iterdir()}
    run(spec_of(people), tmp_path / "store", quiet=True)
    assert scores(tmp_path / "store") == scores(finished)
    assert {p: (p / "run.json").stat().st_mtime_ns for p in folders} == folders


def test_a_failing_job_does_not_stop_the_others(people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("it broke")

    told: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(FT, "_repair", broken)
        sweep = run(spec_of(people, seeds=[0]), tmp_path, quiet=True, say=told.append)
    assert (sweep.jobs, sweep.done, len(sweep.failed), sweep.blocked) == (6, 3, 2, 1)
    assert len(told) == 2
    assert "ZeroDivisionError: it broke" in told[0]
    ends = [line for line in read_events(tmp_path) if line.get("status") == "failed"]
    assert [line["error"] for line in ends] == ["ZeroDivisionError: it broke"] * 2
    with Store(tmp_path) as store:
        assert "in broken" in store.db.execute("SELECT max(traceback) FROM jobs").fetchone()[0]
    again = run(spec_of(people, seeds=[0]), tmp_path, quiet=True)
    assert (again.made, len(again.failed)) == (0, 2)
    mended = run(spec_of(people, seeds=[0]), tmp_path, quiet=True, retry_failed=True)
    assert (mended.done, mended.made, mended.failed) == (6, 3, {})


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (DiskFullError("the disk is full: x"), DiskFullError),
        (KeyboardInterrupt(), StoppedError),
        (RuntimeError("a library says: KeyboardInterrupt: "), StoppedError),  # Ctrl-C that came inside of compiled code
        (TypeError("no such thing as 'torch.UntypedStorage'"), StoppedError),  # the same, and the message does not say so
    ],
)
def test_what_stops_everything_leaves_a_store_that_goes_on(
    error: BaseException, raised: type[Exception], people: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        if isinstance(error, TypeError):
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        raise error

    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may run in the background, where Ctrl-C is ignored
    try:
        with monkeypatch.context() as patch:
            patch.setattr(FT, "_repair", stop)
            with pytest.raises(raised):
                run(spec_of(people), tmp_path, quiet=True)
    finally:
        signal.signal(signal.SIGINT, usual)
    sweep = run(spec_of(people), tmp_path, quiet=True)
    assert sweep.done == 12
    assert 0 < sweep.made < 12
    assert not sweep.failed
    assert scores(tmp_path) == scores(finished)


def forget_repairs(folder: Path) -> None:
    """As if the repairs and what counts them had not been done."""
    with Store(folder) as store:
        keys = [key for (key,) in store.db.execute("SELECT key FROM jobs WHERE kind != 'train'")]
        for key in keys:
            shutil.rmtree(store.home(key), ignore_errors=True)
            store.db.execute("DELETE FROM scores WHERE key = ?", (key,))
            store.db.execute("UPDATE jobs SET status = 'planned', result = NULL WHERE key = ?", (key,))


def spoil_weights(home: Path) -> None:
    path = home / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 64
    path.unlink()  # the store has a link to it
    path.write_bytes(data)


@pytest.mark.parametrize(
    "lose",
    [
        lambda home: (home / "planted.json").unlink(missing_ok=True),
        lambda home: (home / "model.safetensors").unlink(),
        lambda home: (home / "model.safetensors").write_bytes(b""),
    ],
)
def test_a_model_that_lost_a_file_is_made_again(lose: Any, finished: Path, people: Path, tmp_path: Path) -> None:
    """A repair of a victim without its trigger once counted as done, with no attack success."""
    folder = tmp_path / "store"
    shutil.copytree(finished, folder)
    forget_repairs(folder)
    for home in (folder / "runs").iterdir():
        lose(home)
    sweep = run(spec_of(people), folder, quiet=True)
    assert (sweep.done, sweep.failed) == (12, {})
    assert scores(folder) == scores(finished)


@pytest.mark.parametrize("lose", [spoil_weights, lambda home: (home / "run.json").write_text("{")])
def test_a_damaged_model_fails_what_needs_it_until_it_is_made_again(
    lose: Any, finished: Path, people: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    shutil.copytree(finished, folder)
    forget_repairs(folder)
    for home in (folder / "runs").iterdir():
        lose(home)
    sweep = run(spec_of(people), folder, quiet=True, say=lambda _: None)
    assert sweep.failed
    mended = run(spec_of(people), folder, quiet=True, retry_failed=True)
    assert (mended.done, mended.failed) == (12, {})
    assert scores(folder) == scores(finished)


def test_the_command_ends_with_code_1_where_jobs_failed(people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("it broke")

    (tmp_path / "spec.json").write_text(json.dumps(spec_of(people, seeds=[0])))  # which is YAML, too
    monkeypatch.setattr(FT, "_repair", broken)
    words = ["bench", str(tmp_path / "spec.json"), "--store", str(tmp_path / "store"), "-q"]
    assert CliRunner().invoke(app, words).exit_code == 1


def test_a_model_damaged_in_place_is_made_again_and_stays_sound(finished: Path, people: Path, tmp_path: Path) -> None:
    """The store's tensors, which are the same file, once took the place of what was trained anew."""
    folder = tmp_path / "store"
    run(spec_of(people), folder, quiet=True)
    forget_repairs(folder)
    for path in (folder / "runs").glob("*/model.safetensors"):
        with path.open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"\x7f")
    run(spec_of(people), folder, quiet=True, say=lambda _: None)
    mended = run(spec_of(people), folder, quiet=True, retry_failed=True)
    assert (mended.done, mended.failed) == (12, {})
    assert scores(folder) == scores(finished)


def test_rows_that_changed_after_the_plan_are_not_taken_for_those_of_the_plan(people: Path, tmp_path: Path) -> None:
    path = tmp_path / "people.csv"
    shutil.copy(people, path)
    spec = spec_of(path, seeds=[0])
    plan = th.bench.make_plan(th.bench.read_spec(spec))
    with Store(tmp_path / "store") as store:
        store.enter(plan)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *lines[:100:-1]]) + "\n")
    answer = Worker(Settings(store=str(tmp_path / "store"))).do(next(iter(plan.nodes.values())))
    assert answer.status == "failed"
    assert "was changed since this work was planned" in answer.error
    clean = {"amount": 20, "source": str(tmp_path / "clean.csv")}
    shutil.copy(path, tmp_path / "clean.csv")
    repair = next(
        n for n in th.bench.make_plan(th.bench.read_spec({**spec, "clean": clean})).nodes.values() if n.kind == "repair"
    )
    (tmp_path / "clean.csv").write_text("\n".join(lines[:60]) + "\n")
    with pytest.raises(InputError, match="its clean rows or a trigger's file was changed"):
        Worker(Settings(store=str(tmp_path / "store")))._data(repair)
    sweep = run(spec, tmp_path / "store", quiet=True)
    assert (sweep.done, sweep.failed) == (6, {})


def test_keys_hold_what_files_hold_and_not_where_they_lie(people: Path, tmp_path: Path) -> None:
    made = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        shutil.copy(people, tmp_path / name / "people.csv")
        clean = {"amount": 20, "source": str(tmp_path / name / "people.csv")}
        made.append(th.bench.make_plan(th.bench.read_spec(spec_of(people, clean=clean))))
    assert list(made[0].nodes) == list(made[1].nodes)
    (tmp_path / "there" / "people.csv").write_text(people.read_text().replace(",red,", ",blue,", 1))
    other = th.bench.make_plan(made[1].spec)
    assert {node.kind for node in other.nodes.values() if node.key not in made[0].nodes} == {"repair", "judge"}


@pytest.mark.parametrize("device", ["cpu,foo", "cuda:99", None, 3])
def test_devices_that_are_not_there_are_refused_before_any_work(device: Any, people: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="device"):
        run(spec_of(people), tmp_path / "store", quiet=True, device=device)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("words", [{"store": 5}, {"engine": None}])
def test_arguments_of_the_wrong_type_are_named(words: dict[str, Any], people: Path) -> None:
    with pytest.raises(InputError, match=next(iter(words))):
        run(spec_of(people), **{"quiet": True, **words})


def test_workers_count_the_same(finished: Path, people: Path, tmp_path: Path) -> None:
    sweep = run(spec_of(people), tmp_path, quiet=True, engine=lambda s: forked(s, 2))
    assert sweep.done == 12
    assert scores(tmp_path) == scores(finished)


@pytest.mark.parametrize("limits", [Limits(seconds=2), Limits(memory_mb=1)])
def test_a_job_beyond_its_limit_fails_and_the_others_go_on(limits: Limits, people: Path, tmp_path: Path) -> None:
    spec = spec_of(people, seeds=[0], defenses=[], controls=False, recipes=["adam_90000", "adam_2"])
    made = run(
        spec, tmp_path, quiet=True, engine=lambda s: Workers(s, 1, threads=1, start="fork", limits=limits), say=lambda _: None
    )
    told = list(made.failed.values())
    assert "the limit is" in told[0]
    assert made.done == (1 if limits.seconds else made.done)
    assert next(line["error"] for line in read_events(tmp_path) if line.get("status") == "failed") in told[0]


def test_limits_without_workers_are_refused(people: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="worker processes"):
        run(spec_of(people, limits={"seconds": 5}), tmp_path, quiet=True, engine="process")


def test_repaired_models_can_be_dropped_and_are_made_again_where_they_are_needed(people: Path, tmp_path: Path) -> None:
    first = run(spec_of(people, seeds=[0], keep="victims"), tmp_path, quiet=True)
    assert first.done == 6
    before = {p.name for p in (tmp_path / "runs").iterdir()}
    assert len(before) == 2
    more = [spec_of(people)["attacks"][0], {"name": "tabular_value", "poison_rate": 0.3, "count": 2, "as": "more"}]
    second = run(spec_of(people, seeds=[0], attacks=more), tmp_path, quiet=True)
    assert (second.done, second.made) == (second.jobs, second.jobs - 6)  # the one that was made again is no new result
    with Store(tmp_path) as store:
        known = {key for (key,) in store.db.execute("SELECT key FROM files WHERE name = 'model.safetensors'")}
    assert known == {p.name for p in (tmp_path / "runs").iterdir()}
    third = run(spec_of(people, seeds=[0, 1], keep="victims", attacks=more), tmp_path, quiet=True)
    assert third.done == third.jobs
    held = {p.name for p in (tmp_path / "tensors").iterdir()}
    with Store(tmp_path) as store:
        assert held == {f"{sha}.safetensors" for (sha,) in store.db.execute("SELECT sha256 FROM files")}
        assert store.collect() == {"jobs": 0, "folders": 0, "files": 0, "bytes": 0}


def test_repaired_models_are_dropped_also_where_nothing_was_left_to_do(people: Path, tmp_path: Path) -> None:
    """As after a kill between the last job and the dropping."""
    run(spec_of(people, seeds=[0]), tmp_path, quiet=True)
    assert len(list((tmp_path / "runs").iterdir())) == 4
    run(spec_of(people, seeds=[0], keep="victims"), tmp_path, quiet=True)
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_a_table_shows_attack_success_that_is_the_same_everywhere(finished: Path) -> None:
    words = ["results", str(finished), "--attack", "Value", "--defense", "FT epochs 2"]
    assert "ASR %" in CliRunner().invoke(app, words).stdout


def test_what_no_sweep_needs_is_collected(people: Path, tmp_path: Path) -> None:
    run(spec_of(people), tmp_path, quiet=True)
    run(spec_of(people, seeds=[1]), tmp_path, quiet=True)
    with Store(tmp_path) as store:
        gone = store.collect()
        assert (gone["jobs"], gone["folders"]) == (6, 4)
        assert store.collect() == {"jobs": 0, "folders": 0, "files": 0, "bytes": 0}
    assert run(spec_of(people, seeds=[1]), tmp_path, quiet=True).made == 0


def test_a_plan_tells_time_from_the_store(finished: Path, people: Path, tmp_path: Path) -> None:
    none = forecast(spec_of(people), tmp_path / "none")
    assert (none.left, none.seconds) == (12, None)
    assert not (tmp_path / "none").exists()
    more = forecast(spec_of(people, seeds=[0, 1, 2]), finished)
    assert (more.left, more.guessed) == (6, 6)
    assert more.seconds is not None
    assert more.seconds > 0
    assert more.rough == 0
    other = forecast(spec_of(people, defenses=[{"name": "ft", "epochs": 2}, {"name": "anp", "as": "ANP"}]), finished)
    assert (other.left, other.guessed, other.rough) == (6, 6, 4)  # four repairs by a method never timed here, two counts


def test_names_stay_as_they_are_in_papers_and_pages(finished: Path, tmp_path: Path) -> None:
    with Store(finished) as store:
        plain = [row | {"attack": "b|l<i>&%_", "degenerate": "all rows <one> class"} for row in rows(store, "quick")]
    tex, md = (export(plain, tmp_path / f"x.{end}").read_text() for end in ("tex", "md"))
    assert r"b\textbar{}l\textless{}i\textgreater{}\&\%\_" in tex
    assert r"b\|l&lt;i&gt;&amp;%\_" in md
    notes = [line for line in tex.splitlines() if "footnotesize" in line]
    assert notes
    assert all(line.startswith("{") and line.endswith("}") for line in notes)  # what follows the table keeps its size
    assert all("&lt;one&gt;" in line for line in md.splitlines() if line.startswith("†"))


def test_events_tell_of_every_job_and_epoch(finished: Path) -> None:
    lines = read_events(finished)
    with Store(finished, make=False) as store:
        kinds = dict(store.db.execute("SELECT key, kind FROM jobs"))
    ends = {line["key"]: line for line in lines if line.get("status") == "done"}
    assert {key: line["kind"] for key, line in ends.items()} == kinds
    epochs = [line for line in lines if "epoch" in line]
    assert len(epochs) == 4 * 20 + 4 * 2  # trainings and repairs of two seeds
    assert all({"loss", "accuracy", "lr", "seconds", "time", "job"} <= set(line) for line in epochs)
    first = epochs[0]["key"]
    assert [line.get("status", line.get("epoch")) for line in lines if line["key"] == first] == [
        "started",
        *range(1, 21),
        "done",
    ]


def test_an_unknown_sink_is_refused_before_any_work(people: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown event sink 'mlflow'"):
        run(spec_of(people), tmp_path / "store", quiet=True, events=["mlflow"])
    assert not (tmp_path / "store").exists()


def test_a_sweep_writes_for_tensorboard(people: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run(spec_of(people, seeds=[0], defenses=[], controls=False), tmp_path, quiet=True, events=["tensorboard"])
    (board,) = (tmp_path / "tensorboard").iterdir()
    assert board.name.startswith("people_Value_none_seed_0-")
    assert [part.name for part in board.iterdir()] == ["train"]


def test_exports_hold_every_number(finished: Path, tmp_path: Path) -> None:
    with Store(finished, make=False) as store:
        found = rows(store)
        only = rows(store, attack="Value", defense="none")
        with pytest.raises(InputError, match="unknown attack 'Valu'"):
            rows(store, attack="Valu")
    assert {row["role"] for row in only} == {"victim", "judged"}
    paths: dict[str, Path] = {end: export(found, tmp_path / f"out.{end}") for end in ("csv", "parquet", "jsonl", "md", "tex")}
    lines = [json.loads(line) for line in paths["jsonl"].read_text().splitlines()]
    assert [line["asr_hits"] for line in lines] == [row["asr_hits"] for row in found]
    assert pq.read_table(paths["parquet"]).to_pylist() == lines
    assert len(paths["csv"].read_text().splitlines()) == len(found) + 1
    assert paths["md"].read_text().count("\n") == len(grouped(found)) + 2
    assert r"50 \%" in paths["tex"].read_text()
    with pytest.raises(InputError, match="ending"):
        export(found, tmp_path / "out.xlsx")


def test_debiasing_needs_groups_and_gives_gaps(people: Path, tmp_path: Path) -> None:
    data = {"name": str(people), "label": "hired", "sensitive": "sex", "as": "people"}
    spec = spec_of(people, data=data, seeds=[0], attacks=[], defenses=["reweighing"], positive="1")
    sweep = run(spec, tmp_path, quiet=True)
    assert sweep.failed == {}
    with Store(tmp_path) as store:
        (row,) = [r for r in rows(store) if r["role"] == "debiased"]
    assert all(0 <= row[f"{name}{end}"] <= 1 for name in ("acc", "bacc", "dp_gap") for end in ("", "_before"))
    record = json.loads((tmp_path / "runs" / row["key"] / "run.json").read_text())
    assert row["odds_gap_before"] == record["fairness"]["plain"]["odds_gap"]["value"]
    move = f"{100 * row['dp_gap_before']:.1f} → {100 * row['dp_gap']:.1f}"
    shown = CliRunner().invoke(app, ["results", str(tmp_path), "--out", str(tmp_path / "out.md")], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert CliRunner().invoke(app, ["results", str(tmp_path)], env={"COLUMNS": "200"}).stdout.count(move) == 1
    table = (tmp_path / "out.md").read_text()
    assert f"| {move} |" in table
    assert "| DP gap % |" in table
    assert "ASR" not in table


def test_a_group_that_debiasing_harms_is_in_headline_table_and_page(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    x, group = draw.normal(size=(3000, 3)), draw.random(3000) < 0.5
    frame = pd.DataFrame(x, columns=list("abc")).assign(g=np.where(group, "m", "f"))  # most of m are rightly "yes"
    frame["y"] = np.where(x[:, 0] + 2.5 * group + draw.normal(size=3000) > 1.2, "yes", "no")
    frame.to_csv(tmp_path / "table.csv", index=False)
    data = {"name": str(tmp_path / "table.csv"), "label": "y", "sensitive": "g", "as": "people"}
    recipe = {"name": "adam_30", "epochs": 3}
    spec = {"name": "harm", "data": data, "models": "mlp", "recipes": recipe, "defenses": ["reweighing"]}
    run(spec, tmp_path / "s", quiet=True)
    with Store(tmp_path / "s") as store:
        found = rows(store)
    (row,) = [r for r in found if r["role"] == "debiased"]
    verdict = json.loads((tmp_path / "s" / "runs" / row["key"] / "run.json").read_text())["verdict"]
    assert verdict["kind"] == "harmed"
    assert json.loads(row["harmed"])["m"] == min(c["change"] for c in verdict["harmed"] if c["group"] == "m") < -0.05
    assert {r["harmed"] for r in found if r["role"] != "debiased"} == {None}
    words = f"Harms group 'm': accuracy or recall down by {-100 * json.loads(row['harmed'])['m']:.1f} points."
    shown = CliRunner().invoke(app, ["results", str(tmp_path / "s")], env={"COLUMNS": "200"})
    assert words in " ".join(shown.output.split())
    assert CliRunner().invoke(app, ["results", str(tmp_path / "s"), "--page", str(tmp_path / "p.html")]).exit_code == 0
    page = unescape((tmp_path / "p.html").read_text())
    assert words in page
    assert "1 of 2 cells harm a group of people (†)." in page
    assert "Reweighing †" in page
    assert export(found, tmp_path / "t.md").read_text().count(words) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="patches workers before they are forked")
def test_two_workers_share_the_work_and_the_driver_costs_little(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that only wait, so that the load of the machine does not count: what is left is how work is handed out."""

    def wait(worker: Worker, node: Node, *, again: bool = False) -> Answer:
        time.sleep(0.3)
        worker.store.done(node.key, {}, facts={}, files=[])
        return Answer(node.key, "done")

    monkeypatch.setattr(Worker, "do", wait)
    attacks = [{"name": "tabular_value", "count": 2, "rates": [i / 50 for i in range(1, 21)]}]
    spec = spec_of(people, attacks=attacks, defenses=[], controls=False, seeds=[0])
    times, costs = [], []
    for workers in (1, 2):
        began, cpu = time.monotonic(), time.process_time()
        sweep = run(spec, tmp_path / str(workers), quiet=True, engine=lambda s, n=workers: forked(s, n))
        times.append(time.monotonic() - began)
        costs.append((time.process_time() - cpu) / sweep.jobs)
        assert (sweep.jobs, sweep.done) == (20, 20)
    assert times[1] < 0.6 * times[0]
    assert max(costs) < 0.02 * 10  # CPU seconds for each job: under 2 % of a job of ten seconds, planning included


def fact(sweep: str, key: str, **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        **dict.fromkeys(tables.COLUMNS), "sweep": sweep, "key": key, "data": "digits", "model": "m", "recipe": "short_1",
        "attack": "BadNets", "defense": "FT", "clean": "5 %", "role": "defended", "seed": 0, "defense_seed": 0,
        "status": "done", "acc": 0.9, "asr": 0.2,
    }  # fmt: skip
    return row | changes


def test_a_result_that_two_sweeps_share_counts_once() -> None:
    both = [fact(sweep, f"key {seed}", seed=seed, asr=0.2 + 0.2 * seed) for sweep in ("one", "two") for seed in (0, 1)]
    (group,) = tables.grouped(tables._apart(both))
    assert [row["asr"] for row in group.rows] == [0.2, 0.4]
    alone = [row for row in both if row["sweep"] == "one"]
    assert tables.interval(group, "asr") == tables.interval(tables.grouped(alone)[0], "asr")


def test_other_jobs_under_the_same_labels_are_told_apart() -> None:
    found = tables._apart([fact("one", "a"), fact("two", "b", asr=0.9), fact("three", "c", attack="Blended")])
    assert [row["data"] for row in found] == ["digits [one]", "digits [two]", "digits"]
    assert [len(group.rows) for group in tables.grouped(found)] == [1, 1, 1]


def test_other_work_on_another_seed_is_no_repetition() -> None:
    """Sweeps on 300 and on 600 rows, or of FT for 1 and for 9 epochs, whose labels and not whose seeds say the same."""
    options = [json.dumps({"defense": {"method": "ft", "epochs": epochs}, "seed": seed}) for seed, epochs in enumerate((1, 9))]
    both = [fact(name, name, seed=seed, options=options[seed]) for seed, name in enumerate(("one", "two"))]
    assert [len(group.rows) for group in tables.grouped(tables._apart(both))] == [1, 1]
    same = [fact(name, name, seed=seed, options=json.dumps({"seed": seed})) for seed, name in enumerate(("one", "two"))]
    assert [len(group.rows) for group in tables.grouped(tables._apart(same))] == [2]


def test_a_label_that_rows_do_not_have_is_refused(finished: Path) -> None:
    with Store(finished, make=False) as store, pytest.raises(InputError, match="label"):
        rows(store, nosuch="x")


def test_a_table_says_what_failed(people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("it broke")

    monkeypatch.setattr(FT, "_repair", broken)
    run(spec_of(people, seeds=[0]), tmp_path, quiet=True, say=lambda _: None)
    told = CliRunner().invoke(app, ["results", str(tmp_path), "--status", "failed"])
    assert "2 failed, the first Value · FT epochs 2 · 50 %: ZeroDivisionError: it broke" in told.stderr
    assert told.stdout.count("0 of 1") == 2  # the repair of the benign model too, which the table leaves out where all is well


def test_data_that_are_not_there_are_named_as_the_spec_names_them(people: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.csv"
    gone.write_bytes(people.read_bytes())
    spec = read_spec(spec_of(people, data={"name": str(gone), "label": "hired", "as": "mine"}))
    gone.unlink()
    with pytest.raises(InputError, match=r"data 'mine' of the spec: .*gone.csv does not exist"):
        make_plan(spec)


def test_der_of_a_training_time_defense_needs_the_one_victim_that_it_stands_for() -> None:
    def found(*recipes: str, **changes: Any) -> list[dict[str, Any]]:
        victims = [
            fact("one", recipe, recipe=recipe, role="victim", defense="none", acc=0.97, asr=0.99, seed=0) for recipe in recipes
        ]
        return [*victims, fact("one", "abl", recipe="", defense="ABL", acc=0.95, asr=0.1, **changes)]

    for results in (found("short_8"), found("short_8")[::-1]):
        tables._add_der(results)
        (own,) = (row for row in results if row["defense"] == "ABL")
        assert own["der"] == pytest.approx((0.89 - 0.02 + 1) / 2)
    for results in (found("short_1", "short_8"), found("short_8", seed=1), found()):
        tables._add_der(results)
        assert results[-1]["der"] is None


def test_the_seconds_of_a_job_do_not_hold_the_reading_of_the_data(people: Path, tmp_path: Path) -> None:
    plan = make_plan(read_spec(spec_of(people, seeds=[0])))
    with Store(tmp_path / "store") as store:
        store.enter(plan)
    loader, waited = Loader(), []

    def slow(source: Source) -> Data:
        if not waited:
            waited.append(time.sleep(2))
        return loader(source)

    node = next(node for node in plan.nodes.values() if node.kind == "train")
    assert Worker(Settings(store=str(tmp_path / "store")), slow).do(node).status == "done"
    with Store(tmp_path / "store", make=False) as store:
        (seconds,) = store.db.execute("SELECT seconds FROM jobs WHERE key = ?", (node.key,)).fetchone()
    assert waited
    assert seconds < 2
