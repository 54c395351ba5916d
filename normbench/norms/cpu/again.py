"""A call like one before it: all that its kernels read but for where its own tensors lie is there already.

At small maps most of a call's time goes to Python, most of which finds out each time what it found out before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from normbench.norms.call import Shape
from normbench.norms.cpu.blocks import (
    AFTER_AT,
    AGAIN_BACK,
    AGAIN_FORTH,
    BACK_REST,
    BOUNDS,
    BOUNDS_AT,
    FORTH_REST,
    GATE_AT,
    NO_BOUNDS,
    PAIR,
    RENORM_AT,
    SLOPES,
    UNTRACKED,
)
from normbench.norms.cpu.plan import KEPT, REST, SIZE, Plan, Way, scratch, share_out, space

# What stands in a block for what such calls write themselves, and for what they have not.
OWN, NO_PAIRS, NO_GRADIENTS = bytes(AGAIN_FORTH.size), (0,) * 6, (0,) * 5
AT = {"after": AFTER_AT, "gate": GATE_AT, "renorm": RENORM_AT}

try:  # a tensor without the dispatcher's detour, as compiled graphs make theirs
    from torch._C._dynamo.guards import _empty_strided_cpu as empty  # type: ignore[attr-defined]
except ImportError:

    def empty(size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty_strided(size, stride, dtype=dtype, device="cpu")


class Again(NamedTuple):
    """What calls like one have in common. ``forth``, ``back``, ``no_dx``: blocks of arguments, a thread's block long.

    A call writes its own slots, which are zero until then: the first behind REST (AGAIN_FORTH, AGAIN_BACK), a pair of
    further parts at ``pair`` and a pair of their gradients at ``slopes``, where there are any (0: none); and the bounds
    of a renormalization.
    """

    plan: Plan
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    forth: bytes
    back: bytes
    no_dx: bytes
    pair: int
    slopes: int


def ready(x: Tensor, shape: Shape, plan: Plan, numbers: tuple[float, ...] | None, kind: str) -> Again:
    """For calls like one over x with the parts weight, bias, and what repeated.MORE has for ``kind``; numbers: what
    ``Tracked`` says.
    """
    numbers = UNTRACKED if numbers is None else numbers
    corrected = int(kind == "renorm")  # all that a backward asks of the last of the pairs
    forth = OWN + FORTH_REST.pack(*NO_PAIRS, shape.eps, *NO_BOUNDS, *numbers)
    back = OWN + BACK_REST.pack(*NO_PAIRS[:-1], corrected, shape.eps, *NO_GRADIENTS)
    blocks = _block(plan.forth, forth), _block(plan.back, back), _block(plan.no_dx, back)
    at = AT.get(kind, 0)
    slopes = 0 if at == 0 or corrected else at + SLOPES
    return Again(plan, tuple(x.shape), x.stride(), x.dtype, *blocks, at and REST + at, slopes and REST + slopes)


def _block(way: Way, rest: bytes) -> bytes:
    """``rest`` behind what a way's blocks begin with, made so long that one assignment replaces a thread's block."""
    return (way.block + rest).ljust(SIZE, b"\0")


def forward(
    again: Again,
    places: Sequence[int],
    bounds: tuple[float, float] | None,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *more: Tensor,
) -> tuple[Tensor, Tensor]:
    """y, and what the backward needs beside x.

    places: of the running statistics and their count, or zeros; with ``bounds``, r_max and d_max, the first two are
    corrected towards. more: a threshold, or a pair of further parts.
    """
    plan, size, stride, dtype, whole, _, _, pair, _ = again
    y, work = empty(size, stride, dtype), empty((plan.work,), (1,), torch.float64)
    way, (block, address, split) = plan.forth, space.near
    large = None if plan.split <= KEPT else scratch(plan.split)
    block[:] = whole
    AGAIN_FORTH.pack_into(
        block, REST, x.data_ptr(), work.data_ptr(), split if large is None else large.data_ptr(),
        weight.data_ptr(), bias.data_ptr(), more[0].data_ptr() if more and not pair else 0,
        y.data_ptr(), *places, 0 if residual is None else residual.data_ptr(),
    )  # fmt: skip
    if bounds is not None:
        PAIR.pack_into(block, pair, places[0], places[1])
        BOUNDS.pack_into(block, REST + BOUNDS_AT, *bounds)
    elif pair:
        PAIR.pack_into(block, pair, more[0].data_ptr(), more[1].data_ptr())
    share_out(way, address)
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
    plan, size, stride, dtype, _, whole, no_dx, pair, slopes = again
    weight, bias, length, threshold, dthreshold = parts[0], parts[1], size[1:2], 0, 0
    dx = empty(size, stride, dtype) if wants_x else None
    dweight, dbias = found = [empty(length, (1,), dtype), empty(length, (1,), dtype)]
    dz = None if y is None else empty(size, stride, dtype)
    way, (block, address, at) = plan.back if wants_x else plan.no_dx, space.near
    large = None if plan.sums + plan.split <= KEPT else scratch(plan.sums + plan.split)
    if large is not None:
        at = large.data_ptr()
    block[:] = whole if wants_x else no_dx
    if len(parts) > 2:
        found += [empty(length, (1,), dtype) for _ in parts[2:]]
        if slopes:
            PAIR.pack_into(block, pair, parts[2].data_ptr(), parts[3].data_ptr())
            PAIR.pack_into(block, slopes, found[2].data_ptr(), found[3].data_ptr())
        else:
            threshold, dthreshold = parts[2].data_ptr(), found[2].data_ptr()
    AGAIN_BACK.pack_into(
        block, REST, x.data_ptr(), work.data_ptr(), at + 8 * plan.sums, weight.data_ptr(), bias.data_ptr(), threshold,
        dy.data_ptr(), 0 if dx is None else dx.data_ptr(), at, dweight.data_ptr(), dbias.data_ptr(), dthreshold,
        0 if y is None else y.data_ptr(), 0 if dz is None else dz.data_ptr(),
    )  # fmt: skip
    share_out(way, address)
    return dx, dz, *found
