"""Run a model once without leaving a trace: modes, statistics and random streams stay as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from theriac.core import check
from theriac.core.errors import InputError, TheriacError
from theriac.core.files import is_plain
from theriac.models.network import Classifier


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterward modes and buffers are as they were, and so is the global generator."""
    # flags and not train(): a user's model may keep some layers in eval mode, or override train()
    modes = [(module, module.training) for module in model.modules()]
    # a layer that its owner keeps in training mode, or that counts its calls, changes its buffers even so
    buffers = [(m, name, b, b.clone()) for m in model.modules() for name, b in m._buffers.items() if _has_numbers(b)]
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                module._buffers[name] = buffer
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


def _has_numbers(buffer: torch.Tensor | None) -> TypeGuard[torch.Tensor]:
    """Whether a buffer can be compared and put back: lazy ones have no numbers yet, and other layouts can't be compared."""
    return buffer is not None and not is_lazy(buffer) and is_plain(buffer)


@contextlib.contextmanager
def put_back(model: nn.Module) -> Iterator[None]:
    """Whatever happens to modes and flags of parameters, afterward each is as it was: some may have been frozen."""
    modes, wants = [(m, m.training) for m in model.modules()], [p.requires_grad for p in model.parameters()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, want in zip(model.parameters(), wants, strict=True):
            parameter.requires_grad_(want)


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode without parameter gradients; modes and flags are put back afterward."""
    with put_back(model):
        model.eval().requires_grad_(False)
        yield


def blank(model: nn.Module, shape: tuple[int, ...], rows: int) -> torch.Tensor:
    """Rows of zeros in the model's precision and on its device, (``rows``, *``shape``)."""
    like = next(model.parameters(), None)
    if like is None:
        return torch.zeros((rows, *shape))
    return torch.zeros((rows, *shape), device=like.device, dtype=like.dtype if like.is_floating_point() else torch.float32)


def try_rows(model: nn.Module, x: torch.Tensor) -> Any:
    """What the model returns for ``x``, in eval mode.

    Raises:
        InputError: If its forward pass fails, with the first line of the reason.
    """
    try:
        with undisturbed(model):
            return model(x)
    except (TheriacError, MemoryError, torch.OutOfMemoryError):  # say what is wrong already
        raise
    except (Exception, SystemExit) as error:  # whatever a user's own network does with rows that it was not made for
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(f"{class_name(model)} can't take rows of shape {tuple(x.shape[1:])}: {reason}") from error


def seem_shares(outputs: torch.Tensor) -> bool:
    """Whether outputs (N, K) look like probabilities: a softmax ends the network."""
    return outputs.shape[1] > 1 and bool((outputs >= 0).all()) and bool(((outputs.sum(1) - 1).abs() < 1e-3).all())


def seem_bounded(outputs: torch.Tensor) -> bool:
    """Whether outputs (N, K) of many rows all lie between 0 and 1, though they are no shares: a sigmoid ends the network."""
    inside = bool(((outputs >= 0) & (outputs <= 1)).all())
    return outputs.numel() >= 100 and inside and float(outputs.max()) > 0.5 and not seem_shares(outputs)


def check_logits(model: nn.Module, out: Any, rows: int, classes: int) -> None:
    """Refuse an output that is not one logit for each row and class.

    Raises:
        InputError: Saying what came and what was expected.
    """
    if isinstance(out, torch.Tensor) and tuple(out.shape) == (rows, classes) and out.is_floating_point():
        return
    got = f"{out.dtype} {tuple(out.shape)}" if isinstance(out, torch.Tensor) else f"a {type(out).__name__}"
    hint = (
        check.one_logit(tuple(out.shape)[1:], classes)
        if isinstance(out, torch.Tensor)
        else "; wrap the model with theriac.adapt"
    )
    raise InputError(
        f"{class_name(model)} returns {got} for {rows} rows; the data have {classes} classes, "
        f"so ({rows}, {classes}) logits are expected{hint}"
    )


def class_name(model: nn.Module) -> str:
    """Name of a network's class, without its wrapper of pixels."""
    return type(model.net if isinstance(model, Classifier) else model).__name__
