"""Count what a backdoor does and what is left of it, in one pass over the test rows.

The definitions are the same for all attacks, which differ only in the label they want for a row (``target``) and in the rows
that count (``population``), both of which belong to the attack.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Protocol

import torch
from torch import nn

from theriac.core import check
from theriac.core.errors import InputError, shortened
from theriac.core.names import places, ranked
from theriac.core.planted import note_if_idle, unchanged
from theriac.core.poisoned import Poisoned
from theriac.core.ranges import Count, typed
from theriac.core.run import Run, as_run
from theriac.core.split import Split
from theriac.data.alignment import align_to, aligned
from theriac.metrics._degenerate import ClassCount
from theriac.metrics.evaluation import Comparison, Evaluation, pair
from theriac.metrics.intervals import Rate
from theriac.models.network import to_input
from theriac.models.outputs import batch_rows, evaluating, run_over


class Stamper(Protocol):
    """What :func:`evaluate` needs of an attack."""

    name: str

    def stamp(self, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str) -> torch.Tensor:
        """Rows with the trigger; same shape and dtype."""

    def target(self, y: torch.Tensor) -> torch.Tensor:
        """The label that the attack wants for rows of true label ``y``."""

    def population(self, y: torch.Tensor) -> torch.Tensor:
        """bool: rows on which success is counted."""


@typed("split")
def evaluate(
    model: Any, split: Split, attack: Any = None, *, run: Run | None = None, batch_size: Count | None = None
) -> Evaluation:
    """Count a model's clean and stamped predictions in one pass.

    Args:
        model: A module from inputs (pixels in [0, 1], or raw table rows) to logits (N, K), or a Victim.
        split: Clean test rows. Where the model carries a card, their classes and columns are matched with its by name
            (:func:`theriac.data.align`), and rows of some of its classes are enough; a note names the others.
        attack: An attack, a Planted, a Victim or a Poisoned; None counts clean accuracy only.
        run: Device and precision.
        batch_size: Rows per forward pass; None: what suits the device and the size of the rows.

    Returns:
        ACC over all rows; ASR over the attack's population (rows that do not have its label already), stamped: share
        predicted as the attack's label, of an untargeted attack as any but the true one; RA over the same stamped rows: share
        predicted as the true label; and, for each class, how many clean rows it has, how many of them are recognized, and how
        many rows are predicted as it.

    Raises:
        InputError: On an empty population, a trigger that changes no row, a class or column that the model's card does not
            know, a model whose outputs do not fit the classes, or non-finite logits.
    """
    if isinstance(split, Poisoned):
        raise InputError("split is a Poisoned set; evaluate stamps clean test rows itself (hand in a Split)")
    if not isinstance(split, Split):
        raise InputError(f"split is a {type(split).__name__}; expected a Split of test rows")
    run = as_run(run)
    net = model if isinstance(model, nn.Module) else getattr(model, "model", model)
    if not isinstance(net, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; expected an nn.Module or a Victim")
    rows, data = _identity(split), described_rows(split)
    split, planted = aligned(split, net, attack)
    here = split.to(run.device)
    size, classes = batch_size or batch_rows(here), split.num_classes
    asr = ra = population = idle = torch.zeros((), dtype=torch.int64, device=run.device)
    right = torch.zeros(classes, dtype=torch.int64, device=run.device)  # clean hits by class
    answers = torch.zeros_like(right)  # clean predictions by class
    targets = torch.zeros(classes, dtype=torch.bool, device=run.device)
    with evaluating(net, run):
        for positions in run.each("evaluation", here.batches(size), math.ceil(len(here) / size)):
            x, y = here.rows(positions), here.y[positions]
            clean = _predict(net, x, classes)
            right += torch.bincount(y[clean == y], minlength=classes)
            answers += torch.bincount(clean, minlength=classes)
            if planted is None:
                continue
            labels, counted = attack_labels(planted, y, here.index[positions])
            targets[labels[counted]] = True
            population = population + counted.sum()
            if bool(counted.any()):
                stamped = planted.stamp(x[counted], y[counted], here.index[positions][counted], "test")
                idle = idle + unchanged(x[counted], stamped).sum()
                predictions = _predict(net, stamped, classes)
                asr = asr + successes(planted, predictions, labels[counted], y[counted]).sum()
                ra = ra + (predictions == y[counted]).sum()
    acc, notes = Rate(int(right.sum()), len(split), "clean rows"), _notes(split)
    counts = (right.tolist(), here.count().tolist(), answers.tolist())
    by_class = tuple(ClassCount(*values) for values in zip(split.card.classes, *counts, strict=True))
    precision = run.precision_of(net)
    if planted is None:
        return Evaluation(acc, data=data, rows=rows, classes=by_class, notes=notes, precision=precision)
    idleness = note_if_idle(planted.name, int(idle), int(population), "stamped")
    notes = (*notes, idleness) if idleness else notes
    of = f"rows stamped by {planted.name} whose label is not the attack's label already"
    total = int(here.count()[targets].sum())
    target_acc = Rate(int(right[targets].sum()), total, "clean rows of the target class") if total else None
    success, recovered = (Rate(int(hits), int(population), of) for hits in (asr, ra))
    wants = tuple(split.card.classes[k] for k in targets.nonzero().flatten().tolist())
    words = (planted.name, data, rows, getattr(planted, "trigger_hash", ""))
    return Evaluation(acc, success, recovered, target_acc, *words, by_class, wants, notes, precision)


@typed("before", "after", "split", "attack")
def compare(
    before: Any,
    after: Any,
    split: Split | None = None,
    attack: Any = None,
    *,
    run: Run | None = None,
    batch_size: Count | None = None,
) -> Comparison:
    """Set a model before and after a repair side by side, on the same test rows.

    Args:
        before: The model as it came, or its evaluation.
        after: The repaired model, or its evaluation; both are models, or both are evaluations.
        split: Clean test rows, as for :func:`evaluate`; only with models.
        attack: The attack, as for :func:`evaluate`; only with models. None compares clean accuracy only.
        run: Device and precision; only with models.
        batch_size: Rows per forward pass; only with models. None: as :func:`evaluate`.

    Returns:
        Both evaluations, their differences and DER. Printed, it shows every rate before and after with counts and intervals.

    Raises:
        InputError: If one is a model and the other an evaluation, if models come without rows or evaluations with rows, or if
            the evaluations were made on different rows or attacks.
    """
    counted = [isinstance(side, Evaluation) for side in (before, after)]
    if all(counted):
        if split is not None or attack is not None:
            raise InputError("rows or an attack came with two evaluations, which are compared as they are (leave them out)")
        return pair(before, after)
    if any(counted):
        kinds = [f"a{'n' * known} {type(side).__name__}" for side, known in zip((before, after), counted, strict=True)]
        raise InputError(f"before is {kinds[0]} and after {kinds[1]}; expected two models, or two evaluations")
    if split is None:
        raise InputError("split is missing; to compare two models, hand in the test rows and the attack")
    first, second = (evaluate(model, split, attack, run=run, batch_size=batch_size) for model in (before, after))
    return pair(first, second)


@typed()
def attack_labels(planted: Any, y: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The labels that an attack wants, int64 (B,), and the rows that count, bool (B,).

    Args:
        planted: A Planted, or anything else that stamps. Its wanted label is a function of the true label, unless it has a true
            ``by_row``: then of the row number too.
        y: True labels.
        index: Row numbers in the source.
    """
    if not hasattr(planted, "target") or not hasattr(planted, "population"):
        raise InputError(f"planted is {shortened(planted)}; expected a Planted")
    facts = (y, index) if getattr(planted, "by_row", False) else (y,)
    return planted.target(*facts), planted.population(*facts)


