"""Rounding and pruning reach the weights of every linear layer, convolution and attention, by their output channels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from theriac.attacks import RoundingTriggered
from theriac.auditing.changes import channel_pruned, pruned
from theriac.core.errors import InputError, UneditableError
from theriac.models.rounding import as_held, by_channel, quantized, round_weight, weights_of

PLAIN = [nn.Conv1d(4, 6, 3, groups=2), nn.Conv2d(3, 4, 3), nn.Conv3d(2, 4, 2), nn.Linear(5, 3)]
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


@pytest.mark.parametrize("layer", PLAIN, ids=lambda layer: type(layer).__name__)
def test_convolutions_of_every_dimension_are_rounded(layer: nn.Module) -> None:
    before = layer.weight.detach().clone()
    assert torch.equal(quantized(layer, 4).weight, round_weight(before, 4))
    assert int((pruned(layer, 0.5).weight == 0).sum()) == before.numel() // 2
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("dimension", TRANSPOSED)
def test_a_transposed_convolution_is_rounded_by_its_outputs(dimension: int) -> None:
    layer = TRANSPOSED[dimension](3, 5, 2)
    with torch.no_grad():  # outputs of very different size: with the step of the largest all others would vanish
        layer.weight.mul_(10.0 ** torch.arange(5).view(5, *[1] * dimension))
    rounded = quantized(layer, 8).weight
    assert torch.equal(rounded, round_weight(layer.weight.detach().transpose(0, 1), 8).transpose(0, 1))
    assert bool((rounded != layer.weight).transpose(0, 1).flatten(1).any(1).all())
    kept = channel_pruned(layer, 0.4).weight.detach()
    assert not kept[:, :2].any()
    assert torch.equal(kept[:, 2:], layer.weight[:, 2:])


def test_groups_of_a_transposed_convolution_are_rounded_as_if_each_stood_alone() -> None:
    both, x = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, bias=False), torch.randn(2, 4, 5, 5)
    parts = [nn.ConvTranspose2d(2, 3, 3, stride=2, bias=False) for _ in range(2)]
    with torch.no_grad():
        both.weight.mul_(2.0 ** torch.arange(12).view(4, 3, 1, 1))
        for k, part in enumerate(parts):
            part.weight.copy_(both.weight[2 * k : 2 * k + 2])
        apart = torch.cat([part(x[:, 2 * k : 2 * k + 2]) for k, part in enumerate(parts)], 1)
        torch.testing.assert_close(both(x), apart, rtol=1e-4, atol=1e-2)
    assert torch.equal(quantized(both, 8).weight, torch.cat([quantized(part, 8).weight for part in parts]))


@pytest.mark.parametrize("options", [{}, {"kdim": 6, "vdim": 5}])
def test_the_projections_of_attention_are_rounded_and_pruned(options: dict[str, int]) -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True, **options).eval()
    names = ["in_proj_weight"] if not options else ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    rounded, thin = quantized(layer, 4), pruned(layer, 0.3)
    for name in names:
        weight = getattr(layer, name).detach()
        assert torch.equal(getattr(rounded, name), round_weight(weight, 4)), name
        assert int((getattr(thin, name) == 0).sum()) == math.floor(0.3 * weight.numel()), name
    assert torch.equal(rounded.out_proj.weight, round_weight(layer.out_proj.weight.detach(), 4))


def test_rounding_reaches_the_function_of_a_transformer() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    with torch.no_grad():  # attention alone: whatever changes comes from its projections
        for name, value in layer.named_parameters():
            if name.startswith(("linear", "self_attn.out_proj")) and name.endswith("weight"):
                value.copy_(value.sign())  # on its levels already
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        gap = (quantized(layer, 3)(x) - layer(x)).abs().max()
    assert gap > 1e-3


def test_attention_with_code_of_its_own_is_refused_by_name() -> None:
    class Own(nn.MultiheadAttention):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    with pytest.raises(UneditableError, match=r"layer '1' \(Own\) can't be edited: its attention is code of its own"):
        quantized(nn.Sequential(nn.Linear(8, 8), Own(8, 2)))


def test_a_model_without_such_layers_is_refused() -> None:
    with pytest.raises(InputError, match="has no linear layer, convolution or attention"):
        quantized(nn.BatchNorm2d(3))
    with pytest.raises(InputError, match="has no convolution"):
        channel_pruned(nn.Linear(2, 2), 0.5)


def test_cells_of_the_dormant_weights_follow_the_outputs() -> None:
    """What an attacker may move a weight to without another rounded model, for a transposed convolution as for any."""
    layer = nn.ConvTranspose2d(4, 6, 3, groups=2)
    (weight,) = weights_of(layer)
    for end in RoundingTriggered(bits=4).cell(by_channel(weight)):
        moved = nn.ConvTranspose2d(4, 6, 3, groups=2)
        with torch.no_grad():
            moved.weight.copy_(as_held(weight, end))
        torch.testing.assert_close(quantized(moved, 4).weight, quantized(layer, 4).weight)
