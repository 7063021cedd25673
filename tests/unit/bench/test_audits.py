"""Sweeps that audit what they defended, and work that another machine would do otherwise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import theriac as th
from theriac.attacks.store import load_planted
from theriac.auditing import Options
from theriac.bench import forecast, grouped, make_plan, read_spec, rows, run
from theriac.bench.engines import InProcess
from theriac.bench.plans import Loader, Node
from theriac.bench.store import Store
from theriac.bench.tables import audits
from theriac.bench.work import Settings, Worker
from theriac.cli.main import app
from theriac.core.errors import InputError
from theriac.core.paths import owned
from theriac.models import load_model

QUICK = {"tune_steps": 3, "distill_steps": 3, "queries": 3, "search_steps": 2, "retune_steps": 2}


def spec(folder: Path, **parts: Any) -> dict[str, Any]:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(300, 3))
    frame = pd.DataFrame(x, columns=list("abc")).assign(y=np.where(x[:, 0] > 0, "yes", "no"))
    frame.to_csv(folder / "table.csv", index=False)
    made: dict[str, Any] = {
        "name": "audited",
        "data": {"name": str(folder / "table.csv"), "label": "y", "as": "table"},
        "models": "mlp",
        "recipes": {"name": "adam_30", "epochs": 2},
        "attacks": [{"name": "tabular_value", "poison_rate": 0.2}],
        "defenses": [{"name": "ft", "epochs": 1}],
        "clean": 0.2,
        "audit": QUICK,
    }
    return made | parts


def test_a_defended_model_is_audited_beside_its_victim_and_the_benign_model(tmp_path: Path) -> None:
    made = spec(tmp_path)
    assert make_plan(read_spec(made)).kinds["audit"] == 1
    sweep = run(made, tmp_path / "store", quiet=True)
    assert sweep.done == sweep.jobs
    with Store(tmp_path / "store") as store:
        results, homes = rows(store), {row["role"]: store.home(row["key"]) for row in rows(store) if row["role"] != "audited"}
    (row,) = [row for row in results if row["alarms"] is not None]
    assert row["role"] == "defended"
    assert "audited" not in {row["role"] for row in results}
    model, victim, benign = (load_model(homes[role]) for role in ("defended", "victim", "benign"))
    data = read_spec(made).data[0].value.load()
    by_hand = th.audit(
        model,
        data,
        load_planted(homes["victim"]),
        victim=victim,
        benign=benign,
        run=th.Run(quiet=True),
        options=Options(**QUICK),
    )
    assert row["alarms"] == len(by_hand.alarms)
    figures = json.loads(row["audit"])
    assert set(figures) == {line.name for line in by_hand.lines if line.bad}
    for name, cells in figures.items():
        line = by_hand.get(*name.split(": ", 1))
        assert cells == {model: pytest.approx(cell.value, abs=1e-6) for model, cell in line.cells.items()}
    head, body = audits(grouped(results))
    assert head[3:] == list(figures)
    assert body[2] == f"{int(row['alarms'] > 0)} of 1"
    first = figures["as it is: ASR"]
    assert body[3] == f"{100 * first['audited']:.1f} ({100 * first['benign']:.1f})"


def test_audits_are_there_whichever_sweep_came_first_and_those_with_a_control_before_others(tmp_path: Path) -> None:
    for name, audit in (("plain", False), ("audits", QUICK)):
        run(spec(tmp_path, name=name, audit=audit), tmp_path / "store", quiet=True)
    with Store(tmp_path / "store") as store:
        (row,) = [row for row in rows(store) if row["role"] == "defended"]
    assert row["sweep"] == "plain"
    assert '"benign"' in row["audit"]
    two = spec(tmp_path, name="two", groups=[{"controls": True}, {"controls": False}])
    run(two, tmp_path / "other", quiet=True)
    with Store(tmp_path / "other") as store:
        (row,) = [row for row in rows(store) if row["role"] == "defended"]
    assert '"benign"' in row["audit"]


def test_means_over_audits_count_a_victim_once_and_compare_the_same_audits() -> None:
    def row(attack: str, seed: int, own: int, audited: float, benign: float | None, alarms: int) -> dict[str, Any]:
        cells = {"audited": audited} | ({} if benign is None else {"benign": benign})
        labels = {"data": "d", "model": "m", "recipe": "r", "attack": attack, "defense": "FT", "clean": "5 %"}
        facts = {"role": "defended", "seed": seed, "defense_seed": own, "status": "done", "key": f"{attack}{seed}{own}"}
        return {**labels, **facts, "alarms": alarms, "audit": json.dumps({"re-tuned: ASR": cells})}

    alone = [
        row("a", 0, 0, 0.9, None, 1),
        row("b", 0, 0, 0.2, 0.1, 0),
        row("b", 0, 1, 0.4, 0.1, 1),
        row("b", 1, 0, 0.6, 0.2, 0),
    ]
    head, line = audits(grouped(alone))
    assert dict(zip(head, line, strict=True)) | {"setting": ""} == {
        "defense": "FT 5 %",
        "setting": "",
        "alarms in": "2 of 3",  # victims: a, and two of b
        "re-tuned: ASR": "45.0 (15.0)",  # (0.3 + 0.6) / 2, without a, which has no control
    }


def test_the_page_the_terminal_and_files_show_audits(tmp_path: Path) -> None:
    run(spec(tmp_path), tmp_path / "store", quiet=True)
    to = [str(tmp_path / name) for name in ("p.html", "r.parquet")]
    for options in ([], ["--page", to[0], "--out", to[1]]):
        answer = CliRunner().invoke(app, ["results", str(tmp_path / "store"), *options])
        assert answer.exit_code == 0
        assert options or "alarms in" in answer.stdout
    page = Path(to[0]).read_text()
    assert "After the defense" in page
    assert "audits with an alarm" in page
    frame = pd.read_parquet(to[1])
    assert frame["alarms"].notna().sum() == 1
    assert "as it is: ASR" in json.loads(frame["audit"].dropna().iloc[0])


def test_an_audit_that_fails_is_a_row_and_another_setting_is_other_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise InputError("no way")

    with monkeypatch.context() as patched:
        patched.setattr("theriac.bench.work.audit", fails)
        sweep = run(spec(tmp_path, controls=False), tmp_path / "store", quiet=True)
    assert len(sweep.failed) == 1
    with Store(tmp_path / "store") as store:
        assert [(row["role"], row["error"]) for row in rows(store, status="failed")] == [("audited", "InputError: no way")]
        assert all(row["alarms"] is None for row in rows(store))
    other = spec(tmp_path, controls=False, audit=True, name="other")
    planned = forecast(other, tmp_path / "store")
    assert (planned.left, len(planned.done)) == (1, 2)  # the audit alone, under its own key


@pytest.mark.parametrize(
    ("value", "said"),
    [("yes", "audit is 'yes'; expected true, false, or options"), ({"tune_step": 3}, "tune_steps"), ({"bits": 1}, "bits")],
)
def test_settings_of_an_audit_are_checked_before_work(tmp_path: Path, value: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_spec(spec(tmp_path, audit=value))


def test_work_that_was_planned_in_another_precision_is_refused(tmp_path: Path) -> None:
    plan = make_plan(read_spec(spec(tmp_path, audit=False)))
    with Store(tmp_path / "store") as store:
        store.enter(plan)
    node: Node = next(iter(plan.nodes.values()))
    other = "torch.bfloat16" if node.dtype == "torch.float32" else "torch.float32"
    answer = Worker(Settings(store=str(tmp_path / "store"))).do(replace(node, dtype=other))
    assert answer.status == "failed"
    assert "set precision in the spec" in answer.error


def test_what_another_process_counts_or_has_counted_is_not_done_again(tmp_path: Path) -> None:
    made = spec(tmp_path, audit=False)
    plan = make_plan(read_spec(made))
    judge = next(node for node in plan.nodes.values() if node.kind == "judge")
    with Store(tmp_path / "store") as store:
        store.enter(plan)
    worker = Worker(Settings(store=str(tmp_path / "store")))
    for key in judge.needs:
        assert worker.do(plan.nodes[key]).status == "done"
    place = tmp_path / "store" / "judging" / judge.key
    place.mkdir(parents=True)
    with owned(place):
        assert worker.do(judge).status == "busy"
    assert worker.do(judge).status == "done"
    assert worker.do(judge).status == "there"
    assert not (tmp_path / "store" / "judging").exists()
    sweep = run(made, tmp_path / "store", quiet=True)
    assert (sweep.done, sweep.made) == (sweep.jobs, sweep.jobs - 3)


class Elsewhere(InProcess):
    """Every other job is done by another process before this one comes to it."""

    count = 0

    def submit(self, node: Node, again: bool) -> None:
        self.count += 1
        if self.count % 2:
            Worker(self.worker.settings, self.worker.load).do(node, again=again)
        super().submit(node, again)


def test_work_of_another_process_does_not_count_as_made_now(tmp_path: Path) -> None:
    sweep = run(spec(tmp_path, audit=False), tmp_path / "store", quiet=True, engine=lambda s: Elsewhere(s, Loader()))
    assert sweep.done == sweep.jobs
    assert sweep.made == sweep.jobs // 2
