"""VGG-19 with BatchNorm and a single linear layer on top, as networks for 32 x 32 images have it.

Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015
(https://arxiv.org/abs/1409.1556), configuration E. Layer numbers follow the widely shared CIFAR version (``features.N``,
``classifier``), whose 20,040,522 parameters at 10 classes it has.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Interval
from torch import nn

from theriac.core.errors import InputError
from theriac.core.ranges import typed

# channels in units of the first stage's, 0 for a pooling (configuration E)
_PLAN = (1, 1, 0, 2, 2, 0, 4, 4, 4, 4, 0, 8, 8, 8, 8, 0, 8, 8, 8, 8, 0)


class VGG19BN(nn.Module):
    """Maps (N, C, H, W) floats to (N, ``num_classes``) logits.

    Args:
        num_classes: Number of classes, at least 2.
        channels: Input channels.
        size: Height and width of the images. Poolings that would leave less than one pixel are left out (at 8 x 8 two of
            the five); what remains at the end is averaged over positions, so that the head never depends on the size.
        width: Channels of the first stage; 64 is the literature's network.

    Raises:
        InputError: On images smaller than 8 pixels.
    """

    @typed()
    def __init__(
        self,
        num_classes: int = 10,
        channels: int = 3,
        size: tuple[int, int] = (32, 32),
        width: Annotated[int, Interval(ge=1, le=1024)] = 64,
    ) -> None:
        super().__init__()
        side = min(size)
        if side < 8:
            raise InputError(f"images are {size[0]} x {size[1]}; VGG-19 needs at least 8 pixels on each side")
        layers: list[nn.Module] = []
        c_in = channels
        for factor in _PLAN:
            if factor:
                c_out = factor * width
                layers += [nn.Conv2d(c_in, c_out, 3, 1, 1), nn.BatchNorm2d(c_out), nn.ReLU()]
                c_in = c_out
            else:  # a placeholder keeps the layer numbers of shared checkpoints
                layers.append(nn.MaxPool2d(2) if side >= 2 else nn.Identity())
                side //= 2
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(c_in, num_classes)
        for module in self.features:
            if isinstance(module, nn.Conv2d):  # deep and without shortcuts: torch's default draw shrinks the signal
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits
