from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import theriac as th
from theriac.bench import forecast, make_plan, read_spec
from theriac.core import method
from theriac.core.method import OWN, create, methods
from theriac.core.split import Data
from theriac.runs import Source

SPECS = Path(__file__).parents[3] / "benchmarks" / "specs"
ROWS = 2_000


def stand_in(source: Source) -> Data:
    """A few random rows in the shape of data that are not shipped, enough to plan with."""
    if source.name == "digits":
        return source.load()
    draw = np.random.default_rng(0)
    if source.name == "adult":
        x = torch.from_numpy(draw.normal(size=(ROWS, 14)).astype("float32"))
        data = th.data.from_tensors(x, torch.arange(ROWS) % 2, name="adult")
        if "sensitive" in source.options:
            data = th.data.from_tensors(x, torch.arange(ROWS) % 2, group=torch.arange(ROWS) // 2 % 2, name="adult")
        return data
    x = torch.from_numpy(draw.integers(0, 256, (ROWS, 3, 32, 32)).astype("uint8"))
    classes = {"gtsrb": 43, "tiny_imagenet50": 50}.get(source.name, 10)
    return th.data.from_tensors(x, torch.arange(ROWS) % classes, name=source.name)


def test_the_smoke_spec_is_planned(tmp_path: Path) -> None:
    plan = forecast(SPECS / "smoke.yaml", tmp_path / "none").plan
    assert plan.kinds == {"train": 3, "judge": 6, "repair": 6}
    assert not plan.refused


@pytest.mark.parametrize("path", sorted(SPECS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_spec_is_valid_and_all_of_it_fits(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny_imagenet50").mkdir()
    monkeypatch.setenv("THERIAC_DATA", str(tmp_path))  # where names that no package knows are looked for
    monkeypatch.setenv(OWN, str(SPECS.parent / "networks.py"))
    monkeypatch.setattr(method, "_LOADED", set())
    spec = read_spec(path)
    assert spec.name == path.stem
    plan = make_plan(spec, device="cpu", load=stand_in)
    assert not plan.refused
    shown = {cell.defense for cell, _ in plan.cells}
    assert {entry.label for entry in spec.defenses} <= shown
    assert {entry.label for entry in spec.attacks} <= {cell.attack for cell, _ in plan.cells}


def test_stability_is_counted_around_the_defaults_as_they_are() -> None:
    around: dict[str, list[dict[str, object]]] = {}
    for entry in read_spec(SPECS / "stability.yaml").defenses:
        around.setdefault(entry.value.name, []).append(entry.value.config())
    for name, configs in around.items():
        assert create("repair", name).config() in configs
        assert len(configs) == 3


def test_the_digits_matrix_has_every_repair_on_pictures_but_those_that_it_names() -> None:
    path = SPECS / "digits_repairs.yaml"
    absent = {"age", "auto", "btidbf", "npd"}
    assert {entry.value.name for entry in read_spec(path).defenses} == set(methods("repair")) - absent
    (line,) = (line for line in path.read_text().splitlines() if "Repairs left out" in line)
    assert all(methods("repair")[name].title.split()[0] in line for name in absent)


def test_the_zoo_has_every_attack_on_pictures_but_those_that_it_names() -> None:
    path = SPECS / "zoo.yaml"
    absent = {"group_trojan", "tabular_blend", "tabular_value"}
    assert {entry.value.name for entry in read_spec(path).attacks} == set(methods("attack")) - absent
    (line,) = (line for line in path.read_text().splitlines() if "Attacks left out" in line)
    assert all(methods("attack")[name].title.split()[0] in line for name in absent)


def test_the_population_has_fitted_and_fresh_networks_of_both_kinds() -> None:
    spec = read_spec(SPECS / "population.yaml")
    counts = Counter[tuple[str, bool]]()
    for group in spec.groups:
        models = len(group.data) * len(group.models) * len(group.recipes) * len(group.seeds)
        counts[group.name, bool(group.attacks)] += models * max(1, len(group.attacks))
    assert {name for name, _ in counts} == {"fit", "held", "fresh", "beyond"}
    assert min(count for (name, _), count in counts.items() if name != "beyond") > 20
    assert all(entry.by_seed for entry in spec.attacks if "all-to-all" not in entry.label)


@pytest.mark.parametrize("path", sorted(SPECS.glob("first_edition/*.yaml")), ids=lambda path: path.stem)
def test_every_spec_of_the_first_edition_is_valid_and_has_what_its_table_names(path: Path) -> None:
    spec = read_spec(path)
    assert spec.name == f"first_{path.stem}"
    table = SPECS.parent / "results" / f"{path.stem}.jsonl"
    records = [json.loads(line) for line in table.read_text().splitlines()] if table.exists() else []
    methods_of = {record["repair"]["method"] for record in records if record.get("repair")}
    assert methods_of <= {entry.value.name for entry in spec.defenses}
