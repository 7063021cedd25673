"""Splits: what they refuse, and that every way to make a new one keeps rows, labels, groups and indices together."""

from __future__ import annotations

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch

from theriac.attacks import BadNets
from theriac.core._rows import pixel_moments
from theriac.core.card import Augment, Card
from theriac.core.errors import InputError
from theriac.core.poisoned import CLEAN, CROSS, POISON, Poisoned, as_clean
from theriac.core.run import Run
from theriac.core.split import Data, Split

CARD = Card(name="four", classes=("a", "b", "c"), groups=("g", "h"), size=(4, 4), channels=1, mean=(0.5,), std=(0.5,))


def make(rows: int = 30, **changes) -> Split:
    """Each row's pixels are its number, so that rows can be recognized."""
    x = torch.arange(rows, dtype=torch.uint8).view(rows, 1, 1, 1).expand(rows, 1, 4, 4).contiguous()
    given = {"y": torch.arange(rows) % 3, "group": torch.arange(rows) % 2, "index": torch.arange(rows) + 500, "card": CARD}
    return Split(x, **given | changes)


def numbers(split: Split) -> list[int]:
    """Row numbers, after checking that everything belongs together."""
    number = split.x[:, 0, 0, 0].long()
    assert torch.equal(split.index, number + 500)
    assert torch.equal(split.y, number % 3)
    assert torch.equal(split.group, number % 2)
    assert split.card == CARD
    return number.tolist()


# what is refused

X, Y = torch.zeros(6, 1, 4, 4, dtype=torch.uint8), torch.arange(6) % 3
T = torch.zeros(6, 2)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"x": X.numpy()}, "x is a ndarray"),
        ({"x": X.float() / 255}, r"x is torch\.float32; images are uint8.*multiply"),
        ({"x": X.to(torch.int16)}, r"x is torch\.int16"),
        ({"x": torch.zeros(6, 4, 4, 1, dtype=torch.uint8)}, "1 or 3 channels"),
        ({"x": X[:, 0]}, "x has shape"),
        ({"x": X[:0], "y": Y[:0]}, "no rows"),
        ({"x": T.double()}, r"x is torch\.float64; table rows are float32"),
        ({"x": torch.full((6, 2), float("inf"))}, "infinite"),
        ({"x": torch.full((6, 2), float("-inf"))}, "infinite"),
        ({"y": [0, 1, 2, 0, 1, 2]}, "y is list"),
        ({"y": Y.float()}, r"y is torch\.float32"),
        ({"y": Y > 0}, r"y is torch\.bool"),
        ({"y": Y[:5]}, r"y has shape \(5,\); expected \(6,\)"),
        ({"y": Y[:, None]}, "y has shape"),
        ({"y": Y - 1}, "y holds values from -1"),
        ({"y": Y + 1, "card": CARD}, r"y holds values from 1 to 3; expected \[0, 2\]"),
        ({"group": torch.arange(6), "card": CARD}, r"group holds values from 0 to 5; expected \[0, 1\]"),
        ({"group": Y.float()}, "group is"),
        ({"index": Y[:5]}, "index has shape"),
        ({"index": -Y}, "index holds values"),
        ({"card": CARD.replace(size=(5, 4))}, r"card of 'four' says \(1, 5, 4\)"),
        ({"x": T, "card": CARD}, "card of 'four'"),
        ({"overlay": (torch.tensor([0, 1]), X[:1])}, "overlay has"),
        ({"overlay": (torch.tensor([0]), X[:1, :, :2])}, "overlay has"),
        ({"overlay": (torch.tensor([0]), X[:1].float())}, r"overlay has torch\.float32 rows"),
        ({"overlay": (torch.tensor([2, 1]), X[:2])}, "ascending"),
        ({"overlay": (torch.tensor([1, 1]), X[:2])}, "ascending"),
        ({"overlay": (torch.tensor([0.0]), X[:1])}, "ascending int64"),
        ({"overlay": (torch.tensor([6]), X[:1])}, "overlay positions run from 6 to 6; x has 6 rows"),
        ({"overlay": (torch.tensor([-1]), X[:1])}, "overlay positions run from -1"),
    ],
)
def test_bad_input_names_the_argument(options, text):
    with pytest.raises(InputError, match=text):
        Split(**{"x": X, "y": Y, **options})


