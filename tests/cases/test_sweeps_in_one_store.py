"""Several sweeps in one store: what they share counts once, and what only looks alike stays apart."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wilcoxon
from typer.testing import CliRunner

import theriac as th
from theriac.bench import compare, forecast, grouped, leaderboard, read_spec, rows, run, scores_of
from theriac.bench.reported import read_reported
from theriac.bench.store import Store
from theriac.cli.main import app
from theriac.core.errors import InputError
from theriac.runs import Clean

VICTIMS: dict[str, Any] = {"models": "mlp", "recipes": {"name": "adam_30", "epochs": 1}, "attacks": ["tabular_value"]}


def people(path: Path, seed: int = 0) -> dict[str, Any]:
    """Write a small table with two groups; gives it as data of a spec."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(300, 3))
    group = draw.random(300) < 0.5
    frame = pd.DataFrame(x, columns=list("abc")).assign(g=np.where(group, "m", "f"))
    frame.assign(y=np.where(x[:, 0] + group > 0.5, "yes", "no")).to_csv(path, index=False)
    return {"name": str(path), "label": "y", "sensitive": "g", "as": "people"}


def sweep(store: Path, name: str, **parts: Any) -> None:
    done = run({**VICTIMS, "controls": False, "name": name, **parts}, store, quiet=True)
    assert done.done == done.jobs


def cells(store: Path, role: str) -> list[tuple[tuple[str, ...], int]]:
    """Labels of the cells of a role, each with how many results are pooled in it."""
    with Store(store, make=False) as opened:
        return [(group.labels, len(group.done)) for group in grouped(rows(opened)) if group.role == role]


def test_what_two_sweeps_share_is_compared_once_where_one_attack_of_theirs_differs(tmp_path: Path) -> None:
    data = people(tmp_path / "people.csv")
    shared = [{"name": "tabular_value", "poison_rate": rate, "as": f"at {rate}"} for rate in (0.05, 0.1)]
    tuned = [{"name": "ft", "epochs": 1}, {"name": "ft", "epochs": 9, "lr": 0.05}]
    for name, rate in (("one", 0.2), ("two", 0.3)):
        own = {"name": "tabular_value", "poison_rate": rate, "as": "strong"}
        sweep(tmp_path / "store", name, data=data, attacks=[*shared, own], clean=0.2, defenses=tuned)
    with Store(tmp_path / "store", make=False) as store:
        found = rows(store)
    keys = [row["key"] for row in found if row["role"] == "defended"]
    assert len(keys) == len(set(keys)) == 8
    assert {row["attack"] for row in found} == {"at 0.05", "at 0.1", "strong [one]", "strong [two]"}
    (pair,) = compare(scores_of(grouped(found), "acc"))
    figures = pd.DataFrame([row for row in found if row["role"] == "defended"]).pivot(
        index="attack", columns="defense", values="acc"
    )
    left = (figures[pair.first.removesuffix(" 20 %")] - figures[pair.second.removesuffix(" 20 %")]).round(12)
    assert pair.attacks == 4
    assert pair.p == pytest.approx(wilcoxon(left[left != 0]).pvalue)


def test_a_file_that_changed_between_two_sweeps_is_no_second_seed_nor_a_twin(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 1)):
        data = people(tmp_path / "people.csv", seed)
        sweep(tmp_path / "store", name, data=data, controls=True, seeds=[seed])
    assert [(labels[0], count) for labels, count in cells(tmp_path / "store", "benign")] == [
        ("people [one]", 1),
        ("people [two]", 1),
    ]
    sweep(tmp_path / "store", "three", data=data, controls=True, seeds=[0])  # the seed of the first, the rows of the second
    made = {model.key: model for model in th.zoo.make(tmp_path / "store", tmp_path / "zoo")}
    victims = [model for model in made.values() if model.attack != "benign"]
    assert len(victims) == 3
    assert len({model.benign for model in victims}) == 3
    assert all(made[model.benign].seed == model.seed and made[model.benign].data == model.data for model in victims)


