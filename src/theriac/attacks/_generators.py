"""Networks that draw triggers: the two of the input-aware attack, and LIRA's auto-encoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.training.epochs import loop
from theriac.training.recipes import Recipe
from theriac.training.step import Batch, Step, StepResult

Net = TypeVar("Net", bound=nn.Module)


class DynamicNet(nn.Module):
    """Image to image, in [0, 1]: the pattern generator (as many channels out as in) or the mask net (one channel) of IAB.

    Layout from SCLBD/BackdoorBench @ f02e353 and THUYimingLi/BackdoorBox @ af3afd1 (grade A: read in code): three levels of two
    convolutions from ``width`` channels, max-pooling down, bilinear up, BatchNorm everywhere, no skip connections.

    Args:
        shape: (C, H, W) of the images.
        out: Channels out.
        width: Channels of the first level.
        mean: Channel means of the data, for the input.
        std: Channel standard deviations.
        as_released: Keep two habits of the released code: tanh is applied twice, so that values lie between 0.119 and 0.881,
            and upsampling does not align corners.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        out: int,
        width: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        as_released: bool = False,
    ) -> None:
        super().__init__()
        self.as_released = as_released
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        steps = max(1, min(3, int(math.log2(min(shape[1:]))) - 1))
        wide = [width * 2**k for k in range(steps)]
        self.down = nn.ModuleList()
        now = shape[0]
        for w in wide:
            self.down.append(nn.Sequential(_unit(now, w), _unit(w, w)))
            now = w
        self.middle = _unit(now, now)
        self.up = nn.ModuleList()
        for k in reversed(range(steps)):
            after = wide[k - 1] if k else out
            self.up.append(nn.Sequential(_unit(wide[k], wide[k]), _unit(wide[k], after, last=k == 0)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pixels in [0, 1] (B, C, H, W) to values in [0, 1] (B, out, H, W)."""
        x = (x - self.mean) / self.std
        sizes = []
        for level in self.down:
            sizes.append(x.shape[2:])
            x = F.max_pool2d(level(x), 2)
        x = self.middle(x)
        for level, size in zip(self.up, reversed(sizes), strict=True):
            x = level(F.interpolate(x, size=size, mode="bilinear", align_corners=not self.as_released))
        x = torch.tanh(x) if self.as_released else x
        return torch.tanh(x) / 2 + 0.5


def _unit(now: int, after: int, last: bool = False) -> nn.Sequential:
    norm = nn.BatchNorm2d(after, momentum=0.05)
    layers: list[nn.Module] = [nn.Conv2d(now, after, 3, padding=1), norm]
    return nn.Sequential(*layers) if last else nn.Sequential(*layers, nn.ReLU())


class TriggerEncoder(nn.Module):
    """LIRA's auto-encoder: image to a perturbation in [-1, 1] of the same shape.

    Layout from SCLBD/BackdoorBench @ f02e353 (grade A: read in code): four strided convolutions from ``width`` channels on,
    four transposed ones back, BatchNorm and ReLU between, tanh at the end; fewer levels for small images.

    Args:
        shape: (C, H, W) of the images.
        width: Channels of the first level.
        mean: Channel means of the data, for the input.
        std: Channel standard deviations.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, shape: tuple[int, ...], width: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        steps = max(1, min(4, int(math.log2(min(shape[1:]))) - 1))
        wide = [shape[0], *(width * 2**k for k in range(steps))]
        layers: list[nn.Module] = []
        for a, b in pairwise(wide):
            layers += [nn.Conv2d(a, b, 4, 2, 1), nn.BatchNorm2d(b), nn.ReLU()]
        for b, a in pairwise(reversed(wide)):
            layers += [nn.ConvTranspose2d(b, a, 4, 2, 1), nn.BatchNorm2d(a), nn.ReLU()]
        self.net = nn.Sequential(*layers[:-2])  # the last one goes straight into the tanh

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pixels in [0, 1] (B, C, H, W) to a perturbation in [-1, 1] of the same shape."""
        out = self.net((x - self.mean) / self.std)
        if out.shape[2:] != x.shape[2:]:  # sides that do not divide by the strides
            out = F.interpolate(out, size=x.shape[2:], mode="bilinear", align_corners=False)
        return torch.tanh(out)


def check_halved(attack: str, card: Card) -> None:
    """Refuse pictures that these networks can't halve."""
    if min(card.size) < 2:
        raise InputError(f"{attack} halves its pictures; {card.name!r} has {card.size[0]} x {card.size[1]} pixels")


def pack(net: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    """A network's state as tensors to keep, each name behind ``prefix`` and a dot."""
    return {f"{prefix}.{k}": v.detach().cpu().contiguous().clone() for k, v in net.state_dict().items()}


def unpack(build: Callable[[], Net], state: Mapping[str, torch.Tensor], prefix: str, device: torch.device) -> Net:
    """The inverse of :func:`pack`: the network that ``build`` makes, with its weights, in eval mode, frozen."""
    with torch.device("meta"):  # draws no random numbers and takes no memory
        net = build()
    weights = {k.removeprefix(f"{prefix}."): v for k, v in state.items() if k.startswith(f"{prefix}.")}
    net.load_state_dict(weights, assign=True)
    return net.to(device).eval().requires_grad_(False)


def side_loop(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    split: Split,
    run: Run,
    recipe: Recipe,
    step: Step,
    label: str,
    about: object,
) -> nn.Module:
    """The training loop with the caller's own optimizer, for published settings that a Recipe can't hold.

    The loop itself gets one dead parameter to optimize; the learning rate follows the recipe's schedule.
    """
    anchor = nn.Parameter(torch.zeros((), device=run.device))
    per_epoch = max(1, -(-len(split) // min(recipe.batch_size, len(split))))

    def anchored(model: nn.Module, batch: Batch) -> StepResult:
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(batch.epoch * per_epoch, per_epoch)
        outcome = step(model, batch)
        loss, figures = outcome if isinstance(outcome, tuple) else (outcome, {})
        return loss + 0 * anchor, figures

    def follow(_: int) -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return loop(
        net,
        split,
        run,
        recipe,
        step=anchored,
        after_step=follow,
        parameters=[anchor],
        extra_state={"own_optimizer": optimizer},
        label=label,
        about=about,
    )
