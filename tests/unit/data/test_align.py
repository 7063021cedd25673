"""Rows of another source in a card's terms: by name, never by position alone."""

from __future__ import annotations

import pytest
import torch

import theriac as th
from theriac.core.card import Card, Column
from theriac.core.errors import InputError
from theriac.data import align
from theriac.data.alignment import places

NAN = float("nan")


def table(
    columns: tuple[Column, ...], x: list[list[float]], y: list[int], classes: tuple[str, ...] = ("no", "yes")
) -> th.Split:
    card = Card(name="new", kind="table", classes=classes, columns=columns)
    return th.Split(torch.tensor(x), torch.tensor(y), card=card)


COLOR = Column(name="color", kind="categorical", categories=("amber", "red", "white"))
SIZE = Column(name="size")
CARD = Card(name="own", kind="table", classes=("no", "yes"), columns=(COLOR, SIZE))


def test_the_same_terms_change_nothing():
    rows = table((COLOR, SIZE), [[0.0, 1.0], [2.0, 3.0]], [0, 1])
    assert align(rows, CARD, "the model") is rows


def test_columns_categories_and_labels_go_by_name():
    other = Column(name="color", kind="categorical", categories=("cyan", "red", "white"))
    rows = table((SIZE, other), [[1.0, 1.0], [2.0, 2.0], [3.0, 0.0], [4.0, NAN]], [0, 1, 1, 0], ("yes", "no"))
    with pytest.warns(UserWarning, match="column 'color' has 1 values that the model does not know, such as 'cyan'"):
        found = align(rows, CARD, "the model")
    assert found.x[:2].tolist() == [[1.0, 1.0], [2.0, 2.0]]
    assert bool(found.x[2:, 0].isnan().all())
    assert found.x[2:, 1].tolist() == [3.0, 4.0]
    assert found.y.tolist() == [1, 0, 0, 1]
    assert found.card.columns == CARD.columns
    assert found.card.classes == CARD.classes
    assert found.card.name == "new"
    assert rows.x[0].tolist() == [1.0, 1.0]  # the given rows stay


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (table((COLOR, Column(name="weight")), [[0.0, 1.0]], [0]), "'new' lacks the column 'size'"),
        (table((COLOR, SIZE, Column(name="age")), [[0.0, 1.0, 2.0]], [0]), "has a column 'age' more"),
        (table((Column(name="color"), SIZE), [[0.0, 1.0]], [0]), "column 'color' of 'new' is numeric; the model has it cat"),
        (table((COLOR, SIZE), [[0.0, 1.0]], [0], ("no", "maybe")), "has the class 'maybe', which the model does not know"),
    ],
)
def test_what_has_no_namesake_is_refused(rows, told):
    with pytest.raises(InputError, match=told):
        align(rows, CARD, "the model")


def images(classes: tuple[str, ...], y: list[int]) -> th.Split:
    card = Card(name="pets", classes=classes, size=(4, 4), channels=1)
    return th.Split(torch.zeros(len(y), 1, 4, 4, dtype=torch.uint8), torch.tensor(y), card=card)


def test_some_of_the_classes_are_enough():
    own = images(("ant", "cat", "dog"), [0, 1, 2]).card
    assert align(images(("cat", "dog"), [0, 1, 1]), own, "the model").y.tolist() == [1, 2, 2]
    assert align(images(("dog", "cat", "ant"), [0, 1, 2]), own, "the model").y.tolist() == [2, 1, 0]
    with pytest.raises(InputError, match="has the class 'zebra', which the model does not know; it has ant, cat, dog"):
        align(images(("cat", "zebra"), [0, 1]), own, "the model")


def test_classes_that_are_numbered_only_go_by_position_if_there_are_as_many_and_a_warning_says_so():
    own = images(("ant", "cat", "dog"), [0, 1, 2]).card
    numbered = own.replace(classes=("0", "1", "2"))
    for rows, card in ((images(numbered.classes, [0, 1, 2]), own), (images(own.classes, [0, 1, 2]), numbered)):
        with pytest.warns(UserWarning, match="do not match by name, so they are taken by position: '(0|ant)' of the rows for"):
            assert align(rows, card, "the model").y.tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="the model has 3 classes; 'pets' has 2"):
        align(images(("0", "1"), [0, 1]), own, "the model")


def test_a_split_without_a_card_has_positions_and_no_names():
    own = images(("ant", "cat", "dog"), [0, 1, 2]).card
    bare = th.Split(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([1, 0]))
    assert align(bare, own).y.tolist() == [1, 0]
    assert align(bare, own).card.classes == own.classes
    with pytest.raises(InputError, match="the model has 3 classes; 'unnamed' has 4"):
        align(th.Split(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.tensor([3])), own)


@pytest.mark.parametrize(
    ("names", "known", "expected"),
    [
        (("0", "1", "10", "2"), ("0", "1", "2", "10"), [0, 1, 3, 2]),
        (("01", "002"), ("1", "2"), [0, 1]),
        (("1", "01"), ("01", "1"), [1, 0]),  # two ways to write a number on one side: text again
        (("-1", "1"), ("1", "-1"), [1, 0]),
        (("1", "two"), ("01", "two"), [-1, 1]),  # not all are numbers, so letters count
        (("1.0", "2"), ("1", "2"), [-1, 1]),
        (("²", "1"), ("2", "1"), [-1, 1]),
    ],
)
def test_names_are_compared_as_numbers_where_all_are_whole_numbers(names, known, expected):
    assert places(names, known) == expected


def test_groups_go_by_name_where_all_are_known_and_stay_where_they_are_not():
    card = CARD.replace(groups=("f", "m"))
    rows = table((COLOR, SIZE), [[0.0, 1.0], [2.0, 3.0], [1.0, 1.0]], [0, 1, 1])
    other = rows.replace(group=torch.tensor([0, 1, 0]), card=rows.card.replace(groups=("m", "f")))
    found = align(other, card)
    assert (found.group.tolist(), found.card.groups) == ([1, 0, 1], ("f", "m"))
    strange = rows.replace(group=torch.tensor([0, 1, 0]), card=rows.card.replace(groups=("old", "young")))
    assert align(strange, card) is strange
