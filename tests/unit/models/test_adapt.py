"""A user's own model, wrapped once: pixels in, logits out, and its own class inside whatever comes back."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import theriac as th
from theriac.core.errors import InputError
from theriac.models import TablePrep, adapt, features, make, to_input


def pixels(data: th.Data) -> torch.Tensor:
    return to_input(data.test.x[:32])


def test_the_wrapper_and_the_raw_model_agree(digits: th.Data, trained_net: nn.Module):
    model = adapt(trained_net, mean=0.5, std=0.5, card=digits.card)
    x = pixels(digits)
    with torch.no_grad():
        torch.testing.assert_close(model(x), trained_net(x * 2 - 1))
    assert model.net is trained_net
    assert (model.card.name, model.card.num_classes) == ("digits", 10)
    assert not model.training


def test_its_accuracy_is_the_raw_models(digits: th.Data, trained_net: nn.Module):
    raw = (trained_net(digits.test.x.float() / 127.5 - 1).argmax(1) == digits.test.y).sum()
    model = adapt(trained_net, mean=0.5, std=0.5, card=digits.card)
    assert th.evaluate(model, digits.test, run=th.Run(precision="fp32")).acc.hits == int(raw)
    assert int(raw) > 0.85 * len(digits.test)


@pytest.mark.parametrize("choice", [1, -1, lambda out: out[1]])
def test_logits_in_a_tuple(digits: th.Data, trained_net: nn.Module, choice: object):
    plain = adapt(trained_net, mean=0.5, std=0.5, card=digits.card)(pixels(digits))
    trained_net.tuple_output = True
    torch.testing.assert_close(adapt(trained_net, mean=0.5, std=0.5, card=digits.card, logits=choice)(pixels(digits)), plain)


class Wrapped(nn.Module):
    """Returns its logits by name: in a dict, or as an attribute."""

    def __init__(self, net: nn.Module, key: str, as_dict: bool) -> None:
        super().__init__()
        self.inner, self.key, self.as_dict = net, key, as_dict

    def forward(self, x: torch.Tensor) -> object:
        logits = self.inner(x)
        return {self.key: logits, "aux": x} if self.as_dict else type("Out", (), {self.key: logits})()


@pytest.mark.parametrize("as_dict", [True, False])
@pytest.mark.parametrize(("key", "choice"), [("logits", None), ("scores", "scores")])
def test_logits_by_name(digits: th.Data, trained_net: nn.Module, key: str, choice: str | None, as_dict: bool):
    model = adapt(Wrapped(trained_net, key, as_dict), mean=0.5, std=0.5, card=digits.card, logits=choice)
    torch.testing.assert_close(model(pixels(digits)), trained_net(pixels(digits) * 2 - 1))
    assert features(model).layer == "net.inner.out"


def test_images_are_resized_inside_as_torch_does_it(digits: th.Data):
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 10))
    model = adapt(net, size=6, mean=[0.3], std=[0.2], card=digits.card)
    x = pixels(digits)
    small = F.interpolate(x, (6, 6), mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(model(x), net((small - 0.3) / 0.2))
    fit = torch.rand(2, 1, 6, 6)
    torch.testing.assert_close(model(fit), net((fit - 0.3) / 0.2))


def test_grey_images_are_repeated_to_the_networks_channels(digits: th.Data):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10))
    model = adapt(net, channels=3, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0), card=digits.card)
    x = pixels(digits)
    stacked = torch.stack([(x[:, 0] - m) / s for m, s in ((0.1, 1.0), (0.2, 2.0), (0.3, 4.0))], 1)
    torch.testing.assert_close(model(x), net(stacked))


def test_without_a_card_the_classes_are_counted(trained_net: nn.Module):
    model = adapt(trained_net, size=8, channels=1)
    assert model.card.classes == tuple("0123456789")
    assert model.card.shape == (1, 8, 8)
    assert adapt(trained_net, classes=10, channels=1).card.shape == (1, 0, 0)
    assert adapt(trained_net, classes=list("abcdefghij"), channels=1).card.classes == tuple("abcdefghij")


def test_a_table_classifier(table: th.Split):
    raw = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    rows = table.x.nan_to_num()
    assert torch.equal(adapt(raw, card=table.card)(rows), raw(rows))
    prep = TablePrep.fit(table)
    net = nn.Linear(5, 2)
    torch.testing.assert_close(adapt(net, card=table.card, prepare=prep)(table.x), net(prep(table.x)))


def test_a_half_precision_network_gets_half_precision_pixels(digits: th.Data):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).bfloat16()
    model = adapt(net, mean=0.5, std=0.5, card=digits.card)
    assert model(pixels(digits)).dtype == torch.float32
    assert features(model).layer == "net.1"


def test_wrapping_changes_nothing_in_the_model(trained_net: nn.Module, digits: th.Data):
    trained_net.train()
    trained_net.drop.eval()
    before, draw = copy.deepcopy(trained_net.state_dict()), torch.random.get_rng_state()
    model = adapt(trained_net, card=digits.card)
    assert (model.training, trained_net.training, trained_net.drop.training) == (True, True, False)
    assert all(torch.equal(v, before[k]) for k, v in trained_net.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), draw)


# repairs


def test_a_repair_returns_the_same_wrapper_around_the_users_class(digits: th.Data, trained_net: nn.Module):
    model = adapt(trained_net, mean=0.5, std=0.5, card=digits.card)
    before = copy.deepcopy(model.state_dict())
    fixed = th.repairs.FT(epochs=1).repair(model, digits.train.sample(200))
    assert type(fixed) is type(model)
    assert type(fixed.net) is type(trained_net)
    assert fixed.net is not trained_net
    assert model.net is trained_net
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "the given model is bit-identical"
    assert not torch.equal(fixed.net.out.weight, trained_net.out.weight)
    assert th.evaluate(fixed, digits.test).acc.value > 0.85


def test_a_repair_that_looks_for_the_classifier_finds_it(digits: th.Data, trained_net: nn.Module):
    model = adapt(trained_net, mean=0.5, std=0.5, card=digits.card)
    fixed = th.repairs.FST(epochs=1).repair(model, digits.train.sample(100))
    new, old = fixed.net.out.weight.detach(), trained_net.out.weight.detach()
    torch.testing.assert_close(new.norm(), old.norm())  # what FST does to the classifier it found
    assert not torch.allclose(new, old)


def test_a_wrong_wrapping_is_told(digits: th.Data, trained_net: nn.Module):
    rows = digits.train.sample(200)
    wrong = adapt(trained_net, mean=40.0, std=0.1, card=digits.card)  # as if pixels went to 255
    with pytest.warns(UserWarning, match="no better than guessing.*its wrapping: input scaling"):
        th.repairs.FT(epochs=1).repair(wrong, rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        th.repairs.FT(epochs=1).repair(adapt(trained_net, mean=0.5, std=0.5, card=digits.card), rows)


def test_an_adapted_model_can_be_trained_from_scratch(digits: th.Data, my_net: type):
    model = th.train(adapt(my_net(), mean=0.5, std=0.5, card=digits.card), digits.train, recipe="adam_2")
    assert isinstance(model.net, my_net)
    assert make(model, digits.train, th.Run()) is not model


def test_probabilities_are_told(digits: th.Data, trained_net: nn.Module):
    net = nn.Sequential(trained_net, nn.Softmax(1))
    with pytest.warns(UserWarning, match="probabilities, not logits"):
        adapt(net, card=digits.card)
    logs = adapt(net, mean=0.5, std=0.5, card=digits.card, logits=torch.log)(pixels(digits))
    torch.testing.assert_close(logs.logsumexp(1), torch.zeros(32), atol=1e-5, rtol=0)


# what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": "grey"}, "mean is 'grey'; expected a number"),
        ({"mean": (0.1, 0.2)}, "mean has 2 entries; expected one for each of 1 channels"),
        ({"mean": 0.5, "std": 0.0}, "std above 0"),
        ({"size": (8, 8, 8)}, "size is '(8, 8, 8)'; expected a number of pixels"),
        ({"size": 0}, "size is 0; expected a whole number of at least 1"),
        ({"size": 12}, "MyNet can't take rows of shape (1, 8, 8)"),
        ({"channels": 3}, "MyNet can't take rows of shape (1, 8, 8)"),
        ({"classes": 7}, "classes gives 7 classes; the card of 'digits' has 10"),
        ({"classes": "ab"}, "classes is 'ab'; expected a number of at least 2"),
        ({"logits": 2.5}, "logits is 2.5; expected a name, an index or a function"),
        ({"logits": "scores"}, "returns one tensor (2, 10), and logits='scores' leads to no tensor there"),
        ({"prepare": TablePrep}, "prepare is for tables"),
    ],
)
def test_contradictions_are_refused_in_one_sentence(digits: th.Data, my_net: type, options: dict, message: str):
    with pytest.raises(InputError) as caught:
        adapt(my_net(), card=digits.card, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_outputs_that_do_not_fit_are_refused(digits: th.Data, my_net: type, table: th.Split):
    with pytest.raises(InputError, match=r"a tuple of \(2, 256\), \(2, 10\), and no logits were found there; logits="):
        adapt(my_net(tuple_output=True), card=digits.card)
    with pytest.raises(InputError, match=r"MyNet returns torch.float32 \(2, 256\) for 2 rows; the data have 10 classes"):
        adapt(my_net(tuple_output=True), card=digits.card, logits=0)
    with pytest.raises(InputError, match="the number of classes is unknown; give card="):
        adapt(my_net())
    with pytest.raises(InputError, match="model is wrapped already"):
        adapt(adapt(my_net(), card=digits.card))
    with pytest.raises(InputError, match=r"model is a str; expected an nn\.Module"):
        adapt("resnet")
    with pytest.raises(InputError, match="'toy' is a table; mean, std, size and channels are for images"):
        adapt(nn.Linear(3, 2), card=table.card, mean=0.5)
    with pytest.raises(InputError, match="prepare is a Linear; expected a TablePrep"):
        adapt(nn.Linear(3, 2), card=table.card, prepare=nn.Linear(3, 3))


def test_a_float16_network_with_batchnorm_is_evaluated_as_it_is(digits: th.Data):
    """Mixed precision would hand its BatchNorm the other type of 16 bits."""
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 10)).eval().half()
    scores = th.evaluate(th.adapt(net, card=digits.card), digits.test)
    assert scores.precision == "fp16"
    with torch.no_grad():
        right = int((net((digits.test.x.float() / 255).half()).argmax(1) == digits.test.y).sum())
    assert abs(scores.acc.hits - right) <= 2


@pytest.mark.parametrize("columns", [2, 3])
def test_outputs_of_another_scale_are_taken_as_logits(columns: int):
    z = torch.randn(7, columns, generator=torch.Generator().manual_seed(0))

    def wrapped(end: nn.Module, scale: str) -> torch.Tensor:
        own = nn.Sequential(nn.Identity(), end)
        rows = th.Split(z, torch.arange(7) % columns)
        return th.adapt(own, card=rows.card, logits=scale)(z)

    assert torch.allclose(wrapped(nn.Softmax(1), "probabilities"), z.log_softmax(1), atol=1e-5)
    assert torch.allclose(wrapped(nn.Sigmoid(), "sigmoids"), z, atol=1e-4)


@pytest.mark.parametrize("flat", [False, True])
def test_a_network_of_one_logit_is_told_its_cure_which_works(flat: bool):
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    rows = th.Split(x, (x[:, 0] > 0).long())
    net = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 0, 0]]))
    own = nn.Sequential(net, nn.Flatten(0)) if flat else net
    for call in (lambda: th.adapt(own, card=rows.card), lambda: th.evaluate(own, rows)):
        with pytest.raises(th.InputError, match="where it is the second class's alone") as caught:
            call()
    assert "logits='binary', or 'probabilities' behind a sigmoid" in str(caught.value)
    told = th.adapt(own, card=rows.card, logits="binary")
    assert th.evaluate(told, rows).acc.value == 1
    behind = th.adapt(nn.Sequential(own, nn.Sigmoid()), card=rows.card, logits="probabilities")
    assert th.evaluate(behind, rows).acc.value == 1
    assert torch.allclose(behind(x).softmax(1), told(x).softmax(1), atol=1e-5)
