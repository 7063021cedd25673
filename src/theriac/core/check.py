"""Small checks of arguments, all with the same message form: name, what came, what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from theriac.core.errors import InputError, TheriacError, unknown

if TYPE_CHECKING:
    import torch
    from torch import nn


def between(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """Refuse a number outside [low, high] (or (low, high] with ``open_low``), NaN and infinity included."""
    bad = not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value)
    if bad or value > high or value < low or (open_low and value == low):
        left = "(" if open_low else "["
        raise InputError(f"{name} is {value!r}; expected a number in {left}{low}, {high}]")


def positive(name: str, value: float, *, zero: bool = False) -> None:
    """Refuse a number that is not finite and above zero (at least zero with ``zero=True``)."""
    bad = not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value)
    if bad or value < 0 or (value == 0 and not zero):
        raise InputError(f"{name} is {value!r}; expected a number {'of at least' if zero else 'above'} 0")


def integer(name: str, value: int, low: int, high: int | None = None) -> None:
    """Refuse anything but a whole number of at least ``low`` (and at most ``high``)."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
        top = "" if high is None else f" and at most {high}"
        raise InputError(f"{name} is {value!r}; expected a whole number of at least {low}{top}")


def one_of(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse a value that is not one of the choices, and suggest the nearest."""
    if value not in choices:
        raise unknown(name, value, choices)


def one_logit(shape: tuple[int, ...], classes: int) -> str:
    """What to do with a network that answers each row with ``shape``, where that is one logit for two classes; else nothing."""
    if classes != 2 or shape not in ((), (1,)):
        return ""
    return (
        " (where it is the second class's alone: logits='binary', or 'probabilities' behind a sigmoid, as in "
        "--wrap logits=binary)"
    )


class NotFiniteError(InputError):
    """A model returns NaN or infinite logits."""


def logits(model: nn.Module, x: torch.Tensor, classes: int) -> torch.Tensor:
    """A model's outputs (N, ``classes``) for inputs (N, ...); refuse a model that can't take them or returns something else."""
    import torch

    try:
        out = model(x)
    except (TheriacError, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:  # channels, size or dtype do not fit, or a mistake in a user's own network
        message = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        inputs = f"{x.dtype} inputs of shape {tuple(x.shape)}"
        if type(error) in (RuntimeError, ValueError, TypeError, IndexError, AssertionError):  # what torch says of a misfit
            raise InputError(f"the model can't take {inputs}: {message}{_other_precision(model, x)}") from None
        raise InputError(f"the model's own code fails on {inputs}: {type(error).__name__}: {message}") from error
    if not isinstance(out, torch.Tensor) or tuple(out.shape) != (len(x), classes):
        got = tuple(out.shape) if isinstance(out, torch.Tensor) else f"a {type(out).__name__}"
        hint = one_logit(tuple(out.shape)[1:], classes) if isinstance(out, torch.Tensor) else ""
        raise InputError(f"the model returns {got}; expected ({len(x)}, {classes}), one logit a class{hint}")
    if not bool(torch.isfinite(out).all()):
        if bool(x.isnan().any()):
            raise NotFiniteError(
                "the model returns NaN where a row holds a missing value (NaN); fill them in its forward (torch.nan_to_num)"
            )
        raise NotFiniteError("the model returns NaN or infinite logits; its weights or its input scaling are broken")
    return out


def _other_precision(model: nn.Module, x: torch.Tensor) -> str:
    """What to do about a model whose parameters are of another precision than what goes into it; else nothing."""
    kinds = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point() and p.dtype != x.dtype}
    return f" (its parameters are {', '.join(sorted(kinds))}: model.float() makes them fit)" if kinds else ""


def slope(loss: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """The slope of a loss by what went into a network.

    Raises:
        InputError: If the network passes none on, as one that ignores, rounds or detaches its inputs.
    """
    import torch

    (gradient,) = torch.autograd.grad(loss, inputs, allow_unused=True) if loss.requires_grad else (None,)
    if gradient is None:
        raise InputError("the network passes no gradient to its inputs (does it round or detach them?), which a search follows")
    return gradient
