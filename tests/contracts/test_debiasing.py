"""What every registered debiasing method promises. A new one is tested here as soon as it is registered."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from theriac.attacks import BadNets
from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.method import methods
from theriac.core.run import Run
from theriac.core.split import Data, Split
from theriac.debias import Debiasing
from theriac.metrics import Fairness, evaluate, fairness
from theriac.models import Builder, GroupAware, load_model, save
from theriac.training import Recipe
from theriac.triggers.bank import TriggerColumns

DEBIASING = methods("debiasing")
LONG = ("epochs", "steps", "iterations", "rounds")
NET = Builder("mlp", {"hidden": (8,)})


def variants() -> list[tuple[str, str]]:
    return [(name, preset) for name, cls in DEBIASING.items() for preset in cls.presets()]


def quick(name: str, preset: str) -> Debiasing:
    made = getattr(DEBIASING[name], preset)()
    short = {f.name: min(getattr(made, f.name), 2) for f in dataclasses.fields(made) if f.name.endswith(LONG)}
    return made.replace(**short, batch_size=64)


def make_run(seed: int = 0, **options: object) -> Run:
    return Run(seed=seed, device="cpu", precision="fp32", quiet=True, **options)


def table(rows: int = 200, classes: int = 2, groups: int = 2) -> Split:
    draw = torch.Generator().manual_seed(5)
    y = torch.randint(0, classes, (rows,), generator=draw)
    group = torch.where(torch.rand(rows, generator=draw) < 0.6, y % groups, torch.randint(0, groups, (rows,), generator=draw))
    return Split(torch.randn(rows, 3, generator=draw) + y[:, None], y, group=group)


@pytest.fixture(scope="module")
def images(digits: Data) -> Split:
    rows = digits.train.sample(128, seed=3)
    card = Card(classes=("even", "odd"), groups=("a", "b"), size=(8, 8), channels=1, mean=(0.3,), std=(0.4,))
    return Split(rows.x, rows.y % 2, group=(rows.y // 2) % 2, card=card)


@pytest.fixture(params=variants(), ids=lambda v: "-".join(v))
def method(request) -> Debiasing:
    return quick(*request.param)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_it_declares_what_it_needs(method):
    assert method.needs.training_control
    assert method.needs.groups
    assert not method.needs.clean_rows
    assert method.demands.group_at_inference == method.group_at_inference
    assert isinstance(method.recipe(1000), Recipe)


def test_tables(method):
    rows, run = table(), make_run()
    before = (rows.x.clone(), rows.y.clone(), rows.group.clone())
    model = method.fit(NET, rows, run)
    assert all(torch.equal(a, b) for a, b in zip(before, (rows.x, rows.y, rows.group), strict=True))
    assert not model.training
    assert isinstance(model, GroupAware) == method.group_at_inference
    told = (rows.x, rows.group) if method.group_at_inference else (rows.x,)
    assert model(*told).shape == (200, 2)
    assert isinstance(fairness(model, rows, run=run), Fairness)
    (told_event,) = run.history("debiased")
    assert told_event["method"] == method.name
    assert told_event["rows"] == 200
    epochs = [e for e in run.events if "epoch" in e]
    assert epochs
    assert all(math.isfinite(e["loss"]) for e in epochs)
    # the same seed, the same model; another seed, another
    again, other = method.fit(NET, rows, make_run()), method.fit(NET, rows, make_run(1))
    assert same(state(model), state(again))
    assert not same(state(model), state(other))


def test_images_and_saving(method, images, tmp_path):
    run = make_run()
    model = method.fit(Builder("preact_resnet18", {"width": 2}), images, run)
    if method.group_at_inference:
        with pytest.raises(InputError, match="needs the sensitive group"):
            evaluate(model, images, run=run)
        return
    evaluate(model, images, run=run)
    save(model, tmp_path / "kept")
    loaded = load_model(tmp_path / "kept")
    x = images.x.float() / 255
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


def test_a_module_of_the_user_is_copied(method, images):
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x)

    own = Own()
    before = state(own)
    model = method.fit(own, images, make_run())
    assert same(state(own), before)
    inner = model.model if isinstance(model, GroupAware) else model
    assert isinstance(inner, Own)
    assert not same(state(inner), before)


def test_what_it_can_not_work_with_is_refused(method, images):
    rows = table()
    run = make_run()
    with pytest.raises(InputError, match=r"split\.group is None"):
        method.fit(NET, Split(rows.x, rows.y), run)
    with pytest.raises(InputError, match="one group only"):
        method.fit(NET, Split(rows.x, rows.y, group=torch.zeros(200, dtype=torch.int64)), run)
    kept = (rows.group != 1) | (rows.y != 0)
    with pytest.raises(InputError, match="no training row has group '1' and label '0'"):
        method.fit(NET, rows.where(kept), run)
    with pytest.raises(InputError, match="Poisoned"):
        method.fit(NET, BadNets().poison(images), run)
    with pytest.raises(InputError, match="whole Data"):
        method.fit(NET, Data(rows, rows), run)
    with pytest.raises(InputError, match="expected a Split"):
        method.fit(NET, rows.x, run)
    with pytest.raises(InputError, match="architecture"):
        method.fit("no_such_net", rows, run)


def test_three_groups_and_classes_work_or_are_refused_at_once(method):
    rows, run = table(300, 3, 3), make_run()
    if getattr(method, "rule", "multi") == "multi":
        assert len(fairness(method.fit(NET, rows, run), rows, run=run).cells) == 9
        return
    with pytest.raises(InputError, match="two groups and two classes"):
        method.fit(NET, rows, run)
    assert not run.events


def test_plain_rows_are_all_that_a_table_model_asks_for(method):
    rows = table()
    model = method.fit(NET, rows, make_run())
    inner = model.model if isinstance(model, GroupAware) else model
    assert inner(rows.x).shape == (200, 2)
    if isinstance(inner, TriggerColumns):
        zeros = torch.cat([rows.x, torch.zeros(200, len(inner.bank))], 1)
        assert torch.equal(inner(rows.x), inner(zeros))
