"""ReActNets: binary activations, and in the second phase of training binary weights (Liu et al., ECCV 2020,
arXiv:2003.03488), with the norms where that paper has them.

    reactnet18   conv7×7(64), norm, max-pool → 4 stages of 4 blocks, 64 to 512 channels → mean → linear
    reactnet_a   conv3×3(32), norm → 13 blocks of 64 to 1024 channels, MobileNet's stages → mean → linear

With b, b₁, b₂ (1, C, 1, 1), learned from 0:

    RSign     sign(x + b); backwards with slope 2 − 2|u| for |u| < 1, u = x + b, and 0 beyond
    RPReLU    PReLU(x + b₁) + b₂, a slope for every channel, from 0.25
    weights   s sign(W), s the mean |W| of a filter, a constant for the gradient; backwards as W clipped to ±1
    block     RPReLU(norm(conv3×3(RSign(x))) + x) in reactnet18; in reactnet_a then the same with a 1×1 convolution, or,
              where channels double, two of them side by side, each with a norm and x added, one behind the other

Where a stage takes the stride, x is first pooled 2×2; reactnet18 then brings it to the new channels by a 1×1
convolution and a norm: that convolution works on real inputs and has binary weights too. Stem and classifier are real.
No bias: the norms, or what stands for them, have one. ``phase``: 1, real weights (torch's usual start; the first phase
of training); 2, binary ones, which start uniform in (0, 0.001) as in the official code. A state of 1 loads into 2.

Ours: pooling keeps the last row and column of odd maps (even ones are pooled as there), so that any size goes through.
How the CIFAR results of "BNN − BN = ?" (arXiv:2104.08215) were trained is not known; its code has the blocks as here.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

WIDTHS_A = (32, 64, *(128,) * 2, *(256,) * 2, *(512,) * 6, *(1024,) * 2)


class _Sign(torch.autograd.Function):
    """The sign, with the slope of a piecewise parabola."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor) -> Tensor:
        return torch.sign(u)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return grads[0] * (2 - 2 * u.abs()).clamp_(min=0)


