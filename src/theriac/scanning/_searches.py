"""Searches for one trigger for each class, all classes at once: patches, perturbations and warps of a fixed strength."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from theriac.training.optimizers import Adam
from theriac.triggers.warp import identity_grid, warp

RADIUS = 24 / 255  # ours: of perturbations, in the L-infinity norm
AREA = 0.04  # ours: of patches, as a share of the picture
LATTICE, SHIFT = 4, 0.1  # ours: control points along a side of a warp, and its largest shift as a share of the side
ROWS_A_PASS = 1000  # rows counted at once
SIDE = 16  # ours: of larger pictures, patches take more steps, and all kinds fewer rows, so that a scan stays short
MOST_STEPS = 4.0  # times the usual steps

Stamp = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Kind:
    """One kind of trigger, and how it is searched.

    Args:
        start: From the number of classes, the shape of a row and a CPU generator to numbers, one set a class.
        stamp: From rows (k, n, C, H, W) and numbers (k, ...) to stamped rows.
        steps: Of Adam, for pictures of at most :data:`SIDE` pixels a side.
        lr: Of Adam.
        grows: Whether larger pictures take more steps, in proportion to their side.
    """

    start: Callable[[int, tuple[int, ...], torch.Generator], torch.Tensor]
    stamp: Stamp
    steps: int
    lr: float
    grows: bool = False

    def steps_at(self, side: int) -> int:
        """Steps for pictures of this larger side, in pixels."""
        return round(self.steps * min(max(1.0, side / SIDE), MOST_STEPS)) if self.grows else self.steps


def mask_and_pattern(numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A patch's mask (k, 1, H, W), whose sum is at most its share of the picture, and its pattern (k, C, H, W)."""
    mask, pattern = numbers[:, :1].sigmoid(), numbers[:, 1:].sigmoid()
    most = AREA * mask[0].numel()
    return mask * (most / mask.sum((1, 2, 3), keepdim=True)).clamp(max=1), pattern


def _patched(rows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    mask, pattern = (part[:, None] for part in mask_and_pattern(numbers))
    return rows + mask * (pattern - rows)


def _perturbed(rows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    return (rows + RADIUS * numbers.tanh()[:, None]).clamp(0, 1)


def _warped(rows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    size = (rows.shape[-2], rows.shape[-1])
    shift = 2 * SHIFT * numbers.tanh()  # the grid runs from -1 to 1
    moved = F.interpolate(shift, size=size, mode="bicubic", align_corners=True)
    grid = identity_grid(size).to(rows.device) + moved.permute(0, 2, 3, 1)
    return warp(rows.flatten(0, 1), grid.repeat_interleave(rows.shape[1], 0)).view(rows.shape)


def _start_patch(count: int, shape: tuple[int, ...], draw: torch.Generator) -> torch.Tensor:
    numbers = 0.5 * torch.randn(count, shape[0] + 1, *shape[1:], generator=draw)
    numbers[:, 0] = 0.2 * numbers[:, 0] - 1.5  # masks start even
    return numbers


KINDS = {
    # at 32 pixels 24 steps did not find a patch of 6 x 6 that the network obeyed on 97 % of the rows, 48 did (a fitted network)
    "patch": Kind(_start_patch, _patched, 24, 0.3, grows=True),
    "perturbation": Kind(lambda count, shape, draw: torch.zeros(count, *shape), _perturbed, 8, 0.5),
    "warp": Kind(lambda count, shape, draw: 0.3 * torch.randn(count, 2, LATTICE, LATTICE, generator=draw), _warped, 20, 0.2),
}


def search(net: nn.Module, kind: Kind, rows: torch.Tensor, count: int) -> torch.Tensor:
    """For each class the numbers of a trigger that sends all rows there.

    Args:
        net: Pixels in [0, 1] to logits, frozen.
        kind: Of trigger.
        rows: Pictures (n, C, H, W).
        count: Number of classes.
    """
    numbers = kind.start(count, tuple(rows.shape[1:]), torch.Generator().manual_seed(0)).to(rows.device).requires_grad_()
    targets = torch.arange(count, device=rows.device).repeat_interleave(len(rows))
    stepper = Adam([numbers], lr=kind.lr, betas=(0.5, 0.9))
    spread = rows.expand(count, *rows.shape)
    for _ in range(kind.steps_at(max(rows.shape[2:]))):
        stepper.zero_grad()
        F.cross_entropy(net(kind.stamp(spread, numbers).flatten(0, 1)), targets, reduction="sum").backward()
        stepper.step()
    return numbers.detach()


def arrivals(
    net: nn.Module,
    kind: Kind,
    numbers: torch.Tensor,
    rows: torch.Tensor,
    labels: torch.Tensor,
    over: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each class, the share of other classes' rows that its trigger sends there, and their mean log-odds, float64 (K,).

    Args:
        net: Pixels in [0, 1] to logits, frozen.
        kind: Of trigger.
        numbers: The triggers, one a class.
        rows: Pictures (n, C, H, W).
        labels: Their labels (n,).
        over: Other pictures (n, C, H, W) that are laid half transparent over the stamped ones; None for none.
    """
    shares, odds = [], []
    most = max(1, ROWS_A_PASS // len(rows))
    with torch.no_grad():
        for classes in torch.arange(len(numbers)).split(most):
            stamped = kind.stamp(rows.expand(len(classes), *rows.shape), numbers[classes.to(numbers.device)])
            if over is not None:
                stamped = (stamped + over) / 2
            logits = net(stamped.flatten(0, 1)).double().cpu().view(len(classes), len(rows), -1)
            place = classes[:, None, None].expand(-1, len(rows), 1)
            own = logits.gather(2, place)[..., 0]
            rest = logits.scatter(2, place, -torch.inf)
            other = (labels.cpu()[None] != classes[:, None]).double()
            size = other.sum(1).clamp_min(1)
            shares.append(((own > rest.amax(2)) * other).sum(1) / size)
            odds.append(((own - rest.logsumexp(2)).clamp(-10, 10) * other).sum(1) / size)
    return torch.cat(shares), torch.cat(odds)
