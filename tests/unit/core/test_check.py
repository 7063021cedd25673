"""Checks and errors: the message names the argument, what came and what was expected."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import pytest
import torch
from torch import nn

from theriac.core import check
from theriac.core.errors import InputError, TheriacError, UnfairPairingError, UnsafeFileError, unknown
from theriac.core.ranges import check_fields


@pytest.mark.parametrize("value", [0, 1, 0.5, 0.0, 1.0])
def test_between_lets_pass(value):
    check.between("share", value, 0, 1)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, -math.inf, True, "0.5", None, [0.5]])
def test_between_refuses(value):
    with pytest.raises(InputError, match=r"share is .*; expected a number in \[0, 1\]"):
        check.between("share", value, 0, 1)


def test_between_with_an_open_end():
    check.between("share", 1, 0, 1, open_low=True)
    with pytest.raises(InputError, match=r"\(0, 1\]"):
        check.between("share", 0, 0, 1, open_low=True)


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, True, "1"])
def test_positive_refuses(value):
    with pytest.raises(InputError, match=r"lr is .* above 0"):
        check.positive("lr", value)


def test_positive_lets_pass():
    check.positive("lr", 1e-9)
    check.positive("lr", 0, zero=True)
    with pytest.raises(InputError, match="at least 0"):
        check.positive("lr", -1, zero=True)


@pytest.mark.parametrize("value", [0, 6, 1.0, True, "1", None])
def test_whole_refuses(value):
    with pytest.raises(InputError, match=r"epochs is .* whole number of at least 1 and at most 5"):
        check.integer("epochs", value, 1, 5)


def test_whole_lets_pass():
    check.integer("epochs", 1, 1, 5)
    check.integer("epochs", 5, 1, 5)
    check.integer("epochs", 10**9, 1)


def test_one_of():
    check.one_of("phase", "train", ("train", "test"))
    with pytest.raises(InputError, match="unknown phase 'tran'; did you mean 'train'"):
        check.one_of("phase", "tran", ("train", "test"))


def test_choices_of_a_dataclass():
    @dataclasses.dataclass
    class Record:
        mode: Literal["a", "b"] = "a"
        level: Literal[1, 2] = 1
        free: str = "anything"

    check_fields(Record())
    with pytest.raises(InputError, match="unknown level '3'"):
        check_fields(Record(level=3))


class Says(nn.Module):
    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: torch.Tensor) -> object:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (torch.zeros(3, 4), r"returns \(3, 4\); expected \(3, 5\)"),
        (torch.zeros(15), r"returns \(15,\)"),
        ([torch.zeros(3, 5)], "returns a list"),
        (torch.full((3, 5), math.nan), "NaN or infinite"),
        (RuntimeError("shapes can't be multiplied\nmore"), r"can't take torch\.float32 inputs of shape \(3, 2\): shapes"),
        (NameError("name 'z' is not defined"), r"the model's own code fails on .*: NameError: name 'z' is not defined"),
    ],
)
def test_logits_refuses(answer, text):
    with pytest.raises(InputError, match=text):
        check.logits(Says(answer), torch.zeros(3, 2), 5)


def test_logits_lets_pass():
    answer = torch.randn(3, 5)
    assert check.logits(Says(answer), torch.zeros(3, 2), 5) is answer
    with pytest.raises(torch.OutOfMemoryError):  # not the caller's mistake
        check.logits(Says(torch.OutOfMemoryError("full")), torch.zeros(3, 2), 5)


# errors


@pytest.mark.parametrize("error", [InputError, UnsafeFileError, UnfairPairingError])
def test_errors_can_be_caught_together(error):
    assert issubclass(error, (TheriacError, ValueError))
    assert issubclass(error, InputError)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("badnet", "unknown attack 'badnet'; did you mean 'badnets' or 'wanet'?"),
        ("BLENDED", "unknown attack 'BLENDED'; did you mean 'blended'?"),
        ("zzz", "unknown attack 'zzz'; known: badnets, blended, wanet"),
        (3, "unknown attack '3'; known: badnets, blended, wanet"),
        ("", "unknown attack ''; known: badnets, blended, wanet"),
    ],
)
def test_unknown_suggests_the_nearest(name, text):
    assert str(unknown("attack", name, ["wanet", "badnets", "blended"])) == text


def test_unknown_without_choices():
    assert str(unknown("preset", "x", [])) == "unknown preset 'x'; known: none"
