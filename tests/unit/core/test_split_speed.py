"""What is computed in one pass, shared or remembered gives what the plain way gives."""

from __future__ import annotations

import hashlib
import pickle

import torch

import theriac as th


def _split(rows: int = 300, classes: int = 40) -> th.Split:
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (rows, 3, 6, 6), generator=draw, dtype=torch.uint8)
    return th.Split(x, torch.randint(0, classes, (rows,), generator=draw))


def test_stratified_draws_take_the_r_th_row_of_every_class_in_turn():
    split = _split()
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(5))
    by_class = [[int(i) for i in order if split.y[i] == k] for k in range(split.num_classes)]
    rounds = [[rows[r] for rows in by_class if r < len(rows)] for r in range(max(map(len, by_class)))]
    ends = [sum(map(len, rounds[: r + 1])) for r in range(len(rounds))]
    for count in (1, 39, 40, 41, 150, *ends):
        drawn = split.sample(count, seed=5, stratified=True).index.tolist()
        complete = next((r for r, end in enumerate(ends) if end > count), len(rounds))
        before = [row for turn in rounds[:complete] for row in turn]
        assert drawn[: len(before)] == before
        assert len(drawn) == count
        if count > len(before):
            assert [row for row in rounds[complete] if row in drawn] == drawn[len(before) :]


def test_a_second_overlay_lies_on_the_first_and_shares_the_rows_below():
    split = _split()
    first, second = torch.arange(0, 300, 3), torch.arange(1, 300, 5)
    once = split.with_overlay(first, 255 - split.x[first], split.y)
    twice = once.with_overlay(second, split.x[second] // 2, split.y)
    expected = split.x.clone()
    expected[first] = 255 - split.x[first]
    expected[second] = split.x[second] // 2
    assert torch.equal(twice.x, expected)
    assert twice._store.data_ptr() == split._store.data_ptr()
    assert torch.equal(once.x[second], once.take(second).x)  # the first one stays as it was


def test_a_content_hash_is_remembered_and_never_outdated():
    split = _split()
    x, y = split.x, split.y

    def plain() -> str:
        start = repr((tuple(x.shape), str(x.dtype))).encode()
        return hashlib.sha256(start + x.numpy().tobytes() + y.numpy().tobytes()).hexdigest()

    assert split.content_hash() == split.content_hash() == plain()
    before = split.content_hash()
    x[3] = 7  # nobody should; the hash follows all the same
    assert split.content_hash() == plain() != before
    y[5] = 1 - y[5].clamp(0, 1)
    assert split.content_hash() == plain()
    assert pickle.loads(pickle.dumps(split)).content_hash() == plain()
    with torch.inference_mode():
        frozen = th.Split(x.clone(), y.clone(), card=split.card)
    assert frozen.content_hash() == plain()


def test_groups_count_in_the_hash_only_where_they_are_asked_for():
    split = _split()
    grouped = split.replace(group=torch.arange(300) % 2)
    assert grouped.content_hash(groups=False) == split.content_hash() != grouped.content_hash()


def test_moments_of_a_card_are_those_of_the_pixels():
    split = _split(1000)
    pixels = split.x.double() / 255
    torch.testing.assert_close(torch.tensor(split.card.mean).double(), pixels.mean((0, 2, 3)), atol=1e-6, rtol=0)
    std = pixels.transpose(0, 1).flatten(1).std(1, correction=0)
    torch.testing.assert_close(torch.tensor(split.card.std).double(), std, atol=1e-6, rtol=0)
