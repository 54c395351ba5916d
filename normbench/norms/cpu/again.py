"""A call like one before it: all that its kernels read but for where its own tensors lie is there already.

At small maps most of a call's time goes to Python, most of which finds out each time what it found out before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from normbench.norms.call import Shape
from normbench.norms.cpu.blocks import AGAIN_BACK, AGAIN_FORTH, BACK, FORTH
from normbench.norms.cpu.plan import KEPT, REST, SIZE, Plan, Way, scratch, share_out, space

# What stands in a block for what such calls write themselves, and for what they have not.
OWN_FORTH, OWN_BACK, NO_PARTS, NO_BOUNDS, NO_GRADIENTS = (0,) * 11, (0,) * 14, (0,) * 6, (0.0, 0.0), (0,) * 5
UNTRACKED = (0, 1, 0, 0.0, 0.0, 0.0)

try:  # a tensor without the dispatcher's detour, as compiled graphs make theirs
    from torch._C._dynamo.guards import _empty_strided_cpu as empty  # type: ignore[attr-defined]
except ImportError:

    def empty(size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty_strided(size, stride, dtype=dtype, device="cpu")


class Again(NamedTuple):
    """What calls like one have in common. ``forth``, ``back``, ``no_dx``: blocks of arguments, a thread's block long.

    The first slots behind REST are a call's own (AGAIN_FORTH, AGAIN_BACK) and zero until it writes them.
    """

    plan: Plan
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    forth: bytes
    back: bytes
    no_dx: bytes


def ready(x: Tensor, shape: Shape, plan: Plan, numbers: tuple[float, ...] | None) -> Again:
    """For calls like one over x with the parts weight, bias and threshold alone; numbers: what ``Tracked`` says."""
    numbers = UNTRACKED if numbers is None else numbers
    forth = FORTH.pack(*OWN_FORTH, *NO_PARTS, shape.eps, *NO_BOUNDS, *numbers)
    back = BACK.pack(*OWN_BACK, *NO_PARTS, shape.eps, *NO_GRADIENTS)
    blocks = _block(plan.forth, forth), _block(plan.back, back), _block(plan.no_dx, back)
    return Again(plan, tuple(x.shape), x.stride(), x.dtype, *blocks)


def _block(way: Way, rest: bytes) -> bytes:
    """``rest`` behind what a way's blocks begin with, made so long that one assignment replaces a thread's block."""
    return (way.block + rest).ljust(SIZE, b"\0")


def forward(
    again: Again,
    places: Sequence[int],
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    threshold: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y, and what the backward needs beside x. places: of the running statistics and their count, or zeros."""
    plan, size, stride, dtype, whole, *_ = again
    y, work = empty(size, stride, dtype), empty((plan.work,), (1,), torch.float64)
    way, (block, address, split) = plan.forth, space.near
    more = None if plan.split <= KEPT else scratch(plan.split)
    block[:] = whole
    AGAIN_FORTH.pack_into(
        block, REST, x.data_ptr(), work.data_ptr(), split if more is None else more.data_ptr(),
        weight.data_ptr(), bias.data_ptr(), 0 if threshold is None else threshold.data_ptr(),
        y.data_ptr(), *places, 0 if residual is None else residual.data_ptr(),
    )  # fmt: skip
    if way.alone:
        way.kernel.call(address)
    else:
        share_out(way)
    return y, work


def backward(
    again: Again,
    work: Tensor,
    dy: Tensor,
    x: Tensor,
    y: Tensor | None,
    parts: Sequence[Tensor],
    wants_x: bool,
) -> tuple[Tensor | None, ...]:
    """The gradients of x, of a residual if y is given, and of the parts; all as in ``forward``."""
    plan, size, stride, dtype, _, whole, no_dx = again
    weight, bias, length, threshold, dthreshold = parts[0], parts[1], size[1:2], None, None
    dx = empty(size, stride, dtype) if wants_x else None
    dweight, dbias = found = [empty(length, (1,), dtype), empty(length, (1,), dtype)]
    if len(parts) > 2:
        threshold, dthreshold = parts[2], empty(length, (1,), dtype)
        found.append(dthreshold)
    dz = None if y is None else empty(size, stride, dtype)
    way, (block, address, at) = plan.back if wants_x else plan.no_dx, space.near
    more = None if plan.sums + plan.split <= KEPT else scratch(plan.sums + plan.split)
    if more is not None:
        at = more.data_ptr()
    block[:] = whole if wants_x else no_dx
    AGAIN_BACK.pack_into(
        block, REST, x.data_ptr(), work.data_ptr(), at + 8 * plan.sums, weight.data_ptr(), bias.data_ptr(),
        0 if threshold is None else threshold.data_ptr(), dy.data_ptr(), 0 if dx is None else dx.data_ptr(), at,
        dweight.data_ptr(), dbias.data_ptr(), 0 if dthreshold is None else dthreshold.data_ptr(),
        0 if y is None else y.data_ptr(), 0 if dz is None else dz.data_ptr(),
    )  # fmt: skip
    if way.alone:
        way.kernel.call(address)
    else:
        share_out(way)
    return dx, dz, *found
