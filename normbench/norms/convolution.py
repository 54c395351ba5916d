"""Convolutions that a method puts in the place of a model's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T", bound=nn.Module)


def adopt(kind: type[T], module: nn.Module) -> T:
    """A ``kind``, a subclass of ``module``'s class, that shares parameters, buffers and all else with ``module``.

    ``kind.__init__`` is not called; what it adds is set by the caller. What ``module`` makes of its weight goes along.
    """
    made = kind.__new__(kind)
    registries = {key: value.copy() for key, value in vars(module).items() if isinstance(value, dict | set)}
    made.__dict__.update(vars(module) | registries)
    if prepares(module):
        made.__dict__["prepare"] = module.prepare
    return made


def prepares(module: nn.Module) -> bool:
    """Whether a convolution says what it makes of a weight before it convolves with it: a static ``prepare(weight)``.

    So may a subclass of Conv2d in any model (one with binary weights, say), which can then be given other weights.
    """
    return getattr(module, "prepare", None) is not None


def as_maps(weight: Tensor) -> Tensor:
    """Filters (O, I, kh, kw) as the maps of one image, (1, O, I·kh·kw, 1), each filter as it lies in memory."""
    if not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last):
        weight = weight.permute(0, 2, 3, 1)
    return weight.reshape(1, len(weight), -1, 1)


def as_filters(maps: Tensor, weight: Tensor) -> Tensor:
    """What ``as_maps`` made of ``weight``, or has become of it, in its shape again."""
    if not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last):
        O, I, *kernel = weight.shape  # noqa: E741
        return maps.view(O, *kernel, I).permute(0, 3, 1, 2)
    return maps.view(weight.shape)


class Reweighted(nn.Conv2d):
    """A Conv2d that convolves with ``reweigh(W)`` in the place of its weight W.

    Adopted from a convolution with a ``prepare`` of its own, with ``prepare(reweigh(W))``.
    """

    prepare: Callable[[Tensor], Tensor] | None = None

    def reweigh(self, weight: Tensor) -> Tensor:
        """What stands for the weight, of the same shape."""
        raise NotImplementedError

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        weight = self.reweigh(weight)
        return super()._conv_forward(input, weight if self.prepare is None else self.prepare(weight), bias)
