"""Proxy backdoors: triggers that the defender plants into a copy of the model, to see which repair makes them fail.

All kinds are planted into one copy, each with a class of its own, so that one repair of the copy tests every kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from theriac.core.run import Run
from theriac.core.split import Split
from theriac.metrics import Rate
from theriac.models import run_over
from theriac.models.editing import duplicate
from theriac.training import Batch, Recipe, loop
from theriac.triggers.warp import identity_grid, smooth_fields, warp

Stamp = Callable[[torch.Tensor], torch.Tensor]
"""From inputs (B, C, H, W) in [0, 1] to inputs with the trigger."""

KINDS = ("patch", "blend", "wave", "warp", "generator", "tone")


@dataclass(frozen=True)
class Proxy:
    """One planted trigger.

    Args:
        kind: Its kind.
        target: The class that it leads to.
        stamp: Puts it on rows.
    """

    kind: str
    target: int
    stamp: Stamp


def draw_proxies(kinds: tuple[str, ...], split: Split, run: Run, salt: int = 0) -> list[Proxy]:
    """One trigger of each kind, drawn at random, with classes that differ as long as there are enough.

    Args:
        kinds: Names among :data:`KINDS`.
        split: Clean rows: shape and classes.
        run: Gives the draw.
        salt: Another one gives other triggers.
    """
    draw = run.generator("method", "auto-proxies", salt)
    classes = torch.nonzero(split.count())[:, 0].cpu()
    order = classes[torch.randperm(len(classes), generator=draw)]
    shape = (split.card.channels, *split.card.size)
    return [
        Proxy(kind, int(order[number % len(order)]), _MAKERS[kind](shape, draw, run.device))
        for number, kind in enumerate(kinds)
    ]


def plant(model: nn.Module, proxies: list[Proxy], rows: Split, run: Run, steps: int, batch_size: int, label: str) -> nn.Module:
    """A copy of the model that obeys all triggers: half of the rows of each batch are stamped, kinds in turn.

    Args:
        model: Stays as it is.
        proxies: The triggers.
        rows: Clean rows.
        run: Device, precision, seeds.
        steps: Number of updates with whole batches; the rest of an epoch comes on top.
        batch_size: Rows an update.
        label: Of the loop; it decides the order of the rows.
    """

    def stamp(batch: Batch) -> None:
        many = len(batch.x) // 2
        for number, proxy in enumerate(proxies):
            at = slice((number + batch.step) % len(proxies), many, len(proxies))
            batch.x[at], batch.y[at] = proxy.stamp(batch.x[at]), proxy.target

    size = min(batch_size, len(rows))
    epochs = max(1, math.ceil(steps / max(1, len(rows) // size)))
    recipe = Recipe(
        name="auto-plant", epochs=epochs, batch_size=size, lr=0.05, momentum=0.9, weight_decay=5e-4, schedule="cosine"
    )
    return loop(duplicate(model), rows, run, recipe, after_augment=stamp, label=label)


def success(model: nn.Module, proxies: list[Proxy], rows: Split, run: Run) -> dict[str, Rate]:
    """How many stamped rows of other classes each trigger leads to its class, by kind."""
    rates = {}
    for proxy in proxies:
        others = rows.where(rows.y != proxy.target)
        answers = run_over(_Stamped(model, proxy.stamp), others, run=run).argmax(1)
        hits = int((answers == proxy.target).sum())
        rates[proxy.kind] = Rate(hits, len(others), f"held-back rows with the proxy {proxy.kind}")
    return rates


class _Stamped(nn.Module):
    """A model whose inputs get a trigger first."""

    def __init__(self, model: nn.Module, stamp: Stamp) -> None:
        super().__init__()
        self.model, self.stamp = model, stamp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.model(self.stamp(x))
        return out


def _patch(shape: tuple[int, int, int], draw: torch.Generator, device: torch.device) -> Stamp:
    channels, height, width = shape
    side = max(2, round(0.2 * min(height, width)))
    top, left = (int(torch.randint(0, n - side + 1, (), generator=draw)) for n in (height, width))
    fill = torch.randint(0, 2, (channels, side, side), generator=draw).float().to(device)

    def stamp(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, :, top : top + side, left : left + side] = fill.to(x)
        return x

    return stamp


def _blend(shape: tuple[int, int, int], draw: torch.Generator, device: torch.device) -> Stamp:
    picture = torch.rand(shape, generator=draw).to(device)
    return lambda x: 0.8 * x + 0.2 * picture.to(x)


def _wave(shape: tuple[int, int, int], draw: torch.Generator, device: torch.device) -> Stamp:
    _, height, width = shape
    periods, phase = 1 + 2 * float(torch.rand((), generator=draw)), float(torch.rand((), generator=draw))
    wave = 0.15 * torch.sin(2 * math.pi * (periods * torch.arange(width) / width + phase)).expand(height, width).to(device)
    return lambda x: (x + wave.to(x)).clamp(0, 1)


def _warp(shape: tuple[int, int, int], draw: torch.Generator, device: torch.device) -> Stamp:
    size = (shape[1], shape[2])
    moved = (identity_grid(size) + 0.16 * smooth_fields(1, 4, size, draw)).to(device)
    return lambda x: warp(x, moved.expand(len(x), -1, -1, -1)).clamp(0, 1)


def _generator(shape: tuple[int, int, int], draw: torch.Generator, device: torch.device) -> Stamp:
    """A change that depends on the image: a small random network's answer to it, of at most 0.2 a pixel."""
    channels = shape[0]
    first = torch.randn(8, channels, 3, 3, generator=draw).to(device)
    second = torch.randn(channels, 8, 3, 3, generator=draw).to(device)
    shift = torch.randn(1, 8, 1, 1, generator=draw).to(device)

    def stamp(x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(F.conv2d(x.float(), first, padding=1) + shift)
        return (x + 0.2 * torch.tanh(F.conv2d(hidden, second, padding=1)).to(x)).clamp(0, 1)

    return stamp


def _tone(shape: tuple[int, int, int], draw: torch.Generator, device: torch.device) -> Stamp:
    """Few gray levels, moved by a random share of a level."""
    levels, shift = 3, float(torch.rand((), generator=draw))
    return lambda x: ((levels * x + shift).floor() / levels).clamp(0, 1)


_MAKERS = {"patch": _patch, "blend": _blend, "wave": _wave, "warp": _warp, "generator": _generator, "tone": _tone}