def test_other_whole_numbers_become_int64():
    for dtype in (torch.uint8, torch.int32, torch.int16):
        split = Split(X, Y.to(dtype), group=Y.to(dtype))
        assert split.y.dtype == split.group.dtype == split.index.dtype == torch.int64


def test_missing_table_values_are_allowed():
    split = Split(torch.tensor([[1.0, float("nan")], [2.0, 3.0]]), torch.tensor([0, 1]))
    assert split.is_table
    assert split.card.shape == (2,)


def test_a_card_is_made_from_bare_tensors():
    x = torch.tensor([0, 255, 255, 255], dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 1, 3, 5)
    split = Split(x, torch.tensor([0, 4, 2, 2]))
    assert split.card.classes == ("0", "1", "2", "3", "4")
    assert split.card.shape == (1, 3, 5)
    assert split.card.mean == pytest.approx((0.75,))
    assert split.card.std == pytest.approx((3**0.5 / 4,), abs=1e-6)
    assert split.card.augment == Augment()
    assert split.count().tolist() == [1, 0, 2, 0, 1]
    assert Split(X, torch.zeros(6, dtype=torch.long)).num_classes == 2  # never a single class


def test_moments_equal_numpy(images):
    x = images(rows=37, channels=3).x
    mean, std = pixel_moments(x)
    pixels = x.numpy().transpose(1, 0, 2, 3).reshape(3, -1) / 255
    assert mean == pytest.approx(pixels.mean(1), abs=1e-6)
    assert std == pytest.approx(pixels.std(1), abs=1e-6)
    assert pixel_moments(torch.zeros_like(x))[1] == (0.001,) * 3  # never zero


# new ones from old ones


def test_it_is_immutable():
    split = make()
    for name in ("y", "card", "_store", "new"):
        with pytest.raises(AttributeError, match="immutable"):
            setattr(split, name, 1)
    with pytest.raises(AttributeError, match="immutable"):
        del split.y
    split.rows(torch.tensor([0, 1])).fill_(99)  # what is handed out is a copy
    assert numbers(split) == list(range(30))


@pytest.mark.parametrize("stratified", [False, True])
def test_sample(stratified):
    split = make()
    drawn = numbers(split.sample(9, seed=1, stratified=stratified))
    assert len(set(drawn)) == 9
    assert drawn == numbers(split.sample(9, seed=1, stratified=stratified))
    assert drawn != numbers(split.sample(9, seed=2, stratified=stratified))
    assert len(split.sample(0.3, stratified=stratified)) == 9
    assert len(split.sample(1.0, stratified=stratified)) == 30
    assert len(split.sample(1, stratified=stratified)) == 1  # a whole number is a count, a float a share
    assert len(split.sample(0.001, stratified=stratified)) == 1
    assert sorted(numbers(split.sample(30, stratified=stratified))) == list(range(30))


@pytest.mark.parametrize("count", [3, 10, 17, 24])
def test_stratified_takes_the_same_of_every_class(count):
    lopsided = make(y=torch.tensor([0] * 20 + [1] * 8 + [2] * 2))
    got = lopsided.sample(count, stratified=True, seed=4).count().tolist()
    fair = [0, 0, 0]  # hand out rows in turns until they run out
    while sum(fair) < count:
        for k, most in enumerate((20, 8, 2)):
            if fair[k] < most and sum(fair) < count:
                fair[k] += 1
    assert got == fair or (count == 17 and got == [fair[1], fair[0], fair[2]])  # one row more, of either class


