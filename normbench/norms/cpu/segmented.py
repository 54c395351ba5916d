"""Normalization by segments of images on CPU: one call forward and one backward (the kernels: segments.py)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from normbench.norms.call import Parts
from normbench.norms.cpu import compiler, team
from normbench.norms.cpu.blocks import FINISH, FINISHED, GROUP, SEGMENTS, SIDE, TRACK, TRANSPOSE
from normbench.norms.cpu.plan import DTYPES, PIECE, Step, run, way


class Shape(NamedTuple):
    """How many rows of images and segments of an image; ε; the activation's lowest and highest value."""

    rows: int
    groups: int
    eps: float
    low: float
    high: float


def forward(
    x: Tensor,
    shape: Shape,
    parts: Parts,
    given: tuple[Tensor, Tensor] | None,
    _: bool,
    track: Any = None,
) -> tuple[Tensor, Tensor]:
    """y, and what the backward needs beside x (N, C, H, W): μ, σ² and 1/√(σ² + ε), (3, rows, groups).

    given: μ and σ², where they are not x's own. track: the buffers to move, what ``cpu.tracked`` gave. Kernels take
    maps that lie one after another; others are copied so, and y back.
    """
    like, x = x, _maps(x)
    y, work = torch.empty_like(x), x.new_empty(3, shape.rows, shape.groups, dtype=torch.float64)
    if given is not None:
        work[0], work[1] = given
    tensors = (x, y, None, None, parts.weight, parts.bias, work, None, None)
    if track is None:
        _run("forward", (*tensors, None, None, None), shape, given is not None)
    else:
        _run("forward", (*tensors, *track.buffers), shape, given is not None, track.share)
        torch.autograd.graph.increment_version(track.buffers)
    return _lying(y, like), work


def backward(
    dy: Tensor, x: Tensor, shape: Shape, parts: Parts, saved: Tensor, fixed: bool, wants_x: bool, *_: Any
) -> tuple[Tensor | None, list[Tensor], None]:
    """The gradients of x, and of those of γ and β that there are; dy must lie in memory as x does."""
    like, x, dy = x, _maps(x), _maps(dy)
    C, dx = x.shape[1], torch.empty_like(x) if wants_x else None
    sums, grads = x.new_empty(2 * shape.rows * (C + shape.groups), dtype=torch.float64), x.new_empty(2, C)
    tensors = (x, None, dy, dx, parts.weight, parts.bias, saved, sums, grads, None, None, None)
    _run("backward", tensors, shape, fixed)
    return (
        None if dx is None else _lying(dx, like),
        [grad for grad, part in zip(grads, parts[:2], strict=True) if part is not None],
        None,
    )


def _maps(x: Tensor) -> Tensor:
    """x with its maps one after another, or a copy that has them so."""
    if x.is_contiguous():
        return x
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    _transpose(x, y, x.shape[2:].numel(), x.shape[1])
    return y


def _lying(x: Tensor, like: Tensor) -> Tensor:
    """x, whose maps lie one after another, or a copy that lies as ``like`` does."""
    if like.is_contiguous():
        return x
    y = torch.empty_like(like)
    _transpose(x, y, x.shape[1], x.shape[2:].numel())
    return y


def _transpose(x: Tensor, y: Tensor, rows: int, columns: int) -> None:
    """Every image, ``rows`` × ``columns`` in memory, the other way round; torch's copy takes two to seven times as
    long.
    """
    strips, threads = len(x) * -(-rows // SIDE), team.threads_for(x.numel())
    chunk = strips if threads == 1 else max(1, min(PIECE // (SIDE * columns), strips // (4 * threads)))
    kernel = compiler.kernel("transposes", "transpose", DTYPES[x.dtype])
    run(way(kernel, [Step(0, strips, chunk, threads)]), TRANSPOSE.pack(rows, columns, x.data_ptr(), y.data_ptr()))


def moments(saved: Tensor, _: Shape) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, (rows, groups) each, after a ``forward``."""
    return saved[0], saved[1]


def _run(name: str, tensors: tuple[Tensor | None, ...], shape: Shape, fixed: bool, share: float | None = None) -> None:
    x = tensors[0]
    assert x is not None
    (N, C, H, W), (R, G, eps, low, high) = x.shape, shape
    pieces, threads = R * G, team.threads_for(x.numel())
    chunk = pieces if threads == 1 else max(1, min(PIECE * pieces // x.numel(), pieces // (4 * threads)))
    steps = [Step(GROUP, pieces, chunk, threads)]
    if name == "backward":
        steps.append(Step(FINISH, -(-C // FINISHED), -(-C // FINISHED), 1))
    elif share is not None:
        steps.append(Step(TRACK, 1, 1, 1))
    places = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    kernel = compiler.kernel("segments", f"segments_{name}", DTYPES[x.dtype])
    run(way(kernel, steps), SEGMENTS.pack(C, H * W, R, G, N // R, fixed, *places, eps, low, high, share or 0.0))
