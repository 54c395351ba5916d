"""What is asked of the fused kernels and what they give back, the same on every device."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor


class Renorm(NamedTuple):
    """What batch renormalization corrects towards: mean, std (C,) and bounds (r_max, d_max), all constants.

    The bounds are two numbers, or a tensor (2,) where to know them is to wait for a device.
    """

    mean: Tensor
    std: Tensor
    bounds: Tensor | tuple[float, float]


class Gate(NamedTuple):
    """A factor on γ for each channel of each image, sigmoid(weight · plane mean + bias); both (C,)."""

    weight: Tensor
    bias: Tensor


class After(NamedTuple):
    """Scale and shift that follow the activation, both (C,)."""

    scale: Tensor
    shift: Tensor


class Track(NamedTuple):
    """Running statistics that a forward moves: ``running_mean`` and the buffer ``second`` of a unit, and their count.

    ``kind``: what the second is of, as in norms/running.py; ``workers``: whose mean it is; ``unbiased``: what turns the
    biased variance into its estimate; ``eps``: of a standard deviation.
    """

    unit: Any
    second: str
    kind: str
    workers: int
    unbiased: float | Tensor = 1.0
    eps: float = 0.0


class Parts(NamedTuple):
    """The tensors of one call beside x, each None where the method has none: (C,), but ``bounds`` two numbers.

    On CPU they are of x's type, on CUDA at least float32.
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    threshold: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    gate_weight: Tensor | None = None
    gate_bias: Tensor | None = None
    to_mean: Tensor | None = None
    to_std: Tensor | None = None
    bounds: Tensor | tuple[float, float] | None = None


class Shape(NamedTuple):
    """How statistics are shared, and the activation: nothing below ``low`` or above ``high``.

    ``cut``: groups are segments of images, which may begin amid a channel, and not of whole channels.
    """

    rows: int
    groups: int
    eps: float
    centered: bool
    low: float
    high: float
    cut: bool = False


class Moments(NamedTuple):
    """μ and biased σ² of a forward, (rows, K) each, as constants."""

    mean: Tensor
    var: Tensor

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Both, at least float32."""
        return self


def ceiling(high: float) -> float:
    """``high`` for kernels: NaN where there is none, which no value is equal to or above, infinity neither."""
    return math.nan if high == math.inf else high