def test_lots_decide_which_classes_give_a_row_more():
    split = make(70, y=torch.arange(70) % 7, card=None)
    more = torch.zeros(7)
    for seed in range(700):
        counts = split.sample(16, seed=seed, stratified=True).count()
        assert sorted(counts.tolist()) == [2] * 5 + [3] * 2
        more += counts == 3
    assert 150 <= int(more.min()) <= int(more.max()) <= 250  # 200 expected, standard deviation 12
    # where it comes out even nothing is drawn by lots
    assert (
        split.sample(14, seed=1, stratified=True).index.tolist()
        == split.sample(21, seed=1, stratified=True).index.tolist()[:14]
    )


def test_a_larger_stratified_draw_holds_the_smaller_one():
    split = make(y=torch.tensor([0] * 16 + [1] * 11 + [2] * 3))
    drawn = [set(split.sample(count, seed=3, stratified=True).index.tolist()) for count in range(1, 31)]
    assert all(len(some) == k + 1 for k, some in enumerate(drawn))
    assert all(small < large for small, large in itertools.pairwise(drawn))


def test_uniform_sampling_is_uniform():
    split = make(10)
    hits = torch.zeros(10)
    for seed in range(300):
        hits[torch.tensor(numbers(split.sample(3, seed=seed)))] += 1
    assert 60 <= int(hits.min()) <= int(hits.max()) <= 120  # 90 expected, standard deviation about 8


@pytest.mark.parametrize("amount", [0, -1, 31, 0.0, 1.5, -0.1, float("nan"), True, "5", None])
def test_impossible_samples_are_refused(amount):
    with pytest.raises(InputError, match="rows_or_share"):
        make().sample(amount)


@pytest.mark.parametrize("stratified", [False, True])
def test_cut_gives_two_disjoint_parts(stratified):
    split = make()
    part, rest = split.cut(0.4, seed=3, stratified=stratified)
    assert numbers(part) == numbers(split.sample(0.4, seed=3, stratified=stratified))
    assert sorted(numbers(part) + numbers(rest)) == list(range(30))
    assert numbers(rest) == sorted(numbers(rest))
    with pytest.raises(InputError, match="all 30 rows; a cut leaves at least one"):
        split.cut(1.0)


def test_where_and_take():
    split = make()
    assert numbers(split.where(split.y == 1)) == list(range(1, 30, 3))
    assert numbers(split.take(torch.tensor([4, 2, 2]))) == [4, 2, 2]
    with pytest.raises(InputError, match="selects no row"):
        split.where(split.y > 9)
    with pytest.raises(InputError, match="empty selection"):
        split.take(torch.tensor([], dtype=torch.long))
    for mask in (split.y, torch.ones(29, dtype=torch.bool)):
        with pytest.raises(InputError, match="mask is"):
            split.where(mask)


def test_replace():
    split = make()
    assert split.replace(y=(split.y + 1) % 3).y[:3].tolist() == [1, 2, 0]
    assert split.replace(group=1 - split.group).group[:3].tolist() == [1, 0, 1]
    assert split.replace(card=CARD.replace(name="n")).card.name == "n"
    assert numbers(split.replace()) == numbers(split)
    with pytest.raises(InputError, match="y holds"):
        split.replace(y=split.y + 5)


def test_batches_cover_all_rows_in_order():
    parts = list(make().batches(8))
    assert [len(p) for p in parts] == [8, 8, 8, 6]
    assert torch.equal(torch.cat(parts), torch.arange(30))


def test_to_the_same_device_is_the_same_split():
    split = make()
    assert split.to("cpu") is split


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_to_a_gpu_and_back():
    split = make().with_overlay(torch.tensor([2]), X[:1], make().y)
    there = split.to("cuda")
    assert there.device.type == there.y.device.type == "cuda"
    assert there.to("cpu").content_hash() == there.content_hash() == split.content_hash()


