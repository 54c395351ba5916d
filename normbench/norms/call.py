"""What is asked of the fused kernels and what they give back, the same on every device."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class Renorm(NamedTuple):
    """What batch renormalization corrects towards: mean, std (C,) and bounds (r_max, d_max), all constants."""

    mean: Tensor
    std: Tensor
    bounds: Tensor


class Gate(NamedTuple):
    """A factor on γ for each channel of each image, sigmoid(weight · plane mean + bias); both (C,)."""

    weight: Tensor
    bias: Tensor


class After(NamedTuple):
    """Scale and shift that follow the activation, both (C,)."""

    scale: Tensor
    shift: Tensor


class Parts(NamedTuple):
    """The tensors of one call beside x, each None where the method has none: (C,), but ``bounds`` (2,).

    On CPU they are of x's type (bounds: float64), on CUDA at least float32.
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
    bounds: Tensor | None = None


class Shape(NamedTuple):
    """How statistics are shared, and the activation: nothing below ``low`` or above ``high``."""

    rows: int
    groups: int
    eps: float
    centered: bool
    low: float
    high: float


class Gradients(NamedTuple):
    """Of x and of the parts that have one; ``var``: of σ², (rows, groups)."""

    x: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    threshold: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    gate_weight: Tensor | None
    gate_bias: Tensor | None
    var: Tensor | None


class Saved(NamedTuple):
    """What a backward needs beside x. ``mean``, ``var``: (rows, groups), at least float32; the rest is the device's."""

    mean: Tensor
    var: Tensor
    rest: Any
