"""Loss isolation: train so that only what is learned fast is fitted, and rank the rows by their loss.

The first stage of Anti-Backdoor Learning (Li et al., NeurIPS 2021, https://arxiv.org/abs/2110.11571), which a detector and a
training-time defense share. Facts from bboylyg/ABL @ 3fd736c and SCLBD/BackdoorBench @ f02e353 (grade A, read by us earlier).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from theriac.core.ranges import Positive, typed
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models import run_over
from theriac.training.epochs import loop
from theriac.training.recipes import Recipe
from theriac.training.step import Batch, StepResult

Loss = Literal["ascent", "flooding"]


def isolating_loss(mean: torch.Tensor, bound: float, loss: Loss) -> torch.Tensor:
    """A batch's mean cross-entropy, changed so that it does not fall far below ``bound``.

    Args:
        mean: Mean cross-entropy of a batch.
        bound: gamma of "ascent", sign(l - gamma) l, or b of "flooding", |l - b| + b.
        loss: Which of the two.
    """
    if loss == "ascent":
        return torch.sign(mean.detach() - bound) * mean
    return (mean - bound).abs() + bound


@typed()
def isolate(
    model: nn.Module,
    split: Split,
    run: Run,
    recipe: Recipe,
    *,
    bound: Positive = 0.5,
    loss: Loss = "flooding",
    label: str = "isolation",
    about: object = None,
) -> torch.Tensor:
    """Train ``model`` in place with an isolating loss, and return every row's cross-entropy.

    Args:
        model: A fresh model.
        split: Training rows as they came.
        run: Device, precision, streams.
        recipe: Epochs, batch size, learning rate.
        bound: Where the loss of a batch is held.
        loss: "ascent" (local gradient ascent) or "flooding".
        label: Name of the events and of the checkpoint.
        about: The method, for the checkpoint.

    Returns:
        Cross-entropy of each row without augmentation, float64 (N,), on the CPU: low for what was learned fast.
    """

    def step(net: nn.Module, batch: Batch) -> StepResult:
        logits = net(batch.x)
        mean = F.cross_entropy(logits, batch.y)
        return isolating_loss(mean, bound, loss), {"accuracy": (logits.argmax(1) == batch.y).float().mean()}

    loop(model, split, run, recipe, step=step, label=label, about=about)
    logits = run_over(model, split, run=run).double()
    return F.cross_entropy(logits, split.y.cpu(), reduction="none")
