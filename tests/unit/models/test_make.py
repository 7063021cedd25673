"""A model that does not fit the data is refused before any training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import theriac as th
from theriac.core.errors import InputError
from theriac.models import Builder, make


def flat(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(0.5), nn.Linear(64, outputs))


def test_a_fitting_module_is_copied_and_left_as_it_was(digits: th.Data):
    given = flat(10)
    given[2].eval()  # the user froze one layer, and not the one with statistics
    before = {k: v.clone() for k, v in given.state_dict().items()}
    made = make(given, digits.train, th.Run())
    assert made is not given
    assert (made.training, made[1].training, made[2].training) == (True, True, False)
    assert all(torch.equal(v, before[k]) for k, v in made.state_dict().items()), "BatchNorm statistics too"


def test_the_check_draws_nothing_from_the_global_generator(digits: th.Data):
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x.flatten(1)) + torch.randn(())

    net = Noisy()
    before = torch.random.get_rng_state()
    make(net, digits.train, th.Run())
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (flat(7), r"Sequential returns torch.float32 \(2, 7\) for 2 rows; the data have 10 classes, so \(2, 10\) logits"),
        (lambda split, run: flat(11), r"returns torch.float32 \(2, 11\)"),
        (nn.Flatten(0), r"returns torch.float32 \(128,\)"),
        (nn.Conv2d(3, 10, 3), r"Conv2d can't take rows of shape \(1, 8, 8\)"),
        (lambda split, run: "net", "build returned a str; expected an nn.Module"),
        (3, "build is a int; expected a name"),
        (Builder("wrn_16_2"), "unknown architecture 'wrn_16_2'; did you mean 'wrn_16_1'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(digits: th.Data, build: object, message: str):
    with pytest.raises(InputError, match=message) as caught:
        th.train(build, digits.train.sample(50), recipe="short_1")
    assert "\n" not in str(caught.value)


def test_a_module_that_returns_no_tensor_is_sent_to_adapt(digits: th.Data, my_net: type):
    with pytest.raises(InputError, match=r"MyNet returns a tuple for 2 rows.*wrap the model with theriac\.adapt"):
        make(my_net(tuple_output=True), digits.train, th.Run())


def test_class_indices_instead_of_logits_are_refused(digits: th.Data):
    class Chosen(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), 10, dtype=torch.int64)

    with pytest.raises(InputError, match=r"Chosen returns torch.int64 \(2, 10\)"):
        make(Chosen(), digits.train, th.Run())
