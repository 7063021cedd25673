"""AGE's edits without gradients: where activations are recorded, what is compared, and seven rules that change weights.

All rules act on the input side of a linear or convolutional layer. With the mean inputs ``f`` (rows with the trigger) and
``r`` (the same rows without it), ``d = f - r`` and ``u = d / |d|``:

=====================  ============================================================================================
zero_active            zero the columns with the largest ``f``
zero_changed           zero the columns with the largest ``d``
zero_changed_relative  zero the columns with the largest ``d / (|r| + 0.05 mean |r|)``
damp                   scale column j by ``min(1, lambda r / f)``, kept in [0, 1], where ``f > alpha r``
zero_decisive          zero the columns with the largest ``d (w_t - mean of all rows)`` (head)
project_target         ``w_t - gamma (w_t u) u`` for the target's row only (head)
project                ``W - gamma (W u) u^T`` and ``b + gamma (W u) (u^T r)``, which keeps the layer's mean clean output
none                   nothing: the control
=====================  ============================================================================================

All are reconstructions (grade R): the published formula could not be checked. A column of a convolution is an input channel at
every kernel position. Features may be negative here (a pre-activation ResNet without final ReLU), hence the absolute values in
``zero_changed_relative`` and the form ``f > 0 and f - r > (alpha - 1) |r|`` in ``damp``, which change nothing for features
after a ReLU. Older records call the rules E1, E2, E2r and E3 to E6, in this order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import nn

from theriac.core.errors import InputError, unknown
from theriac.core.ranges import Renamed
from theriac.models.editing import Weight
from theriac.models.network import to_input

Layer = nn.Linear | nn.Conv2d

_SHARES = (0.01, 0.02, 0.05, 0.10, 0.15, 0.20, 0.30, 0.40)
GRIDS: Mapping[str, tuple[float, ...]] = {
    "zero_active": _SHARES,  # share of the columns
    "zero_changed": _SHARES,
    "zero_changed_relative": _SHARES,
    "damp": (1.0, 0.5, 0.25),  # lambda; smaller is stronger
    "zero_decisive": _SHARES,
    "project_target": (1.0, 1.5, 2.0),  # gamma
    "project": (1.0, 1.25, 1.5, 2.0),  # gamma; above 1 the direction is reversed
    "none": (0.0,),
}
"""Strengths of each rule, weakest first."""
FORMER = {
    "E1": "zero_active",
    "E2": "zero_changed",
    "E2r": "zero_changed_relative",
    "E3": "damp",
    "E4": "zero_decisive",
    "E5": "project_target",
    "E6": "project",
}
"""Names of the rules in older records."""
Rule = Annotated[
    Literal[
        "auto",
        "zero_active",
        "zero_changed",
        "zero_changed_relative",
        "damp",
        "zero_decisive",
        "project_target",
        "project",
        "none",
    ],
    Renamed(FORMER),
]
"""A rule's name; older names are accepted."""
HEAD_ONLY = ("zero_decisive", "project_target")
INERT = 1e-6  # |d| below this share of |r| counts as no difference at all


@dataclass(frozen=True)
class Contrast:
    """Mean inputs of a layer with and without the trigger, and the direction(s) between them."""

    forget: torch.Tensor  # (D,)
    reference: torch.Tensor  # (D,)
    basis: torch.Tensor  # (D, r), orthonormal columns
    score: float  # |d| / |r|


