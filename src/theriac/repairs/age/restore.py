"""What AGE does after an edit to give the target class back: short training, with or without holding the edit.

==================  ============================================  ============  =========
none                nothing                                       -             -
head                clean rows                                    head          edit free
head_target         clean target rows, as many others             head          edit free
head_stamped        clean rows, triggered rows with true labels   head          edit free
head_held           clean rows                                    head          edit held
later_stamped_held  clean rows, triggered rows with true labels   later layers  edit held
==================  ============================================  ============  =========

``head`` may bring a backdoor back that the edit had weakened (a pilot saw 2 % become 90 %), hence ``head_held``. Training on
triggered rows with true labels is unlearning by fine-tuning: report it apart. All are reconstructions (grade R). Older
records call these R0, R1, R1t, R2, R4 and R5, in this order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import torch
from torch import nn

from theriac.core.errors import InputError
from theriac.core.ranges import Renamed
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.repairs.age.edits import Held
from theriac.training import Recipe, loop

FORMER = {
    "R0": "none",
    "R1": "head",
    "R1t": "head_target",
    "R2": "head_stamped",
    "R4": "head_held",
    "R5": "later_stamped_held",
}
"""Their names in older records."""
Retrain = Annotated[
    Literal["none", "head", "head_target", "head_stamped", "head_held", "later_stamped_held"],
    Renamed(FORMER),
]
"""A name of the table; older names are accepted."""
NEEDS_TRIGGER = ("head_stamped", "later_stamped_held")
HOLDS = ("head_held", "later_stamped_held")
LATER = ("later_stamped_held",)


def rows_for(kind: str, pool: Split, forget: Split | None, target: int, draw: torch.Generator) -> Split:
    """What a repair trains on.

    Args:
        kind: "head", "head_target", "head_stamped", "head_held" or "later_stamped_held".
        pool: Clean rows with labels.
        forget: Triggered rows with their true labels (``head_stamped``, ``later_stamped_held``).
        target: The attack's class (``head_target``).
        draw: Picks the other rows of ``head_target``.

    Raises:
        InputError: If ``head_target`` finds no clean row of the target class, or triggered rows are wanted without a trigger.
    """
    if kind == "head_target":
        own, others = (pool.y == target).nonzero().flatten(), (pool.y != target).nonzero().flatten()
        if not len(own):
            raise InputError(f"head_target trains on clean rows of the target class {target}; the pool has none")
        drawn = torch.randperm(len(others), generator=draw)[: len(own)].to(others.device)
        return pool.take(torch.cat([own, others[drawn]]))
    if kind in NEEDS_TRIGGER:
        if forget is None:
            raise InputError(f"{kind} trains on triggered rows; there is no trigger (use none, head, head_target or head_held)")
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
    own = [edit for edit in held if any(id(p) in ours for p in edit.layer.parameters())]  # the rest is not trained
    wants = [(p, p.requires_grad) for p in net.parameters()]
    for parameter, _ in wants:
        parameter.requires_grad_(id(parameter) in ours)
    # a run of its own: milliseconds long, once a strength; it needs no checkpoint, and one summary is logged instead of epochs
    inner = Run(seed=run.seed, streams=run.streams, device=run.device, precision="fp32", quiet=True)

    def hold(_step: int) -> None:
        for edit in own:
            edit.restore()

    try:
        loop(net, rows, inner, how, parameters=chosen, after_step=hold, label="age")
    finally:
        for parameter, want in wants:
            parameter.requires_grad_(want)
            parameter.grad = None
    return float(inner.history("age")[-1]["loss"])
