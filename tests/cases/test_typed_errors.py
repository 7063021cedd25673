"""Whatever wrong thing is handed to a public function, class or method: an InputError that names it, never a traceback."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import theriac as th
from theriac.cli.main import app
from theriac.core.errors import InputError, TheriacError
from theriac.core.files import write_json
from theriac.core.method import KINDS, methods
from theriac.core.ranges import check_fields
from theriac.core.run import Run
from theriac.detectors.neural_cleanse import Schedule
from theriac.training import Recipe
from theriac.training.epochs import loop

WRONG: dict[str, Any] = {
    "None": None,
    "3": 3,
    "-1": -1,
    "2.5": 2.5,
    "nan": math.nan,
    "inf": math.inf,
    "text": "x",
    "empty text": "",
    "[]": [],
    "{}": {},
    "object": object(),
    "True": True,
    "[None]": [None],
    "huge": 10**30,
    "bytes": b"x",
    "surrogate": "\ud800",
    "tensor": torch.zeros(3),
    "function": lambda *_: None,
}

CLASSES = [c for kind in KINDS for c in methods(kind).values()]


def escapes(call: Callable[..., Any], good: dict[str, Any], *, but: tuple[str, ...] = ()) -> list[str]:
    """Each argument in turn is replaced by each wrong thing; what does not end well."""
    found = []
    for name in good:
        for word, wrong in WRONG.items():
            if f"{name}={word}" in but:
                continue
            try:
                call(**{**good, name: wrong})
            except TheriacError:
                pass
            except Exception as error:
                found.append(f"{name}={word}: {type(error).__name__}: {error}")
    return found


@pytest.fixture(scope="module")
def split() -> th.Split:
    draw = torch.Generator().manual_seed(0)
    return th.Split(torch.randint(0, 256, (12, 1, 8, 8), generator=draw, dtype=torch.uint8), torch.arange(12) % 3)


@pytest.fixture(scope="module")
def net(split: th.Split) -> nn.Module:
    made = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    return th.adapt(made, card=split.card)


QUIET = Run(device="cpu", precision="fp32", quiet=True)


def calls(split: th.Split, net: nn.Module, folder: str) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Public functions with arguments that fit."""
    attack = th.attacks.BadNets()
    planted, result = attack.plant(split), th.evaluate(net, split, run=QUIET)
    repair, one = th.repairs.FT(epochs=1, batch_size=6).repair, torch.tensor([0])
    grouped = split.replace(group=split.index % 2)
    return {
        "Run": (Run, {"seed": 0, "streams": {}, "device": "cpu", "precision": "fp32", "folder": None, "quiet": True}),
        "Split": (th.Split, {"x": split.x, "y": split.y, "group": None, "index": None, "card": split.card, "overlay": None}),
        "take": (split.take, {"positions": one}),
        "where": (split.where, {"mask": split.y > 0}),
        "sample": (split.sample, {"rows_or_share": 3, "seed": 0, "stratified": False}),
        "cut": (split.cut, {"rows_or_share": 3, "seed": 0, "stratified": False}),
        "to": (split.to, {"device": "cpu"}),
        "rows": (split.rows, {"positions": one}),
        "batches": (lambda size: list(split.batches(size)), {"size": 4}),
        "replace": (split.replace, {"y": None, "group": None, "card": None}),
        "with_overlay": (split.with_overlay, {"positions": one, "rows": split.x[:1], "y": split.y}),
        "Data": (th.Data, {"train": split, "test": split, "val": None}),
        "Card": (th.Card, dict(vars(split.card))),
        "Column": (th.Column, {"name": "a", "kind": "numeric", "categories": (), "unit": ""}),
        "Augment": (th.Augment, dict(vars(th.Augment()))),
        "Recipe": (Recipe, dict(vars(Recipe(epochs=1)))),
        "Schedule": (Schedule, dict(vars(Schedule()))),
        "Poisoned": (
            th.Poisoned,
            {"split": split, "kind": torch.zeros(12, dtype=torch.uint8), "y_true": split.y, "planted": planted},
        ),
        "Builder": (lambda name, options: th.Builder(name, options)(split, QUIET), {"name": "wrn_16_1", "options": {}}),
        "build": (th.build, {"name": "wrn_16_1", "split": split, "run": QUIET}),
        "adapt": (
            lambda model, **more: th.adapt(model, **more),
            {
                "model": nn.Sequential(nn.Flatten(), nn.Linear(64, 3)),
                "mean": None,
                "std": None,
                "size": 8,
                "logits": None,
                "card": None,
                "classes": 3,
                "channels": 1,
                "prepare": None,
            },
        ),
        "load": (th.load, {"source": "digits", "label": None, "sensitive": None, "size": None, "augment": None, "drop": None}),
        "from_tensors": (
            th.data.from_tensors,
            {"x": split.x, "y": split.y, "classes": None, "groups": None, "columns": None, "augment": None, "seed": 0},
        ),
        "load_model": (th.load_model, {"folder": folder, "into": None}),
        "load_weights": (th.load_weights, {"model": net, "source": folder}),
        "save": (th.save, {"model": net, "folder": folder}),
        "save_planted": (th.attacks.save_planted, {"planted": planted, "folder": folder}),
        "compare": (th.compare, {"before": result, "after": result}),
        "evaluate": (th.evaluate, {"model": net, "split": split, "attack": None, "run": QUIET, "batch_size": 6}),
        "fairness": (th.fairness, {"model": net, "split": grouped, "positive": 1, "run": QUIET, "batch_size": 6}),
        "predict": (th.metrics.predict, {"model": net, "split": split, "run": QUIET, "batch_size": 6}),
        "attack_labels": (th.metrics.attack_labels, {"planted": planted, "y": split.y, "index": split.index}),
        "der": (th.metrics.der, {"acc_before": 1, "acc_after": 1, "asr_before": 1, "asr_after": 0}),
        "recipe": (th.recipe, {"name": "short_8"}),
        "plant": (attack.plant, {"split": split, "run": QUIET}),
        "poison": (attack.poison, {"split": split, "run": QUIET}),
        "stamp": (planted.stamp, {"x": split.x, "y": split.y, "index": split.index, "phase": "test"}),
        "success_by_target": (th.metrics.success_by_target, {"model": net, "split": split, "attack": attack, "run": QUIET}),
        "repair": (repair, {"model": net, "clean": split, "run": QUIET, "trigger": None, "target": None}),
        "with_trigger": (th.repairs.AGE().with_trigger, {"trigger": attack, "target": None}),
        "classifier": (th.models.classifier, {"model": net, "layer": None}),
        "to_input": (th.models.to_input, {"rows": split.x}),
        "align": (th.data.align, {"split": split, "card": split.card, "whose": "the model"}),
        "split_off": (th.data.split_off, {"split": split, "share": 0.3, "seed": 0}),
        "tar": (th.debias.tar, {"counts": torch.tensor([[5, 6], [7, 8]]), "rule": "closed", "strength": 1.0}),
    }


