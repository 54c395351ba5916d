"""The moment family on CPU: one call forward and one backward, for float32 and float64 in both memory formats."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from normbench.norms.call import Parts, Shape, Track
from normbench.norms.cpu import compiler, positional, proxies
from normbench.norms.cpu.blocks import KINDS
from normbench.norms.cpu.plan import DTYPES, Plan, Use, plan_for, run_back, run_forth

__all__ = [
    "DTYPES",
    "Saved",
    "Use",
    "backward",
    "channel_moments",
    "forward",
    "moments",
    "plan_for",
    "positional",
    "prepare",
    "proxies",
]

UNTRACKED, NOTHING = (0, 0, 0, 0, 1, 0), (0.0, 0.0, 0.0)
LOWEST = {dtype: torch.tensor(-torch.inf, dtype=dtype) for dtype in DTYPES}


class Saved(NamedTuple):
    """What the backward needs beside x: statistics and coefficients, in one tensor (arguments.unpack)."""

    work: Tensor
    plan: Plan


def forward(
    x: Tensor,
    shape: Shape,
    parts: Parts,
    given: tuple[Tensor, Tensor] | None = None,
    by_channel: bool = False,
    track: Track | None = None,
) -> tuple[Tensor, Saved]:
    """y, and what the backward needs. given: mean and var, (rows, groups), where they are not x's own.

    ``by_channel``: keep the moments of channels, whether they are needed or not. ``track``: of ``tracks``, or None.
    """
    weight, bias, threshold, scale, shift, gate_weight, gate_bias, to_mean, to_std, bounds = parts
    use = Use(gate_weight is not None, to_std is not None, given is not None, by_channel, track is not None)
    plan = plan_for(x, shape, use)
    y = torch.empty_like(x)
    # An operator gives work out, of which not every number is written.
    work = (torch.zeros if by_channel else torch.empty)(plan.work, dtype=torch.float64)
    saved = Saved(work, plan)
    if given is not None:
        for here, value in zip(moments(saved, shape), given, strict=True):
            here.copy_(value)
    split = torch.empty(plan.split, dtype=torch.float64) if plan.split else None
    running, (share, unbiased, eps) = UNTRACKED, NOTHING
    if track is not None:
        unit = track.unit
        buffers = unit._buffers["running_mean"], unit._buffers[track.second], unit._buffers["num_batches_tracked"]
        first, second, count = buffers
        share, unbiased, eps = -1.0 if unit.momentum is None else unit.momentum, track.unbiased, track.eps
        kind, workers = KINDS.index(track.kind), track.workers
        running = (first.data_ptr(), second.data_ptr(), count.data_ptr(), kind, workers, by_channel)
    r_max, d_max = (0.0, 0.0) if bounds is None else bounds.tolist() if isinstance(bounds, Tensor) else bounds
    run_forth(
        plan.forth,
        x.data_ptr(), work.data_ptr(), 0 if split is None else split.data_ptr(),
        *[0 if part is None else part.data_ptr() for part in parts[:9]], shape.eps,
        y.data_ptr(), *running, r_max, d_max, share, unbiased, eps,
    )  # fmt: skip
    if track is not None:
        torch.autograd.graph.increment_version(buffers)
    return y, saved


def backward(
    dy: Tensor, x: Tensor, shape: Shape, parts: Parts, saved: Saved, fixed: bool, wants_x: bool, wants_var: bool
) -> tuple[Tensor | None, list[Tensor], Tensor | None]:
    """The gradients of x, of those of the first seven parts that there are, and of σ², (rows, groups), if wanted.

    dy must lie in memory as x does.
    """
    work, plan = saved
    if parts.threshold is not None:  # τ itself lets a gradient through, and the kernel cuts at what it is given
        parts = parts._replace(threshold=torch.nextafter(parts.threshold, LOWEST[parts.threshold.dtype]))
    dx = torch.empty_like(x) if wants_x else None
    grads = [None if part is None else torch.empty_like(part) for part in parts[:7]]
    sums = torch.empty(plan.sums + plan.split, dtype=torch.float64)
    dvar = sums.new_empty(shape.rows, shape.groups) if wants_var else None
    at = sums.data_ptr()
    run_back(
        plan.back if wants_x else plan.no_dx,
        x.data_ptr(), work.data_ptr(), at + 8 * plan.sums,
        *[0 if part is None else part.data_ptr() for part in parts[:9]], shape.eps,
        dy.data_ptr(), 0 if dx is None else dx.data_ptr(), at,
        *[0 if grad is None else grad.data_ptr() for grad in grads], 0 if dvar is None else dvar.data_ptr(),
    )  # fmt: skip
    return dx, [grad for grad in grads if grad is not None], dvar


def moments(saved: Saved, shape: Shape) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the groups, (rows, groups) each, after a ``forward``."""
    size, stride = (shape.rows, shape.groups), (shape.groups, 1)
    return saved.work.as_strided(size, stride, 0), saved.work.as_strided(size, stride, shape.rows * shape.groups)


def channel_moments(saved: Saved, shape: Shape) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, (rows, C), after a ``forward`` with ``by_channel``, without gate."""
    start, size = saved.plan.columns, saved.plan.coefficients
    mean, squares = saved.work[start : start + 2 * size].view(2, shape.rows, size // shape.rows)
    return mean, squares * saved.plan.per_column


def tracks(track: Track, x: Tensor, length: int) -> bool:
    """Whether a forward over x can move these running statistics: of x's type, (length,), and their count."""
    buffers = track.unit._buffers
    first, second, count = buffers["running_mean"], buffers[track.second], buffers["num_batches_tracked"]
    if isinstance(track.unbiased, Tensor):
        return False
    for buffer, dtype, shape in ((first, x.dtype, (length,)), (second, x.dtype, (length,)), (count, torch.int64, ())):
        if type(buffer) is not Tensor or buffer.dtype is not dtype or buffer.shape != shape:
            return False
        if not (buffer.is_cpu and buffer.is_contiguous()) or buffer.is_neg():
            return False
    return True


def prepare() -> None:
    """Raises what stands in the way of compiling and loading kernels here."""
    compiler.prepare()