@pytest.mark.parametrize("again", [lambda s: pickle.loads(pickle.dumps(s)), copy.deepcopy, copy.copy])
def test_copies_are_the_same_and_immutable(again):
    split = make().with_overlay(torch.tensor([1, 5]), torch.full((2, 1, 4, 4), 77, dtype=torch.uint8), make().y)
    other = again(split)
    assert other.content_hash() == split.content_hash()
    assert torch.equal(other.index, split.index)
    assert other.card == split.card
    with pytest.raises(AttributeError):
        other.y = split.y


def test_the_hash_depends_on_content_only():
    base = make().content_hash()
    assert make().content_hash() == base
    assert make(card=CARD.replace(name="other"), index=torch.arange(30)).content_hash() == base
    assert make().take(torch.arange(30)).content_hash() == base
    assert make(y=(torch.arange(30) + 1) % 3).content_hash() != base
    assert make(group=(torch.arange(30) + 1) % 2).content_hash() != base
    assert make().take(torch.arange(29, -1, -1)).content_hash() != base
    pixel = make().with_overlay(torch.tensor([3]), torch.full((1, 1, 4, 4), 4, dtype=torch.uint8), make().y)
    assert pixel.content_hash() != base


# overlays and memory maps


def test_an_overlay_replaces_only_its_rows():
    split = make()
    new = torch.tensor([100, 101, 102], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 4, 4)
    y = split.y.clone()
    y[[0, 7, 29]] = 2
    changed = split.with_overlay(torch.tensor([0, 7, 29]), new, y)
    expected = list(range(30))
    expected[0], expected[7], expected[29] = 100, 101, 102
    assert changed.x[:, 0, 0, 0].tolist() == expected
    for positions in ([29, 0, 7, 8, 7], [3], [0]):
        assert changed.rows(torch.tensor(positions))[:, 0, 0, 0].tolist() == [expected[p] for p in positions]
    assert split.x[:, 0, 0, 0].tolist() == list(range(30))
    assert changed.sample(30).x[:, 0, 0, 0].sort().values.tolist() == sorted(expected)
    twice = changed.with_overlay(torch.tensor([7, 8]), new[:2] + 50, y)
    expected[7], expected[8] = 150, 151
    assert twice.x[:, 0, 0, 0].tolist() == expected


def test_an_empty_overlay_changes_nothing():
    split = make()
    same = split.with_overlay(torch.tensor([], dtype=torch.long), X[:0], split.y)
    assert same.content_hash() == split.content_hash()


def test_a_memory_mapped_store_is_read_in_parts(tmp_path):
    plain = make(200)
    np.save(tmp_path / "rows.npy", plain.x.numpy())
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="c")
    split = Split(torch.from_numpy(mapped), plain.y, group=plain.group, index=plain.index, card=CARD)
    assert split.rows(torch.tensor([5, 199]))[:, 0, 0, 0].tolist() == [5, 199]
    assert numbers(split.sample(20, seed=1)) == numbers(plain.sample(20, seed=1))
    assert split.content_hash() == plain.content_hash()
    attack, run = BadNets(poison_rate=0.1), Run(device="cpu", quiet=True)
    poisoned, expected = attack.poison(split, run), attack.poison(plain, run)
    assert poisoned.split.content_hash() == expected.split.content_hash()
    assert poisoned.split._store.data_ptr() == split._store.data_ptr()  # the clean rows are shared, not copied
    assert np.array_equal(np.load(tmp_path / "rows.npy"), plain.x.numpy())  # and the file is as it was


# poisoned sets and clean ones


