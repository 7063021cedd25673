from __future__ import annotations

import pytest
import torch

import theriac as th
from theriac.core.errors import InputError
from theriac.data import DISTURBANCES, disturbed
from theriac.runs import Source
from theriac.runs.recording import data_hash


def rows(count: int = 4000, classes: int = 4) -> th.Split:
    """One level a picture: eighty times its class."""
    y = torch.arange(count) % classes
    x = (80 * y).to(torch.uint8)[:, None, None, None].expand(count, 1, 2, 2).contiguous()
    return th.data.from_tensors(x, y, name="pixels", test_share=0.2).train


def test_each_disturbance_is_what_it_says() -> None:
    split = rows()
    counts = disturbed(split, "imbalanced", seed=5).count().tolist()  # class 1 of four
    assert counts[1] == split.count()[1]
    assert all(0.2 < n / counts[1] < 0.3 for n in (counts[0], *counts[2:]))
    mixed = disturbed(split, "confused", seed=2)
    assert (mixed.x[split.y == 2] == 200).all()  # half 160, half 240
    assert torch.equal(mixed.x[split.y != 2], split.x[split.y != 2])
    assert torch.equal(mixed.y, split.y)
    noisy = disturbed(split, "label_noise")
    assert 0.06 < float((noisy.y != split.y).float().mean()) < 0.09  # three quarters of a tenth
    assert set(noisy.y[noisy.y != split.y].tolist()) == {0, 1, 2, 3}
    one = disturbed(split, "one_class_noise", seed=3)
    assert set(one.y[one.y != split.y].tolist()) == {3}
    assert 0.03 < float((one.y != split.y).float().mean()) < 0.05


def test_draws_follow_the_seed_and_the_hash_follows_the_rows() -> None:
    split = th.load("digits").train
    for kind in DISTURBANCES:
        first, second, other = (disturbed(split, kind, seed=seed) for seed in (1, 1, 2))
        assert first.content_hash() == second.content_hash() != other.content_hash()
        assert first.card.content_hash == ""
    assert split.card.content_hash


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'label_noise'"):
        disturbed(rows(), "label_nose")
    table = th.data.from_tensors(torch.rand(20, 3), torch.arange(20) % 2).train
    with pytest.raises(InputError, match="mixes pictures"):
        disturbed(table, "confused")


def test_a_source_has_fewer_classes_and_disturbs_training_rows_only() -> None:
    plain, five = th.load("digits"), Source.of("digits", classes=5, rows=300, disturbed={"kind": "one_class_noise", "seed": 7})
    data = five.load()
    assert data.card.classes == plain.card.classes[:5]
    assert len(data.train) == 300
    assert int((data.test.y == plain.test.y[plain.test.y < 5]).sum()) == len(data.test) == int((plain.test.y < 5).sum())
    assert set(data.train.y.tolist()) == set(range(5))
    with pytest.raises(InputError, match="at most 10"):
        Source.of("digits", classes=11).load()


def test_draws_of_other_seeds_have_other_hashes() -> None:
    draws = [Source.of("digits", {"seed": seed}, rows=300).load() for seed in (0, 1, 1)]
    hashes = [data_hash(data) for data in draws]
    assert hashes[0] != hashes[1] == hashes[2]
    assert draws[1].train.card.content_hash == ""  # that of all rows is not theirs
