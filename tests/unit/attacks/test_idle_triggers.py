"""Triggers that leave rows as they were: said, and refused where they change none, in poisoning and in measuring."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import theriac as th
from theriac.attacks import AdaptiveBlend, BadNets, Blended, BppAttack, FTrojan, WaNet
from theriac.core.planted import note_if_idle, unchanged

WEAK: list[Any] = [
    BadNets(opacity=0.0),
    Blended(alpha=0.0),
    FTrojan(magnitude=0.0),
    WaNet(strength=0.0),
    BppAttack(levels=256),
    AdaptiveBlend(mask_rate=1.0),
]


@pytest.mark.parametrize("attack", WEAK, ids=lambda attack: attack.name)
def test_an_attack_without_strength_is_refused(digits: th.Data, attack: Any) -> None:
    with pytest.raises(th.InputError, match=rf"the trigger of {attack.name} changes none of the \d+ chosen rows"):
        attack.poison(digits.train.sample(200), th.Run(quiet=True))


def test_it_is_not_measured_either(digits: th.Data) -> None:
    model = th.models.Builder("preact_resnet18", {"width": 4})(digits.train)
    with pytest.raises(th.InputError, match="the trigger of badnets changes none of the 405 stamped rows"):
        th.evaluate(model, digits.test, BadNets(opacity=0.0))


def test_rows_that_look_like_the_trigger_are_counted(digits: th.Data) -> None:
    x = digits.test.x.clone()
    x[: len(x) // 2] = 255  # a white patch changes nothing there
    light = th.Split(x, digits.test.y, card=digits.card)
    model = th.models.Builder("preact_resnet18", {"width": 4})(digits.train)
    same = int((light.y[: len(light) // 2] != 0).sum())
    (note,) = [note for note in th.evaluate(model, light, BadNets()).notes if "trigger" in note]
    assert f"leaves {same:,} of the {int((light.y != 0).sum()):,} stamped rows as they were" in note
    with pytest.warns(UserWarning, match=r"the trigger of badnets leaves \d+ of the \d+ chosen rows as they were"):
        BadNets().poison(light, th.Run(quiet=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BadNets().poison(digits.train, th.Run(quiet=True))


def test_rows_are_compared_as_the_network_sees_them() -> None:
    stored = torch.tensor([[[[0, 255]]], [[[3, 4]]]], dtype=torch.uint8)
    assert unchanged(stored, stored).tolist() == [True, True]
    assert unchanged(stored, stored.float() / 255 + torch.tensor([0.0, 0.001]).view(2, 1, 1, 1)).tolist() == [True, False]
    table = torch.tensor([[1.0, float("nan")], [1.0, 2.0]])
    assert unchanged(table, torch.tensor([[1.0, float("nan")], [1.0, float("nan")]])).tolist() == [True, False]


def test_few_of_them_pass_without_a_word() -> None:
    assert note_if_idle("x", 10, 100, "chosen") == note_if_idle("x", 0, 0, "chosen") == ""
    assert note_if_idle("x", 11, 100, "chosen")
