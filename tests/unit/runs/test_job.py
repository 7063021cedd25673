"""Jobs and their keys: equal keys for equal work, and another key for whatever changes a result."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import theriac as th
from theriac.attacks import BadNets, Blended, SamFlat
from theriac.core.card import Card, Column
from theriac.core.errors import InputError
from theriac.repairs import CLP, FT
from theriac.runs import Clean, Job, Source, data_key, key
from theriac.runs.job import later_versions
from theriac.runs.source import clean_rows

DIGITS = Source.of("digits")
ROWS = "0" * 64


def key_of(job: Job) -> str:
    return key(job, ROWS, "torch.float32")


def victim(**changes: Any) -> Job:
    return Job(**{"data": DIGITS, "recipe": th.recipe("short_1"), "attack": BadNets(), **changes})


def repair(**changes: Any) -> Job:
    return Job(**{"data": DIGITS, "defense": FT(), "clean": Clean(amount=100), "victim": victim(), **changes})


def test_equal_jobs_have_equal_keys() -> None:
    assert key_of(victim()) == key_of(victim())
    assert key_of(repair()) == key_of(repair())
    assert len(key_of(victim())) == 64


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"attack": BadNets(poison_rate=0.2)},
        {"attack": None},
        {"recipe": th.recipe("short_2")},
        {"model": "vgg19_bn"},
        {"model": th.Builder("preact_resnet18", {"width": 8})},
    ],
)
def test_every_part_of_a_training_changes_its_key(change: dict[str, Any]) -> None:
    assert key_of(victim(**change)) != key_of(victim())


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"defense": FT(lr=0.5)},
        {"clean": Clean(amount=101)},
        {"clean": Clean(amount=100, stratified=True)},
        {"clean": Clean(amount=100, seed=0)},
        {"victim": victim(seed=1)},
        {"victim": victim(attack=Blended())},
        {"judge": Blended()},
    ],
)
def test_every_part_of_a_repair_changes_its_key_the_victim_s_too(change: dict[str, Any]) -> None:
    assert key_of(repair(**change)) != key_of(repair())


def test_networks_of_ones_own_have_a_key_by_what_they_hold() -> None:
    """Other starting weights, another layer option, another width: each is another job; an equal copy is the same."""

    def network(seed: int = 0, dropout: float = 0.1, width: int = 16) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            body = [nn.Flatten(), nn.Linear(64, width), nn.Dropout(dropout), nn.Linear(width, 10)]
        return th.adapt(nn.Sequential(*body), card=th.load("digits").card)

    first = key_of(victim(model=network()))
    assert key_of(victim(model=network())) == first
    others = {key_of(victim(model=m)) for m in (network(seed=1), network(dropout=0.9), network(width=32))}
    assert len(others | {first}) == 4


def test_functions_that_build_have_a_key_by_what_they_were_given() -> None:
    def maker(width: int) -> Any:
        return lambda split, run: nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, 10))

    def sized(split: Any, run: Any, width: int) -> nn.Module:
        return maker(width)(split, run)

    builds = [maker(4), maker(8), functools.partial(sized, width=4), functools.partial(sized, width=8), lambda split, run: None]
    assert len({key_of(victim(model=build)) for build in builds}) == 5
    assert key_of(victim(model=maker(4))) == key_of(victim(model=maker(4)))
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
    assert key_of(victim(model=lazy)) == key_of(victim(model=nn.Sequential(nn.Flatten(), nn.LazyLinear(10))))


def test_rows_and_precision_are_part_of_a_key() -> None:
    assert key(victim(), "1" * 64, "torch.float32") != key_of(victim())
    assert key(victim(), ROWS, "torch.bfloat16") != key_of(victim())


def test_a_new_version_changes_the_keys_of_its_own_results_only(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = victim(attack=SamFlat(attack="badnets"))
    jobs = {
        "own": victim(),
        "repaired": repair(),
        "inside": flat,
        "other": victim(attack=Blended()),
        "none": victim(attack=None),
    }
    before = {name: key_of(job) for name, job in jobs.items()}
    assert later_versions(flat.attack) == {}
    monkeypatch.setattr(BadNets, "version", 2)
    changed = {name for name, job in jobs.items() if key_of(job) != before[name]}
    assert changed == {"own", "repaired", "inside"}
    assert later_versions(flat.attack, None, FT()) == {"badnets": 2}


def test_a_method_in_a_field_counts_as_inside() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Twice(FT):
        first: FT = FT(epochs=1)  # noqa: RUF009 - frozen

    assert Twice().inside() == (FT(epochs=1),)
    assert FT().inside() == ()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"defense": FT(), "clean": Clean(amount=10)}, "victim is missing"),
        ({"victim": Job(data=DIGITS)}, "only a repair is given a model"),
        ({"seed": -1}, "seed"),
        ({"precision": "fp8"}, "precision"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Job(data=DIGITS, **parts)


@pytest.mark.parametrize("options", [{"amount": 0}, {"amount": 1.5}, {"amount": True}, {"seed": -1}, {"stratified": 2}])
def test_an_amount_of_clean_rows_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        Clean(**options)


@pytest.mark.parametrize(
    ("rows", "classes", "drawn"),
    [(1000, 2, 50), (500, 2, 40), (60, 2, 30), (400, 10, 200), (300, 10, 150)],
)
def test_clean_rows_of_no_named_number_are_a_share_or_twenty_a_class(rows: int, classes: int, drawn: int) -> None:
    """5 % where that is more; never over half of the model's own rows, but all of others."""
    split = th.Split(torch.rand(rows, 3), torch.arange(rows) % classes, card=th.load("digits").card.replace(**_table(classes)))
    data = th.Data(split, split, val=split)
    run = th.Run(quiet=True)
    assert len(clean_rows(data, DIGITS, Clean(amount=None), run)) == drawn
    assert len(clean_rows(data, DIGITS, Clean(amount=None, source="val"), run)) == max(rows // 20, min(20 * classes, rows))


def _table(classes: int) -> dict[str, Any]:
    columns = tuple(Column(name=f"f{k}") for k in range(3))
    return {"kind": "table", "classes": tuple(map(str, range(classes))), "columns": columns, "channels": 0, "size": (0, 0)}


def test_a_job_without_clean_rows_is_one_of_a_method_that_needs_none() -> None:
    assert key_of(repair(defense=CLP(), clean=None)) != key_of(repair(defense=CLP()))


def test_the_content_of_a_file_that_an_option_names_is_part_of_the_key(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    keys = []
    for level in (0, 255):
        Image.fromarray(np.full((3, 3), level, np.uint8)).save(picture)
        attack = BadNets(file=str(picture))
        keys.append((key_of(victim(attack=attack)), key_of(repair(judge=attack))))
    assert keys[0][0] != keys[1][0]
    assert keys[0][1] != keys[1][1]
    Image.fromarray(np.full((3, 3), 0, np.uint8)).save(picture)
    assert key_of(victim(attack=BadNets(file=str(picture)))) == keys[0][0]


def test_the_content_of_clean_rows_is_part_of_the_key(tmp_path: Path) -> None:
    rows = th.load("digits").train.sample(20)
    keys = []
    for shift in (0, 1):
        np.savez(tmp_path / "clean.npz", x=rows.x.permute(0, 2, 3, 1).numpy(), y=((rows.y + shift) % 10).numpy())
        keys.append(key_of(repair(clean=Clean(amount=10, source=str(tmp_path / "clean.npz")))))
    assert keys[0] != keys[1]
    folder = tmp_path / "train"  # a folder of this name is not the training rows
    folder.mkdir()
    assert key_of(repair(clean=Clean(amount=10, source="train"))) == key_of(repair(clean=Clean(amount=10)))


def test_what_columns_classes_and_groups_mean_is_part_of_the_key() -> None:
    x, y = torch.arange(12.0).view(6, 2) % 3, torch.tensor([0, 1] * 3)
    split = th.Split(x, y, group=y)
    card = split.card

    def of(card: Card) -> str:
        rows = split.replace(card=card)
        return data_key(th.Data(rows, rows))

    first, *others = card.columns
    kinds = card.replace(columns=(dataclasses.replace(first, kind="categorical", categories=("a", "b", "c")), *others))
    named = kinds.replace(columns=(dataclasses.replace(kinds.columns[0], categories=("a", "c", "b")), *others))
    keys = {of(card), of(kinds), of(named), of(card.replace(classes=("no", "yes"))), of(card.replace(groups=("f", "m")))}
    assert len(keys) == 5
    assert of(card) == of(card)
    held = split.take(torch.tensor([0, 1]))
    assert data_key(th.Data(split, split, val=held)) != data_key(th.Data(split, split))
