"""CLP against singular values from numpy, planted channels, and networks that mislead a pairing by module order."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from theriac.core.errors import InputError, UnfairPairingError
from theriac.repairs import CLP
from theriac.repairs.clp import lipschitz

CHANNELS = 16


class Block(nn.Module):
    """conv1 -> bn1 -> relu -> conv2 -> bn2, plus a shortcut; then bn3 on the sum. Module order puts the shortcut before bn1."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, CHANNELS, 3, padding=1)
        self.shortcut = nn.Conv2d(1, CHANNELS, 1)
        self.bn1 = nn.BatchNorm2d(CHANNELS)
        self.relu = nn.ReLU(inplace=inplace)
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(CHANNELS)
        self.bn3 = nn.BatchNorm2d(CHANNELS)
        self.head = nn.Linear(CHANNELS, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.head(self.bn3(out + self.shortcut(x)).relu().mean((2, 3)))


@pytest.fixture
def block() -> Block:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Block()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 1.5)
                nn.init.uniform_(module.weight, 0.8, 1.2)
                nn.init.uniform_(module.bias, -1, 1)
    return net.eval()


@pytest.fixture
def rows(images):
    return images(rows=8)


def test_bounds_equal_numpy_s_largest_singular_values(block):
    seen = lipschitz(block.conv2.weight, block.bn2, eps=block.bn2.eps)
    for k in range(CHANNELS):
        matrix = block.conv2.weight[k].detach().double().numpy().reshape(CHANNELS, 9)
        scale = abs(float(block.bn2.weight[k].detach())) / np.sqrt(float(block.bn2.running_var[k]) + block.bn2.eps)
        assert float(seen[k]) == pytest.approx(np.linalg.svd(matrix, compute_uv=False)[0] * scale, rel=1e-6)


def test_a_linear_layer_is_bounded_by_the_norm_of_its_row():
    layer, norm = nn.Linear(5, 3), nn.BatchNorm1d(3)
    assert torch.allclose(lipschitz(layer.weight, norm, eps=0.0), layer.weight.detach().double().norm(dim=1))


@pytest.mark.parametrize("layer", ["bn1", "bn2"])
def test_a_planted_channel_is_pruned_and_nothing_else(block, rows, layer, run):
    with torch.no_grad():
        getattr(block, layer).weight[5] *= 50
    before = copy.deepcopy(block.state_dict())
    fixed = CLP().repair(block, rows, run)
    assert run.outcome is not None
    assert run.outcome.status == "repaired"
    assert run.outcome.figures["pruned"] == {layer: [5]}
    for name, value in fixed.state_dict().items():
        wanted = before[name].clone()
        if name in (f"{layer}.weight", f"{layer}.bias"):
            wanted[5] = 0
        assert torch.equal(value, wanted), name


def test_batchnorm_behind_a_sum_is_left_out_and_named(block, rows, run):
    with torch.no_grad():
        block.bn3.weight[5] *= 50
    CLP().repair(block, rows, run)
    assert run.outcome is not None
    assert run.outcome.status == "unchanged"
    assert list(run.outcome.figures["left_out"]) == ["bn3"]
    assert "2 layers" in run.outcome.reason


def test_the_release_pairs_by_module_order(block, rows, run):
    with torch.no_grad():
        block.shortcut.weight[3] *= 1000  # it feeds no BatchNorm alone, and stands before bn1 in module order
    CLP().repair(block, rows, run)
    assert run.outcome is not None
    assert run.outcome.figures["pruned"] == {}
    CLP.official().repair(block, rows, run)
    assert run.outcome.figures["pruned"] == {"bn1": [3]}


def test_a_relu_in_place_between_the_two_is_seen(rows, run):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm1 = nn.Conv2d(1, CHANNELS, 3), nn.BatchNorm2d(CHANNELS)
            self.conv, self.relu, self.norm = nn.Conv2d(CHANNELS, CHANNELS, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(CHANNELS)
            self.head = nn.Linear(CHANNELS, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.relu(self.conv(self.norm1(self.first(x))))).mean((2, 3)))

    CLP(u=0.1).repair(Net(), rows, run)
    assert run.outcome is not None
    assert list(run.outcome.figures["left_out"]) == ["norm"]


def test_eps_counts_only_in_the_corrected_form(block, rows, run):
    with torch.no_grad():
        block.bn1.running_var[7] = 1e-6  # as of a channel that is nearly dead
        block.bn1.weight[7] = 0.003  # with eps 1e-5 its scale is about one, without it three
    CLP().repair(block, rows, run)
    assert run.outcome is not None
    assert run.outcome.figures["pruned"] == {}
    CLP(eps=False).repair(block, rows, run)
    assert run.outcome.figures["pruned"] == {"bn1": [7]}


def test_no_rows_are_needed_where_the_model_carries_a_card(trained, run):
    fixed = CLP(u=1.0).repair(trained, run=run)
    assert run.outcome is not None
    assert run.outcome.status == "repaired"
    told = run.outcome.figures
    # every first BatchNorm of a block but the very first one is behind a sum
    assert sorted(told["left_out"]) == [f"net.layer{k}.{b}.bn1" for k in (1, 2, 3, 4) for b in (0, 1) if (k, b) != (1, 0)]
    assert told["channels"] == sum(len(v) for v in told["pruned"].values()) > 0
    for name, channels in told["pruned"].items():
        assert not fixed.get_submodule(name).weight[channels].any()


def test_narrow_layers_are_counted_in_the_reason(trained, run):
    CLP(u=5.4).repair(trained, run=run)  # of 32 channels, the most here, one is so far out only if no other differs at all
    assert run.outcome is not None
    assert run.outcome.status == "unchanged"
    assert "too narrow" in run.outcome.reason  # of 4, 8 and 16 channels none can be


def test_networks_without_batchnorm_are_refused(rows, run):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(InputError, match="no BatchNorm"):
        CLP().repair(net, rows, run)
    normed = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 4))
    with pytest.raises(InputError, match=r"could be judged.*1: it does not take"):
        CLP().repair(normed, rows, run)


def test_a_bare_module_without_rows_is_told_what_is_missing(block, run):
    with pytest.raises(InputError, match="carries no card"):
        CLP().repair(block, run=run)


def test_a_trigger_is_not_for_it(block, rows, run):
    with pytest.raises(UnfairPairingError, match="does not know it"):
        CLP().repair(block, rows, run, target=0)
