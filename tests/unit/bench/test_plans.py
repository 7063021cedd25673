from __future__ import annotations

import dataclasses
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from theriac.bench import make_plan, read_spec
from theriac.bench.plans import Loader
from theriac.core.errors import InputError
from theriac.data import DISTURBANCES


def plan_of(**parts: Any) -> Any:
    return make_plan(read_spec({"data": "digits", "models": {"name": "preact_resnet18", "width": 4}, **parts}))


def test_one_victim_for_all_defenses_and_one_control_for_all_attacks() -> None:
    plan = plan_of(attacks=["badnets", "wanet"], defenses=["ft", "clp"], seeds=[0, 1])
    assert plan.kinds == {"train": 6, "judge": 12, "repair": 12}  # by seed: 2 victims, 1 benign; 3 models x 2 repairs
    roles = Counter(cell.role for cell, _ in plan.cells)
    assert roles == {"victim": 4, "defended": 8, "benign": 2, "benign defended": 4, "judged": 4, "judged defended": 8}
    for node in plan.nodes.values():
        assert all(list(plan.nodes).index(need) < list(plan.nodes).index(node.key) for need in node.needs)


def test_a_repair_without_clean_rows_is_not_repeated_for_each_budget() -> None:
    plan = plan_of(attacks=["badnets"], defenses=["ft", "clp"], clean=[0.05, 100], controls=False)
    made = [(cell.defense, cell.clean) for cell, _ in plan.cells if cell.role == "defended"]
    assert made == [("FT", "5 %"), ("FT", "100 rows"), ("CLP", "")]


def test_repairs_have_seeds_of_their_own() -> None:
    plan = plan_of(attacks=["badnets"], defenses=["ft"], defense_seeds=[0, 1, 2], controls=False)
    assert plan.kinds == {"train": 1, "repair": 3}
    assert {node.job.seed for node in plan.nodes.values() if node.kind == "repair"} == {0, 1, 2}


def test_a_training_time_defense_does_not_repeat_itself_for_each_recipe() -> None:
    plan = plan_of(attacks=["badnets"], defenses=["cbd"], recipes=["short_1", "short_2"], controls=False)
    assert plan.kinds == {"train": 3}
    assert len(plan.cells) == 3  # it stands in the table once, too


def test_pairings_that_do_not_fit_are_refused_with_the_reason() -> None:
    plan = plan_of(
        attacks=["badnets", "tabular_value", "input_aware", {"name": "badnets", "target": 12, "as": "far"}],
        defenses=["cbd", "reweighing", {"name": "ft", "clean": 100_000}],
        controls=False,
    )
    told = plan.refused
    assert "table" in told["digits · Tabular value"]
    assert "10 classes" in told["digits · far"]
    assert "controls training itself" in told["digits · Input-aware · CBD"]
    assert "needs groups" in told["digits · Reweighing"]
    assert "there are" in told["digits · BadNets · FT · 100,000 rows"]
    assert plan.kinds == {"train": 3}


def test_a_repair_that_must_know_the_trigger_repairs_the_benign_model_once_for_each_attack() -> None:
    plan = plan_of(attacks=["badnets", "wanet"], defenses=["age:head"])
    kinds = Counter((cell.role, plan.nodes[key].kind) for cell, key in plan.cells)
    knows = plan.spec.defenses[0].value.wants("trigger")
    assert kinds["judged defended", "repair" if knows else "judge"] == 2


def test_keys_change_with_what_decides_the_result_and_with_nothing_else() -> None:
    def keys(**parts: Any) -> set[str]:
        return set(plan_of(attacks=["badnets"], defenses=["ft"], **parts).nodes)

    base = keys()
    assert keys() == base
    assert keys(name="other") == base
    assert not keys(seeds=[1]) & base
    assert len(keys(clean=0.1) & base) == 3  # the trainings and the count of the benign model stay


def test_groups_are_done_one_after_the_other_and_share_what_they_have_in_common() -> None:
    groups = [
        {"name": "fit", "attacks": [], "seeds": [1]},
        {"name": "fit", "attacks": ["badnets"], "seeds": [13, 14]},
        {"name": "held", "attacks": [], "seeds": [2, 1], "recipes": "short_1"},
    ]
    plan = plan_of(defaults={"attacks": {"target": "seed"}}, recipes=["short_1"], controls=False, groups=groups)
    assert [(c.attack, c.seed) for c, _ in plan.cells] == [("benign", 1), ("BadNets", 13), ("BadNets", 14), ("benign", 2)]
    attacks = [node.job.attack for node in plan.nodes.values()]
    assert [attack and attack.target for attack in attacks] == [None, 3, 4, None]  # of ten classes
    alone = plan_of(attacks=[{"name": "badnets", "target": 3}], recipes=["short_1"], seeds=[13], controls=False)
    assert set(alone.nodes) <= set(plan.nodes)
    by_name = {group.name: set(make_plan(group).nodes) for group in plan.spec.groups}
    assert by_name["held"] < set(plan.nodes)


def test_disturbed_data_make_other_keys() -> None:
    kinds = [{"name": "digits", "as": kind, "disturbed": kind} for kind in DISTURBANCES]
    more = [{"name": "digits", "as": "seed 1", "disturbed": {"kind": "label_noise", "seed": 1}}]
    more += [{"name": "digits", "as": "five", "classes": 5}]
    plan = plan_of(data=["digits", *kinds, *more])
    assert len(plan.nodes) == 1 + len(kinds) + len(more)


def test_nothing_that_fits_is_refused() -> None:
    with pytest.raises(InputError, match="nothing of the spec fits together"):
        make_plan(read_spec({"data": "digits", "models": ["mlp"]}))


def test_ten_thousand_jobs_are_planned_in_two_seconds_and_200_mb() -> None:
    spec = read_spec(
        {
            "data": "digits",
            "models": {"name": "preact_resnet18", "width": 4},
            "attacks": [{"name": "badnets", "rates": [i / 1000 for i in range(1, 42)]}],
            "defenses": [{"name": "ft", "lr": i / 1000} for i in range(1, 41)],
            "seeds": [0, 1, 2],
        }
    )
    load = Loader()
    load(spec.data[0].value)
    began = time.process_time()
    plan = make_plan(spec, load=load)
    assert time.process_time() - began < 2
    assert len(plan.nodes) > 10_000
    tracemalloc.start()  # ten times slower
    try:
        part = make_plan(dataclasses.replace(spec, seeds=(0,), attacks=spec.attacks[:5]), load=load)
        assert tracemalloc.get_traced_memory()[1] * len(plan.nodes) / len(part.nodes) < 200e6
    finally:
        tracemalloc.stop()


def test_clean_rows_that_are_missing_are_refused_before_any_work(tmp_path: Path) -> None:
    spec = {"data": "digits", "attacks": ["badnets"], "defenses": ["ft"]}
    for source in (str(tmp_path / "missing"), str(tmp_path)):
        with pytest.raises(InputError, match="clean rows '20 rows of"):
            make_plan(read_spec({**spec, "clean": {"amount": 20, "source": source}}))


def test_an_attack_that_can_not_aim_where_the_seed_says_is_left_out_there() -> None:
    attack = {"name": "tact", "sources": [1], "target": "seed"}
    plan = make_plan(read_spec({"data": "digits", "attacks": [attack], "seeds": [0, 1], "controls": False}))
    assert [cell.seed for cell, _ in plan.cells] == [0]
    assert any(name.endswith("seed 1") for name in plan.refused)
