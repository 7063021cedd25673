"""Training that debiasing methods share: plain or weighted cross-entropy on stamped rows, and distillation."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from theriac.core.errors import InputError
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.debias._select import Selector
from theriac.models import Buildable, GroupAware, make, over_rows
from theriac.training import Batch, Recipe, StepResult, loop
from theriac.triggers.bank import ColumnBank, TriggerBank, TriggerColumns

Query = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From groups (N,) and a bank's stamps to the trigger of each row."""


def adam(
    name: str, *, epochs: int, steps: int, floor: int, rows: int, batch_size: int, lr: float, augment: str = "card"
) -> Recipe:
    """A recipe in the style of the released code: Adam at a constant rate.

    ``steps`` above 0 replaces ``epochs``: as many whole passes as hold so many optimizer steps. Otherwise there are ``epochs``
    passes, and more where they hold fewer than ``floor`` steps.
    """
    per_epoch = math.ceil(rows / min(batch_size, rows))
    epochs = math.ceil(steps / per_epoch) if steps else max(epochs, math.ceil(floor / per_epoch))
    chosen: dict[str, Any] = {"augment": augment}
    return Recipe(name=name, epochs=epochs, batch_size=batch_size, optimizer="adam", lr=lr, schedule="constant", **chosen)


def build_with(build: Buildable, split: Split, bank: TriggerBank | None, run: Run, salt: str = "") -> nn.Module:
    """A fresh network; for a table one with the bank's trigger columns, which takes plain rows too.

    Args:
        build: Anything buildable.
        split: Training rows.
        bank: What it must be able to see; None = nothing.
        run: Device and ``init`` stream.
        salt: Selects other initial weights.

    Raises:
        InputError: If a finished module should get more columns.
    """
    if salt:
        streams = {**run.streams, "init": run.stream_seed("init", salt)}
        run = Run(seed=run.seed, streams=streams, device=run.device, quiet=True)
    if not isinstance(bank, ColumnBank):
        return make(build, split, run)
    if isinstance(build, nn.Module):
        raise InputError(
            f"build is a finished {type(build).__name__}, which has no room for {len(bank)} trigger columns; hand in a name, a "
            "Builder or a function of (split, run)"
        )
    return TriggerColumns(make(build, bank.widen(split), run), bank)


def fit_stamped(
    model: nn.Module,
    split: Split,
    run: Run,
    recipe: Recipe,
    *,
    label: str,
    about: object,
    bank: TriggerBank | None = None,
    which: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    selector: Selector | None = None,
) -> nn.Module:
    """Train with cross-entropy, each row stamped after augmentation with what it was assigned, and weighted.

    Args:
        model: Changed in place.
        split: Training rows.
        run: Device, precision, streams, folder.
        recipe: Epochs, batch size, learning rate.
        label: Name of events and checkpoint.
        about: What decides the result besides, for the checkpoint.
        bank: The triggers.
        which: int64 (N,) or (N, S), see :meth:`TriggerBank.apply`.
        weight: Of each row, float (N,).
        selector: Picks an epoch; None keeps the last.
    """
    which = None if which is None else which.to(run.device)
    weight = None if weight is None else weight.to(run.device, torch.float32)

    def step(net: nn.Module, batch: Batch) -> StepResult:
        x = batch.x if bank is None or which is None else bank.apply(batch.x, which[batch.position])
        logits = net(x)
        if weight is None:
            loss = F.cross_entropy(logits, batch.y)
        else:
            loss = (weight[batch.position] * F.cross_entropy(logits, batch.y, reduction="none")).mean()
        return loss, {"accuracy": (logits.argmax(1) == batch.y).float().mean()}

    drawn = (fingerprint(split, which, weight), about)
    return _loop(model, split, run, recipe, step, label, drawn, selector)


def distill(
    student: nn.Module,
    teach: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    split: Split,
    run: Run,
    recipe: Recipe,
    *,
    soft: float,
    hard: float,
    temperature: float,
    label: str,
    about: object,
    selector: Selector | None = None,
) -> nn.Module:
    """Train a student on clean rows to answer as a teacher does that knows each row's group.

    ``soft * CE(softmax(z_T / T), softmax(z_S / T)) + hard * CE(y, softmax(z_S))``. Both see the same view. Without
    augmentation the teacher's logits are computed once.

    Args:
        student: Changed in place; never sees a trigger or a group.
        teach: Model input (B, ...) and positions (B,) to logits; called without gradients.
        split: Training rows.
        run: Device, precision, streams, folder.
        recipe: Of the student.
        soft: Weight of the teacher.
        hard: Weight of the labels.
        temperature: T.
        label: Name of events and checkpoint.
        about: What decides the result besides, for the checkpoint.
        selector: Picks an epoch; None keeps the last.
    """
    plain = split.is_table or recipe.augment == "none" or split.card.augment == type(split.card.augment)()
    cached = answers(teach, split, run) if plain else None

    def step(net: nn.Module, batch: Batch) -> StepResult:
        logits = net(batch.x)
        if cached is not None:
            answer = cached[batch.position]
        else:
            with torch.no_grad():
                answer = teach(batch.x, batch.position).float()
        toward = (answer / temperature).softmax(1)
        loss = soft * F.cross_entropy(logits / temperature, toward) + hard * F.cross_entropy(logits, batch.y)
        agree = (logits.argmax(1) == answer.argmax(1)).float().mean()
        return loss, {"accuracy": (logits.argmax(1) == batch.y).float().mean(), "agreement": agree}

    return _loop(student, split, run, recipe, step, label, (fingerprint(split), about), selector)


def answers(
    teach: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], split: Split, run: Run, batch_size: int = 512
) -> torch.Tensor:
    """A teacher's logits for every row without augmentation, float32 (N, K) on the run's device."""
    with run.autocast():
        return over_rows(lambda x, at: teach(x, at).float(), split, run=run, batch_size=batch_size)


def by_group(model: GroupAware, group: torch.Tensor, run: Run) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A frozen teacher for :func:`distill` from a model that needs the group."""
    model.eval().requires_grad_(False)
    group = group.to(run.device)

    def teach(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(x, group[position])
        return logits

    return teach


def fingerprint(split: Split, *drawn: torch.Tensor | None) -> str:
    """One hash of the groups and of what was drawn for the rows: a checkpoint of another draw is refused."""
    digest = hashlib.sha256()
    for tensor in (split.group, *drawn):
        if tensor is not None:
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _loop(
    model: nn.Module,
    split: Split,
    run: Run,
    recipe: Recipe,
    step: Callable[[nn.Module, Batch], StepResult],
    label: str,
    about: object,
    selector: Selector | None,
) -> nn.Module:
    if selector is None:
        return loop(model, split, run, recipe, step=step, label=label, about=about)
    selector.watch(model)
    options = {"selector": selector}
    loop(model, split, run, recipe, step=step, label=label, about=about, after_epoch=selector, extra_state=options)
    return selector.best(run, label)
