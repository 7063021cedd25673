from __future__ import annotations

import pytest
import torch

from theriac.core.card import Card, Column
from theriac.core.errors import InputError
from theriac.core.split import Data, Split
from theriac.data import regroup


def rows() -> Split:
    card = Card(kind="table", classes=("0", "1"), groups=("x", "y", "z"), columns=(Column(name="v"),))
    return Split(torch.arange(6.0)[:, None], torch.arange(6) % 2, group=torch.tensor([0, 1, 2, 0, 1, 2]), card=card)


def test_groups_merge_and_the_rest_comes_first():
    made = regroup(rows(), {"z": "Z"}, rest="other")
    assert made.card.groups == ("other", "Z")
    assert made.group.tolist() == [0, 0, 1, 0, 0, 1]
    assert torch.equal(made.x, rows().x)
    both = regroup(rows(), {"x": "xy", "y": "xy", "z": "z"})
    assert (both.card.groups, both.group.tolist()) == (("xy", "z"), [0, 0, 1, 0, 0, 1])


def test_groups_without_a_new_name_are_left_out():
    made = regroup(Data(rows(), rows()), {"z": "z", "x": "x"})
    assert made.val is None
    for part in (made.train, made.test):
        assert part.index.tolist() == [0, 2, 3, 5]
        assert part.group.tolist() == [1, 0, 1, 0]
        assert part.card.groups == ("z", "x")


def test_nonsense_is_refused():
    with pytest.raises(InputError, match="unknown group 'q'"):
        regroup(rows(), {"q": "a"}, rest="b")
    with pytest.raises(InputError, match="1 group"):
        regroup(rows(), {"x": "a", "y": "a"})
    with pytest.raises(InputError, match="no named groups"):
        regroup(Split(torch.rand(2, 1), torch.arange(2)), {"x": "a"}, rest="b")
    with pytest.raises(InputError, match="expected a Split"):
        regroup([1, 2], {"x": "a"})
