"""The moment family on CPU: one call forward and one backward, for float32 and float64 in both memory formats."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from normbench.norms.cpu import compiler, family, team
from normbench.norms.cpu.arguments import BLOCK, HEAD

GROUP, COLUMNS, SETTLE, MAPS, FINISH = range(5)
DTYPES = {torch.float32: "float32", torch.float64: "float64"}
# Values that a piece of work should have at least, so that taking it from the shared counter costs nothing.
PIECE = 2**14


class Parts(NamedTuple):
    """The tensors of one call beside x, each None where the method has none: (C,), of x's type; ``bounds`` (2,)."""

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


class Saved(NamedTuple):
    """What the backward needs beside x: statistics in float64, coefficients in x's type."""

    statistics: Tensor
    forth: Tensor


def forward(x: Tensor, shape: Shape, parts: Parts, given: Tensor | None = None) -> tuple[Tensor, Saved]:
    """y, and what the backward needs. given: mean and var, (2, rows, groups) float64, where they are not x's own."""
    N, C, H, W = x.shape
    R, G, S, values = shape.rows, shape.groups, H * W, x.numel()
    K = N if parts.gate_weight is not None else R
    RG, KC, size = R * G, K * C, x.element_size()
    threads = team.threads_for(values)
    whole = threads == 1 or RG >= 4 * threads or RG % threads == 0
    columns = KC if parts.gate_weight is not None or G < C or not whole else 0
    y = torch.empty_like(x)
    corrected = 2 * RG if parts.to_std is not None else 0
    statistics = torch.empty(3 * RG + corrected + 2 * columns, dtype=torch.float64)
    if given is not None:
        statistics[: 2 * RG] = given.flatten()
    forth = x.new_empty(3 * KC)
    at = statistics.data_ptr()
    block = BLOCK.pack(
        0, 0, 0, 0,
        N, C, S, R, G, K, N // K, K // R, 0 if C % G else C // G, shape.centered, given is not None, 0, 0,
        x.data_ptr(), y.data_ptr(), 0, 0,
        *(0 if part is None else part.data_ptr() for part in parts),
        at, at + 8 * RG, at + 16 * RG, at + 24 * RG, at + 8 * (3 * RG + corrected) if columns else 0,
        forth.data_ptr(), 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,
        shape.eps, shape.low, shape.high, 1 / S, K / (N * S), 0.0 if C % G else RG / values,
    )  # fmt: skip
    work = _Work("planes_forward", x, block, threads)
    if whole:
        work.run(GROUP, RG)
    else:
        if given is None or parts.gate_weight is not None:
            work.run(COLUMNS, KC)
        work.run(SETTLE, RG, alone=True)
        work.run(MAPS, N * C)
    return y, Saved(statistics, forth)


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


def backward(
    dy: Tensor, x: Tensor, shape: Shape, parts: Parts, saved: Saved, fixed: bool, wants_x: bool, wants_var: bool
) -> Gradients:
    """The gradients; dy must lie in memory as x does. ``parts.threshold`` is the value just below τ."""
    N, C, H, W = x.shape
    R, G, S, values = shape.rows, shape.groups, H * W, x.numel()
    K = N if parts.gate_weight is not None else R
    RG, KC = R * G, K * C
    threads = team.threads_for(values)
    whole = threads == 1 or RG >= 4 * threads or RG % threads == 0
    corrected = 2 * RG if parts.to_std is not None else 0
    dx = torch.empty_like(x) if wants_x else None
    wanted = [part is not None for part in parts[:7]]
    small = x.new_empty(sum(wanted) * C + 3 * KC)
    rest = iter(small.split(C))
    grads = [next(rest) if want else None for want in wanted]
    back = small.data_ptr() + sum(wanted) * C * x.element_size()
    sums = torch.empty(3 * KC + RG, dtype=torch.float64)
    at = saved.statistics.data_ptr()
    block = BLOCK.pack(
        0, 0, 0, 0,
        N, C, S, R, G, K, N // K, K // R, 0 if C % G else C // G, shape.centered, fixed, 0, 0,
        x.data_ptr(), 0, dy.data_ptr(), 0 if dx is None else dx.data_ptr(),
        *(0 if part is None else part.data_ptr() for part in parts),
        at, at + 8 * RG, at + 16 * RG, at + 24 * RG, at + 8 * (3 * RG + corrected),
        saved.forth.data_ptr(), back, sums.data_ptr(), 0,
        *(0 if grad is None else grad.data_ptr() for grad in grads),
        sums.data_ptr() + 24 * KC if wants_var else 0,
        shape.eps, shape.low, shape.high, 1 / S, K / (N * S), 0.0 if C % G else RG / values,
    )  # fmt: skip
    work = _Work("planes_backward", x, block, threads)
    if whole:
        work.run(GROUP, RG)
    else:
        work.run(COLUMNS, KC)
        work.run(SETTLE, RG, alone=True)
        if wants_x:
            work.run(MAPS, N * C)
    if any(wanted):
        work.run(FINISH, -(-C // family.BLOCK), alone=KC < PIECE)
    return Gradients(dx, *grads, sums[3 * KC :].view(R, G) if wants_var else None)


class _Work:
    """A kernel, its arguments, and the phases it is run through."""

    def __init__(self, name: str, x: Tensor, block: bytes, threads: int) -> None:
        self.kernel = compiler.kernel(name.partition("_")[0], name, DTYPES[x.dtype])
        self.block = bytearray(block)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.block))
        self.values, self.threads = x.numel(), threads

    def run(self, phase: int, pieces: int, alone: bool = False) -> None:
        """Do all pieces of work of a phase."""
        threads = 1 if alone else self.threads
        chunk = pieces if threads == 1 else max(1, min(PIECE * pieces // self.values, pieces // (4 * threads)))
        HEAD.pack_into(self.block, 0, 0, pieces, chunk, phase)
        team.run(self.kernel, self.address, threads)