class _Binary(torch.autograd.Function):
    """s sign(W), with the gradient of W clipped to ±1."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor) -> Tensor:
        dtype = torch.promote_types(weight.dtype, torch.float32)
        s = weight.abs().mean((1, 2, 3), keepdim=True, dtype=dtype)
        return (s * torch.sign(weight)).to(weight.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (weight,) = ctx.saved_tensors
        return grads[0] * (weight.abs() <= 1)


def sign(u: Tensor) -> Tensor:
    """−1, 0 or 1, with a slope near 0."""
    return _Sign.apply(u)


def binarize(weight: Tensor) -> Tensor:
    """Of every filter the signs times its mean magnitude: (O, I, kh, kw) → the same."""
    return _Binary.apply(weight)


class BinaryConv2d(nn.Conv2d):
    """A Conv2d that convolves with ``prepare(W)``, binary weights."""

    prepare = staticmethod(binarize)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, self.prepare(weight), bias)

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.weight, 0, 1e-3)


class Shift(nn.Module):
    """x + b: (N, C, H, W) → the same."""

    def __init__(self, C: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, C, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class RSign(Shift):
    """sign(x + b): (N, C, H, W) → the same."""

    def forward(self, x: Tensor) -> Tensor:
        return sign(super().forward(x))


class RPReLU(nn.Module):
    """PReLU between two shifts: (N, C, H, W) → the same."""

    def __init__(self, C: int) -> None:
        super().__init__()
        self.before, self.prelu, self.after = Shift(C), nn.PReLU(C), Shift(C)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.prelu(self.before(x)))


def conv(C: int, C_out: int, k: int, stride: int, phase: int) -> nn.Conv2d:
    """A k×k convolution without bias, its weights real in phase 1 and binary in phase 2."""
    kind = nn.Conv2d if phase == 1 else BinaryConv2d
    return kind(C, C_out, k, stride, padding=k // 2, bias=False)


def halve() -> nn.AvgPool2d:
    """2×2 means; at odd borders of what there is."""
    return nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)


class Block(nn.Module):
    """One binary 3×3 convolution and a shortcut: (N, C, H, W) → (N, C_out, H/stride, W/stride)."""

    def __init__(self, C: int, C_out: int, stride: int, phase: int) -> None:
        super().__init__()
        self.sign = RSign(C)
        self.conv = conv(C, C_out, 3, stride, phase)
        self.bn = nn.BatchNorm2d(C_out)
        self.activation = RPReLU(C_out)
        projection = [halve(), conv(C, C_out, 1, 1, phase), nn.BatchNorm2d(C_out)]
        self.shortcut = nn.Sequential(*projection) if stride > 1 or C_out != C else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn(self.conv(self.sign(x)))
        return self.activation(out + (x if self.shortcut is None else self.shortcut(x)))


class BlockA(nn.Module):
    """A binary 3×3 and one or two 1×1 convolutions: (N, C, H, W) → (N, C_out, H/stride, W/stride), C_out C or 2C."""

    def __init__(self, C: int, C_out: int, stride: int, phase: int) -> None:
        super().__init__()
        self.sign1 = RSign(C)
        self.conv1 = conv(C, C, 3, stride, phase)
        self.bn1 = nn.BatchNorm2d(C)
        self.activation1 = RPReLU(C)
        self.sign2 = RSign(C)
        self.conv2 = conv(C, C, 1, 1, phase)
        self.bn2 = nn.BatchNorm2d(C)
        self.doubles = C_out > C
        if self.doubles:
            self.conv3 = conv(C, C, 1, 1, phase)
            self.bn3 = nn.BatchNorm2d(C)
        self.activation2 = RPReLU(C_out)
        self.pool = halve() if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(self.sign1(x)))
        out = self.activation1(out + (x if self.pool is None else self.pool(x)))
        signs = self.sign2(out)
        first = self.bn2(self.conv2(signs)) + out
        if not self.doubles:
            return self.activation2(first)
        return self.activation2(torch.cat([first, self.bn3(self.conv3(signs)) + out], 1))


class ReActNet18(nn.Module):
    """(N, 3, H, W) → (N, num_classes)."""

    def __init__(self, num_classes: int = 1000, zero_init: bool = False, phase: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = stage(64, 64, 1, phase)
        self.layer2 = stage(64, 128, 2, phase)
        self.layer3 = stage(128, 256, 2, phase)
        self.layer4 = stage(256, 512, 2, phase)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, num_classes)
        if zero_init:
            zero(module.bn for module in self.modules() if isinstance(module, Block))

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def stage(C: int, C_out: int, stride: int, phase: int) -> nn.Sequential:
    """Four blocks; the first takes the stride."""
    return nn.Sequential(Block(C, C_out, stride, phase), *(Block(C_out, C_out, 1, phase) for _ in range(3)))


class ReActNetA(nn.Module):
    """(N, 3, H, W) → (N, num_classes)."""

    def __init__(self, num_classes: int = 1000, zero_init: bool = False, phase: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS_A[0], 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS_A[0])
        # One after another, as in the official code: no stage begins with a block of its own but where the stride is.
        self.blocks = nn.ModuleDict()
        for i, (C, C_out) in enumerate(pairwise(WIDTHS_A), 1):
            self.blocks[str(i)] = BlockA(C, C_out, 2 if C_out != C and C_out > 64 else 1, phase)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(WIDTHS_A[-1], num_classes)
        if zero_init:
            found = (module for block in self.blocks.values() for module in block.children())
            zero(module for module in found if isinstance(module, nn.BatchNorm2d))

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        for block in self.blocks.values():
            x = block(x)
        return self.fc(self.avgpool(x).flatten(1))


def zero(norms: Any) -> None:
    """Start norms at weight 0."""
    for norm in norms:
        nn.init.zeros_(norm.weight)
