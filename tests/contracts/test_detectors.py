"""What every registered detector owes, and no more. A new detector is tested here as soon as it is registered."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from theriac.attacks import BadNets, Victim
from theriac.core.errors import InputError, UnfairPairingError
from theriac.core.method import methods
from theriac.core.outcome import Finding
from theriac.core.run import Run
from theriac.core.split import Data, Split
from theriac.detectors import Detector

DETECTORS = methods("detector")
LONG = ("epochs", "steps", "rounds", "iterations")  # what a new detector counts is cut to two
WORDS = {"model": "model", "rows": "rows", "clean_rows": "clean"}


def quick(name: str) -> Detector:
    cls = DETECTORS[name]
    counted = {f.name: 2 for f in dataclasses.fields(cls) if f.name.endswith(LONG) and f.type in ("int", "Count", "Whole")}
    return cls.from_config(counted)


def make_run(seed: int = 0) -> Run:
    return Run(seed=seed, device="cpu", precision="fp32", quiet=True)


@pytest.fixture(params=sorted(DETECTORS))
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def clean(digits: Data) -> Split:
    return digits.train.sample(60, seed=3, stratified=True)


@pytest.fixture
def things(name: str, trained: nn.Module, clean: Split) -> dict[str, Any]:
    """What the detector needs, and nothing else."""
    every = {"model": trained, "rows": clean, "clean": clean}
    return {word: every[word] for need, word in WORDS.items() if getattr(DETECTORS[name].needs, need)}


@pytest.fixture(autouse=True)
def calm() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a detector may say that so little work shows little
        yield


def alike(first: object, second: object) -> bool:
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return isinstance(second, dict) and first.keys() == second.keys() and all(alike(v, second[k]) for k, v in first.items())
    if isinstance(first, float) and math.isnan(first):
        return isinstance(second, float) and math.isnan(second)
    return first == second


def test_its_needs_name_something_to_look_at(name):
    needs = DETECTORS[name].needs
    assert needs.model or needs.rows
    assert not any((needs.training_control, needs.trigger, needs.target))


def test_the_finding_is_well_formed(name, things, clean):
    run = make_run()
    finding = quick(name).detect(**things, run=run)
    assert isinstance(finding, Finding)
    assert finding.reason
    assert finding.origin
    json.dumps(finding.to_dict(), allow_nan=False)
    scored = [s for s in (finding.classes, finding.rows) if s is not None]
    assert all(s.isfinite().all() for s in scored)
    if finding.classes is not None:
        assert len(finding.classes) == clean.num_classes
    if finding.rows is not None:
        assert len(finding.rows) == len(clean)
    if finding.flagged:
        flagged = torch.tensor(finding.flagged)
        about = scored[-1]  # rows where there are scores of rows
        assert len(flagged.unique()) == len(flagged)
        assert flagged.min() >= 0
        assert flagged.max() < len(about)
        assert (about[flagged].diff() <= 0).all()  # strongest first
        assert finding.verdict in ("suspicious", "backdoored")
    else:
        assert finding.verdict in ("clean", "abstains", "suspicious", "backdoored")
    (event,) = run.history("detected")
    assert event["method"] == name
    assert event["verdict"] == finding.verdict


def test_one_seed_repeats(name, things):
    first, second = (quick(name).detect(**things, run=make_run()) for _ in range(2))
    assert alike(dataclasses.asdict(first), dataclasses.asdict(second))


def test_nothing_that_comes_in_is_changed(name, things, clean):
    if "model" in things:
        things["model"] = model = copy.deepcopy(things["model"])
        model.train()
        model.net.layer1.eval()  # as a user may have frozen it
        model.net.linear.requires_grad_(False)
        before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
        wants = [p.requires_grad for p in model.parameters()]
    held, drawn = clean.content_hash(), torch.get_rng_state()
    quick(name).detect(**things, run=make_run())
    assert clean.content_hash() == held
    assert torch.equal(torch.get_rng_state(), drawn)
    if "model" in things:
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert [m.training for m in model.modules()] == modes
        assert [p.requires_grad for p in model.parameters()] == wants
        assert all(p.grad is None for p in model.parameters())


def test_what_it_needs_and_does_not_get_is_named(name, things):
    for word in things:
        with pytest.raises(UnfairPairingError, match=f"{word} is missing"):
            quick(name).detect(**{**things, word: None}, run=make_run())


def test_what_its_needs_do_not_name_is_refused(name, things, trained, clean):
    every = {"model": trained, "rows": clean, "clean": clean}
    for need, word in WORDS.items():
        if not DETECTORS[name].needs.takes(need):
            with pytest.raises(UnfairPairingError, match=f"{word} is given"):
                quick(name).detect(**{**things, word: every[word]}, run=make_run())


def test_poisoned_sets_and_other_things_are_refused(name, things, digits):
    poisoned = BadNets().poison(digits.train, make_run())
    for word in things:
        wrong = [poisoned, [1, 2]] if word != "model" else ["model", {"weights": 1}]
        for value in wrong:
            with pytest.raises(InputError, match=rf"{word} is a"):
                quick(name).detect(**{**things, word: value}, run=make_run())


def test_a_victim_may_be_handed_in(name, things, clean):
    if "model" not in things:
        return
    bare = quick(name).detect(**things, run=make_run())
    things["model"] = Victim(things["model"], BadNets().plant(clean))
    assert alike(dataclasses.asdict(quick(name).detect(**things, run=make_run())), dataclasses.asdict(bare))


def test_a_model_that_does_not_fit_is_refused(name, things):
    if "model" not in things:
        return
    broken = copy.deepcopy(things["model"])
    with torch.no_grad():
        broken.net.linear.bias[0] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        quick(name).detect(**{**things, "model": broken}, run=make_run())
    if len(things) > 1:  # there are rows to compare with
        with pytest.raises(InputError, match="expected"):
            quick(name).detect(**{**things, "model": nn.Sequential(nn.Flatten(), nn.Linear(64, 3))}, run=make_run())
