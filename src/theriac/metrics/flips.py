"""What triggers can still do to a debiased model: the share of predictions that change under each."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from theriac.core import check
from theriac.core.errors import InputError
from theriac.core.ranges import Count, typed
from theriac.core.run import Run, as_run
from theriac.core.split import Split
from theriac.data.alignment import align_to
from theriac.metrics.intervals import Rate
from theriac.models._undisturbed import undisturbed
from theriac.models.grouped import GroupAware
from theriac.models.network import to_input
from theriac.models.outputs import batch_rows, on_device
from theriac.triggers.bank import ColumnBank, TriggerBank, TriggerColumns


@typed("model", "split")
def flip_rate(
    model: Any, split: Split, bank: TriggerBank, *, run: Run | None = None, batch_size: Count | None = None
) -> tuple[Rate, ...]:
    """Share of rows whose prediction changes when they are stamped, for each trigger of a bank.

    A trigger also hides some pixels, so compare with a model that was trained plainly.

    Args:
        model: Inputs to logits (N, K). Of a model that must be told the group, the network inside is looked at.
        split: Test rows, as they are.
        bank: The triggers; for a table the model must have their columns.
        run: Device and precision.
        batch_size: Rows per forward pass; None: what suits the device and the size of the rows.

    Raises:
        InputError: If a table model has no columns that could hold a trigger: nothing can be planted there at inference.
    """
    run = as_run(run)
    net = model if isinstance(model, nn.Module) else getattr(model, "model", model)
    net = net.model if isinstance(net, GroupAware) else net
    if not isinstance(net, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; expected an nn.Module")
    if isinstance(bank, ColumnBank) and not isinstance(net, TriggerColumns):
        raise InputError(
            f"the model takes rows of {bank.features} columns and has none for a trigger, so a trigger can't reach it"
        )
    here = align_to(split, net).to(run.device)
    classes = here.num_classes
    flips = torch.zeros(len(bank), dtype=torch.int64, device=run.device)
    with on_device(net, run), undisturbed(net), torch.inference_mode(), run.autocast(net):
        size = batch_size or batch_rows(here)
        for positions in run.each("flip rate", here.batches(size), len(here) // size + 1):
            x = to_input(here.rows(positions))
            clean = check.logits(net, x, classes).argmax(1)
            for t in range(len(bank)):
                stamped = bank.apply(x, torch.full_like(positions, t))
                flips[t] += (check.logits(net, stamped, classes).argmax(1) != clean).sum()
    return tuple(Rate(int(n), len(split), f"rows stamped with {name}") for n, name in zip(flips, bank.names, strict=True))