def successes(planted: Any, predictions: torch.Tensor, labels: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Which predictions of stamped rows are a success, bool (B,): the attack's label, of an untargeted one any but the true."""
    return predictions != y if getattr(planted, "untargeted", False) else predictions == labels


@typed()
def predict(
    model: nn.Module,
    split: Split,
    *,
    run: Run | None = None,
    batch_size: Count | None = None,
    inputs: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits of all rows in order, float32 (N, K), on the CPU; see :func:`theriac.models.run_over`.

    Where the model carries a card, columns are matched with its by name, and logit k belongs to ``split.card.classes[k]``. Rows
    that know only some of the model's classes get all K logits in the model's order, with a warning.

    Args:
        model: A module from inputs to logits, or a Victim.
        split: The rows.
        run: Device and precision.
        batch_size: Rows per forward pass.
        inputs: Pictures in [0, 1] that the model gets in place of the split's, float (N, C, H, W).
    """
    here = align_to(split, model)
    logits = run_over(model, here, run=run, batch_size=batch_size, inputs=inputs)
    if here.card.classes == split.card.classes:
        return logits
    place = places(split.card.classes, here.card.classes)
    if sorted(place) == list(range(logits.shape[1])):
        return logits[:, place]
    if place != list(range(len(place))) and min(place) >= 0:
        warnings.warn(
            f"{split.card.name!r} knows {len(place)} of the model's {logits.shape[1]} classes, so the logits are in the order "
            "of the model; theriac.data.align brings the rows' labels into it",
            stacklevel=2,
        )
    return logits


def _identity(split: Split) -> str:
    """16 hex digits of rows and labels, the same for every order of the same classes."""
    order = ranked(split.card.classes)
    if order != list(range(len(order))):
        rank = torch.tensor(order, device=split.device).argsort()
        split = split.replace(y=rank[split.y])
    return split.content_hash(groups=False)[:16]


def described_rows(split: Split) -> str:
    """Test rows in words, as an evaluation names them."""
    return f"{split.card.name}, {len(split)} rows"


def is_of(evaluation: Evaluation, split: Split, planted: Any = None) -> bool:
    """Whether an evaluation from a record is of these rows, in this order of classes, and of this trigger.

    Args:
        evaluation: From a record.
        split: Test rows.
        planted: The trigger; None: the evaluation must be of clean rows alone.
    """
    trigger = "" if planted is None else getattr(planted, "trigger_hash", "")
    under = evaluation.asr is None if planted is None else bool(trigger) and evaluation.attack == planted.name
    classes = tuple(count.name for count in evaluation.classes)
    return under and evaluation.trigger == trigger and classes == split.card.classes and evaluation.rows == _identity(split)


def _notes(split: Split) -> tuple[str, ...]:
    """Which classes no row is of."""
    lost = [split.card.classes[k] for k in (split.count() == 0).nonzero().flatten().tolist()]
    if not lost:
        return ()
    named = ", ".join(repr(name[:40]) for name in lost[:8]) + (f" and {len(lost) - 8} more" if len(lost) > 8 else "")
    return (f"the test rows hold none of {len(lost)} of {split.num_classes} classes ({named}), so no figure is about them",)


def _predict(net: nn.Module, rows: torch.Tensor, classes: int) -> torch.Tensor:
    return check.logits(net, to_input(rows), classes).argmax(1)