@dataclass(frozen=True)
class Held:
    """What an edit did to one layer, so that training can be made to keep it: W[:, columns] or W U stays at ``value``."""

    weight: Weight
    value: torch.Tensor
    columns: torch.Tensor | None = None  # int64 (k,)
    basis: torch.Tensor | None = None  # (D, r)
    row: int | None = None  # the only row that was edited; None = all

    @property
    def layer(self) -> nn.Module:
        """The layer that was edited."""
        return self.weight.layer

    def figures(self) -> dict[str, int]:
        """How much was edited: columns, or directions."""
        return {"rank": self.value.shape[-1]} if self.columns is None else {"columns": len(self.columns)}

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the edit of the layer, moving its weights as little as possible."""
        new = self.weight.value.clone()
        if self.columns is not None:
            new[:, self.columns] = self.value
        elif self.basis is not None:
            rows = _rows(new, self.row)
            rows -= (rows @ self.basis - self.value) @ self.basis.T
        self.weight.write(new)


def contrast(forget: torch.Tensor, reference: torch.Tensor, rank: int = 1) -> Contrast | None:
    """Compare a layer's inputs on rows with the trigger and without it.

    Args:
        forget: Inputs with the trigger, averaged over space, (N, D).
        reference: Inputs without it, (M, D).
        rank: 1 takes the direction of the mean difference; more take the leading right singular vectors of the paired
            differences (the rows must match then).

    Returns:
        None if the means do not differ: an inert trigger.
    """
    f, r = forget.double().mean(0), reference.double().mean(0)
    d = f - r
    size, scale = float(d.norm()), float(r.norm())
    if size <= INERT * max(scale, 1e-12):
        return None
    if rank == 1:
        basis = (d / size)[:, None]
    else:
        if forget.shape != reference.shape:
            raise InputError(f"rank is {rank}; more than one direction needs the same rows with and without the trigger")
        _, strengths, right = torch.linalg.svd(forget.double() - reference.double(), full_matrices=False)
        basis = right[:rank][strengths[:rank] > 1e-6 * strengths[0]].T
    dtype = forget.dtype
    return Contrast(f.to(dtype), r.to(dtype), basis.to(dtype).contiguous(), size / max(scale, 1e-12))


@torch.no_grad()
def edit(rule: str, layer: Layer | Weight, difference: Contrast, strength: float, target: int = 0, alpha: float = 1.2) -> Held:
    """Apply one rule to a layer in place.

    Args:
        rule: See the module's table.
        layer: What is edited, or its weight.
        difference: What the layer's input looks like with and without the trigger.
        strength: Share of columns (the rules that zero), lambda (``damp``) or gamma (the rules that project).
        target: The attack's class (``zero_decisive``, ``project_target``).
        alpha: How far above the reference an activation must lie to be damped (``damp``).

    Returns:
        What training has to keep.

    Raises:
        InputError: On an unknown rule.
    """
    if rule not in GRIDS:
        raise unknown("rule", rule, GRIDS)
    weight = layer if isinstance(layer, Weight) else Weight(layer)
    if rule in ("project_target", "project"):
        return _project(rule, weight, difference, strength, target)
    new = weight.value.clone()
    f, r = difference.forget, difference.reference
    scale = torch.ones_like(f)
    if rule == "damp":
        over = (f > 0) & (f - r > (alpha - 1) * r.abs())
        scale = torch.where(over, (strength * r / torch.where(over, f, 1.0)).clamp(0, 1), scale)
    elif rule != "none":
        scale[_scores(rule, new, difference, target).topk(round(strength * len(f))).indices] = 0
    columns = (scale < 1).nonzero().flatten()
    new[:, columns] *= scale[columns].to(new.dtype).view(1, -1, *([1] * (new.dim() - 2)))
    weight.write(new)
    return Held(weight, new[:, columns].clone(), columns=columns)


def _scores(rule: str, weight: torch.Tensor, difference: Contrast, target: int) -> torch.Tensor:
    d = difference.forget - difference.reference
    if rule == "zero_active":
        return difference.forget
    if rule == "zero_changed":
        return d
    if rule == "zero_changed_relative":
        size = difference.reference.abs()
        return d / (size + 0.05 * size.mean()).clamp_min(1e-12)
    return d * (weight[target] - weight.mean(0))  # zero_decisive


def _project(rule: str, weight: Weight, difference: Contrast, gamma: float, target: int) -> Held:
    new = weight.value.clone()
    basis = difference.basis.to(new.dtype)
    row = target if rule == "project_target" else None
    rows = _rows(new, row)
    along = rows @ basis
    rows -= gamma * along @ basis.T
    weight.write(new)
    if rule == "project" and getattr(weight.layer, "bias", None) is not None:
        # a convolution meets the direction at every kernel position; exact away from zero-padded borders
        shift = (along @ (basis.T @ difference.reference.to(basis.dtype))).reshape(len(along), -1).sum(1)
        bias = Weight(weight.layer, weight.name, "bias")
        bias.write(bias.value + gamma * shift)
    return Held(weight, rows @ basis, basis=basis, row=row)


def _rows(weight: torch.Tensor, row: int | None) -> torch.Tensor:
    """A weight, or one row of it, as a view with the input side last: (rows, ..., D)."""
    turned = weight.movedim(1, -1)
    return turned if row is None else turned[row : row + 1]


def edit_layers(
    model: nn.Module,
    layers: Mapping[str, Layer],
    forget: torch.Tensor,
    reference: torch.Tensor,
    rule: str,
    strength: float,
    target: int = 0,
    alpha: float = 1.2,
    rank: int = 1,
    shrink: float = 1.0,
) -> tuple[list[Held], list[dict[str, Any]]]:
    """Edit layer by layer in forward order, each on activations recorded after the edits before it.

    Args:
        model: In eval mode, edited in place.
        layers: In forward order; the last is nearest to the logits.
        forget: Stored rows with the trigger.
        reference: Stored rows without it.
        rule: As in :func:`edit`.
        strength: As in :func:`edit`, for the layer nearest to the logits.
        target: The attack's class.
        alpha: Of ``damp``.
        rank: How many directions (``project_target``, ``project``).
        shrink: ``project``'s gamma is multiplied by this for every layer further from the logits.

    Returns:
        What training has to keep, and a record for each layer; a layer that the trigger does not move stays as it is.
    """
    held: list[Held] = []
    steps: list[dict[str, Any]] = []
    both = torch.cat([forget, reference])
    for depth, (name, layer) in enumerate(layers.items()):
        x = inputs(model, layer, both)
        difference = contrast(x[: len(forget)], x[len(forget) :], rank)
        if difference is None:
            steps.append({"layer": name, "score": 0.0, "inert": True})
            continue
        power = strength * shrink ** (len(layers) - 1 - depth) if rule == "project" else strength
        held.append(edit(rule, Weight(layer, name), difference, power, target, alpha))
        steps.append({"layer": name, "score": round(difference.score, 6), "strength": power, **held[-1].figures()})
    return held, steps


@torch.no_grad()
def inputs(model: nn.Module, layer: nn.Module, rows: torch.Tensor, batch_size: int = 512) -> torch.Tensor:
    """A layer's input on stored rows, averaged over space (or tokens): (N, D). The model must be in eval mode."""
    parts: list[torch.Tensor] = []
    for at in range(0, len(rows), batch_size):
        part = rows[at : at + batch_size]
        captured: list[torch.Tensor] = []

        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], captured: list[torch.Tensor] = captured) -> None:
            captured.extend([v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)][:1])

        handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            model(to_input(part))
        finally:
            handle.remove()
        if not captured:
            raise InputError("a layer that AGE has to edit did not run in a forward pass; name other layers with scope=")
        x = captured[-1]
        if isinstance(layer, nn.Conv2d):
            x = x.flatten(2).mean(2)
        elif x.dim() > 2:
            x = x.flatten(1, -2).mean(1)
        parts.append(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x)
    return torch.cat(parts)
