"""The draw of held-out rows, by its invariants."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import theriac as th
from theriac.core.errors import InputError
from theriac.core.split import Split
from theriac.data import split_off


def rows(counts: list[int]) -> Split:
    y = torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(1))]
    return Split(torch.arange(len(y), dtype=torch.float32)[:, None], y)


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.integers(2, 40), min_size=2, max_size=6), st.floats(0.05, 0.9), st.integers(0, 5))
def test_every_class_gives_its_share_and_keeps_a_row(counts: list[int], share: float, seed: int) -> None:
    split = rows(counts)
    rest, drawn = split_off(split, share, seed=seed)
    assert torch.equal(torch.cat([rest.index, drawn.index]).sort().values, torch.arange(len(split)))
    for part in (rest, drawn):
        assert torch.equal(part.index, part.index.sort().values)
        assert torch.equal(part.y, split.y[part.index])
        assert torch.equal(part.x, split.x[part.index])
    assert (rest.count() >= 1).all()
    taken = torch.bincount(drawn.y, minlength=len(counts)).double()
    assert ((taken - share * torch.tensor(counts)).abs() <= 1 + 1e-9).all()
    wanted = max(1, round(share * len(split)))
    spare = all(n - 1 >= share * n + 1 for n in counts)  # no class is short of rows
    assert len(drawn) == wanted if spare else 1 <= len(drawn) <= wanted


def test_the_seed_decides() -> None:
    split = rows([30, 30])
    assert torch.equal(split_off(split, 0.2, seed=1)[1].index, split_off(split, 0.2, seed=1)[1].index)
    assert not torch.equal(split_off(split, 0.2, seed=1)[1].index, split_off(split, 0.2, seed=2)[1].index)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, float("nan")])
def test_a_bad_share(share: float) -> None:
    with pytest.raises(InputError, match=r"share is"):
        split_off(rows([5, 5]), share)


def test_too_few_rows() -> None:
    with pytest.raises(InputError, match=r"2 rows are too few to hold any out"):
        split_off(rows([1, 1]), 0.5)


def test_load_holds_out_the_same_rows() -> None:
    whole, cut = th.load("digits"), th.load("digits", val_share=0.1, seed=3)
    rest, drawn = split_off(whole.train, 0.1, seed=3)
    assert cut.val is not None
    assert torch.equal(cut.val.index, drawn.index)
    assert torch.equal(cut.train.x, rest.x)
