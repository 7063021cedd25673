"""ResNet-18 for small images, with the activation after each addition.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 (https://arxiv.org/abs/1512.03385). The first layer is a
3 x 3 convolution without pooling, as networks for 32 x 32 images have it. Layer names follow the shared CIFAR checkpoints
(``conv1``, ``bn1``, ``layerK.B.{conv1,bn1,conv2,bn2,shortcut.0,shortcut.1}``, ``linear``), so their state dicts load as they
are. At width 64 and 10 classes it has 11,173,962 parameters, the literature's count.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Interval
from torch import nn
from torch.nn import functional as F

from theriac.core.ranges import typed


class Block(nn.Module):
    """Conv-BN-ReLU, conv-BN, then the shortcut is added and ReLU taken."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (x if self.shortcut is None else self.shortcut(x)))


class ResNet18(nn.Module):
    """Maps (N, C, H, W) floats to (N, ``num_classes``) logits.

    Args:
        num_classes: Number of classes, at least 2.
        channels: Input channels.
        width: Channels of the first stage; 64 is the literature's network.

    Raises:
        InputError: On a width out of range.
    """

    @typed()
    def __init__(self, num_classes: int = 10, channels: int = 3, width: Annotated[int, Interval(ge=1, le=1024)] = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        stages = []
        for k in range(4):
            c_in, c_out = width << max(k - 1, 0), width << k
            stages.append(nn.Sequential(Block(c_in, c_out, 1 if k == 0 else 2), Block(c_out, c_out, 1)))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(width << 3, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))))
        logits: torch.Tensor = self.linear(self.avgpool(x).flatten(1))
        return logits
