"""What AGE does after an edit to give the target class back: short training, with or without holding the edit.

======  ============================================  =================  ==============
R0      nothing                                       -                  -
R1      clean rows                                    head               edit free
R1t     clean target rows, as many others             head               edit free
R2      clean rows, triggered rows with true labels   head               edit free
R4      clean rows                                    head               edit held
R5      clean rows, triggered rows with true labels   later layers       edit held
======  ============================================  =================  ==============

R1 may bring a backdoor back that the edit had weakened (a pilot saw 2 % become 90 %), hence R4. R2 and R5 see triggered rows
with true labels, which is unlearning by fine-tuning: report them apart. All are reconstructions (grade R).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from theriac.core.errors import InputError
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.repairs.age.edits import Held
from theriac.training import Recipe, loop

NEEDS_TRIGGER = ("R2", "R5")
HOLDS = ("R4", "R5")
LATER = ("R5",)


def rows_for(kind: str, pool: Split, forget: Split | None, target: int, draw: torch.Generator) -> Split:
    """What a repair trains on.

    Args:
        kind: "R1", "R1t", "R2", "R4" or "R5".
        pool: Clean rows with labels.
        forget: Triggered rows with their true labels (R2, R5).
        target: The attack's class (R1t).
        draw: Picks the other rows of R1t.

    Raises:
        InputError: If R1t finds no clean row of the target class, or R2 and R5 have no trigger.
    """
    if kind == "R1t":
        own, others = (pool.y == target).nonzero().flatten(), (pool.y != target).nonzero().flatten()
        if not len(own):
            raise InputError(f"R1t trains on clean rows of the target class {target}; the pool has none")
        drawn = torch.randperm(len(others), generator=draw)[: len(own)].to(others.device)
        return pool.take(torch.cat([own, others[drawn]]))
    if kind in NEEDS_TRIGGER:
        if forget is None:
            raise InputError(f"{kind} trains on triggered rows; there is no trigger (use R0, R1, R1t or R4)")
        return Split(torch.cat([pool.x, forget.x]), torch.cat([pool.y, forget.y]), card=pool.card)
    return pool


def recipe(epochs: int, batch_size: int, lr: float, momentum: float, weight_decay: float) -> Recipe:
    """SGD at a constant rate, no augmentation, BatchNorm as it is."""
    return Recipe(
        name="age",
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule="constant",
        augment="none",
        norm="eval",
        precision="fp32",
    )


def retrain(net: nn.Module, rows: Split, modules: Iterable[nn.Module], held: Sequence[Held], how: Recipe, run: Run) -> float:
    """Train some modules of ``net`` in place with cross-entropy; after every step put back what is ``held``.

    Returns:
        The mean loss of the last epoch.
    """
    chosen = [p for module in modules for p in module.parameters()]
    ours = {id(p) for p in chosen}
    kept = [edit for edit in held if any(id(p) in ours for p in edit.layer.parameters())]  # the rest stands still anyway
    wants = [(p, p.requires_grad) for p in net.parameters()]
    for parameter, _ in wants:
        parameter.requires_grad_(id(parameter) in ours)
    # a run of its own: milliseconds long, once a strength; it needs no checkpoint, and one summary is told instead of epochs
    inner = Run(seed=run.seed, streams=run.streams, device=run.device, precision="fp32", quiet=True)

    def hold(_step: int) -> None:
        for edit in kept:
            edit.restore()

    try:
        loop(net, rows, inner, how, parameters=chosen, after_step=hold, label="age")
    finally:
        for parameter, want in wants:
            parameter.requires_grad_(want)
            parameter.grad = None
    return float(inner.history("age")[-1]["loss"])
