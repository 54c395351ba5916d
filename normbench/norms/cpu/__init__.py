"""The moment family on CPU: one call forward and one backward, for float32 and float64 in both memory formats."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from normbench.norms.call import Parts, Shape, Track
from normbench.norms.cpu import again, compiler, positional, proxies, turned
from normbench.norms.cpu.blocks import BACK, FORTH, KINDS, NO_BOUNDS, UNTRACKED
from normbench.norms.cpu.plan import Plan, Use, plan_for
from normbench.norms.cpu.ways import DTYPES, REST, scratch, share_out, space

__all__ = [
    "DTYPES",
    "Saved",
    "Use",
    "again",
    "backward",
    "channel_moments",
    "forward",
    "moments",
    "plan_for",
    "positional",
    "prepare",
    "proxies",
    "tracked",
]

NOT_BEHIND = (0, 0)
_place = Tensor.data_ptr


class Tracked(NamedTuple):
    """Buffers that a forward moves, and what its block says of them."""

    buffers: tuple[Tensor, Tensor, Tensor]
    places: tuple[int, int, int]
    numbers: tuple[float, ...]


class Saved(NamedTuple):
    """What the backward needs beside x: statistics and coefficients, in one tensor (arguments.unpack).

    Of groups of one value it needs none, and ``work`` is x, from which ``moments`` reads them.
    """

    work: Tensor
    plan: Plan


def forward(
    x: Tensor,
    shape: Shape,
    parts: Parts,
    given: tuple[Tensor, Tensor] | None = None,
    by_channel: bool = False,
    track: Tracked | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Saved]:
    """y, and what the backward needs. given: mean and var, (rows, groups), where they are not x's own.

    ``by_channel``: keep the moments of channels, whether they are needed or not. ``track``: what ``tracked`` gave.
    ``residual``: of x's shape and type, added before the activation; not with a threshold or what follows those.
    """
    if residual is not None and residual.stride() != x.stride():
        residual = torch.empty_like(x).copy_(residual)
    weight, bias, threshold, scale, shift, gate_weight, gate_bias, to_mean, to_std, bounds = parts
    use = (gate_weight is not None, to_std is not None, given is not None, by_channel, track is not None)
    plan = plan_for(x, shape, use)
    x = turned.maps(x) if plan.turned else x
    y = torch.empty_like(x)
    # An operator gives work out, of which not every number is written.
    work = x.detach() if plan.lone else (x.new_zeros if by_channel else x.new_empty)(plan.work, dtype=torch.float64)
    saved = Saved(work, plan)
    if given is not None:
        for here, value in zip(moments(saved, shape), given, strict=True):
            here.copy_(value)
    r_max, d_max = NO_BOUNDS if bounds is None else bounds.tolist() if isinstance(bounds, Tensor) else bounds
    split = scratch(plan.split) if plan.split else None
    places, numbers = ((0, 0, 0), UNTRACKED) if track is None else (track.places, track.numbers)
    way, block = plan.forth, space.block
    block[:REST] = way.block
    FORTH.pack_into(  # written out, as a loop over the parts takes half as long as a small map's kernel
        block, REST,
        x.data_ptr(), work.data_ptr(), 0 if split is None else split.data_ptr(),
        0 if weight is None else weight.data_ptr(), 0 if bias is None else bias.data_ptr(),
        0 if threshold is None else threshold.data_ptr(),
        y.data_ptr(), *places, 0 if residual is None else residual.data_ptr(),
        0 if scale is None else scale.data_ptr(), 0 if shift is None else shift.data_ptr(),
        0 if gate_weight is None else gate_weight.data_ptr(), 0 if gate_bias is None else gate_bias.data_ptr(),
        0 if to_mean is None else to_mean.data_ptr(), 0 if to_std is None else to_std.data_ptr(),
        shape.eps, r_max, d_max, *numbers,
    )  # fmt: skip
    share_out(way, space.address)
    if track is not None:
        torch.autograd.graph.increment_version(track.buffers)
    return turned.pixels(y) if plan.turned else y, saved


def backward(
    dy: Tensor,
    x: Tensor,
    shape: Shape,
    parts: Parts,
    saved: Saved,
    fixed: bool,
    wants_x: bool,
    wants_var: bool,
    behind: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor | None, list[Tensor], Tensor | None]:
    """The gradients of x, of those of the first seven parts that there are, and of σ², (rows, groups), if wanted.

    dy must lie in memory as x does. ``behind`` a residual sum and an activation: y, and where to write dz, dy as far as
    that let it through, which is the residual's gradient; both as x lies.
    """
    work, plan = saved
    if plan.turned:
        x, dy = turned.maps(x), turned.maps(dy)
    dx = torch.empty_like(x) if wants_x else None
    weight, bias, threshold, scale, _, gate_weight, *_ = parts
    if weight is None or bias is None or threshold is not None or scale is not None or gate_weight is not None:
        grads = [None if part is None else torch.empty_like(part) for part in parts[:7]]
        found = [grad for grad in grads if grad is not None]
        places = [0 if part is None else part.data_ptr() for part in parts[:7]]
        slopes = [0 if grad is None else grad.data_ptr() for grad in grads]
    else:  # what most have, without loops, which take as long as a small map's kernel
        dweight, dbias = found = [torch.empty_like(weight), torch.empty_like(bias)]
        places = [weight.data_ptr(), bias.data_ptr(), 0, 0, 0, 0, 0]
        slopes = [dweight.data_ptr(), dbias.data_ptr(), 0, 0, 0, 0, 0]
    sums = scratch(plan.sums + plan.split)
    at, to_std = sums.data_ptr(), parts.to_std  # of the two that are corrected to, only whether they are there counts
    dvar = x.new_empty(shape.rows, shape.groups, dtype=torch.float64) if wants_var else None
    way, block = plan.back if wants_x else plan.no_dx, space.block
    block[:REST] = way.block
    BACK.pack_into(
        block, REST,
        x.data_ptr(), work.data_ptr(), at + 8 * plan.sums, *places[:3],
        dy.data_ptr(), 0 if dx is None else dx.data_ptr(), at, *slopes[:3],
        *(NOT_BEHIND if behind is None else map(_place, behind)),
        *places[3:], 0, 0 if to_std is None else to_std.data_ptr(), shape.eps,
        *slopes[3:], 0 if dvar is None else dvar.data_ptr(),
    )  # fmt: skip
    share_out(way, space.address)
    if plan.turned and dx is not None:
        dx = turned.pixels(dx)
    return dx, found, dvar


def moments(saved: Saved, shape: Shape) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the groups, (rows, groups) each, after a ``forward``."""
    if saved.plan.lone:
        x = saved.work.reshape(shape.rows, shape.groups).double()
        return (x, x - x) if shape.centered else (x - x, x * x)
    size, stride = (shape.rows, shape.groups), (shape.groups, 1)
    return saved.work.as_strided(size, stride, 0), saved.work.as_strided(size, stride, shape.rows * shape.groups)


