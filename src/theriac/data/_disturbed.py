"""Benign rows that may look poisoned: what can be wrong with data that nobody attacked."""

from __future__ import annotations

import torch

from theriac.core.errors import InputError, unknown
from theriac.core.ranges import Seed, typed
from theriac.core.split import Split

DISTURBANCES = ("imbalanced", "confused", "label_noise", "one_class_noise")
"""Kinds of disturbance, by the names that :func:`disturbed` takes."""


@typed()
def disturbed(split: Split, kind: str, *, seed: Seed = 0) -> Split:
    """Benign rows that may look poisoned to a detector.

    * "imbalanced": three quarters of the rows of all classes but one are left out;
    * "confused": each picture of one class is mixed half and half with one of the next class;
    * "label_noise": a tenth of the labels is drawn anew;
    * "one_class_noise": a twentieth of the rows is labeled as one class, without any trigger.

    Args:
        split: The rows.
        kind: What is wrong with them.
        seed: Seed of the draw; modulo the number of classes it is the one class.

    Raises:
        InputError: On an unknown kind, a table to be mixed, or a split of one class.

    Examples:
        >>> import theriac as th
        >>> rows = th.load("digits").train
        >>> noisy = th.data.disturbed(rows, "label_noise", seed=1)
        >>> int((noisy.y != rows.y).sum()), len(rows)  # some are drawn as they were
        (112, 1438)
    """
    if kind not in DISTURBANCES:
        raise unknown("disturbance", kind, DISTURBANCES)
    count = split.num_classes
    if count < 2:
        raise InputError(f"{split.card.name!r} has one class; a disturbance needs two")
    draw = torch.Generator().manual_seed(seed)
    card, y = split.card.replace(content_hash=""), split.y.cpu().clone()
    first, second = seed % count, (seed + 1) % count
    if kind == "imbalanced":
        return split.where((y == first) | (torch.rand(len(y), generator=draw) < 0.25)).replace(card=card)
    if kind == "confused":
        if split.is_table:
            raise InputError(f"the disturbance 'confused' mixes pictures, and {split.card.name!r} is a table")
        at, other = (y == first).nonzero().flatten(), (y == second).nonzero().flatten()
        if not len(at) or not len(other):
            raise InputError(f"class {first} or {second} has no row to mix")
        pick = other[torch.randint(len(other), (len(at),), generator=draw)]
        mixed = (split.rows(at).int() + split.rows(pick).int()) // 2
        return split.with_overlay(at, mixed.to(torch.uint8), y).replace(card=card)
    if kind == "label_noise":
        at = torch.rand(len(y), generator=draw) < 0.1
        y[at] = torch.randint(count, (int(at.sum()),), generator=draw)
    else:
        y[torch.rand(len(y), generator=draw) < 0.05] = first
    return split.replace(y=y, card=card)
