"""What happens to a model after it was repaired: rounding, pruning, more training, distillation, an attacker's re-tuning.

Each function returns a changed copy and leaves the given model as it is.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from theriac.auditing.options import Options
from theriac.core.errors import InputError
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models import run_over
from theriac.models.editing import duplicate
from theriac.models.rounding import rewritten
from theriac.training import Batch, Recipe, StepResult, loop
from theriac.training.step import Step, cross_entropy_step


def pruned(model: nn.Module, share: float) -> nn.Module:
    """The smallest weights of each linear layer, convolution and attention set to zero: ``floor(share x count)`` of them."""

    def thinned(weight: torch.Tensor) -> torch.Tensor:
        least = weight.abs().flatten().argsort(stable=True)[: math.floor(share * weight.numel())]
        return weight.flatten().index_fill(0, least, 0.0).view_as(weight)

    return rewritten(model, thinned)


def channel_pruned(model: nn.Module, share: float) -> nn.Module:
    """The output channels of least norm of each convolution set to zero: ``floor(share x count)`` of them."""

    def thinned(weight: torch.Tensor) -> torch.Tensor:
        least = weight.flatten(1).norm(dim=1).argsort(stable=True)[: math.floor(share * len(weight))]
        return weight.index_fill(0, least, 0.0)

    return rewritten(model, thinned, only_convolutions=True)


def tuned(model: nn.Module, rows: Split, run: Run, options: Options) -> nn.Module:
    """Fine-tuned on clean rows, as a user without knowledge of the attack would do it."""
    recipe = _recipe(len(rows), options.tune_steps, options.tune_lr, options)
    return _steps(duplicate(model), rows, run, recipe, options.tune_steps, "audit-tune")


def retuned(model: nn.Module, rows: Split, run: Run, options: Options) -> nn.Module:
    """Re-tuned by an attacker, on few rows of which some are poisoned; BatchNorm keeps its statistics."""
    recipe = _recipe(len(rows), options.retune_steps, options.retune_lr, options).replace(norm="eval", augment="none")
    return _steps(duplicate(model), rows, run, recipe, options.retune_steps, "audit-retune")


def distilled(model: nn.Module, rows: Split, run: Run, options: Options) -> nn.Module:
    """A fresh network of the same kind that learns the model's answers for clean rows.

    Raises:
        InputError: If a layer with weights has no ``reset_parameters``, so that no fresh network can be made of it.
    """
    student = fresh(model, run)
    answers = run_over(model, rows, run=run).softmax(1).to(run.device)

    def step(net: nn.Module, batch: Batch) -> StepResult:
        return F.kl_div(F.log_softmax(net(batch.x), 1), answers[batch.position], reduction="batchmean"), {}

    recipe = _recipe(len(rows), options.distill_steps, options.distill_lr, options).replace(
        schedule="one_cycle", augment="none"
    )
    return _steps(student, rows, run, recipe, options.distill_steps, "audit-distill", step)


def fresh(model: nn.Module, run: Run) -> nn.Module:
    """A copy with freshly initialized weights, from the run's ``init`` stream.

    Raises:
        InputError: Naming the first layer that holds weights and can't draw them.
    """
    student = duplicate(model)
    with run.init_scope("audit"):
        for name, module in student.named_modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            elif next(module.parameters(recurse=False), None) is not None:
                kind = type(module).__name__
                raise InputError(f"layer {name!r} ({kind}) can't draw its weights anew (it has no reset_parameters)")
    return student


def _recipe(rows: int, steps: int, lr: float, options: Options) -> Recipe:
    batch_size = min(options.batch_size, rows)
    epochs = math.ceil(steps / math.ceil(rows / batch_size))
    return Recipe(
        name="audit", epochs=epochs, batch_size=batch_size, lr=lr, momentum=0.9, weight_decay=5e-4, schedule="constant"
    )


def _steps(
    model: nn.Module, rows: Split, run: Run, recipe: Recipe, steps: int, label: str, step: Step = cross_entropy_step
) -> nn.Module:
    """Exactly ``steps`` updates."""
    return loop(model, rows, run, recipe, step=step, after_step=lambda n: n + 1 >= steps, label=label)
