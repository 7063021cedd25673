"""The hash behind random numbers of a row: the bits of its definition, whatever the batch."""

from __future__ import annotations

import math

import torch

import theriac as th
from theriac.attacks import WaNet
from theriac.triggers.per_row import uniform
from theriac.triggers.warp import warp


def _defined(row: int, places: int, seed: int) -> list[float]:
    """The hash "lowbias32" of (seed, row number, place) in Python's whole numbers."""

    def mix(x: int) -> int:
        x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
        x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
        return x ^ (x >> 16)

    start = mix((row & 0xFFFFFFFF) ^ mix(((row >> 32) + seed % 0x7FFFFFFF) & 0xFFFFFFFF))
    return [(mix((start + place * 0x9E3779B9) & 0xFFFFFFFF) >> 8) * 2.0**-24 for place in range(places)]


def test_the_numbers_are_those_of_the_definition():
    index = torch.tensor([0, 1, 7, 49_999, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40 + 3])
    for seed, shape in ((0, (5,)), (3, (4, 3)), (2**31 + 5, (2, 2, 2))):
        numbers = uniform(index, shape, seed)
        assert numbers.shape == (len(index), *shape)
        expected = [_defined(int(row), math.prod(shape), seed) for row in index]
        assert torch.equal(numbers.flatten(1), torch.tensor(expected))


def test_a_row_gets_the_same_numbers_in_every_batch():
    index = torch.arange(300)
    numbers = uniform(index, (8, 8, 2), 1)  # several chunks
    alone = torch.cat([uniform(part, (8, 8, 2), 1) for part in index.split(7)])
    assert torch.equal(numbers, alone)
    assert uniform(index[:0], (8, 8, 2), 1).shape == (0, 8, 8, 2)


def test_spoiled_rows_of_wanet_are_the_formula_on_all_rows_at_once():
    draw = torch.Generator().manual_seed(0)
    x, index = torch.randint(0, 256, (400, 3, 32, 32), generator=draw, dtype=torch.uint8), torch.arange(400) * 3
    y = torch.arange(400) % 5
    planted = WaNet().plant(split := th.Split(x, y))
    size = split.card.size
    side = torch.linspace(-1, 1, size[0])
    pixel = torch.tensor([1 / size[1], 1 / size[0]])
    grid = torch.stack([side.expand(size), side[:, None].expand(size)], -1) + 0.5 * pixel * planted.state["field"]
    noise = uniform(index, (*size, 2), 0) * 2 - 1
    expected = warp(x, grid.clamp(-1, 1) + noise * pixel)
    assert torch.equal(planted.stamp(x, y, index, "train", "cross"), expected)
