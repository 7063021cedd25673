"""The last step that all sources share: from codes and rows to splits with one card."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import numpy as np
import torch

from theriac.core._rows import chunk_size, pixel_moments
from theriac.core.card import Card
from theriac.core.split import Data, Split
from theriac.data import _cache
from theriac.data._images import warn_if_dark
from theriac.data._labels import Codes, Rows

Pick = Callable[[str, Codes | None], torch.Tensor]
"""The rows of a part, all or those at some positions."""


def assemble(
    rows: Mapping[str, Rows],
    labels: Mapping[str, Codes],
    groups: Mapping[str, Codes] | None,
    pick: Pick,
    card: Card,
    *,
    index: Mapping[str, Codes] | None = None,
    key: str | None = None,
    white: float | None = None,
) -> Data:
    """Make the splits.

    Args:
        rows: Which rows of which part make each split.
        labels: Class numbers by part.
        groups: Cell numbers by part, if there are any.
        pick: Gives the rows themselves.
        card: Everything but pixel moments and the content hash, which are computed here from the training rows.
        index: Row numbers in the source by part, where they are not 0, 1, ...
        key: What determines the rows; with it, moments and hash are remembered in the cache.
        white: The level that the caller calls white; without it, pictures that are almost black get a warning.
    """
    splits = {}
    for name, (part, at) in rows.items():
        numbers = np.arange(len(labels[part])) if index is None else index[part]
        chosen = slice(None) if at is None else at
        splits[name] = Split(
            pick(part, at),
            torch.from_numpy(labels[part][chosen]),
            group=None if groups is None else torch.from_numpy(groups[part][chosen]),
            index=torch.from_numpy(numbers[chosen]),
            card=card,
        )
    train = splits["train"]

    mean, std, digest, brightest = _facts(train, key)
    if white is None and not train.is_table:
        warn_if_dark(brightest, f"the training pictures of {card.name!r}", "say white=LEVEL of theriac.load")
    card = card.replace(mean=mean, std=std, content_hash=digest)
    made = {name: split.replace(card=card) for name, split in splits.items()}
    return Data(made["train"], made["test"], made.get("val"), held_out=rows["test"][0] == "train")


def _facts(train: Split, key: str | None) -> tuple[tuple[float, ...], tuple[float, ...], str, int]:
    """Pixel moments, content hash and brightest level of the training rows, from the cache if they were worked out before."""
    place = ""
    if key is not None:
        chosen = hashlib.sha256()
        for tensor in (train.index, train.y, train.group):
            chosen.update(b"none" if tensor is None else tensor.numpy().tobytes())
        place = _cache.key_of("facts", key, chosen.hexdigest())
        known = _cache.recall(place)
        mean, std, digest = known.get("mean"), known.get("std"), known.get("content_hash")
        brightest = known.get("brightest")
        depth = train.card.channels
        if _numbers(mean, depth) and _numbers(std, depth) and isinstance(digest, str) and isinstance(brightest, int):
            return tuple(mean), tuple(std), digest, brightest  # type: ignore[arg-type]
    moments = ((), ()) if train.is_table else pixel_moments(train.x)
    digest = train.content_hash()
    brightest = 255 if train.is_table else max(int(chunk.max()) for chunk in train.x.split(chunk_size(train.x)))
    if key is not None:
        _cache.note(place, {"mean": list(moments[0]), "std": list(moments[1]), "content_hash": digest, "brightest": brightest})
    return *moments, digest, brightest


def _numbers(value: object, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(isinstance(v, float) and 0 <= v <= 1 for v in value)
