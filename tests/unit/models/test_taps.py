"""Which layer is taken for the classifier, and that looking for it leaves no trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import theriac as th
from theriac.core.errors import InputError
from theriac.models import build, classifier, features, to_input

X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Maxout(nn.Module):
    """Its last linear layer has 20 outputs for 10 classes; a squeeze layer inside has linear parts too."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Linear(64, 64)
        self.last = nn.Linear(64, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        return self.last(x * self.squeeze(x).sigmoid()).view(-1, 10, 2).amax(2).log_softmax(1)


class ConvHead(nn.Module):
    """Convolutions to the end, as in NiN: its one linear layer is not the head."""

    def __init__(self, squeeze: bool) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 6, 3)
        self.squeeze = nn.Linear(6, 6) if squeeze else None
        self.head = nn.Conv2d(6, 10, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.body(x))
        if self.squeeze is not None:
            h = h * self.squeeze(h.mean((2, 3))).sigmoid()[:, :, None, None]
        return self.head(h).mean((2, 3))


class Twice(nn.Module):
    """One linear layer under two names, used twice, after the head was declared."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)
        self.first = nn.Linear(64, 64)
        self.second = self.first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(F.relu(self.first(x.flatten(1)))))


@pytest.mark.parametrize(
    ("name", "options", "layer", "width"),
    [
        ("preact_resnet18", {"width": 4}, "net.linear", 32),
        ("wrn_16_1", {}, "net.fc", 64),
        ("vgg19_bn", {"width": 4}, "net.classifier", 32),
        ("vit_small", {"dim": 24, "depth": 1}, "net.head", 24),
    ],
)
def test_own_networks(digits: th.Data, name: str, options: dict, layer: str, width: int):
    model = build(name, digits.train, **options).eval()
    x = to_input(digits.train.x[:4])
    tap = features(model)
    logits, embedding = tap(x)
    name_of, linear = classifier(model)
    assert (tap.layer, name_of, linear.in_features) == (layer, layer, width)
    assert embedding.shape == (4, width)
    torch.testing.assert_close(linear(embedding), logits)
    torch.testing.assert_close(logits, model(x))


def test_the_table_network(table: th.Split):
    model = build("mlp", table, hidden=(6, 5)).eval()
    logits, embedding = features(model)(table.x)
    assert features(model).layer == "net.head"
    assert (logits.shape, embedding.shape) == ((4, 2), (4, 5))


def test_a_last_linear_layer_that_is_processed_further():
    name, linear = classifier(Maxout(), example=X)
    assert (name, linear.out_features) == ("last", 20)


def test_a_shared_layer_is_read_where_it_runs_last():
    net = Twice()
    assert classifier(net, example=X)[0] == "head"
    _, embedding = features(net, "first")(X)
    torch.testing.assert_close(embedding, F.relu(net.first(X.flatten(1))))


@pytest.mark.parametrize("squeeze", [False, True])
def test_a_convolution_as_head(squeeze: bool):
    net = ConvHead(squeeze)
    tap = features(net, example=X)
    logits, embedding = tap(X)
    assert (tap.layer, embedding.shape) == ("head", (4, 6))
    torch.testing.assert_close(embedding @ net.head.weight[:, :, 0, 0].T + net.head.bias, logits)
    with pytest.raises(InputError, match=r"makes its logits with the convolution 'head'; name an nn\.Linear layer"):
        classifier(net, example=X)


def test_a_layer_called_by_keyword():
    class ByName(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(input=x.flatten(1))

    assert torch.equal(features(ByName(), example=X)(X)[1], X.flatten(1))


def test_the_choice_can_be_overridden():
    net = Maxout()
    assert classifier(net, "squeeze")[1] is net.squeeze
    assert features(net, "squeeze").layer == "squeeze"
    torch.testing.assert_close(features(net, "squeeze")(X)[1], X.flatten(1))
    with pytest.raises(InputError, match="unknown linear layer 'sqeeze'; did you mean 'squeeze'"):
        classifier(net, "sqeeze")
    with pytest.raises(InputError, match="unknown layer 'lst'; did you mean 'last'"):
        features(net, "lst")
    with pytest.raises(InputError, match=r"layer 'body' is a Conv2d; expected an nn\.Linear layer"):
        classifier(ConvHead(False), "body")


def test_gradients_flow_through_the_embedding():
    net, x = Maxout(), X.clone().requires_grad_()
    _, embedding = features(net, example=X)(x)
    embedding.sum().backward()
    assert float(x.grad.abs().sum()) > 0


def test_watching_leaves_no_trace(trained_net: nn.Module):
    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = trained_net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x + 0 * torch.randn(()))

    model = Drawing().train()
    model.net.drop.eval()  # frozen by its owner
    state, draw = {k: v.clone() for k, v in model.state_dict().items()}, torch.random.get_rng_state()
    assert classifier(model, example=X)[0] == "net.out"
    assert features(model, example=X).layer == "net.out"
    assert [m.training for m in model.modules()] == [True, True, True, True, False, True]
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), draw)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_failing_forward_pass_leaves_no_trace_either():
    class Broken(Maxout):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("no\nfor many reasons")

    net = Broken()
    with pytest.raises(InputError, match=r"Broken can't take rows of shape \(1, 8, 8\): no$"):
        classifier(net, example=X)
    assert net.training
    assert not any(m._forward_hooks for m in net.modules())


@pytest.mark.parametrize(
    ("net", "example", "message"),
    [
        (nn.Flatten(), X, "Flatten has no nn.Linear layer"),
        (Maxout(), None, "carries no card"),
        (nn.ModuleDict({"a": nn.Linear(2, 2)}), X, "can't take rows"),
    ],
)
def test_what_can_not_be_watched_is_refused(net: nn.Module, example: torch.Tensor | None, message: str):
    with pytest.raises(InputError, match=message):
        features(net, example=example)


def test_a_layer_that_does_not_run_or_mixes_rows_is_refused():
    class Odd(Maxout):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(2, 2)
            self.pixels = nn.Linear(1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.pixels(x.reshape(-1, 1))
            return super().forward(x)

    with pytest.raises(InputError, match="layer 'unused' did not run"):
        features(Odd(), "unused")(X)
    with pytest.raises(InputError, match=r"layer 'pixels' took \(256, 1\) for 4 rows"):
        features(Odd(), "pixels")(X)
