"""The one training loop. Victims, repairs and training-time defenses all run through it."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from theriac.core import check
from theriac.core.card import Augment
from theriac.core.errors import InputError, TheriacError
from theriac.core.ranges import typed
from theriac.core.run import Run, own_terms
from theriac.core.split import Split
from theriac.data.augment import augment
from theriac.models._undisturbed import undisturbed
from theriac.models.layout import arrange
from theriac.models.network import to_input
from theriac.training import _parallel, checkpoint
from theriac.training.flat import sam_step
from theriac.training.optimizers import SGD, Adam
from theriac.training.recipes import Recipe
from theriac.training.step import Batch, BatchNorm, Step, cross_entropy_step

Hook = Callable[[Batch], None]


class DivergedError(TheriacError):
    """The loss became NaN or infinite; the weights of that epoch are not kept."""


@own_terms()
@typed()
def loop(
    model: nn.Module,
    split: Split,
    run: Run,
    recipe: Recipe,
    *,
    step: Step = cross_entropy_step,
    before_augment: Hook | None = None,
    after_augment: Hook | None = None,
    after_step: Callable[[int], bool | None] | None = None,
    after_epoch: Callable[[int], Mapping[str, Any] | None] | None = None,
    parameters: Iterable[nn.Parameter] | None = None,
    optimizer: Callable[[list[nn.Parameter], Recipe], torch.optim.Optimizer] | None = None,
    extra_state: Mapping[str, Any] | None = None,
    label: str = "train",
    about: object = None,
) -> nn.Module:
    """Train ``model`` in place.

    In the train mode of the recipe a last batch of a single row is left out of the epoch, also where there is no BatchNorm;
    official codes (D3, SAU with ``norm="train"``) step on it, with a variance of zero.

    Args:
        model: Raw inputs to logits.
        split: Training rows.
        run: Device, precision, streams ``order`` and ``augment``, events, checkpoint folder.
        recipe: Epochs, batch size, optimizer, schedule, augmentation, BatchNorm mode, flatness.
        step: Loss of one batch.
        before_augment: May change ``batch.x`` (stored rows; uint8 for images) and ``batch.y``: where attacks stamp.
        after_augment: May change ``batch.x`` (model input), and keep more of each row in ``batch.beside``.
        after_step: Called with the step number after each optimizer step: where D3 projects. Training ends with the step
            after which it returns True; that epoch's event then holds ``stopped``, the steps taken since the start, and a
            finished checkpoint is kept. Under several ranks it has to return the same on all.
        after_epoch: Called with the epoch number; what it returns is added to that epoch's event.
        parameters: What to optimize; all parameters that require gradients if left out.
        optimizer: Makes the optimizer from these parameters and the recipe, for methods that step otherwise than by the
            recipe's SGD or Adam. Its learning rate is still set by the recipe before each step, in every group; other things it
            depends on belong into ``about``.
        extra_state: Things with ``state_dict``/``load_state_dict`` that a resumed run must find as they were. Networks among
            them may learn from the same loss; sharpness-aware steps, which take each batch twice, hand them their gradient.
        label: Name of the events and of the checkpoint. Two loops in one folder need two labels.
        about: The method, where its options and the weights it starts from decide the result too; a checkpoint of another
            method, option or starting model is then refused.

    Returns:
        The same model, in eval mode.

    Raises:
        DivergedError: If the loss stops being finite.
        InputError: If a checkpoint in the folder belongs to another configuration, or a batch would hold one row under
            BatchNorm in train mode.
    """
    run_split = split.to(run.device)
    model.to(run.device)
    arrange(model, run)
    chosen = [p for p in (model.parameters() if parameters is None else parameters) if p.requires_grad]
    if not chosen:
        raise InputError("the model has no parameter that requires a gradient; nothing could be trained")
    stepper = optimizer(chosen, recipe) if optimizer is not None else _optimizer(chosen, recipe, _spared(model, recipe))
    batch_size = min(recipe.batch_size, len(split))
    drop_last = recipe.drop_last or (len(split) % batch_size == 1 and recipe.norm == "train" and len(split) > 1)
    per_epoch = len(split) // batch_size if drop_last else math.ceil(len(split) / batch_size)
    policy = policy_of(recipe, split)
    if batch_size == 1 and recipe.norm == "train" and any(isinstance(m, BatchNorm) for m in model.modules()):
        raise InputError(f"a batch would hold one row ({len(split)} rows came), and BatchNorm in train mode needs two")

    keeper = checkpoint.Keeper(
        run, label, checkpoint.fingerprint(recipe, split, run, model, about), model, stepper, extra_state or {}
    )
    start = keeper.restore()
    if recipe.sam_rho:
        beside = [thing for thing in (extra_state or {}).values() if isinstance(thing, nn.Module)]
        step = sam_step(lambda n: recipe.rho_at(n, per_epoch), step=step, adaptive=recipe.sam_adaptive, beside=beside)
    ranks = _parallel.Ranks(model)
    mixed = run.autocast(model) if recipe.precision == "run" else contextlib.nullcontext()
    with run.progress(label, recipe.epochs * per_epoch, done=start * per_epoch) as tick, keeper.stoppable():
        for epoch in range(start, recipe.epochs):
            began = time.perf_counter()
            set_mode(model, recipe.norm)
            order = torch.randperm(len(split), generator=run.generator("order", label, epoch))
            draws = run.generator("augment", label, epoch)
            sums: dict[str, torch.Tensor] = {}
            lr, stopped, number = recipe.lr, False, epoch * per_epoch
            with run.layer_scope(label, epoch):  # dropout and the like: by epoch, so that a resumed run draws the same
                for i in range(per_epoch):
                    number = epoch * per_epoch + i
                    positions = order[i * batch_size : (i + 1) * batch_size].to(run.device)
                    x, y = run_split.rows(positions), run_split.y[positions]
                    batch = Batch(x, y, positions, epoch, number, run, recipe.epochs)
                    if before_augment is not None:
                        before_augment(batch)
                    if policy is not None:
                        batch.x = augment(batch.x, policy, draws)
                    batch.x = to_input(batch.x)
                    if after_augment is not None:
                        after_augment(batch)
                    batch = ranks.part(batch)
                    lr = recipe.lr_at(number, per_epoch)
                    for group in stepper.param_groups:
                        group["lr"] = lr
                    stepper.zero_grad(set_to_none=True)
                    with mixed:
                        outcome = step(ranks.model, batch)
                    loss, figures = outcome if isinstance(outcome, tuple) else (outcome, {})
                    _refuse_flat(loss, label)
                    loss.backward()
                    if recipe.clip_norm:
                        nn.utils.clip_grad_norm_(chosen, recipe.clip_norm)
                    stepper.step()
                    if after_step is not None:
                        stopped = bool(after_step(number))
                    for key, value in {"loss": loss, **figures}.items():
                        sums[key] = sums.get(key, torch.zeros((), device=run.device)) + value.detach()
                    tick(1)
                    if stopped:
                        break
            taken = number + 1 - epoch * per_epoch
            means = {key: float(value) / taken for key, value in ranks.mean(sums).items()}
            if not math.isfinite(means["loss"]):
                raise DivergedError(
                    f"{label}: the loss became {means['loss']} in epoch {epoch + 1} at learning rate {lr:.3g}; {_cure(split)}"
                )
            seconds = max(1e-9, time.perf_counter() - began)
            extra = dict(after_epoch(epoch) or {}) if after_epoch is not None else {}
            if stopped:
                extra["stopped"] = number + 1
            rate = taken * batch_size / seconds
            run.event(label, epoch=epoch + 1, lr=lr, seconds=round(seconds, 4), rows_per_s=round(rate), **means, **extra)
            tick(0, _caption(means, rate))
            done = recipe.epochs if stopped else epoch + 1
            keeper.save(done, last=done == recipe.epochs)
            if stopped:
                break
    stepper.zero_grad(set_to_none=True)  # what is kept, copied or saved needs no gradients
    return model.eval()


def _refuse_flat(loss: torch.Tensor, label: str) -> None:
    if not loss.requires_grad:
        raise InputError(
            f"{label}: the loss has no gradient; the model's forward uses torch.no_grad, or detaches what it gives"
        )


def refuse_diverged(model: nn.Module, split: Split, label: str) -> None:
    """Refuse a model that answers rows with NaN or infinity: its last update went too far, which no loss has seen.

    Args:
        model: Trained just now.
        split: Rows of its training, of which two are tried.
        label: What was trained.

    Raises:
        DivergedError: If it does.
        InputError: If it can't take the rows, or gives something else than one logit a class.
    """
    rows = to_input(split.rows(torch.arange(min(2, len(split))).to(split.device)))
    try:
        with undisturbed(model):
            check.logits(model, rows.to(next((p.device for p in model.parameters()), rows.device)), split.num_classes)
    except check.NotFiniteError:
        raise DivergedError(f"{label}: the model answers with NaN or infinity after the last step; {_cure(split)}") from None


def _cure(split: Split) -> str:
    """What may help where a loss or an answer is NaN: networks of tables are handed missing values as they are."""
    if split.is_table and bool(split.x.isnan().any()):
        return (
            "the rows hold missing values (NaN), and a network of your own has to fill them (torch.nan_to_num in its forward)"
        )
    return "take a lower learning rate, or check the data"


@typed()
def set_mode(model: nn.Module, norm: str) -> None:
    """Train mode; with ``norm="eval"`` BatchNorm layers keep using and keeping their stored statistics."""
    model.train()
    if norm == "eval":
        for module in model.modules():
            if isinstance(module, BatchNorm):
                module.eval()


def policy_of(recipe: Recipe, split: Split) -> Augment | None:
    """How a recipe augments rows of this split; None if not at all.

    Raises:
        InputError: If the pictures are too small for it.
    """
    if split.is_table or recipe.augment == "none":
        return None
    policy = split.card.augment if recipe.augment == "card" else recipe.augment
    policy.fits(split.card.size)
    return None if policy == Augment() else policy


def _optimizer(parameters: list[nn.Parameter], recipe: Recipe, spared: Mapping[int, str]) -> torch.optim.Optimizer:
    """The recipe's optimizer; parameters whose id is among ``spared`` are not decayed."""
    fused = all(p.is_cuda for p in parameters)
    groups: list[dict[str, Any]] = [{"params": [p for p in parameters if id(p) not in spared]}]
    if alone := [p for p in parameters if id(p) in spared]:
        groups.append({"params": alone, "weight_decay": 0.0})
    groups = [g for g in groups if g["params"]]
    if recipe.optimizer == "adam":
        return Adam(groups, lr=recipe.lr, weight_decay=recipe.weight_decay, amsgrad=recipe.amsgrad, fused=fused)
    return SGD(
        groups,
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov and recipe.momentum > 0,
        weight_decay=recipe.weight_decay,
        fused=fused,
    )


