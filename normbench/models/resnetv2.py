"""ResNetV2-50: bottlenecks with pre-activation, for large pictures (He et al., ECCV 2016, arXiv:1603.05027).

    conv7×7/2(64) → max-pool/2 → 3, 4, 6, 3 bottlenecks of 256, 512, 1024, 2048 channels → norm–ReLU → mean → linear

A bottleneck is norm–ReLU–conv three times (1×1, 3×3, 1×1), plus its input. The stride is on the 3×3. The first of each
stage takes its shortcut, a 1×1 convolution without a norm, from its own first norm–ReLU; the stem has no norm either.
25.5M parameters with 1000 classes. The net of FRN's Figure 1. No block ends with a norm, so none can start at zero.
"""

from __future__ import annotations

from torch import Tensor, nn

from normbench.models.resnet_cifar import kaiming


def conv(C: int, C_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the side, but for the stride."""
    return nn.Conv2d(C, C_out, kernel, stride, padding=kernel // 2, bias=False)


class Bottleneck(nn.Module):
    """Three pre-activated convolutions and a shortcut: (N, C, H, W) → (N, C_out, H/stride, W/stride)."""

    def __init__(self, C: int, C_out: int, stride: int) -> None:
        super().__init__()
        C_in = C_out // 4
        self.bn1 = nn.BatchNorm2d(C)
        self.conv1 = conv(C, C_in, 1)
        self.bn2 = nn.BatchNorm2d(C_in)
        self.conv2 = conv(C_in, C_in, 3, stride)
        self.bn3 = nn.BatchNorm2d(C_in)
        self.conv3 = conv(C_in, C_out, 1)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = conv(C, C_out, 1, stride) if C_out != C else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = self.conv1(out)
        out = self.conv2(self.relu(self.bn2(out)))
        out = self.conv3(self.relu(self.bn3(out)))
        return out + shortcut


class ResNetV2(nn.Module):
    """(N, 3, H, W) → (N, num_classes); ``blocks`` bottlenecks in each of the four stages."""

    def __init__(self, blocks: tuple[int, int, int, int] = (3, 4, 6, 3), num_classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = conv(3, 64, 7, stride=2)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = stage(64, 256, blocks[0], stride=1)
        self.layer2 = stage(256, 512, blocks[1], stride=2)
        self.layer3 = stage(512, 1024, blocks[2], stride=2)
        self.layer4 = stage(1024, 2048, blocks[3], stride=2)
        self.bn = nn.BatchNorm2d(2048)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2048, num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.avgpool(self.relu(self.bn(x)))
        return self.fc(x.flatten(1))


def stage(C: int, C_out: int, n: int, stride: int) -> nn.Sequential:
    """n bottlenecks of ``C_out`` channels; the first takes the stride."""
    return nn.Sequential(Bottleneck(C, C_out, stride), *(Bottleneck(C_out, C_out, 1) for _ in range(n - 1)))
