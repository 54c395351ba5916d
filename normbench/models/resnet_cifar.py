"""ResNets for small pictures, as in section 4.2 of the paper (He et al., CVPR 2016, arXiv:1512.03385).

    conv3×3(16) → n blocks of 16 channels → n of 32, half the side → n of 64, half again → mean → linear

6n + 2 weight layers. A block is conv3×3–norm–ReLU–conv3×3–norm, plus its input, then ReLU. Where the shape changes, the
input takes every second pixel and zero channels behind its own (the paper's option A: no parameters). With 10 classes
ResNet-20, -32 and -56 have 0.27M, 0.46M and 0.85M parameters. Any picture from 4 px up will do.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def conv3x3(C: int, C_out: int, stride: int = 1) -> nn.Conv2d:
    """A 3×3 convolution without bias: the norm after it has one."""
    return nn.Conv2d(C, C_out, 3, stride, padding=1, bias=False)


def shrink(x: Tensor, more: int, stride: int) -> Tensor:
    """Option A: every ``stride``-th pixel, and ``more`` channels of zeros behind the given ones."""
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, more))


def kaiming(model: nn.Module) -> None:
    """He initialization of every convolution, preserving the variance of the gradient (fan-out)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut: (N, C, H, W) → (N, C_out, H/stride, W/stride)."""

    def __init__(self, C: int, C_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(C, C_out, stride)
        self.bn1 = nn.BatchNorm2d(C_out)
        self.conv2 = conv3x3(C_out, C_out)
        self.bn2 = nn.BatchNorm2d(C_out)
        self.relu = nn.ReLU(inplace=True)
        self.more, self.stride = C_out - C, stride

    def forward(self, x: Tensor) -> Tensor:
        shortcut = shrink(x, self.more, self.stride) if self.more or self.stride > 1 else x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + shortcut)


class ResNet(nn.Module):
    """(N, 3, H, W) → (N, num_classes), of ``depth`` = 6n + 2 layers."""

    def __init__(self, depth: int, num_classes: int = 10, zero_init: bool = False) -> None:
        super().__init__()
        n = (depth - 2) // 6
        self.conv1 = conv3x3(3, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = stage(16, 16, n, stride=1)
        self.layer2 = stage(16, 32, n, stride=2)
        self.layer3 = stage(32, 64, n, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)
        kaiming(self)
        if zero_init:
            for block in (*self.layer1, *self.layer2, *self.layer3):
                nn.init.zeros_(block.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


def stage(C: int, C_out: int, n: int, stride: int) -> nn.Sequential:
    """n blocks of ``C_out`` channels; the first takes the stride."""
    return nn.Sequential(Block(C, C_out, stride), *(Block(C_out, C_out, 1) for _ in range(n - 1)))
