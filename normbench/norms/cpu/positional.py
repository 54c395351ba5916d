"""Positional normalization on CPU: one call forward and one backward (the kernels: positions.py)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from normbench.norms.call import Parts, ceiling
from normbench.norms.cpu import compiler, team
from normbench.norms.cpu.blocks import POSITIONS, POSITIONS_FINISH, SPANS, TILE
from normbench.norms.cpu.plan import SPAN, lies_by_pixel
from normbench.norms.cpu.ways import DTYPES, Step, run, way


class Shape(NamedTuple):
    """ε, the activation's lowest and highest value, and what the variance's divisor is less than C."""

    eps: float
    low: float
    high: float
    less: int


def forward(x: Tensor, shape: Shape, parts: Parts, *_: Any) -> tuple[Tensor, Tensor]:
    """y, and what the backward needs beside x."""
    y = torch.empty_like(x)
    keep = x.new_empty(3, x.numel() // x.shape[1])
    _run("forward", x, y, None, None, shape, parts, keep, None)
    return y, keep


def backward(
    dy: Tensor, x: Tensor, shape: Shape, parts: Parts, saved: Tensor, *_: Any
) -> tuple[Tensor, list[Tensor], None]:
    """The gradients of x, γ and β; dy must lie in memory as x does."""
    dx = torch.empty_like(x)
    grads = x.new_empty(2, x.shape[1])
    _run("backward", x, None, dy, dx, shape, parts, saved, grads)
    return dx, [] if parts.weight is None else [grads[0], grads[1]], None


def _run(
    name: str,
    x: Tensor,
    y: Tensor | None,
    dy: Tensor | None,
    dx: Tensor | None,
    shape: Shape,
    parts: Parts,
    keep: Tensor,
    grads: Tensor | None,
) -> None:
    N, C, H, W = x.shape
    S, pixels = H * W, lies_by_pixel(x)
    span = max(1, SPAN // C) if pixels else min(S, TILE)
    spans = -(-N * S // span) if pixels else N * -(-S // span)
    sums = torch.empty(2 * spans * C if grads is not None else 1, dtype=torch.float64)
    threads = team.threads_for(x.numel())
    chunk = max(1, spans // (8 * threads))
    less = C - shape.less
    address = [0 if t is None else t.data_ptr() for t in (x, y, dy, dx, parts.weight, parts.bias, keep, sums, grads)]
    extents = (N, C, S, span, spans)
    floats = (shape.eps, shape.low, ceiling(shape.high), 1 / C, 1 / less if less else float("nan"), 0.0)
    layout = "pixels" if pixels else "planes"
    kernel = compiler.kernel("positions", f"positions_{layout}_{name}", DTYPES[x.dtype])
    steps = [Step(SPANS, spans, chunk, threads)]
    if grads is not None:
        steps.append(Step(POSITIONS_FINISH, -(-C // TILE), -(-C // TILE), 1))
    run(way(kernel, steps), POSITIONS.pack(*extents, *address, *floats))
