"""A killed run goes on where it was, bit for bit, and never with a checkpoint of something else."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from theriac.attacks import BadNets, Blended
from theriac.core.card import Augment
from theriac.core.errors import InputError, UnsafeFileError
from theriac.core.run import Run
from theriac.core.split import Data
from theriac.repairs import D3, FST, FT, SAU
from theriac.training import Recipe, loop, train

RECIPE = Recipe(epochs=4, batch_size=32, lr=0.05, weight_decay=1e-3, nesterov=True, augment=Augment(crop_pad=1, flip=True))


class KilledError(Exception):
    """Stands for Ctrl-C at a bad moment."""


class Mortal(Run):
    """A run that dies when the given epoch is reported, before its checkpoint is written."""

    def __init__(self, die_at: int, **options) -> None:
        super().__init__(**options)
        self.die_at = die_at

    def event(self, name: str, **fields) -> None:
        super().event(name, **fields)
        if fields.get("epoch") == self.die_at:
            raise KilledError


@pytest.fixture(autouse=True)
def every_epoch(monkeypatch) -> None:
    monkeypatch.setattr("theriac.training.checkpoint._EVERY_S", 0.0)


def options(folder: Path | None, **more) -> dict:
    return {"folder": folder, "precision": "fp32", "device": "cpu", "quiet": True, **more}


def same(first: nn.Module, second: nn.Module) -> bool:
    other = second.state_dict()
    return all(torch.equal(v, other[k]) for k, v in first.state_dict().items())


@pytest.mark.parametrize("recipe", [RECIPE, RECIPE.replace(optimizer="adam", amsgrad=True, lr=1e-3)], ids=["sgd", "adam"])
@pytest.mark.parametrize("die_at", [1, 3, 4])
def test_training_resumes_bit_for_bit(images, narrow, tmp_path, recipe, die_at):
    split = images(rows=96)
    whole = Run(**options(None))
    expected = train(narrow, split, recipe=recipe, run=whole)
    with pytest.raises(KilledError):
        train(narrow, split, recipe=recipe, run=Mortal(die_at, **options(tmp_path)))
    assert (tmp_path / "train.checkpoint.pt").exists() == (die_at > 1)
    run = Run(**options(tmp_path))
    assert same(train(narrow, split, recipe=recipe, run=run), expected)
    events = run.history("train")
    assert [e["epoch"] for e in events] == [1, 2, 3, 4]
    assert [e["loss"] for e in events] == [e["loss"] for e in whole.history("train")]
    assert not list(tmp_path.glob("*.part"))
    told = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [e["epoch"] for e in told if e["event"] == "train"] == [1, 2, 3, 4]  # killed between event and checkpoint


def test_a_finished_run_is_not_trained_again(images, narrow, tmp_path):
    split, steps = images(rows=64), []
    first = train(narrow, split, recipe=RECIPE, run=Run(**options(tmp_path)))
    model = narrow(split, Run(**options(None)))
    again = loop(model, split, Run(**options(tmp_path)), RECIPE, after_step=steps.append)
    assert steps == []
    assert same(first, again)


@pytest.mark.parametrize(
    "method",
    [
        FT(epochs=3),
        D3(epochs=3),
        D3.corrected().replace(epochs=3),
        FST(epochs=3),
        SAU(rounds=3),
        SAU(rounds=3, start="random", norm="train"),
    ],
    ids=["ft", "d3", "d3-corrected", "fst", "sau", "sau-random"],
)
def test_repairs_resume_bit_for_bit(digits: Data, trained, tmp_path, method):
    clean = digits.train.sample(64, seed=1)
    expected = method.repair(trained, clean, Run(**options(None)))
    with pytest.raises(KilledError):
        method.repair(trained, clean, Mortal(3, **options(tmp_path)))
    run = Run(**options(tmp_path))
    assert same(method.repair(trained, clean, run), expected)
    assert [e["epoch"] for e in run.history(method.name)] == [1, 2, 3]


def test_extra_state_comes_back(images, tmp_path):
    split = images(rows=64)

    def parts(run: Run) -> tuple[nn.Module, nn.Module]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
        side = nn.Linear(1, 1)

        def note(step: int) -> None:
            with torch.no_grad():
                side.weight.fill_(step)

        loop(model, split, run, RECIPE, after_step=note, extra_state={"side": side})
        return model, side

    with pytest.raises(KilledError):
        parts(Mortal(3, **options(tmp_path)))
    weights = torch.load(tmp_path / "train.checkpoint.pt", weights_only=True)["extra"]["side"]["weight"]
    assert float(weights) == 3.0  # two epochs of two steps are done
    _, side = parts(Run(**options(tmp_path)))
    assert float(side.weight.detach()) == 7.0


@pytest.mark.parametrize("die_at", [None, 2, 3])
def test_a_loop_that_ends_early_resumes_bit_for_bit(images, narrow, tmp_path, die_at):
    """Three steps an epoch, ended after eight: killed in the second epoch, in the last and partial one, or not at all."""
    split, taken = images(rows=96), []

    def enough(number: int) -> bool:
        taken.append(number)
        return number == 7

    def go(run: Run) -> nn.Module:
        return loop(narrow(split, Run(**options(None))), split, run, RECIPE, after_step=enough)

    expected = go(Run(**options(None)))
    assert taken == list(range(8))
    if die_at is None:
        go(Run(**options(tmp_path)))
    else:
        with pytest.raises(KilledError):
            go(Mortal(die_at, **options(tmp_path)))
    taken.clear()
    run = Run(**options(tmp_path))
    assert same(go(run), expected)
    assert taken == {None: [], 2: [3, 4, 5, 6, 7], 3: [6, 7]}[die_at]
    assert [e.get("stopped") for e in run.history("train")] == [None, None, 8]


# what does not belong


def stop_after_two(images_split, build, folder, recipe=RECIPE, **more) -> None:
    with pytest.raises(KilledError):
        train(build, images_split, recipe=recipe, run=Mortal(3, **options(folder, **more)))


def test_other_rows_seed_or_recipe_are_refused(images, narrow, tmp_path):
    split = images(rows=64)
    stop_after_two(split, narrow, tmp_path)
    others = [
        (split, RECIPE.replace(lr=0.01), {}),
        (split, RECIPE, {"seed": 1}),
        (split, RECIPE, {"streams": {"order": 1}}),
        (images(rows=96), RECIPE, {}),
        (images(rows=64, seed=1), RECIPE, {}),  # as many rows, but other ones
        (split.replace(y=(split.y + 1) % 4), RECIPE, {}),
    ]
    for other, recipe, more in others:
        with pytest.raises(InputError, match=r"train\.checkpoint\.pt belongs to another configuration"):
            train(narrow, other, recipe=recipe, run=Run(**options(tmp_path, **more)))
    train(narrow, split, recipe=RECIPE, run=Run(**options(tmp_path)))


def test_another_poison_is_refused(digits: Data, narrow, tmp_path):
    """The card is the same, so are the labels; only pixels differ."""
    rows = digits.train.sample(200)
    first, second = (attack.poison(rows, Run(**options(None))) for attack in (BadNets(), Blended()))
    assert torch.equal(first.split.y, second.split.y)
    stop_after_two(first, narrow, tmp_path)
    with pytest.raises(InputError, match="another configuration"):
        train(narrow, second, recipe=RECIPE, run=Run(**options(tmp_path)))


def test_another_model_is_refused(images, tmp_path):
    split = images(rows=64)
    stop_after_two(split, nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), tmp_path)
    wider = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Linear(5, 4))
    with pytest.raises(InputError, match="another configuration"):
        train(wider, split, recipe=RECIPE, run=Run(**options(tmp_path)))


def test_another_option_or_victim_of_a_repair_is_refused(digits: Data, trained, tmp_path):
    clean = digits.train.sample(64, seed=1)
    with pytest.raises(KilledError):
        D3(epochs=3, lam=0.5).repair(trained, clean, Mortal(3, **options(tmp_path)))
    with pytest.raises(InputError, match="another configuration"):
        D3(epochs=3, lam=10.0).repair(trained, clean, Run(**options(tmp_path)))
    other = copy.deepcopy(trained)
    with torch.no_grad():
        other.net.linear.bias += 0.01
    with pytest.raises(InputError, match="another configuration"):
        D3(epochs=3, lam=0.5).repair(other, clean, Run(**options(tmp_path)))
    D3(epochs=3, lam=0.5).repair(trained, clean, Run(**options(tmp_path)))


def test_two_repairs_share_a_folder(digits: Data, trained, tmp_path):
    clean = digits.train.sample(64, seed=1)
    for method in (FT(epochs=1), D3(epochs=1), FST(epochs=1)):
        alone = method.repair(trained, clean, Run(**options(None)))
        assert same(method.repair(trained, clean, Run(**options(tmp_path))), alone)


def test_a_damaged_checkpoint_is_refused(images, narrow, tmp_path):
    split = images(rows=64)
    stop_after_two(split, narrow, tmp_path)
    path = tmp_path / "train.checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="damaged"):
        train(narrow, split, recipe=RECIPE, run=Run(**options(tmp_path)))


def test_a_hostile_checkpoint_is_not_run(images, narrow, tmp_path):
    marker = tmp_path / "was_run"

    class Payload:
        def __reduce__(self):
            return Path.touch, (marker,)

    (tmp_path / "train.checkpoint.pt").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(UnsafeFileError):
        train(narrow, images(rows=64), recipe=RECIPE, run=Run(**options(tmp_path)))
    assert not marker.exists()


def test_short_runs_write_only_at_the_end(images, narrow, tmp_path, monkeypatch):
    monkeypatch.setattr("theriac.training.checkpoint._EVERY_S", 3600.0)
    saved = []
    monkeypatch.setattr(torch, "save", lambda state, path: (saved.append(state["done"]), Path(path).touch()))
    train(narrow, images(rows=64), recipe=RECIPE, run=Run(**options(tmp_path)))
    assert saved == [4]
    train(narrow, images(rows=64), recipe=RECIPE, run=Run(**options(None)))
    assert saved == [4]


def test_a_finished_training_is_not_taken_for_another(images, tmp_path):
    """Each differs from the first in one thing that decides the result and that neither shapes, rows nor recipe show."""
    split = images(rows=64)

    def network(seed: int = 0, dropout: float = 0.1) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(64, 4))

    first = loop(network(), split, Run(**options(tmp_path)), RECIPE)
    assert same(loop(network(), split, Run(**options(tmp_path)), RECIPE), first)  # as it was: read, and not done again
    card = split.card
    others = [
        (network(seed=1), split),
        (network(dropout=0.9), split),
        (network(), split.replace(card=replace(card, augment=Augment(flip=not card.augment.flip)))),
        (network(), split.replace(card=replace(card, mean=tuple(m + 0.1 for m in card.mean)))),
    ]
    for model, rows in others:
        with pytest.raises(InputError, match="another configuration"):
            loop(model, rows, Run(**options(tmp_path)), RECIPE)
