"""Pre-activation ResNets for small pictures (He et al., ECCV 2016, arXiv:1603.05027).

    conv3×3(16) → n blocks of 16 channels → n of 32, half the side → n of 64, half again → norm–ReLU → mean → linear

A block is norm–ReLU–conv3×3 twice, plus its input, with nothing on the sum. Where the shape changes, both paths start
from the first norm–ReLU and the shortcut is option A of ``resnet_cifar``: 6n + 2 layers and
as many parameters. Blocks end with a convolution, so there is no last norm to start at zero.
"""

from __future__ import annotations

from torch import Tensor, nn

from normbench.models.resnet_cifar import conv3x3, kaiming, shrink


class Block(nn.Module):
    """Two pre-activated 3×3 convolutions and a shortcut: (N, C, H, W) → (N, C_out, H/stride, W/stride)."""

    def __init__(self, C: int, C_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(C)
        self.conv1 = conv3x3(C, C_out, stride)
        self.bn2 = nn.BatchNorm2d(C_out)
        self.conv2 = conv3x3(C_out, C_out)
        self.relu = nn.ReLU(inplace=True)
        self.more, self.stride = C_out - C, stride

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(x))
        shortcut = shrink(out, self.more, self.stride) if self.more or self.stride > 1 else x
        out = self.conv1(out)
        out = self.conv2(self.relu(self.bn2(out)))
        return out + shortcut


class PreResNet(nn.Module):
    """(N, 3, H, W) → (N, num_classes), of ``depth`` = 6n + 2 layers."""

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        n = (depth - 2) // 6
        self.conv1 = conv3x3(3, 16)
        self.layer1 = stage(16, 16, n, stride=1)
        self.layer2 = stage(16, 32, n, stride=2)
        self.layer3 = stage(32, 64, n, stride=2)
        self.bn = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = self.avgpool(self.relu(self.bn(x)))
        return self.fc(x.flatten(1))


def stage(C: int, C_out: int, n: int, stride: int) -> nn.Sequential:
    """n blocks of ``C_out`` channels; the first takes the stride."""
    return nn.Sequential(Block(C, C_out, stride), *(Block(C_out, C_out, 1) for _ in range(n - 1)))
