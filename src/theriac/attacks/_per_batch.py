"""Rows drawn anew in each batch, as released code of training-controlling attacks does; for ``official`` presets only."""

from __future__ import annotations

import torch

from theriac.attacks.base import Attack
from theriac.core.card import Augment
from theriac.core.errors import InputError
from theriac.core.planted import Victim
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.data.augment import flip, pad_and_crop, rotate
from theriac.models import Buildable, make
from theriac.training.epochs import loop
from theriac.training.recipes import Recipe
from theriac.training.recipes import recipe as named
from theriac.training.step import Batch

_CROP, _TURN = 0.8, 0.5  # how often a batch is cropped and turned; BackdoorBench @ f02e353, grade A


def train_per_batch(
    attack: Attack, build: Buildable, split: Split, run: Run, recipe: str | Recipe, alike: Augment | None
) -> Victim:
    """Train a victim that sees the first rows of each shuffled batch stamped.

    Args:
        attack: Its rate says how many rows of a batch are poisoned, and its ``_cross_count`` how many more keep their label.
            They are drawn from all classes.
        build: The victim.
        split: Clean training rows.
        run: Device, streams.
        recipe: How to train.
        alike: One augmentation for all images of a batch; None augments each image by itself, as the recipe says.

    Raises:
        InputError: If the rate comes to no row of a batch.
    """
    plan = named(recipe)
    check_rate(attack, plan, split)
    planted = attack.plant(split, build, run)
    index = split.index.to(run.device)

    def stamp(batch: Batch) -> None:
        size = len(batch.y)
        poison, cross = first_rows(attack, size)
        number = index[batch.position] + (batch.epoch << 32)  # noise that belongs to a row is fresh in each epoch
        x, y = batch.x.clone(), batch.y.clone()
        for variant, part in (("poison", slice(0, poison)), ("cross", slice(poison, poison + cross))):
            if part.stop > part.start:
                x[part] = planted.stamp(batch.x[part], batch.y[part], number[part], "train", variant)
        if not attack.clean_label:
            y[:poison] = planted.target(batch.y[:poison])
        if alike is not None:
            x = augment_alike(x, alike, run.generator("augment", "alike", batch.step))
        batch.x, batch.y = x, y

    if alike is not None:
        plan = plan.replace(augment="none")
    return Victim(loop(make(build, split, run), split, run, plan, before_augment=stamp, about=attack), planted)


def first_rows(attack: Attack, size: int) -> tuple[int, int]:
    """How many of a batch's ``size`` rows are poisoned, the first ones, and how many after them get the cross stamp."""
    poison = int(attack.poison_rate * size)
    return poison, min(attack._cross_count(size, poison), size - poison)


def check_rate(attack: Attack, plan: Recipe, split: Split) -> None:
    """Refuse a rate that would plant nothing: a batch has whole rows only.

    Raises:
        InputError: If the rate is not 0, and comes to no row of a batch.
    """
    size = min(plan.batch_size, len(split))
    if attack.poison_rate and not first_rows(attack, size)[0]:
        raise InputError(
            f"poison_rate {attack.poison_rate} comes to no row of a batch of {size}; rows are drawn in each batch, so it takes "
            f"{1 / size:.2g} at least, or 0 to poison nothing (fixed rows can be fewer)"
        )


def augment_alike(x: torch.Tensor, policy: Augment, draw: torch.Generator) -> torch.Tensor:
    """One crop, one turn and one flip for all images (B, C, H, W), each with its own probability."""
    turns = torch.rand(2, generator=draw)
    one = x.reshape(1, -1, *x.shape[2:])  # as one image of many channels, so that one draw serves all
    if policy.crop_pad and turns[0] < _CROP:
        one = pad_and_crop(one, policy.crop_pad, "zero", draw)
    if policy.rotation and turns[1] < _TURN:
        one = rotate(one, policy.rotation, draw)
    if policy.flip:  # flips half of the times by itself
        one = flip(one, draw)
    return one.view(x.shape)
