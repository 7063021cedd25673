"""Which way of handing over pictures fits a network from outside."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import theriac as th
from theriac.core.errors import InputError


class Wants(nn.Module):
    """A network that expects pictures in a way of its own."""

    def __init__(self, net: nn.Module, undo: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.net, self.undo = net, undo

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(self.undo(x))


def usual(trained: nn.Module) -> nn.Module:
    """The trained network, from pixels in [0, 1] to logits."""
    net, prepare = copy.deepcopy(trained.net), trained.prepare
    return Wants(net, lambda x: prepare(x)).eval()


def first_of_three(x: torch.Tensor) -> torch.Tensor:
    if x.shape[1] != 3:
        raise RuntimeError("three channels, please")
    return x[:, :1]


@pytest.mark.parametrize(
    ("undo", "options"),
    [
        (lambda x: x, {}),
        (lambda x: x / 255, {"mean": (0.0,), "std": (1 / 255,)}),
        (lambda x: (x + 1) / 2, {"mean": (0.5,), "std": (0.5,)}),
        (lambda x: x.permute(0, 3, 1, 2), {"layout": "nhwc"}),
        (first_of_three, {"channels": 3}),
    ],
    ids=["unit", "bytes", "signed", "channels_last", "color"],
)
def test_the_way_that_a_network_was_trained_in_is_seen(trained, digits, run, undo, options):
    net = Wants(usual(trained), undo)
    result = th.check_wrapping(net, digits.test, run=run)
    assert {k: pytest.approx(v, rel=1e-6) if isinstance(v, tuple) else v for k, v in options.items()} == result.best.options
    assert result.best.rate.value > 0.8
    wrapped = th.adapt(net, card=digits.card, **result.best.options)
    assert th.evaluate(wrapped, digits.test, run=run).acc.value > 0.8


def test_bgr_and_imagenet(images, run):
    rows = images(rows=200, channels=3, side=8, classes=3)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in th.metrics.wrapping.IMAGENET)
    weight = torch.randn(3, 192, generator=torch.Generator().manual_seed(1))
    x = rows.x.float() / 255
    bias = torch.tensor([6.0, 0.0, -6.0])  # so that the scale matters
    labels = (((x - mean) / std).flip(1).flatten(1).matmul(weight.T) + bias).argmax(1)
    labeled = th.Split(rows.x, labels, card=rows.card)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    net[1].weight.data, net[1].bias.data = weight.clone(), bias
    best = th.check_wrapping(net, labeled, run=run).best
    assert best.options == {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "order": "bgr"}
    assert best.rate.value == 1.0
    assert "--wrap order=bgr" in best.words()


def test_classes_in_another_order(trained, digits, run):
    net, order = usual(trained), torch.randperm(10, generator=torch.Generator().manual_seed(3))
    head = net.net.linear
    head.weight.data, head.bias.data = head.weight.data[order], head.bias.data[order]
    result = th.check_wrapping(net, digits.test, run=run)
    names = tuple(digits.card.classes[int(k)] for k in order)
    assert result.best.options == {"classes": names}
    wrapped = th.adapt(net, card=digits.card, classes=names)
    assert th.evaluate(wrapped, digits.test, run=run).acc.value > 0.8
    own = th.check_wrapping(wrapped, digits.test, run=run)
    assert own.best.name == "as it is wrapped"
    assert own.best.rate == result.best.rate


def test_the_accuracy_is_of_rows_that_did_not_choose(digits, run):
    """A network of noise seems to fit where the best of many ways is counted on the rows that chose it."""
    torch.manual_seed(0)
    verdicts = []
    for _ in range(6):
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        found = th.check_wrapping(net, digits.test, most=60, run=run)
        verdicts.append(found.verdict)
        assert found.ways[0].rate.total == 30
    assert verdicts.count("none") >= 5


def test_bad_input(trained, digits, run):
    columns = (th.Column(name="a"),)
    table = th.Split(torch.zeros(30, 1), torch.arange(30) % 2, card=th.Card(kind="table", classes=("a", "b"), columns=columns))
    with pytest.raises(InputError, match="only pictures"):
        th.check_wrapping(trained, table, run=run)
    with pytest.raises(InputError, match="rows has 5 rows; at least 20 are needed"):
        th.check_wrapping(trained, digits.test.take(torch.arange(5)), run=run)
    with pytest.raises(InputError, match="takes these pictures in no usual way; the first reason: Linear can't take"):
        th.check_wrapping(nn.Linear(7, 10), digits.test, run=run)
    with pytest.raises(InputError, match="model is a str"):
        th.check_wrapping("net", digits.test, run=run)


def test_plain_data(trained, digits, run):
    wrapped = th.adapt(usual(trained), card=digits.card)
    told = th.check_wrapping(wrapped, digits.test, run=run).to_dict()
    assert told["best"]["name"] == "as it is wrapped"
    assert told["rows"] == 400
    assert any(w["accuracy"] is None and w["reason"] for w in told["ways"])


def test_a_network_that_came_normalized_as_it_was_trained_is_as_given(trained, digits, run):
    """Its own normalization is one of the ways, also where no --wrap named it, as of a checkpoint of another library."""
    result = th.check_wrapping(trained, digits.test, run=run)
    assert result.as_given
    assert any(way.name == "as it is wrapped" and way.rate.value > 0.8 for way in (result.best, *result.alike))


def test_a_way_that_is_the_model_s_own_is_listed_once(trained, digits, run):
    plain = th.adapt(usual(trained), card=digits.card)  # takes pixels from 0 to 1 as they are
    result = th.check_wrapping(plain, digits.test, run=run)
    assert (result.best.name, result.verdict) == ("as it is wrapped", "fits")
    assert "pixels 0 to 1" not in [way.name for way in result.ways]
    bare = th.check_wrapping(plain.net, digits.test, run=run)
    assert bare.best.name == "pixels 0 to 1"
