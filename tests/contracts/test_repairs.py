"""What every registered repair promises. A new repair is tested here as soon as it is registered."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from theriac.attacks import BadNets, Victim
from theriac.core.card import Card
from theriac.core.errors import InputError, UnfairPairingError
from theriac.core.method import methods
from theriac.core.run import Run
from theriac.core.split import Data, Split
from theriac.metrics import evaluate, predict
from theriac.models import adapt, load_model, save
from theriac.models.network import Classifier
from theriac.repairs import Repair

sys.path.insert(0, str(Path(__file__).parent))
from short_repairs import AUTO

REPAIRS = methods("repair")
# as little work as possible; a new repair gets one round of whatever it counts
QUICK: dict[str, dict[str, object]] = {
    "ft": {"epochs": 1},
    "antidote": {"epochs": 2, "steps": 2},
    "auto": AUTO,
    "d3": {"epochs": 1},
    "fst": {"epochs": 1},
    "sau": {"rounds": 1},
    # by default it abstains on the benign fixture; this way it edits
    "anp": {"iterations": 20, "batch_size": 20, "threshold": 0.99},  # so few leave masks near one; this way something is pruned
    "fp": {"epochs": 1, "share": 0.2},
    "nad": {"teacher_epochs": 1, "epochs": 1},
    "btidbf": {"rounds": 1, "mask_epochs": 1, "generator_epochs": 1, "epochs": 1, "width": 2, "batch_size": 60},
    "npd": {"warm_epochs": 0, "epochs": 1, "batch_size": 60},
    "rnp": {"unlearn_epochs": 1, "recover_epochs": 4, "batch_size": 30, "threshold": 0.99},
    "ibau": {"rounds": 1, "batch_size": 60},
    "clp": {"u": 1.0},  # the fixture's layers are too narrow for the default to find an outlier
    "age": {"knowledge": "target", "target": 0, "retrain": "head", "per_class": 2, "epochs": 1},
}
LONG = ("epochs", "rounds", "iterations", "steps")


def quick(name: str) -> Repair:
    cls = REPAIRS[name]
    known = QUICK.get(name)
    if known is None:
        fields = {f.name: f.default for f in dataclasses.fields(cls)}
        known = {n: min(v, 2) or 2 for n, v in fields.items() if n.endswith(LONG) and type(v) is int}
    return cls.from_config(known)


def make_run(seed: int = 0, **options: object) -> Run:
    return Run(seed=seed, device="cpu", precision="fp32", quiet=True, **options)


@pytest.fixture(scope="module")
def clean(digits: Data) -> Split:
    return digits.train.sample(120, seed=3, stratified=True)


@pytest.fixture(scope="module", params=sorted(REPAIRS))
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def done(name: str, trained: nn.Module, clean: Split) -> tuple[nn.Module, Run]:
    run = make_run()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a method may say that so short a repair did little
        return quick(name).repair(trained, clean, run), run


@pytest.fixture
def repaired(done: tuple[nn.Module, Run]) -> nn.Module:
    return done[0]


@pytest.fixture
def calm() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def same(first: nn.Module, second: nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


def test_there_are_repairs():
    assert {"ft", "d3", "fst", "sau"} <= REPAIRS.keys()


def owed(fixed: nn.Module, given: nn.Module, run: Run) -> bool:
    """What every repair owes and no more: the model is changed, or the outcome says why it is not."""
    assert run.outcome is not None
    if run.outcome.status == "repaired":
        return not same(fixed, given)
    return bool(run.outcome.reason) and same(fixed, given)


def test_needs_are_those_of_a_finished_model(name):
    needs = REPAIRS[name].needs
    assert not needs.training_control
    assert not needs.rows
    assert needs.takes("clean_rows") == (0 < needs.usual_clean_share <= 1)
    assert needs.labels or not needs.clean_rows


@pytest.mark.usefixtures("calm")
def test_clean_rows_are_asked_for_only_where_needed(name, trained):
    method = quick(name)
    if method.wants("clean_rows"):
        with pytest.raises(UnfairPairingError, match="clean is missing"):
            method.repair(trained, None, make_run())
    else:
        run = make_run()
        assert owed(method.repair(trained, None, run), trained, run)


@pytest.mark.usefixtures("calm")
def test_the_given_model_is_not_changed(name, trained, clean):
    before = state(trained)
    trained.train()  # the mode is the caller's, too
    try:
        quick(name).repair(trained, clean, make_run())
        assert all(m.training for m in trained.modules())
    finally:
        trained.eval()
    assert all(torch.equal(v, before[k]) for k, v in trained.state_dict().items())
    assert all(p.grad is None for p in trained.parameters())


@pytest.mark.usefixtures("calm")
def test_the_clean_rows_are_not_changed(name, trained, clean):
    before = clean.content_hash()
    quick(name).repair(trained, clean, make_run())
    assert clean.content_hash() == before


def test_it_returns_a_copy_of_the_same_class_in_eval_mode_changed_or_with_the_reason_why_not(done, trained):
    repaired, run = done
    assert type(repaired) is type(trained)
    assert repaired is not trained
    assert not any(m.training for m in repaired.modules())
    assert owed(repaired, trained, run)
    json.dumps(run.outcome.to_dict(), allow_nan=False)
    assert all(p.grad is None for p in repaired.parameters())
    assert all(torch.isfinite(v).all() for v in repaired.state_dict().values() if v.is_floating_point())


def test_one_seed_repeats(name, repaired, trained, clean, calm):
    assert same(quick(name).repair(trained, clean, make_run()), repaired)


def test_what_is_scored_is_what_is_saved(repaired, digits, tmp_path):
    save(repaired, tmp_path)
    again = load_model(tmp_path)
    before, after = (predict(m, digits.test, run=make_run()) for m in (repaired, again))
    assert torch.equal(before, after)
    attack = BadNets()
    assert evaluate(again, digits.test, attack, run=make_run()) == evaluate(repaired, digits.test, attack, run=make_run())


def test_it_says_what_it_did(name, trained, clean, calm):
    run = make_run()
    quick(name).repair(trained, clean, run)
    (event,) = run.history("repaired")
    assert (event["method"], event["rows"]) == (name, 120 if REPAIRS[name].needs.takes("clean_rows") else 0)
    assert event["outcome"] == run.outcome.to_dict()
    assert event["seconds"] > 0


def test_a_victim_may_be_handed_in(name, repaired, trained, clean, calm):
    victim = Victim(trained, BadNets().plant(clean))
    assert same(quick(name).repair(victim, clean, make_run()), repaired)


def test_the_user_s_own_class_comes_back(name, clean, calm):
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
            self.head = nn.Linear(8 * 36, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mine = Mine()
    wrapped = Classifier(mine, nn.Identity(), clean.card, {})
    fixed = quick(name).repair(wrapped, clean, make_run())
    assert type(fixed.net) is Mine
    bare = quick(name).repair(mine, clean, make_run())  # no wrapper, no card
    assert type(bare) is Mine
    assert same(bare, fixed.net)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_another_precision_comes_back_and_is_repaired_in_a_wide_one(name, dtype, trained, clean, calm):
    given = adapt(copy.deepcopy(trained.net).to(dtype), mean=clean.card.mean, std=clean.card.std, card=clean.card)
    fixed = quick(name).repair(given, clean, make_run())
    kinds = {p.dtype for p in fixed.parameters()}
    assert kinds == {dtype}
    if dtype != torch.float64:  # as if it had been float32 all along, then rounded
        wide = adapt(copy.deepcopy(given.net).float(), mean=clean.card.mean, std=clean.card.std, card=clean.card)
        again = quick(name).repair(wide, clean, make_run())
        assert all(torch.equal(a, b.to(dtype)) for a, b in zip(fixed.parameters(), again.parameters(), strict=True))


def test_dropout_repeats_and_leaves_torch_s_generator_alone(name, clean, calm):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(288, 10))
    before = torch.get_rng_state()
    first = quick(name).repair(net, clean, make_run())
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        assert same(quick(name).repair(net, clean, make_run()), first)


# bad input


def test_poisoned_rows_are_refused(name, trained, digits):
    with pytest.raises(InputError, match="Poisoned"):
        quick(name).repair(trained, BadNets().poison(digits.train, make_run()), make_run())


@pytest.mark.parametrize("rows", [[1, 2], "digits"])
def test_anything_else_than_rows_is_refused(name, trained, rows):
    with pytest.raises(InputError, match="clean"):
        quick(name).repair(trained, rows, make_run())


@pytest.mark.parametrize("model", [None, "model", {"weights": 1}])
def test_anything_else_than_a_model_is_refused(name, clean, model):
    with pytest.raises(InputError, match="model is a"):
        quick(name).repair(model, clean, make_run())


def test_a_model_of_other_classes_is_refused(name, trained, clean):
    more = Split(clean.x, clean.y, card=clean.card.replace(classes=(*clean.card.classes, "ten")))
    with pytest.raises(InputError, match=r"the model has 10 classes; 'digits' has 11 \(0, 1"):
        quick(name).repair(trained, more, make_run())


def test_rows_of_another_shape_are_refused(name, trained, images):
    card = Card(name="colour", classes=tuple("0123456789"), size=(8, 8), channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    colour = images(rows=60, channels=3)
    with pytest.raises(InputError, match=r"can't take|mean"):
        quick(name).repair(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), Split(colour.x, colour.y, card=card), make_run())


@pytest.mark.parametrize("spoil", [float("nan"), float("inf")])
def test_a_broken_model_is_refused(name, trained, clean, spoil):
    broken = copy.deepcopy(trained)
    with torch.no_grad():
        broken.net.linear.bias[0] = spoil
    with pytest.raises(InputError, match="NaN or infinite"):
        quick(name).repair(broken, clean, make_run())


def test_a_model_in_another_precision_is_refused(name, trained, clean):
    with pytest.raises(InputError, match=r"can't take torch\.float32"):
        quick(name).repair(copy.deepcopy(trained).half(), clean, make_run())


def test_wrong_wrapping_warns(name, trained, clean):
    """A model whose classes are in another order is at chance: nearly always a mistake in how it was wrapped."""

    class Shifted(nn.Module):
        def __init__(self, inner: nn.Module, card: Card) -> None:
            super().__init__()
            self.inner, self.card = inner, card

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x).roll(1, 1)

    with pytest.warns(UserWarning) as caught:  # noqa: PT030 (a method may add a warning of its own)
        quick(name).repair(Shifted(copy.deepcopy(trained), clean.card), clean, make_run())
    assert any("no better than guessing" in str(w.message) for w in caught)


def test_a_fitting_model_is_not_called_wrong(name, trained, clean):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quick(name).repair(trained, clean, make_run())
    assert not any("no better than guessing" in str(w.message) for w in caught)


def test_frozen_weights_are_told(name, trained, clean, calm):
    part = copy.deepcopy(trained)
    part.requires_grad_(False)
    part.net.linear.requires_grad_(True)
    with pytest.warns(UserWarning, match=r"parameters do not require gradients"):
        quick(name).repair(part, clean, make_run())


def test_a_convolution_may_make_the_logits(name, clean, calm):
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.last = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), nn.Conv2d(8, 10, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.body(x)).mean((2, 3))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mine = Mine()
    run = make_run()
    assert owed(quick(name).repair(mine, clean, run), mine, run)
