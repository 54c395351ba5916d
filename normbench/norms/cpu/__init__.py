"""The moment family on CPU: one call forward and one backward, for float32 and float64 in both memory formats."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from normbench.norms.call import Parts, Shape
from normbench.norms.cpu import compiler, positional, proxies
from normbench.norms.cpu.blocks import KINDS, RUNNING
from normbench.norms.cpu.plan import DTYPES, ONCE, Plan, Use, plan_for, run, run_block

__all__ = [
    "DTYPES",
    "Saved",
    "Use",
    "backward",
    "channel_moments",
    "forward",
    "moments",
    "move",
    "plan_for",
    "positional",
    "prepare",
    "proxies",
]

NO_PARTS = (0,) * 8
LOWEST = {dtype: torch.tensor(-torch.inf, dtype=dtype) for dtype in DTYPES}


class Saved(NamedTuple):
    """What the backward needs beside x: statistics and coefficients, in one tensor (arguments.unpack)."""

    work: Tensor
    plan: Plan


def forward(
    x: Tensor, shape: Shape, parts: Parts, given: tuple[Tensor, Tensor] | None = None, by_channel: bool = False
) -> tuple[Tensor, Saved]:
    """y, and what the backward needs. given: mean and var, (rows, groups), where they are not x's own.

    ``by_channel``: keep the moments of channels, whether they are needed or not.
    """
    use = Use(parts[5] is not None, parts[8] is not None, given is not None, by_channel)
    plan = plan_for(x, shape, use)
    y = torch.empty_like(x)
    # An operator gives work out, of which not every number is written.
    work = (torch.zeros if by_channel else torch.empty)(plan.work, dtype=torch.float64)
    saved = Saved(work, plan)
    if given is not None:
        for here, value in zip(moments(saved, shape), given, strict=True):
            here.copy_(value)
    split = torch.empty(plan.split, dtype=torch.float64) if plan.split else None
    run(
        plan.forward, plan.forth, plan.fixed,
        x.data_ptr(), y.data_ptr(), 0, 0,
        work.data_ptr(), 0, 0 if split is None else split.data_ptr(),
        *[0 if part is None else part.data_ptr() for part in parts],
        *NO_PARTS, shape.eps,
    )  # fmt: skip
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
    run(
        plan.backward, plan.back if wants_x else plan.no_dx, plan.fixed,
        x.data_ptr(), 0, dy.data_ptr(), 0 if dx is None else dx.data_ptr(),
        work.data_ptr(), at, at + 8 * plan.sums,
        *[0 if part is None else part.data_ptr() for part in parts],
        *[0 if grad is None else grad.data_ptr() for grad in grads],
        0 if dvar is None else dvar.data_ptr(), shape.eps,
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


def move(
    buffers: tuple[Tensor, Tensor],
    saved: Saved,
    shape: Shape,
    by_channel: bool,
    workers: int,
    share: float,
    unbiased: float,
    eps: float,
    kind: str,
) -> None:
    """Move two running statistics (K,) towards those of the rows of a ``forward``, of groups or channels: moving.py."""
    first, second = buffers
    work, plan = saved
    length = len(first)
    start = plan.columns if by_channel else 0
    at = work.data_ptr() + 8 * start
    block = RUNNING.pack(
        0, 0, 0, 0,
        shape.rows, workers, length, KINDS.index(kind),
        at, at + 8 * shape.rows * length, first.data_ptr(), second.data_ptr(),
        share, unbiased, eps, plan.per_column if by_channel else 1.0,
    )  # fmt: skip
    run_block(compiler.kernel("moving", "moving", DTYPES[first.dtype]), ONCE, block)


def prepare() -> None:
    """Raises what stands in the way of compiling and loading kernels here."""
    compiler.prepare()