def test_other_classes_called_positive_other_draws_and_other_recipes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    data = people(tmp_path / "people.csv")
    for seed, positive in enumerate(("yes", "no")):
        sweep(tmp_path / "fair", positive, data=data, attacks=[], defenses=["reweighing"], positive=positive, seeds=[seed])
    assert [count for _, count in cells(tmp_path / "fair", "debiased")] == [1, 1]

    for seed, clean in enumerate((Clean(amount=0.2), Clean(amount=0.2, stratified=True))):
        sweep(tmp_path / "draws", f"draw {seed}", data=data, clean=clean, defenses=[{"name": "ft", "epochs": 1}], seeds=[seed])
    assert [count for _, count in cells(tmp_path / "draws", "defended")] == [1, 1]
    assert [count for _, count in cells(tmp_path / "draws", "victim")] == [2]  # these are seeds of one thing

    own = th.recipe("adam_30").replace(name="mine", epochs=1)
    for seed, lr in enumerate((0.001, 0.3)):
        sweep(tmp_path / "own", f"at {lr}", data=data, recipes=own.replace(lr=lr), seeds=[seed])
    assert [labels[2] for labels, _ in cells(tmp_path / "own", "victim")] == ["mine [at 0.001]", "mine [at 0.3]"]


def test_seeds_that_another_processor_computed_in_another_precision_are_apart(tmp_path: Path) -> None:
    data = people(tmp_path / "people.csv")
    for name, seed in (("one", 0), ("two", 1)):
        sweep(tmp_path / "store", name, data=data, seeds=[seed])
    assert cells(tmp_path / "store", "victim")[0][1] == 2  # two seeds of one machine
    with sqlite3.connect(tmp_path / "store" / "store.sqlite") as store:
        other = "CASE precision WHEN 'bf16' THEN 'fp32' ELSE 'bf16' END"  # than this processor's own
        store.execute(f"UPDATE jobs SET precision = {other} WHERE key IN (SELECT key FROM cells WHERE sweep = 'two')")
    assert [(labels[0], count) for labels, count in cells(tmp_path / "store", "victim")] == [
        ("people [one]", 1),
        ("people [two]", 1),
    ]


def test_sweeps_whose_names_are_written_alike_keep_pages_of_their_own(tmp_path: Path) -> None:
    people(tmp_path / "people.csv")
    for name, attack in (("my sweep", "tabular_value"), ("my_sweep", "tabular_blend")):
        spec = {**VICTIMS, "name": name, "controls": False, "data": {"name": "people.csv", "label": "y"}, "attacks": [attack]}
        (tmp_path / "spec.json").write_text(json.dumps(spec))
        args = ["bench", str(tmp_path / "spec.json"), "--store", str(tmp_path / "store"), "-q"]
        assert CliRunner().invoke(app, args).exit_code == 0
    pages = {path.name: path.read_text() for path in (tmp_path / "store").glob("*.html")}
    assert len(pages) == 2
    assert "Tabular blend" in pages["my_sweep.html"]
    assert "Tabular value" in next(text for name, text in pages.items() if name != "my_sweep.html")


