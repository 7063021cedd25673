"""PreAct-ResNet-18, the literature's standard victim for 32 x 32 images.

He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016 (https://arxiv.org/abs/1603.05027). Layer names follow
the widely shared CIFAR checkpoints (``conv1``, ``layerK.B.{bn1,conv1,bn2,conv2,shortcut.0}``, ``linear``), so their state
dicts load as they are. Like the network of the backdoor literature it has **no** final BatchNorm and ReLU before the
pooling; ``final_norm=True`` adds them (layer ``bn``), as the original paper does. At width 64 and 10 classes it has
11,171,146 parameters, the literature's count.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Interval
from torch import nn
from torch.nn import functional as F

from theriac.core.ranges import typed


class PreActBlock(nn.Module):
    """BN-ReLU-conv twice, with the shortcut taken after the first BN-ReLU where the shape changes."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(out)
        out = self.conv1(out)
        out = self.conv2(F.relu(self.bn2(out)))
        total: torch.Tensor = out + skip
        return total


class PreActResNet18(nn.Module):
    """Maps (N, C, H, W) floats to (N, ``num_classes``) logits.

    Args:
        num_classes: Number of classes, at least 2.
        channels: Input channels.
        width: Channels of the first stage; 64 is the literature's network, 16 trains about 25 times faster on a CPU.
        final_norm: Put BatchNorm and ReLU before the pooling, so that features are never negative.

    Raises:
        InputError: On a width out of range.
    """

    @typed()
    def __init__(
        self,
        num_classes: int = 10,
        channels: int = 3,
        width: Annotated[int, Interval(ge=1, le=1024)] = 64,
        final_norm: bool = False,
    ) -> None:
        super().__init__()
        w = width
        self.conv1 = nn.Conv2d(channels, w, 3, 1, 1, bias=False)
        self.layer1 = nn.Sequential(PreActBlock(w, w, 1), PreActBlock(w, w, 1))
        self.layer2 = nn.Sequential(PreActBlock(w, 2 * w, 2), PreActBlock(2 * w, 2 * w, 1))
        self.layer3 = nn.Sequential(PreActBlock(2 * w, 4 * w, 2), PreActBlock(4 * w, 4 * w, 1))
        self.layer4 = nn.Sequential(PreActBlock(4 * w, 8 * w, 2), PreActBlock(8 * w, 8 * w, 1))
        self.bn: nn.BatchNorm2d | None = nn.BatchNorm2d(8 * w) if final_norm else None
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(8 * w, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        if self.bn is not None:
            x = F.relu(self.bn(x))
        logits: torch.Tensor = self.linear(self.avgpool(x).flatten(1))
        return logits
