"""What surrounds a call changes no result: gradients off, threads, wide numbers, slips of the keyboard."""

from __future__ import annotations

import copy
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import theriac as th
from theriac.core.errors import InputError
from theriac.core.planted import Planted
from theriac.core.run import Run
from theriac.core.split import Data
from theriac.models import Builder


@pytest.mark.parametrize("attack", [th.attacks.LabelConsistent(), th.attacks.TrojanNN(), th.attacks.LF(steps=5, passes=2)])
def test_a_fitted_attack_is_the_same_where_gradients_are_off(attack: th.attacks.Attack, digits: Data, narrow: Builder) -> None:
    rows, other = digits.train.sample(120), Run(device="cpu", precision="fp32", quiet=True, seed=5)
    with torch.inference_mode():
        planted = attack.plant(rows, narrow, Run(device="cpu", precision="fp32", quiet=True))
    assert planted == attack.plant(rows, narrow, Run(device="cpu", precision="fp32", quiet=True))
    assert planted != attack.plant(rows, narrow, other)


@pytest.mark.parametrize("attack", [th.attacks.InputAware(), th.attacks.LIRA()])
def test_an_attack_that_trains_does_so_where_gradients_are_off(
    attack: th.attacks.Attack, digits: Data, narrow: Builder
) -> None:
    rows = digits.train.sample(120)
    with torch.inference_mode():
        victim = attack.train(narrow, rows, recipe="short_1", run=Run(device="cpu", precision="fp32", quiet=True))
    again = attack.train(narrow, rows, recipe="short_1", run=Run(device="cpu", precision="fp32", quiet=True))
    assert victim.planted == again.planted
    assert all(torch.equal(p, q) for p, q in zip(victim.model.parameters(), again.model.parameters(), strict=True))


def test_threads_change_no_result_and_leave_nothing(digits: Data, narrow: Builder, trained: nn.Module) -> None:
    rows, shown = digits.train.sample(400), warnings.showwarning

    def work(seed: int) -> dict[str, torch.Tensor]:
        run = Run(seed=seed, device="cpu", precision="fp32", quiet=True)
        fresh = th.train(narrow, rows, recipe="short_1", run=run).state_dict()
        fixed = th.repairs.FT(epochs=1, lr=0.001).repair(trained, rows, run).state_dict()
        return {**{f"fresh.{name}": value for name, value in fresh.items()}, **fixed}

    alone = [work(seed) for seed in range(3)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(work, [0, 1, 2] * 3))
    for i, state in enumerate(together):
        assert all(torch.equal(state[name], alone[i % 3][name]) for name in state)
    assert warnings.showwarning is shown


def test_planted_triggers_are_equal_where_they_stamp_alike(digits: Data) -> None:
    first, again = (th.attacks.WaNet().plant(digits.train, run=Run(device="cpu", quiet=True)) for _ in range(2))
    assert first == again
    assert hash(first) == hash(again)
    assert first != Planted(first.attack, first.card, {name: value + 1 for name, value in first.state.items()})
    assert first != Planted(first.attack, first.card, {})
    assert first != "a trigger"
    assert len({first, again, th.attacks.BadNets().plant(digits.train)}) == 2


def test_a_planted_trigger_checks_labels_before_it_uses_them(digits: Data) -> None:
    planted = th.attacks.BadNets().plant(digits.train)
    for call in (planted.target, planted.population, planted.cross_population):
        with pytest.raises(InputError, match=r"y is \[1, 2\]; expected a Tensor"):
            call([1, 2])  # type: ignore[operator]


def test_a_model_of_wide_numbers_is_counted_and_called_so(digits: Data, trained: nn.Module) -> None:
    wide, run = copy.deepcopy(trained).double(), Run(device="cpu", quiet=True)
    assert run.precision_of(wide) == "fp64"
    counted = th.evaluate(wide, digits.test, run=run)
    assert counted.precision == "fp64"
    assert counted.acc.hits == th.evaluate(trained, digits.test, run=Run(device="cpu", precision="fp32", quiet=True)).acc.hits


def test_a_misspelled_option_of_a_constructor_has_the_nearest_ones() -> None:
    with pytest.raises(InputError, match="unknown option of BadNets 'poison_rat'; did you mean 'poison_rate'"):
        th.attacks.BadNets(poison_rat=0.1)  # type: ignore[call-arg]
    with pytest.raises(InputError, match="unknown option of FT 'epoch'; did you mean 'epochs'"):
        th.repairs.FT().replace(epoch=1)
