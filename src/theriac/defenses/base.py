"""What all repairs share: checks, copying, device, timing. A repair's own file holds only its idea."""

from __future__ import annotations

import copy
import time
import warnings
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import nn

from theriac.core import check
from theriac.core.errors import InputError
from theriac.core.method import Method
from theriac.core.poisoned import as_clean
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models.classifier import to_input
from theriac.models.layout import arrange


@dataclass(frozen=True, kw_only=True)
class Repair(Method):
    """Base of all repairs of a finished model. A subclass writes :meth:`_repair` and works on its own copy of the model."""

    kind: ClassVar[str] = "repair"

    @final
    def repair(self, model: Any, clean: Split, run: Run | None = None) -> nn.Module:
        """Repair a copy of ``model``; the given one is left as it was.

        Args:
            model: A module from inputs (pixels in [0, 1], or raw table rows) to logits (N, K), or a Victim.
            clean: Rows that no attack has touched, with labels.
            run: Device, precision, seeds, checkpoint folder.

        Returns:
            A module of the same class, in eval mode: exactly what is to be scored and saved. A model in half precision is
            repaired in float32 and comes back in its own precision.

        Raises:
            InputError: On a Poisoned where clean rows belong, a model whose outputs do not fit the classes, or one that
                returns NaN.
        """
        run = run or Run()
        clean = as_clean(clean)
        given: nn.Module = model if isinstance(model, nn.Module) else getattr(model, "model", model)
        if not isinstance(given, nn.Module):
            raise InputError(f"model is a {type(model).__name__}; expected an nn.Module or a Victim")
        fixed = arrange(copy.deepcopy(given).to(run.device), run).eval()
        _probe(fixed, clean, run)
        _widen(fixed)
        wants = [p.requires_grad for p in fixed.parameters()]
        if not all(wants):
            warnings.warn(
                f"{wants.count(False)} of the model's {len(wants)} parameters do not require gradients; gradients will not "
                "change them (model.requires_grad_(True) lets the repair reach them)",
                stacklevel=2,
            )
        began = time.perf_counter()
        fixed = self._repair(fixed, clean.to(run.device), run)
        _cast_like(fixed, given)
        run.event("repaired", method=self.name, seconds=round(time.perf_counter() - began, 3), rows=len(clean))
        return fixed.eval()

    @abstractmethod
    def _repair(self, model: nn.Module, clean: Split, run: Run) -> nn.Module:
        """Repair ``model`` in place (it is a copy) and return what is to be scored."""


def _widen(model: nn.Module) -> None:
    """Half precision to float32, in place: an update of 1e-4 would be lost in rounding."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype in (torch.bfloat16, torch.float16):
            tensor.data = tensor.data.float()


def _cast_like(model: nn.Module, given: nn.Module) -> None:
    """Each parameter and buffer back to the precision that it came in."""
    came = {name: tensor.dtype for name, tensor in (*given.named_parameters(), *given.named_buffers())}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in came and tensor.dtype != came[name]:
            tensor.data = tensor.data.to(came[name])


def _probe(model: nn.Module, clean: Split, run: Run) -> None:
    """Run up to 512 clean rows: refuse a model that does not fit, warn about one that seems to be wrapped wrongly."""
    first = torch.arange(min(512, len(clean)))
    rows, y = clean.rows(first).to(run.device), clean.y[first].to(run.device)
    with torch.inference_mode():
        logits = check.logits(model, to_input(rows), clean.num_classes)
    accuracy = float((logits.argmax(1) == y).float().mean())
    chance = float(torch.bincount(y).max()) / len(y)
    if len(first) >= 50 and accuracy <= chance + 0.02:
        warnings.warn(
            f"the model gets {100 * accuracy:.0f} % of the clean rows right, no better than guessing ({100 * chance:.0f} %); "
            "check its wrapping: input scaling, normalization, size, class order (theriac.adapt)",
            stacklevel=4,
        )
