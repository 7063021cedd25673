"""What fitted attacks share: the attacker's own clean model, adversarial steps on it, and arrays from the user's files."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from theriac.attacks._fitted import State, cached, key_of
from theriac.core import check
from theriac.core.errors import InputError, TheriacError
from theriac.core.files import read_npy
from theriac.core.paths import as_path
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models import Buildable, make
from theriac.models.layout import arrange
from theriac.training.epochs import loop, set_mode
from theriac.training.recipes import recipe as named
from theriac.training.step import Batch, Step, StepResult, cross_entropy_step

DEFAULT_BUILD = "preact_resnet18"


class FitError(TheriacError):
    """A trigger could not be fitted well enough; the message gives the figure that was reached."""


def side_run(run: Run, name: str) -> Run:
    """A run for the attacker's own work: same machine, seeds from the ``poison`` stream alone, nothing kept in a folder."""
    return Run(seed=run.stream_seed("poison", name), device=run.device, precision=run.precision, quiet=run.quiet)


def part_of(split: Split, rows: int, run: Run, name: str) -> Split:
    """At most ``rows`` rows (0: all of them), drawn from the ``poison`` stream."""
    if not rows or rows >= len(split):
        return split
    return split.sample(rows, seed=run.stream_seed("poison", name, "rows"))


def fit_surrogate(
    split: Split,
    build: Buildable | None,
    run: Run,
    *,
    name: str,
    rows: int,
    recipe: str,
    robust: float = 0.0,
    looked_at: Callable[[nn.Module], None] = lambda _: None,
) -> nn.Module:
    """Train a clean model to fit a trigger on.

    Args:
        split: Clean training rows.
        build: What to train; the usual victim if left out.
        run: Device and ``poison`` stream.
        name: The attack's, for seeds and events.
        rows: Rows to train on at most; 0 takes all.
        recipe: Name of a training recipe.
        robust: Radius (pixels in [0, 1]) of adversarial training; 0 trains plainly.
        looked_at: Is handed the model before it is trained, and refuses one that will not do.

    Returns:
        The model in eval mode, its parameters frozen.
    """
    side = side_run(run, name)
    part = part_of(split, rows, run, name)
    build = DEFAULT_BUILD if build is None else build

    def robust_step(model: nn.Module, batch: Batch) -> StepResult:
        model.eval()  # the search must not move the batch statistics
        draw = side.generator("method", "robust", batch.step)
        batch.x = pgd(model, batch.x, batch.y, radius=robust, step_size=robust / 4, steps=7, start=draw)
        set_mode(model, plan.norm)
        return cross_entropy_step(model, batch)

    plan = named(recipe)
    step: Step = robust_step if robust else cross_entropy_step
    model = make(build, part, side, by_name=False)
    looked_at(model)

    def fit() -> State:
        trained = loop(model, part, side, plan, step=step)
        last = side.history("train")[-1]
        run.event("surrogate", attack=name, rows=len(part), recipe=recipe, robust=robust, accuracy=last["accuracy"])
        return trained.state_dict()

    options = {"attack": name, "recipe": recipe, "robust": robust}
    model.load_state_dict(cached(key_of("surrogate", options, part, build, run), run, fit))
    return arrange(model, side).eval().requires_grad_(False)


def pgd(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    radius: float,
    step_size: float,
    steps: int,
    start: torch.Generator | None = None,
) -> torch.Tensor:
    """Projected sign-gradient ascent on the cross-entropy of the true label, in the L-infinity ball (Madry et al., 2018).

    Args:
        model: In eval mode.
        x: Pixels in [0, 1], (B, C, H, W).
        y: True labels (B,).
        radius: Of the ball, in [0, 1].
        step_size: Of each step, in [0, 1].
        steps: How many.
        start: Where a random start comes from; None starts at ``x``.
    """
    low, high = (x - radius).clamp_min(0), (x + radius).clamp_max(1)
    moved = x
    if start is not None:
        moved = torch.minimum(
            torch.maximum(x + (torch.rand(x.shape, generator=start).to(x.device) * 2 - 1) * radius, low), high
        )
    for _ in range(steps):
        moved = moved.detach().requires_grad_(True)
        with torch.enable_grad():
            loss = F.cross_entropy(model(moved), y, reduction="sum")
        gradient = check.slope(loss, moved)
        moved = torch.minimum(torch.maximum(moved.detach() + step_size * gradient.sign(), low), high)
    return moved.detach()


def read_array(path: str, shape: tuple[int, ...], what: str) -> np.ndarray:
    """A user's ``.npy`` array, memory-mapped; pickled content is refused.

    Args:
        path: The file.
        shape: What it must look like; -1 leaves a length open.
        what: How to call it in an error.

    Raises:
        InputError: If it can't be read or has another shape.
    """
    array = read_npy(as_path(what, path), what)
    fits = len(array.shape) == len(shape)
    if not fits or any(want not in (-1, got) for want, got in zip(shape, array.shape, strict=True)):
        raise InputError(f"{what} {path} has shape {array.shape}; expected {shape}, -1 for any length")
    if array.dtype.kind not in "uif":
        raise InputError(f"{what} {path} holds {array.dtype}; expected numbers")
    return array


def read_rows(path: str, index: torch.Tensor, shape: tuple[int, ...], what: str) -> torch.Tensor:
    """Some images of a user's ``.npy`` array of bytes (N, H, W, C), by row number in the source; uint8 (B, C, H, W).

    Raises:
        InputError: If it can't be read, has another shape or dtype, or lacks a row.
    """
    channels, height, width = shape
    rows = read_array(path, (-1, height, width, channels), what)
    if rows.dtype != np.uint8 or (len(index) and int(index.max()) >= len(rows)):
        least = int(index.max()) + 1 if len(index) else 0
        raise InputError(f"{what} {path} holds {len(rows)} rows of {rows.dtype}; expected at least {least} rows of uint8")
    return torch.tensor(rows[index.cpu().numpy()]).permute(0, 3, 1, 2).contiguous()
