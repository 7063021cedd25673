"""Writing a layer's weight: what is written is what the layer uses; looking leaves no trace; what can't be written is named."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from theriac.core.errors import InputError, UneditableError
from theriac.models.editing import Weight, duplicate, editable

LAYERS = {
    "linear": nn.Linear(6, 4),
    "conv1d": nn.Conv1d(3, 4, 3, padding=1),
    "conv2d": nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "conv3d": nn.Conv3d(2, 3, 2),
    "batchnorm": nn.BatchNorm2d(5),
}


def inside(layer: nn.Module) -> nn.Module:
    return nn.ModuleDict({"layer": layer})


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("hooked", [False, True])
def test_what_is_written_is_what_the_layer_uses(name: str, hooked: bool):
    model = duplicate(inside(LAYERS[name]))
    if hooked:
        model["layer"].register_forward_hook(lambda *_: None)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    weight = editable(model, "layer")
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert model.training
    weight.write(torch.full_like(weight.value, 0.25))
    assert bool((model["layer"].weight == 0.25).all())
    bias = editable(model, "layer", "bias")
    bias.write(torch.zeros_like(bias.value))
    assert not bool(model["layer"].bias.any())


@pytest.mark.parametrize(
    "norm",
    [
        nn.utils.spectral_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        lambda m: prune.l1_unstructured(m, "weight", amount=0.5),
    ],
)
def test_a_refused_write_leaves_the_layer_as_it_was(norm):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = inside(norm(nn.Linear(6, 4))).train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UneditableError, match="layer 'layer' can't be edited"):
        editable(model, "layer")
    with pytest.raises(UneditableError):
        Weight(model["layer"], "layer").write(torch.ones(4, 6))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(m.training for m in model.modules())


def test_a_pruned_weight_takes_what_its_mask_lets_through():
    layer = prune.l1_unstructured(nn.Linear(6, 4), "weight", amount=0.5)
    weight = Weight(layer)
    weight.write(2 * weight.value.detach())
    torch.testing.assert_close(layer(torch.eye(6)) - layer.bias, weight.value.T)


@pytest.mark.parametrize("dim", [0, None])
def test_the_old_weight_norm_takes_rows_of_zeros(dim: int | None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        layer = nn.utils.weight_norm(nn.Linear(6, 4), dim=dim)
    new = torch.randn(4, 6)
    new[1] = 0
    Weight(layer).write(new)
    torch.testing.assert_close((layer(torch.eye(6)) - layer.bias).T, new)
    Weight(layer).write(torch.zeros(4, 6))
    assert not bool((layer(torch.eye(6)) - layer.bias).any())


def test_a_written_weight_learns_on():
    layer = parametrizations.weight_norm(nn.Linear(6, 4))
    Weight(layer).write(torch.randn(4, 6))
    Weight(layer).value.square().sum().backward()
    assert all(p.grad is not None for n, p in layer.named_parameters() if n != "bias")


@pytest.mark.parametrize(
    ("model", "name", "message"),
    [
        (inside(nn.LayerNorm(4)), "layer", "'layer' is a LayerNorm; expected"),
        (inside(nn.BatchNorm1d(4, affine=False)), "layer", "'layer' has no weight"),
        (inside(nn.Linear(4, 4)), "lyer", "did you mean 'layer'"),
        (inside(nn.Linear(4, 4, device="meta")), "layer", "'layer'.*on the device 'meta'"),
    ],
)
def test_what_can_not_be_edited_is_named(model: nn.Module, name: str, message: str):
    with pytest.raises(InputError, match=message):
        editable(model, name)


def test_an_expanded_weight_is_refused():
    model = inside(nn.Linear(6, 4))
    model["layer"].weight = nn.Parameter(torch.randn(1, 6).expand(4, 6))
    with pytest.raises(UneditableError, match=r"'layer' can't be edited: its weight is an expanded tensor"):
        editable(model, "layer")
    assert editable(duplicate(model), "layer").plain  # a copy has memory of its own


def test_a_shared_layer_is_not_a_shared_weight():
    layer = nn.Linear(4, 4)
    assert editable(nn.Sequential(layer, nn.ReLU(), layer), "0").plain
    other = nn.Linear(4, 4)
    other.weight = layer.weight
    with pytest.raises(UneditableError, match="layer '0' can't be edited: '1' shares its weight"):
        editable(nn.Sequential(layer, other), "0")


def test_results_of_a_computation_are_copied_without_touching_the_model():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 4)), nn.utils.spectral_norm(nn.Linear(4, 4)))
    model.eval()
    model(torch.eye(6))
    before = model[0].weight
    other = duplicate(model)
    assert model[0].weight is before
    assert before.grad_fn is not None
    torch.testing.assert_close(other(torch.eye(6)), model(torch.eye(6)))
    with torch.no_grad():
        other[0].weight_g.mul_(2)
    assert not torch.allclose(other(torch.eye(6)), model(torch.eye(6)))
