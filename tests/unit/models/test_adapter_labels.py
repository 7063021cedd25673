"""Which output of a ``transformers`` network is which class of the data: by name, by number, or refused."""

from __future__ import annotations

import pytest
import torch

import theriac as th
from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.models.adapter import named_by_data

ANIMALS = ("cat", "dog", "great ape")


def order(labels: tuple[str, ...], classes: tuple[str, ...]) -> tuple[str, ...]:
    return named_by_data(labels, Card(classes=classes, size=(8, 8), channels=3))


def test_equal_names_decide_without_a_word():
    assert order(("dog", "great ape", "cat"), ANIMALS) == ("dog", "great ape", "cat")
    assert order(("1", "0", "2"), ("0", "1", "2")) == ("1", "0", "2")


@pytest.mark.parametrize(
    ("labels", "classes", "expected", "says"),
    [
        (("LABEL_0", "LABEL_1", "LABEL_2"), ANIMALS, ANIMALS, "does not name its classes.* LABEL_0 is cat"),
        (("2", "0", "1"), ANIMALS, ("great ape", "cat", "dog"), "numbers its classes.* 2 is great ape"),
        (ANIMALS, ("0", "2", "1"), ("0", "1", "2"), "the data number theirs.* dog is 1"),
        (ANIMALS, ("LABEL_0", "LABEL_1", "LABEL_2"), ("LABEL_0", "LABEL_1", "LABEL_2"), "the data number theirs"),
        (("Great_Ape", "CAT", " dog"), ANIMALS, ("great ape", "cat", "dog"), "spells its classes in another way.* CAT is cat"),
    ],
)
def test_what_is_no_contradiction_is_assumed_and_said(labels, classes, expected, says):
    with pytest.warns(UserWarning, match=says):
        assert order(labels, classes) == expected


@pytest.mark.parametrize("labels", [("cat", "dog", "cow"), ("cat", "dog", "2"), ("cat", "Cat", "dog")])
def test_other_names_are_a_contradiction(labels):
    with pytest.raises(InputError, match="names its classes"):
        order(labels, ANIMALS)


def test_a_numbered_folder_scores_as_its_named_twin():
    transformers = pytest.importorskip("transformers")
    data = th.load("digits")
    config = transformers.ViTConfig(
        image_size=8, patch_size=4, num_channels=1, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, id2label=dict(enumerate("abcdefghij")),
    )  # fmt: skip
    torch.manual_seed(0)
    net = transformers.ViTForImageClassification(config).eval()
    with pytest.warns(UserWarning, match="a is 0"):
        numbered = th.adapt(net, card=data.card)
    twin = th.adapt(net, card=data.card, classes=tuple(data.card.classes))
    assert th.evaluate(numbered, data.test).acc.value == th.evaluate(twin, data.test).acc.value