NAMES = [
    *("Run", "Split", "take", "where", "sample", "cut", "to", "rows", "batches", "replace", "with_overlay", "Data", "Card"),
    *("Column", "Augment", "Recipe", "Schedule", "Poisoned", "Builder", "build", "adapt", "load", "from_tensors"),
    *(
        "load_model",
        "load_weights",
        "save",
        "save_planted",
        "compare",
        "evaluate",
        "fairness",
        "predict",
        "attack_labels",
        "der",
    ),
    *("recipe", "plant", "poison", "stamp", "success_by_target", "repair", "with_trigger", "classifier", "to_input"),
    *("align", "split_off", "tar"),
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_wrong_things_are_refused_by_name(name, split, net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # "x" is a folder there, to those that write
    call, good = calls(split, net, str(tmp_path / "run"))[name]
    assert escapes(call, good) == []


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: f"{c.kind}-{c.name}")
def test_options_of_every_method(cls):
    good = {f.name: getattr(cls(), f.name) for f in dataclasses.fields(cls)}
    assert escapes(cls, good) == []
    for name in good:
        for wrong in (object(), b"x", lambda: None, math.nan, [object()]):
            with pytest.raises(InputError, match=name):
                cls(**{name: wrong})


@pytest.mark.parametrize("cls", [*CLASSES, Recipe, Schedule], ids=lambda c: c.__name__)
def test_numbers_out_of_their_range(cls):
    needed = {"epochs": 1} if cls is Recipe else {}
    for field in dataclasses.fields(cls):
        value = getattr(cls(**needed), field.name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        for wrong in (math.nan, math.inf, -math.inf, True, str(value)):
            with pytest.raises(InputError, match=field.name):
                cls(**{**needed, field.name: wrong})
        zero = (cls.__name__, field.name) in {
            ("SSBA", "epochs"),
            ("FinePruning", "epochs"),
            ("Schedule", "batch_size"),
            ("NeuralCleanse", "rounds"),
        }  # no training; all rows
        if field.name in ("lr", "epochs", "batch_size", "rounds") and not zero:
            for wrong in (0, -1):
                with pytest.raises(InputError, match=rf"{field.name} is {wrong}; expected"):
                    cls(**{**needed, field.name: wrong})


def test_the_same_check_from_plain_data():
    for make in (lambda: th.repairs.SAU(clean=-5), lambda: th.repairs.SAU.from_config({"clean": -5})):
        with pytest.raises(InputError, match="clean is -5; expected a number of at least 0"):
            make()


def test_what_is_benign_passes():
    assert th.repairs.FT(lr=1, epochs=np.int64(3)) == th.repairs.FT(lr=1.0, epochs=3)
    assert th.attacks.MultiTarget(goals=[0, 4]) == th.attacks.MultiTarget(goals=(0, 4))
    assert hash(th.attacks.MultiTarget(goals=[0, 4])) == hash(th.attacks.MultiTarget(goals=(0, 4)))
    assert th.repairs.AGE().with_trigger(lambda x: x).knowledge == "known"


def test_positions_may_be_a_list(split):
    assert split.take([2, 0]).index.tolist() == [2, 0]
    with pytest.raises(InputError, match="rows 0 to 11"):
        split.take([12])


def test_an_unknown_layer_is_refused_before_the_first_stage(split, monkeypatch):
    def never(*_: object, **__: object) -> None:
        pytest.fail("stage 1 began")

    monkeypatch.setattr(th.training_defenses.CBD, "_stage1", never)
    with pytest.raises(InputError, match="nosuch"):
        th.training_defenses.CBD(layer="nosuch").fit("wrn_16_1", split, QUIET)


VERBS: dict[str, Callable[[th.Split, nn.Module, Any], Any]] = {
    "train": lambda split, net, run: th.train("wrn_16_1", split, run=run),
    "fit": lambda split, net, run: th.training_defenses.CBD().fit("wrn_16_1", split, run),
    "loop": lambda split, net, run: loop(net, split, run, Recipe(epochs=1)),
    "invert": lambda split, net, run: th.detectors.neural_cleanse.invert(net, split, run),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("run", [3, "cpu", object()], ids=["number", "text", "object"])
def test_a_run_that_is_none(verb, run, split, net):
    with pytest.raises(InputError, match="run is"):
        VERBS[verb](split, net, run)


@pytest.mark.parametrize("recipe", [8, None, "fast", 10**5000, "x" * 10**6], ids=["8", "None", "fast", "huge", "long"])
def test_a_recipe_that_is_none(recipe, split):
    with pytest.raises(InputError, match=r"recipe|name") as caught:
        th.train("wrn_16_1", split, recipe=recipe, run=QUIET)
    assert len(str(caught.value)) < 400


def test_a_check_is_cheap():
    import timeit

    for record in (th.repairs.AGE(), th.training_defenses.CBD(), Recipe(epochs=1)):
        best = min(timeit.repeat(lambda r=record: check_fields(r), number=100, repeat=5)) / 100
        assert best < 2e-3  # 20 µs where nothing else runs


def test_signatures_are_still_readable():
    assert list(inspect.signature(th.evaluate).parameters) == ["model", "split", "attack", "run", "batch_size"]
    with pytest.raises(TypeError, match="unexpected keyword"):
        th.evaluate(nothing=1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("typed") / "run"
    th.save(th.build("wrn_16_1", th.load("digits").train), folder)
    return str(folder)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--label", ""], "label is ''"),
        (["--model", ""], "names its own architecture"),
        (["--width", "0"], "names its own architecture"),
        (["--attack", ""], "unknown attack ''"),
        (["--data-option", "x" * 5000], "expected KEY=VALUE"),
        (["--attack-option", f"{'x' * 5000}=nan"], "expected a finite number"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_an_option_that_says_nothing_is_no_missing_option(words, told, saved):
    found = CliRunner().invoke(app, ["eval", saved, "--data", "digits", *words])
    assert found.exit_code == 2
    assert told in found.stderr
    assert len(found.stderr) < 700


def test_a_device_is_written_to_and_never_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # a reader before there is a writer
    try:
        write_json(pipe, {"acc": 1})
        assert json.loads(os.read(reader, 1000)) == {"acc": 1}
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.mark.parametrize("positive", ["x" * 5000, "9" * 5000, 10**5000, "", -1, True, 2.0], ids=lambda v: str(type(v).__name__))
def test_a_positive_class_that_is_none(positive):
    with pytest.raises(InputError, match="positive is") as caught:
        th.fairness([0, 1, 0, 1], [0, 1, 1, 0], sensitive_features=["f", "f", "m", "m"], positive=positive)
    assert len(str(caught.value)) < 300


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_first_stage_of_cbd_runs_once(split, monkeypatch):
    runs = []
    stage1 = th.training_defenses.CBD._stage1
    monkeypatch.setattr(th.training_defenses.CBD, "_stage1", lambda *a: (runs.append(1), stage1(*a))[1])
    th.training_defenses.CBD(epochs=1, stage1_steps=1, batch_size=6).fit("wrn_16_1", split, QUIET)
    assert runs == [1]