def _spared(model: nn.Module, recipe: Recipe) -> dict[int, str]:
    """Parameters that weight decay must leave alone, by id, since the weight made of them would become zero; warns of them.

    A parametrization may make nothing of slightly smaller parameters: that of orthogonal weights by Householder vectors keeps
    signs as numbers 1 and -1, and cuts off what is behind the point.
    """
    spared: dict[int, str] = {}
    if not recipe.weight_decay:
        return spared
    for name, module in model.named_modules():
        if not isinstance(module, parametrize.ParametrizationList):
            continue
        originals = list(module.parameters(recurse=False))
        before = [p.detach().clone() for p in originals]
        with torch.no_grad(), undisturbed(module):
            size = float(module().norm())
            for parameter in originals:
                parameter.mul_(0.999)
            rest = float(module().norm())
            for parameter, was in zip(originals, before, strict=True):
                parameter.copy_(was)
        if rest < 0.5 * size:
            layer, _, tensor = name.rpartition(".parametrizations.")
            warnings.warn(
                f"weight decay of {recipe.weight_decay} would bring the {tensor} of layer {layer!r} to zero, by the way in "
                f"which its parametrization ({type(module[0]).__name__.lstrip('_')}) makes it; it is left out there",
                stacklevel=3,
            )
            spared.update({id(p): name for p in originals})
    return spared


def _caption(means: Mapping[str, float], rate: float) -> str:
    accuracy = f"  acc {100 * means['accuracy']:.1f} %" if "accuracy" in means else ""
    return f"loss {means['loss']:.4f}{accuracy}  {rate:,.0f} rows/s"
