"""Wide residual networks; WRN-16-1 is the small network of the ABL and CBD papers.

Zagoruyko, Komodakis, "Wide Residual Networks", BMVC 2016 (https://arxiv.org/abs/1605.07146). WRN-16-1 has 175,066 parameters
at 10 classes, 177,211 at 43 and WRN-10-1 has 77,850 (counted on the network that the official CBD code builds; measured).
Unlike :class:`PreActResNet18` it ends with BatchNorm and ReLU, so its embedding, 64 numbers for every WRN-*-1, is never
negative.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Interval
from torch import nn
from torch.nn import functional as F

from theriac.core.errors import InputError
from theriac.core.ranges import typed
from theriac.models.preact_resnet import PreActBlock


class WideResNet(nn.Module):
    """Maps (N, C, H, W) floats to (N, ``num_classes``) logits.

    Args:
        num_classes: Number of classes, at least 2.
        channels: Input channels.
        depth: 6 n + 4 layers, n blocks in each of three stages.
        widen: Stages have 16, 32 and 64 times this many channels.

    Raises:
        InputError: If the depth is not 6 n + 4.
    """

    @typed()
    def __init__(
        self,
        num_classes: int = 10,
        channels: int = 3,
        depth: Annotated[int, Interval(ge=10, le=400)] = 16,
        widen: Annotated[int, Interval(ge=1, le=32)] = 1,
    ) -> None:
        super().__init__()
        if (depth - 4) % 6:
            raise InputError(f"depth is {depth}; expected 6 n + 4, such as 10, 16, 28 or 40")
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.block1 = _stage(16, 16 * widen, blocks, 1)
        self.block2 = _stage(16 * widen, 32 * widen, blocks, 2)
        self.block3 = _stage(32 * widen, 64 * widen, blocks, 2)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * widen, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # as the paper's code: He's normal draw, by outputs
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        logits: torch.Tensor = self.fc(self.avgpool(F.relu(self.bn1(x))).flatten(1))
        return logits


def _stage(c_in: int, c_out: int, blocks: int, stride: int) -> nn.Sequential:
    first = PreActBlock(c_in, c_out, stride)
    return nn.Sequential(first, *(PreActBlock(c_out, c_out, 1) for _ in range(blocks - 1)))
