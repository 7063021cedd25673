"""Cards: a JSON round trip, and refusal of what is not known."""

from __future__ import annotations

import json

import pytest

from theriac.core.card import Augment, Card, Column
from theriac.core.errors import InputError

FULL = Card(
    name="bank",
    kind="table",
    classes=("no", "yes"),
    groups=("a", "b"),
    columns=(Column(name="age", unit="years"), Column(name="job", kind="categorical", categories=("x", "y"))),
    source="somewhere",
    license="CC0",
    content_hash="00ff",
)
IMAGE = Card(
    name="digits", classes=("0", "1"), size=(8, 9), channels=3, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6),
    augment=Augment(crop_pad=1, pad_mode="reflect", flip=True, cutout=2, rotation=7.5),
)  # fmt: skip


@pytest.mark.parametrize("card", [FULL, IMAGE, Card(classes=("a", "b"))])
def test_json_round_trip(card):
    assert Card.from_dict(json.loads(json.dumps(card.to_dict()))) == card


def test_shape_and_classes():
    assert (FULL.shape, FULL.num_classes) == ((2,), 2)
    assert IMAGE.shape == (3, 8, 9)
    assert IMAGE.replace(channels=1).shape == (1, 8, 9)


def changed(card: Card, *path: str | int, value: object) -> dict:
    data = json.loads(json.dumps(card.to_dict()))
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (changed(IMAGE, "clases", value=1), "unknown option of card 'clases'; did you mean 'classes'"),
        (changed(IMAGE, "augment", "flp", value=True), r"augment\.flp"),
        (changed(FULL, "columns", 1, "knd", value="x"), r"columns\.1\.knd"),
        (changed(IMAGE, "classes", value="ab"), "classes is 'ab'"),
        (changed(IMAGE, "classes", value=["a", 3]), r"classes\.1 is 3"),
        (changed(IMAGE, "size", value=[8]), "size"),
        (changed(IMAGE, "size", value=[8, 8, 8]), "size"),
        (changed(IMAGE, "channels", value="three"), "channels is 'three'"),
        (changed(IMAGE, "channels", value=1.5), "channels"),
        (changed(IMAGE, "channels", value="3"), "channels is '3'"),
        (changed(IMAGE, "augment", "flip", value="yes"), r"augment\.flip is 'yes'"),
        (changed(IMAGE, "mean", value=["0.5"]), r"mean\.0 is '0\.5'"),
        (changed(IMAGE, "name", value={1, 2}), "no plain data"),
        (changed(IMAGE, "kind", value="video"), "kind is 'video'"),
        (changed(IMAGE, "mean", value=[None]), r"mean\.0"),
        (changed(IMAGE, "augment", value=None), "augment"),
        (changed(IMAGE, "augment", "pad_mode", value="wrap"), "pad_mode"),
        (changed(IMAGE, "augment", "crop_pad", value=-1), "crop_pad is -1"),
        (changed(FULL, "columns", 0, "kind", value="number"), "kind"),
        ({"name": "no classes"}, "classes"),
        ({}, "classes"),
        ([], "card is a list"),
        (None, "card is a NoneType"),
        ("digits", "card is a str"),
    ],
)
def test_damaged_cards_are_refused(data, text):
    with pytest.raises(InputError, match=text):
        Card.from_dict(data)


@pytest.mark.parametrize("make", [lambda: Card(classes=("a",), kind="video"), lambda: Column(name="c", kind="number")])
def test_choices_hold_in_python_too(make):
    with pytest.raises(InputError, match="unknown kind"):
        make()
