"""How many rows go through a network at once, and that this changes no figure."""

from __future__ import annotations

import copy

import pytest
import torch

import theriac as th
from theriac.models import batch_rows, run_over
from theriac.models.layout import arrange


@pytest.mark.parametrize(("side", "rows"), [(8, 512), (28, 83), (32, 64), (64, 16), (224, 16)])
def test_larger_images_come_in_smaller_batches_on_a_cpu(side, rows):
    split = th.Split(torch.zeros(2, 3, side, side, dtype=torch.uint8), torch.arange(2))
    assert batch_rows(split) == rows


def test_a_table_comes_in_large_batches():
    assert batch_rows(th.Split(torch.zeros(2, 5), torch.arange(2))) == 512


def test_the_batch_changes_no_figure(run):
    draw = torch.Generator().manual_seed(0)
    split = th.Split(torch.randint(0, 256, (150, 3, 32, 32), generator=draw, dtype=torch.uint8), torch.arange(150) % 3)
    model = th.build("preact_resnet18", split, run, width=8)
    attack = th.attacks.BadNets(target=1)
    assert th.evaluate(model, split, attack, run=run) == th.evaluate(model, split, attack, run=run, batch_size=150)
    small, large = run_over(model, split, run=run), run_over(model, split, run=run, batch_size=150)
    torch.testing.assert_close(small, large, rtol=1e-5, atol=1e-5)


def test_a_model_from_a_file_is_evaluated_as_it_was_trained_and_stays_as_it_is(run):
    draw = torch.Generator().manual_seed(0)
    split = th.Split(torch.randint(0, 256, (40, 3, 32, 32), generator=draw, dtype=torch.uint8), torch.arange(40) % 3)
    trained = arrange(th.build("preact_resnet18", split, run, width=8), run).eval()
    loaded = copy.deepcopy(trained).to(memory_format=torch.contiguous_format)
    places = {name: weight.data_ptr() for name, weight in loaded.named_parameters()}
    assert torch.equal(run_over(loaded, split, run=run), run_over(trained, split, run=run))
    th.evaluate(loaded, split, run=run)
    assert {name: weight.data_ptr() for name, weight in loaded.named_parameters()} == places
    assert all(weight.is_contiguous() for weight in loaded.parameters())