def test_poisoned_knows_what_happened():
    split = make()
    y = split.y.clone()
    y[:4] = 0
    kind = torch.full((30,), CLEAN, dtype=torch.uint8)
    kind[:4], kind[4:6] = POISON, CROSS
    poisoned = Poisoned(split.replace(y=y), kind, split.y, planted=None)
    assert int(poisoned.poison.sum()) == 4  # cross rows are not poison
    assert poisoned.dirty == 2  # rows 0 and 3 had label 0 before
    assert len(poisoned) == 30
    assert poisoned.card == CARD
    with pytest.raises(InputError, match="kind is"):
        Poisoned(split, kind.long(), split.y, None)
    with pytest.raises(InputError, match="kind is"):
        Poisoned(split, kind[:5], split.y, None)
    with pytest.raises(InputError, match="y_true"):
        Poisoned(split, kind, split.y + 3, None)


def test_as_clean_lets_only_splits_pass():
    split = make()
    assert as_clean(split) is split
    with pytest.raises(InputError, match="rows is a Poisoned"):
        as_clean(Poisoned(split, torch.zeros(30, dtype=torch.uint8), split.y, None), "rows")
    with pytest.raises(InputError, match="rows is a Data"):
        as_clean(Data(split, split), "rows")
    assert Data(split, split).card == CARD


def test_parts_of_one_source_are_joined_in_its_order_and_those_of_two_are_not():
    split = make()
    train, val, test = (split.take(torch.tensor(rows)) for rows in ([4, 0, 7], [9], [2, 1]))
    whole = Data(train, test, val, held_out=True).joined()
    rows = [0, 1, 2, 4, 7, 9]
    assert whole.index.tolist() == split.index[rows].tolist()
    assert torch.equal(whole.x, split.x[rows])
    assert torch.equal(whole.y, split.y[rows])
    assert whole.group is not None
    assert split.group is not None
    assert torch.equal(whole.group, split.group[rows])
    assert Data(train, test, val, held_out=True).handed_in().index.tolist() == whole.index.tolist()
    assert Data(train, test, val).joined() is train
    assert Data(train, test, val).handed_in() is test


@pytest.mark.parametrize(
    ("positions", "told"),
    [
        (torch.tensor([0, 60]), "go from 0 to 60; the split has rows 0 to"),
        (torch.tensor([-1]), "go from -1 to -1"),
        (torch.tensor([True, False]), "where\\(\\) takes a mask"),
        (torch.tensor([1.0]), "torch.float32"),
        (torch.tensor([[1]]), "\\(1, 1\\)"),
        (torch.tensor([], dtype=torch.int64), "empty"),
        (torch.tensor([0, 1]).to_sparse(), "layout torch.sparse_coo; expected a dense one"),
    ],
)
def test_take_refuses_what_is_not_there(images, positions, told):
    split = images(60)
    with pytest.raises(InputError, match=told):
        split.take(positions)


@pytest.mark.parametrize("positions", [[60], [-1], [[0, 60]]])
def test_rows_that_are_not_there_are_refused(images, positions):
    with pytest.raises(InputError, match="a row that is not there; the split has rows 0 to 59"):
        images(60).rows(torch.tensor(positions))


def test_positions_of_any_shape_give_rows_of_that_shape(images):
    split = images(60)
    poisoned = split.with_overlay(torch.tensor([3]), 255 - split.rows(torch.tensor([3])), split.y)
    rows = poisoned.rows(torch.tensor([[3, 4], [5, 3]]))
    assert torch.equal(rows, poisoned.x[torch.tensor([[3, 4], [5, 3]])])
    assert torch.equal(poisoned.rows(torch.tensor(3)), poisoned.x[3])


def test_data_whose_parts_do_not_fit_are_refused(images):
    train = images(60)
    smaller = Split(train.x[:, :, :4, :4], train.y)
    with pytest.raises(InputError, match=r"test has rows of shape .*; those of train are"):
        Data(train=train, test=smaller)
    renamed = train.replace(card=train.card.replace(classes=tuple(f"class {k}" for k in range(train.num_classes))))
    with pytest.raises(InputError, match="val has the classes class 0, class 1"):
        Data(train=train, test=train, val=renamed)