def test_cleaning_up_takes_no_choice_of_results(tmp_path: Path) -> None:
    data = people(tmp_path / "people.csv")
    sweep(tmp_path / "store", "one", data=data)
    sweep(tmp_path / "store", "one", data=data, seeds=[1])  # seed 0 is not needed any more
    for choice in (["--sweep", "one"], ["--attack", "Tabular value"], ["--status", "done"]):
        done = CliRunner().invoke(app, ["results", str(tmp_path / "store"), "--gc", *choice])
        assert done.exit_code == 2
        assert "--gc is given beside a choice of results" in " ".join(done.output.split())
    with Store(tmp_path / "store", make=False) as store:
        assert len(store.statuses()) == 2
    for more, said in ((["--number", "acc"], "without --figure"), (["--compare", "acc", "--out", "c.md"], "beside --compare")):
        done = CliRunner().invoke(app, ["results", str(tmp_path / "store"), *more])
        assert done.exit_code == 2
        assert said in " ".join(done.output.split())
    none = CliRunner().invoke(app, ["results", str(tmp_path / "store"), "--status", "failed"])
    assert none.exit_code == 0
    assert "there are no such results" in none.output


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"defenses": [False]}, "False came; expected the name of a defense"),
        ({"defenses": [["ft", "fp"]]}, r"\['ft', 'fp'\] came; expected the name of a defense"),
        ({"defenses": [5]}, "5 came; expected the name of a defense"),
        ({"defenses": [{"nam": "ft"}]}, "name is None; expected the name of a defense"),
        ({"defenses": [{"name": "clp", "clean": 0.3}]}, "clean is said of clp, which takes no clean rows"),
        ({"defenses": [{"name": "abl", "clean": 0.3}]}, "clean is said of abl, which takes no clean rows"),
        ({"defenses": [{"name": "ft", "as": 0}]}, "the name is 0; expected a text"),
        ({"attacks": [{"name": "badnets", "as": 1000.0}]}, r"the name is 1000\.0; expected a text"),
        ({"attacks": [{"name": "badnets", "as": ["a"]}]}, r"the name is \['a'\]; expected a text"),
        ({"attacks": [{"name": "badnets", "as": ""}]}, "the name is ''; expected a text"),
        ({"data": {"name": "digits", "as": None}}, "the name is None; expected a text"),
        ({"models": []}, "models is empty, so nothing would be trained"),
        ({"recipes": []}, "recipes is empty, so nothing would be trained"),
    ],
)
def test_parts_of_a_spec_that_name_nothing_are_refused(parts: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_spec({"data": "digits", "attacks": ["badnets"], **parts})


def test_what_failed_before_and_what_needs_it_is_not_said_to_be_left(tmp_path: Path) -> None:
    spec = {
        **VICTIMS,
        "controls": False,
        "data": people(tmp_path / "people.csv"),
        "defenses": ["ft"],
        "clean": 0.2,
        "seeds": [0, 1],
    }
    run({**spec, "name": "s"}, tmp_path / "store", quiet=True)
    with sqlite3.connect(tmp_path / "store" / "store.sqlite") as db:
        key = db.execute("SELECT key FROM jobs WHERE kind = 'train' ORDER BY key").fetchone()[0]
        db.execute("UPDATE jobs SET status = 'failed' WHERE key = ?", (key,))
        db.execute("UPDATE jobs SET status = 'planned' WHERE key = (SELECT key FROM needs WHERE other = ?)", (key,))
    seen = forecast({**spec, "name": "s"}, tmp_path / "store")
    assert (len(seen.done), len(seen.failed), len(seen.blocked), seen.left) == (2, 1, 1, 0)


@pytest.mark.parametrize(
    "change", ["UPDATE jobs SET result = '[1]'", "UPDATE jobs SET options = '[]'", "ALTER TABLE jobs DROP COLUMN seconds"]
)
def test_a_store_that_holds_something_else_is_called_damaged(tmp_path: Path, change: str) -> None:
    sweep(tmp_path / "store", "s", data=people(tmp_path / "people.csv"))
    with sqlite3.connect(tmp_path / "store" / "store.sqlite") as db:
        db.execute(change)
    done = CliRunner().invoke(app, ["results", str(tmp_path / "store")])
    assert done.exit_code == 2
    assert "damaged" in f"{done.exception} {done.output}"


@pytest.mark.parametrize(
    ("clean", "data", "said"),
    [
        ({"amount": 0.05, "source": "train"}, {}, ""),
        ({"amount": 0.05, "source": "/somewhere/svhn"}, {}, "clean rows of is svhn"),
        ({"amount": 0.05, "source": "train"}, {"test_rows": 20}, "test_rows is 20"),
    ],
)
def test_other_clean_rows_or_test_rows_than_published_are_not_compared(clean: Any, data: Any, said: str) -> None:
    entry = next(e for e in read_reported() if e.method == "ft" and e.setting.data == "cifar10")
    options = {
        "data": {"name": "cifar10", "options": {}, "rows": None, **data},
        "model": {"architecture": "preact_resnet18", "width": 64},
        "recipe": "paper_100",
        "defense": {"method": "ft", "epochs": 100, "version": 1},
        "clean": clean,
    }
    results = [
        {
            "status": "done", "role": "defended", "defense": "FT", "clean": "5 %", "data": "cifar10", "model": "m",
            "recipe": "paper_100", "attack": attack, "seed": seed, "defense_seed": None,
            "options": json.dumps({**options, "attack": {"method": attack, "poison_rate": 0.1}, "seed": seed}),
            **{name: value + 0.001 * seed for name, value in figures.items()},
        }
        for seed in (0, 1, 2) for attack, figures in entry.attacks.items()
    ]  # fmt: skip
    (line,) = leaderboard.beside(leaderboard.trials_of(results), [entry])
    assert line.verdict == ("cannot be compared" if said else "agrees"), line.why
    assert said in "; ".join(line.why)
