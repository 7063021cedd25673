"""Clean rows of another distribution than the model's, as a defender may have them in place of rows like the training rows."""

from __future__ import annotations

import torch

from theriac.core.errors import InputError, unknown
from theriac.core.ranges import Seed, typed
from theriac.core.split import Split
from theriac.data._disturbed import DISTURBANCES, disturbed

BRIGHTER, FLATTER, NOISE = (
    0.15,
    0.4,
    0.08,
)  # of the range, of the contrast, of the range; ours, halfway of common corruption sets
SHIFTS = ("brightness", "contrast", "noise", *DISTURBANCES)
"""Kinds of shift, by the names that :func:`shifted` takes."""


@typed()
def shifted(split: Split, kind: str, *, seed: Seed = 0) -> Split:
    """The same rows as another camera, or another annotator, would have made them.

    * "brightness": all pixels are brighter by 0.15 of their range;
    * "contrast": differences from a picture's mean are 0.4 of what they were;
    * "noise": Gaussian noise with a standard deviation of 0.08 of the range is added to every pixel;
    * the kinds of :func:`theriac.data.disturbed`: wrong labels, imbalance, mixed classes.

    Args:
        split: The rows; pictures, for the first three.
        kind: How they are shifted.
        seed: Seed of what is drawn.

    Raises:
        InputError: On an unknown kind, or a table whose pixels are to be changed.

    Examples:
        >>> import theriac as th
        >>> rows = th.load("digits").train
        >>> brighter = th.data.shifted(rows, "brightness")
        >>> int(brighter.x[0, 0, 0, 0]) - int(rows.x[0, 0, 0, 0])
        38
    """
    if kind not in SHIFTS:
        raise unknown("shift", kind, SHIFTS)
    if kind in DISTURBANCES:
        return disturbed(split, kind, seed=seed)
    if split.is_table:
        raise InputError(f"the shift {kind!r} changes pixels, and {split.card.name!r} is a table")
    at = torch.arange(len(split), device=split.device)
    x = split.rows(at).float()
    if kind == "brightness":
        x += 255 * BRIGHTER
    elif kind == "contrast":
        middle = x.mean((1, 2, 3), keepdim=True)
        x = middle + FLATTER * (x - middle)
    else:
        x += 255 * NOISE * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x.device)
    changed = x.round_().clamp_(0, 255).to(torch.uint8)
    return split.with_overlay(at, changed, split.y.clone()).replace(card=split.card.replace(content_hash=""))
