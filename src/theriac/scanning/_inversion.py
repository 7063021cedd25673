"""A trigger in the space of features: a small network of pictures that moves what is not benign in them.

The idea of BTI-DBF (ICLR 2024), made short: a mask of the classifier's input is learned such that the masked features alone are
classified well and the others badly, the benign features; then a generator of pictures, which moves the others as far as it can
while benign features and pixels stay near. No class is named: where a backdoor draws pictures to, the generator finds out. A
patch, a perturbation or a warp is the same for all rows; what a generator changes may differ from row to row.

Unlike :class:`theriac.repairs.btidbf.BTIDBF`: features count in units of their own spread, and pixels beyond their bound are
charged for rather than taken alone, so that one setting serves networks whose features differ in size; the mask starts low, and
is learned on features that were read once.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from theriac.core.errors import InputError
from theriac.core.run import Run
from theriac.repairs.btidbf import Generator, Site, soft
from theriac.scanning._searches import SIDE
from theriac.training.optimizers import Adam

MASK_STEPS, MASK_LR = 140, 0.01  # ours: steps of Adam on features that were read once
UNKNOWN = -2.0  # ours: where the mask starts: features that no clean row needs stay on the side that is not benign
STEPS, BATCH, LR = 40, 50, 0.01  # ours: of the generator; rows a step for pictures of at most SIDE pixels, fewer for larger
WIDTH, LEVELS = 4, 3  # ours: channels of its first level, and halvings
BOUND = 0.04  # ours: of the mean squared change of pixels, in squared standard deviations of the data
BENIGN = 0.01  # official code (benign of BTI-DBF): weight of the change of benign features


def invert(net: nn.Module, rows: torch.Tensor, labels: torch.Tensor, std: tuple[float, ...], run: Run) -> torch.Tensor:
    """What a generator, trained against the network, makes of the rows: pictures (N, C, H, W) in [0, 1].

    Args:
        net: Pixels in [0, 1] to logits, frozen.
        rows: Pictures (N, C, H, W) on the network's device.
        labels: Their labels (N,), there too.
        std: Of the channels' pixels, in which the pictures' change counts; empty for ones.
        run: Seeds.

    Raises:
        InputError: If the network has no layer that is its classifier, or that answers more than once a row.
    """
    site = Site(net, rows[:1])
    layer = net.get_submodule(site.name)
    with torch.no_grad():
        features = torch.cat([site.read(net, part)[1] for part in rows.split(BATCH)])
        once = _answers(layer, features[:1]).numel() == net(rows[:1]).numel()
    if not once:
        raise InputError(f"layer {site.name!r} answers more than once a row, so what enters it are no features of the row")
    spread = features.std(0).mean().clamp_min(1e-6)
    mask = _benign(layer, features, labels)
    with run.init_scope("inversion"):
        generator = Generator(tuple(rows.shape[1:]), WIDTH, LEVELS).to(rows.device).train()
    scale = torch.tensor(std or (1.0,), device=rows.device).view(-1, 1, 1)
    stepper = Adam(generator.parameters(), lr=LR)
    draw, many = run.generator("method", "inversion"), max(8, BATCH * SIDE // max(SIDE, *rows.shape[2:]))
    for _ in range(STEPS):
        at = torch.randint(len(rows), (many,), generator=draw).to(rows.device)
        pictures = generator(rows[at])
        _, moved = site.read(net, pictures)
        change = ((pictures - rows[at]) / scale).square().mean()
        away = ((moved - features[at]) / spread).square()
        near, far = (mask.square() * away).mean(), ((1 - mask).square() * away).mean()
        total = BENIGN * near - far + F.relu(change / BOUND - 1)
        stepper.zero_grad()
        total.backward()
        stepper.step()
    with torch.no_grad():
        made: torch.Tensor = generator.eval()(rows)
    return made


def _benign(layer: nn.Module, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mask of benign features in (0, 1), learned on the classifier alone."""
    raw = torch.full(features.shape[1:], UNKNOWN, device=features.device, requires_grad=True)
    stepper = Adam([raw], lr=MASK_LR)
    for _ in range(MASK_STEPS):
        mask = soft(raw)
        right, wrong = (F.cross_entropy(_answers(layer, part * features), labels) for part in (mask, 1 - mask))
        stepper.zero_grad()
        (right - wrong).backward()
        stepper.step()
    return soft(raw).detach()


def _answers(layer: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """What the classifier makes of features, in its own precision; of a 1 x 1 convolution with its places in a row."""
    answers: torch.Tensor = layer(features.to(next(layer.parameters()).dtype))
    return answers.flatten(1)
