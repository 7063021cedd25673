"""What one training step sees and returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

from theriac.core.ranges import typed
from theriac.core.run import Run


@dataclass
class Batch:
    """One step's rows."""

    x: torch.Tensor  # stored rows until after augmentation, then model input
    y: torch.Tensor
    position: torch.Tensor  # rows of the split, int64 (B,)
    epoch: int
    step: int  # counted from the start of training
    run: Run
    epochs: int = 0
    beside: dict[str, torch.Tensor] = field(default_factory=dict)  # what a hook keeps of each row for the step, (B, ...)


StepResult = torch.Tensor | tuple[torch.Tensor, Mapping[str, torch.Tensor]]
"""What a step returns: the loss, perhaps with scalar tensors to report (averaged over the epoch)."""

BatchNorm = nn.modules.batchnorm._BatchNorm
Step = Callable[[nn.Module, Batch], StepResult]
"""The loss of one batch, from the model and the batch; or the loss with figures to report, by name."""


@typed()
def cross_entropy_step(model: nn.Module, batch: Batch) -> StepResult:
    """Plain training: mean cross-entropy, with the accuracy beside it."""
    logits = model(batch.x)
    return F.cross_entropy(logits, batch.y), {"accuracy": (logits.argmax(1) == batch.y).float().mean()}
