"""Same seed, same bits: from the poisoned rows through training to the repaired model, on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from theriac.attacks import BadNets, Blended
from theriac.core.poisoned import Poisoned
from theriac.core.run import Run
from theriac.core.split import Data
from theriac.metrics import evaluate, predict
from theriac.repairs import D3, FT, SAU
from theriac.training import Recipe, train

RECIPE = Recipe(epochs=2, batch_size=64, lr=0.1, schedule="one_cycle", drop_last=True)


def make_run(seed: int = 0, precision: str = "auto", **streams: int) -> Run:
    return Run(seed=seed, streams=streams, device="cpu", precision=precision, quiet=True)


def victim(data: Data, build, run: Run) -> tuple[nn.Module, Poisoned]:
    poisoned = BadNets().poison(data.train.sample(320), run)
    return train(build, poisoned, recipe=RECIPE, run=run), poisoned


def same(first: nn.Module, second: nn.Module) -> bool:
    other = second.state_dict()
    return all(torch.equal(v, other[k]) for k, v in first.state_dict().items())


@pytest.mark.filterwarnings("ignore:the model gets")  # two short epochs leave it at chance, which is no matter here
@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_the_whole_way_twice_is_bit_identical(digits, narrow, precision):
    results = []
    for _ in range(2):
        torch.manual_seed(len(results))  # whatever else uses torch's own generator must not matter
        run = make_run(5, precision)
        model, poisoned = victim(digits, narrow, run)
        clean = digits.train.sample(100, seed=1)
        repaired = [method.repair(model, clean, run) for method in (FT(epochs=1), D3(epochs=1), SAU(rounds=1))]
        results.append((model, *repaired, evaluate(model, digits.test, poisoned.planted, run=run)))
    assert results[0][-1] == results[1][-1]
    assert all(same(a, b) for a, b in zip(results[0][:-1], results[1][:-1], strict=True))


@pytest.mark.parametrize("stream", ["poison", "order", "augment", "init"])
def test_each_stream_changes_the_weights_and_nothing_else(digits, narrow, stream):
    base_run, other_run = make_run(precision="fp32"), make_run(precision="fp32", **{stream: 99})
    (base, poisoned), (other, changed) = victim(digits, narrow, base_run), victim(digits, narrow, other_run)
    assert not same(base, other)
    assert torch.equal(poisoned.kind, changed.kind) == (stream != "poison")
    start, moved = (narrow(digits.train, run).state_dict()["net.conv1.weight"] for run in (base_run, other_run))
    assert torch.equal(start, moved) == (stream != "init")


def test_streams_that_play_no_part_change_nothing(digits, narrow):
    base, _ = victim(digits, narrow, make_run(precision="fp32"))
    other, _ = victim(digits, narrow, make_run(precision="fp32", method=99, data=99))
    assert same(base, other)


def test_the_method_stream_changes_a_repair_that_draws(digits, trained):
    clean = digits.train.sample(100, seed=1)

    def repaired(repair, **streams: int) -> nn.Module:
        return repair.repair(trained, clean, make_run(precision="fp32", **streams))

    assert not same(repaired(D3(epochs=1)), repaired(D3(epochs=1), method=9))
    assert same(repaired(FT(epochs=1)), repaired(FT(epochs=1), method=9))  # plain fine-tuning draws nothing of its own
    assert not same(repaired(FT(epochs=1)), repaired(FT(epochs=1), order=9))


def test_another_attack_poisons_the_same_rows(digits):
    """Which rows are poisoned depends on the stream and the rate, not on the trigger: comparisons stay paired."""
    first, second = (attack.poison(digits.train, make_run()) for attack in (BadNets(), Blended()))
    assert torch.equal(first.kind, second.kind)
    assert not torch.equal(first.split.x, second.split.x)


def test_batch_size_of_an_evaluation_does_not_change_the_logits_much(digits, trained):
    whole, parts = (predict(trained, digits.test, run=make_run(precision="fp32"), batch_size=b) for b in (450, 37))
    torch.testing.assert_close(whole, parts, atol=1e-4, rtol=1e-4)
    assert torch.equal(whole.argmax(1), parts.argmax(1))
