"""The memory format of convolutions: fast where it is safe, contiguous where torch corrupts its heap."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import theriac as th
from theriac.models.layout import arrange, choose

CPU, CARD = torch.device("cpu"), torch.device("cuda")


def network(*channels: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(channels)))


@pytest.mark.parametrize("channels", [(3, 4), (3, 7, 16), (3, 16, 4, 16)])
def test_a_narrow_convolution_stays_contiguous_on_a_cpu(channels: tuple[int, ...]):
    layout, reason = choose(network(*channels), CPU)
    assert layout == torch.contiguous_format
    assert str(min(channels[1:])) in reason


@pytest.mark.parametrize("channels", [(3, 8), (1, 16, 16), (3, 64, 8)])
def test_channels_of_the_picture_itself_do_not_count(channels: tuple[int, ...]):
    assert choose(network(*channels), CPU)[0] == torch.channels_last


def test_a_graphics_card_takes_channels_last_at_any_width():
    assert choose(network(3, 4, 4), CARD)[0] == torch.channels_last


def test_a_network_without_convolutions_is_contiguous():
    assert choose(nn.Linear(4, 2), CPU) == (torch.contiguous_format, "contiguous: no convolution")


def test_weights_of_five_dimensions_are_contiguous():
    assert choose(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv3d(8, 8, 1)), CPU)[0] == torch.contiguous_format


def test_a_model_that_comes_in_channels_last_is_made_safe_and_the_run_says_why(run: th.Run):
    model = network(3, 4, 4).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    before = [p.detach().clone() for p in model.parameters()]
    arrange(model, run)
    assert all(p.is_contiguous() for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert "4 channels" in run.layout_reason


def test_training_says_in_which_format_it_ran(digits: th.Data, run: th.Run):
    th.train(th.Builder("preact_resnet18", {"width": 4}), digits.train.sample(64), recipe="short_1", run=run)
    assert run.layout_reason.startswith("contiguous")
