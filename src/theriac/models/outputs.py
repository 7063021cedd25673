"""A model's outputs for all rows of a split, in the one evaluation context that everything else uses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from theriac.core import check
from theriac.core.errors import InputError
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models._undisturbed import undisturbed
from theriac.models.editing import refuse_empty
from theriac.models.layout import arranged
from theriac.models.network import to_input
from theriac.models.taps import Tap, features

_PIXELS = 1 << 16  # of a batch of images on a CPU: 64 of 32 x 32
_FEWEST, _MOST = 16, 512  # rows of a batch


def run_over(
    model: Any,
    split: Split,
    want: str = "logits",
    *,
    run: Run | None = None,
    batch_size: int | None = None,
    inputs: torch.Tensor | None = None,
) -> torch.Tensor:
    """A model's outputs for all rows, in the order of the rows.

    Rows go in as a test set does: stored rows without augmentation, the model in eval mode, in the run's precision. The model's
    modes, device and gradients are afterward what they were.

    Args:
        model: A module from inputs (pixels in [0, 1], or raw table rows) to logits (N, K), or a Victim.
        split: The rows.
        want: "logits"; "features", the penultimate embedding (the input of the layer that makes the logits); or the dotted
            name of a layer, whose input is taken, flattened to (N, D).
        run: Device and precision.
        batch_size: Rows per forward pass; None: :func:`batch_rows`.
        inputs: Pictures in [0, 1] that the model gets in place of the split's, float (N, C, H, W): stamped ones, say, with
            changes of less than a level, which no stored row can hold.

    Returns:
        Float32, on the CPU: logits (N, K), or embeddings (N, D).

    Raises:
        InputError: On something else than a model and a split, an unknown layer, or a model that can't take the rows, returns
            something else than one logit a class, or NaN.
    """
    if batch_size is not None:
        check.integer("batch_size", batch_size, 1)
    if not isinstance(split, Split):
        raise InputError(f"split is a {type(split).__name__}; expected a Split (theriac.Split(x, y) makes one)")
    if inputs is not None and (split.is_table or inputs.shape != (len(split), *split.card.shape)):
        raise InputError(f"inputs has shape {tuple(inputs.shape)}; expected {len(split)} pictures as the split has")
    net, run = module_of(model), run or Run()
    parts = []
    with evaluating(net, run):
        here, tap = split.to(run.device), None
        if want != "logits":
            few = to_input(here.rows(torch.arange(min(2, len(here)))))
            check.logits(net, few, split.num_classes)
            tap = features(net, None if want == "features" else want, few)
        size = batch_size or batch_rows(here)
        for positions in run.each("outputs", here.batches(size), len(here) // size + 1):
            x = to_input(here.rows(positions)) if inputs is None else inputs[positions.to(inputs.device)].to(run.device)
            parts.append((check.logits(net, x, split.num_classes) if tap is None else _embedding(tap, x)).float().cpu())
    return torch.cat(parts)


def over_rows(
    answer: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    split: Split,
    *,
    run: Run | None = None,
    batch_size: int | None = None,
) -> torch.Tensor:
    """A function's outputs for all rows, without gradients; mode, device and precision are set by the caller.

    It is for the inside of a search or a training, where a network is set up once and runs many times, and for networks that
    need more than the rows. Elsewhere call :func:`run_over`, which sets the network up, checks its outputs and puts
    everything back.

    Args:
        answer: A function from model inputs (B, ...) and their positions, int64 (B,), to a tensor (B, ...).
        split: The rows, without augmentation.
        run: Names the device for the inputs and shows the progress; None: the device of the rows, and no progress.
        batch_size: Rows per call; None: :func:`batch_rows`.

    Returns:
        A tensor (N, ...) in the order of the rows, with the device and dtype of what ``answer`` returns.
    """
    size = batch_size or batch_rows(split)
    batches, device = split.batches(size), split.device if run is None else run.device
    steps = batches if run is None else run.each("outputs", batches, len(split) // size + 1)
    with torch.no_grad():
        return torch.cat([answer(to_input(split.rows(at).to(device)), at.to(device)) for at in steps])


def batch_rows(split: Split) -> int:
    """Rows of a forward pass without gradients, by where the rows are and how large: the same for the same rows, always.

    On a CPU, outputs of layers beyond 32 MB are memory that the C library takes from the system anew for each layer. 64 color
    images of 32 x 32 pixels took 0.64 of the processor seconds of 512 in a ResNet of width 16, and 0.88 of those of 256 at
    width 64 (one thread, torch 2.13); larger images come in the same number of pixels.
    """
    if split.device.type != "cpu" or split.is_table:
        return _MOST
    height, width = split.card.size
    return max(_FEWEST, min(_MOST, _PIXELS // max(1, height * width)))


def module_of(model: Any, name: str = "model") -> nn.Module:
    """The network of a module or of a Victim; ``name`` is what an error calls it.

    Raises:
        InputError: If it is neither.
    """
    net = model if isinstance(model, nn.Module) else getattr(model, "model", model)
    if not isinstance(net, nn.Module):
        raise InputError(f"{name} is a {type(model).__name__}; expected an nn.Module or a Victim")
    return net


@contextlib.contextmanager
def evaluating(model: nn.Module, run: Run) -> Iterator[None]:
    """Eval mode on the run's device and in its precision, without gradients; modes and device are put back afterward."""
    with on_device(model, run), undisturbed(model), arranged(model, run.device), torch.inference_mode(), run.autocast(model):
        yield


@contextlib.contextmanager
def on_device(model: nn.Module, run: Run) -> Iterator[None]:
    """The model on the run's device inside the block, and afterward where its caller had it.

    It has to be the first of several contexts: tensors that are moved in inference mode could never learn again.

    Raises:
        InputError: On a model on the device "meta", which has no numbers.
    """
    came = next((t.device for t in (*model.parameters(), *model.buffers())), run.device)
    try:
        model.to(run.device)
    except NotImplementedError:  # torch's word for tensors without numbers
        refuse_empty(model)
        raise
    try:
        yield
    finally:
        if came != run.device:
            model.to(came)


def _embedding(tap: Tap, x: torch.Tensor) -> torch.Tensor:
    embedding = tap(x)[1]
    if not bool(torch.isfinite(embedding).all()):
        raise InputError(f"the input of layer {tap.layer!r} holds NaN or infinite values; the model's weights are broken")
    return embedding
