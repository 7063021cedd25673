"""Where stamped rows go: success by target, rows that the attack is not for, and rows that should resist."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from theriac.core import check
from theriac.core.errors import InputError
from theriac.core.names import places
from theriac.core.planted import Victim
from theriac.core.ranges import typed
from theriac.core.run import Run, as_run
from theriac.core.split import Split
from theriac.data.alignment import aligned
from theriac.metrics.backdoor import attack_labels, successes
from theriac.metrics.intervals import Rate
from theriac.models import batch_rows, to_input
from theriac.models.outputs import evaluating, module_of


@typed("split")
def success_by_target(model: Any, split: Split, attack: Any, *, run: Run | None = None) -> dict[int, Rate]:
    """Attack success by the label that the attack wants, over the same rows as the ASR of :func:`theriac.evaluate`.

    The lowest of these rates is what an attack with several targets should be judged by. An attack that wants no label of its
    own (an untargeted one) is refused.

    Args:
        model: A module from inputs to logits, or a Victim.
        split: Clean test rows.
        attack: An attack with nothing to fit, a Planted, a Victim or a Poisoned.
        run: Device and precision.

    Returns:
        By class, as the rows number it.
    """
    own, (split, planted) = split, aligned(split, model, attack)
    as_came = _numbers(own, split)
    if getattr(planted, "untargeted", False):
        raise InputError(f"{planted.name} wants any label but the true one, so it has no targets to count by")
    targets, counted = attack_labels(planted, split.y, split.index)
    at = counted.nonzero().flatten()
    hit = _stamped(model, split, planted, at, run) == targets[at].cpu()
    targets = targets[at].cpu()
    hits, totals = (
        torch.bincount(targets[hit], minlength=split.num_classes),
        torch.bincount(targets, minlength=split.num_classes),
    )
    of = f"rows stamped by {planted.name} for this class"
    return {as_came[k]: Rate(int(hits[k]), int(totals[k]), of) for k in range(split.num_classes) if totals[k]}


@typed("split")
def success_by_group(model: Any, split: Split, attack: Any, *, run: Run | None = None) -> dict[str, Rate]:
    """Attack success by sensitive group, over all stamped rows that do not have the attack's label already.

    A fairness audit of clean rows does not see an attack that fires for one group only; these rates do.

    Args:
        model: A module from inputs to logits, or a Victim.
        split: Clean test rows with groups.
        attack: An attack with nothing to fit, a Planted, a Victim or a Poisoned.
        run: Device and precision.

    Returns:
        By name of the group; by number where groups have no names. Groups without such rows are left out.

    Raises:
        InputError: If the rows have no groups.
    """
    if split.group is None:
        raise InputError(f"{split.card.name!r} has rows without groups; theriac.load(..., sensitive=...) makes some")
    split, planted = aligned(split, model, attack)
    assert split.group is not None
    targets = attack_labels(planted, split.y, split.index)[0]
    at = (targets != split.y).nonzero().flatten()
    hit = successes(planted, _stamped(model, split, planted, at, run), targets[at].cpu(), split.y[at].cpu())
    group = split.group[at].cpu()
    count = max(len(split.card.groups), int(split.group.max()) + 1)
    names = split.card.groups or tuple(str(k) for k in range(count))
    hits, totals = torch.bincount(group[hit], minlength=count), torch.bincount(group, minlength=count)
    of = f"rows stamped by {planted.name} in this group"
    return {names[k]: Rate(int(hits[k]), int(totals[k]), of) for k in range(count) if totals[k]}


@typed("split")
def leakage(model: Any, split: Split, attack: Any, *, run: Run | None = None) -> dict[int, Rate]:
    """How often stamped rows of classes or groups that the attack is not for go to its label anyway, by true class.

    A source-specific attack whose leakage is near its success rate is not source-specific in fact.

    Args:
        model: A module from inputs to logits, or a Victim.
        split: Clean test rows.
        attack: An attack with nothing to fit, a Planted, a Victim or a Poisoned.
        run: Device and precision.

    Raises:
        InputError: If the attack is for rows of every class.
    """
    own, (split, planted) = split, aligned(split, model, attack)
    as_came = _numbers(own, split)
    targets, counted = attack_labels(planted, split.y, split.index)
    at = (~counted & (targets != split.y)).nonzero().flatten()
    if not len(at):
        raise InputError(f"{planted.name} is for all rows of {split.card.name!r} that have another label; nothing can leak")
    hit = successes(planted, _stamped(model, split, planted, at, run), targets[at].cpu(), split.y[at].cpu())
    y = split.y[at].cpu()
    hits, totals = torch.bincount(y[hit], minlength=split.num_classes), torch.bincount(y, minlength=split.num_classes)
    of = f"stamped rows that {planted.name} is not for"
    return {as_came[k]: Rate(int(hits[k]), int(totals[k]), of) for k in range(split.num_classes) if totals[k]}


def cross_accuracy(victim: Victim, split: Split, *, run: Run | None = None, batch_size: int | None = None) -> Rate:
    """Share of test rows that keep their true label under a spoiled trigger (WaNet, BppAttack) or a foreign one.

    A backdoor that answers to any warping, or to any row's trigger, has a high attack success and a low cross accuracy.

    Raises:
        InputError: If the attack has no cross rows, or the split none that should resist.
    """
    run = as_run(run)
    (split, planted), net = aligned(split, victim, victim), module_of(victim)
    population = planted.cross_population(split.y, split.index).nonzero().flatten()
    if not len(population):
        raise InputError(f"no row of {split.card.name!r} should resist {planted.name}; there is nothing to count")
    total = len(population)
    answers = _answers(net, split, planted, population, run, batch_size, "cross")
    hits = (answers == split.y[population].cpu()).sum()
    return Rate(int(hits), total, f"cross rows of {planted.name}")


def _numbers(own: Split, here: Split) -> list[int]:
    """For each class in the model's terms its number among the classes of the rows that came; its own where they lack it."""
    place = places(here.card.classes, own.card.classes)
    return [k if at < 0 else at for k, at in enumerate(place)]


def _stamped(model: Any, split: Split, planted: Any, at: torch.Tensor, run: Run | None) -> torch.Tensor:
    """Predicted classes of the stamped rows at some positions, int64 on the CPU."""
    return _answers(module_of(model), split, planted, at, as_run(run))


def _answers(
    net: nn.Module,
    split: Split,
    planted: Any,
    at: torch.Tensor,
    run: Run,
    batch_size: int | None = None,
    variant: str = "poison",
) -> torch.Tensor:
    """Predicted classes of rows with the trigger, or ("cross") with what cross rows get, checked as those of an evaluation."""
    predictions = [torch.zeros(0, dtype=torch.int64)]
    with evaluating(net, run):
        here = split.to(run.device)
        for part in at.to(run.device).split(batch_size or batch_rows(here)):
            x = planted.stamp(here.rows(part), here.y[part], here.index[part], "test", variant)
            predictions.append(check.logits(net, to_input(x), split.num_classes).argmax(1).cpu())
    return torch.cat(predictions)