def channel_moments(saved: Saved, shape: Shape) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, (rows, C), after a ``forward`` with ``by_channel``, without gate."""
    start, size = saved.plan.columns, saved.plan.coefficients
    mean, squares = saved.work[start : start + 2 * size].view(2, shape.rows, size // shape.rows)
    return mean, squares * saved.plan.per_column


def tracked(track: Track, x: Tensor, groups: int, by_channel: bool) -> Tracked | None:
    """These running statistics as a forward over x moves them; None if they are not of x's type and its length."""
    unit, name, kind, workers, unbiased, eps = track
    buffers = unit._buffers
    found = first, second, count = buffers["running_mean"], buffers[name], buffers["num_batches_tracked"]
    for buffer in found:
        if type(buffer) is not Tensor or not buffer.is_cpu or not buffer.is_contiguous():
            return None
    dtype, length = x.dtype, x.shape[1] if by_channel else groups
    if first.dtype is not dtype or second.dtype is not dtype or count.dtype is not torch.int64:
        return None
    if first.numel() != length or second.numel() != length or count.numel() != 1 or isinstance(unbiased, Tensor):
        return None
    share = -1.0 if unit.momentum is None else unit.momentum
    places = first.data_ptr(), second.data_ptr(), count.data_ptr()
    return Tracked(found, places, (KINDS[kind], workers, by_channel, share, unbiased, eps))


def prepare() -> None:
    """Raises what stands in the way of compiling and loading kernels here."""
    compiler.prepare()
