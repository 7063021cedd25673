"""Ask a model for its predictions and count them by group and label."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from theriac.core import check
from theriac.core._rows import check_labels
from theriac.core.errors import InputError
from theriac.core.poisoned import Poisoned
from theriac.core.ranges import Count, typed
from theriac.core.run import Run, as_run
from theriac.core.split import Split
from theriac.metrics.fairness import Fairness
from theriac.models._still import still
from theriac.models.classifier import to_input
from theriac.models.grouped import GroupAware


@typed("split", "groups", "positive")
def fairness(
    model: Any,
    split: Split,
    groups: torch.Tensor | None = None,
    positive: int = 1,
    *,
    run: Run | None = None,
    batch_size: Count = 512,
) -> Fairness:
    """Count a model's predictions by group and label.

    Args:
        model: A module from inputs to logits (N, K); a :class:`~theriac.models.GroupAware` is told the groups.
        split: Test rows.
        groups: int64 (N,), if not ``split.group``; they are called by their numbers then.
        positive: The class that "positive" means in demographic parity and equal opportunity.
        run: Device and precision.
        batch_size: Rows per forward pass.

    Returns:
        Rates with counts and intervals, and gaps with their formulas.

    Raises:
        InputError: Without groups, on an empty cell of group and label, or a model that does not fit.

    Example:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> model = th.train("preact_resnet18", data.train, recipe="fast_2")
        >>> odd_rows = data.test.index % 2  # not really a sensitive attribute
        >>> fairness(model, data.test, odd_rows, positive=3).group_acc.keys()
        dict_keys(['0', '1'])
    """
    if isinstance(split, Poisoned) or not isinstance(split, Split):
        raise InputError(f"split is a {type(split).__name__}; expected a Split of test rows")
    names = split.card.groups
    if groups is None:
        if split.group is None:
            raise InputError("split.group is None and groups was not given; fairness needs the group of each row")
        groups = split.group
    else:
        groups, names = check_labels("groups", groups, len(split), None), ()
    run = as_run(run)
    net = model if isinstance(model, nn.Module) else getattr(model, "model", model)
    if not isinstance(net, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; expected an nn.Module")
    net = net.to(run.device)
    here, at = split.to(run.device), groups.to(run.device)
    seen = []
    with still(net), torch.inference_mode(), run.autocast():
        for positions in run.each("fairness", here.batches(batch_size), len(here) // batch_size + 1):
            seen.append(predicted(net, here.rows(positions), at[positions], split.num_classes).cpu())
    return Fairness.count(
        torch.cat(seen),
        split.y.cpu(),
        groups.cpu(),
        groups=names,
        classes=split.card.classes,
        positive=positive,
        data=f"{split.card.name}, {len(split)} rows",
    )


def predicted(net: nn.Module, rows: torch.Tensor, group: torch.Tensor, classes: int) -> torch.Tensor:
    """Predicted classes (N,) of rows as stored; a model that must know the group is told it."""
    if isinstance(net, GroupAware):
        logits: torch.Tensor = net(to_input(rows), group)
        return logits.argmax(1)
    return check.logits(net, to_input(rows), classes).argmax(1)
