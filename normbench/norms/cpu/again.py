"""A call like one before it: all that its kernels read but for where its own tensors lie is there already.

At small maps most of a call's time goes to Python, most of which finds out each time what it found out before.
"""

from __future__ import annotations

import ctypes
import struct
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
from normbench.norms.cpu.plan import Plan
from normbench.norms.cpu.ways import KEPT, REST, SIZE, Way, scratch, share_out, space

# What stands in a block for what such calls write themselves, and for what they have not.
OWN, NO_PAIRS, NO_GRADIENTS = bytes(AGAIN_FORTH.size), (0,) * 6, (0,) * 5
AT = {"after": AFTER_AT, "gate": GATE_AT, "renorm": RENORM_AT}
# A mean of 0 and a variance of 1, as work begins with them where x is scaled and shifted as it is.
AS_IT_IS = struct.pack("=2d", 0.0, 1.0)

try:  # a tensor without the dispatcher's detour, as compiled graphs make theirs
    from torch._C._dynamo.guards import _empty_strided_cpu as empty  # type: ignore[attr-defined]
except ImportError:

    def empty(size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty_strided(size, stride, dtype=dtype, device="cpu")


class Again(NamedTuple):
    """What calls like one have in common. ``forth``, ``back``, ``no_dx``: blocks of arguments, a thread's block long.

    A call writes its own slots, which are zero until then: the first behind REST (AGAIN_FORTH, AGAIN_BACK), a pair of
    further parts at ``pair`` and a pair of their gradients at ``slopes``, where there are any (0: none); and the bounds
    of a renormalization. given: what work begins with, where statistics are not x's own.
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
    given: bytes


def ready(
    x: Tensor, shape: Shape, plan: Plan, numbers: tuple[float, ...] | None, kind: str, as_it_is: bool = False
) -> Again:
    """For calls like one over x with the parts that repeated.OWN has for ``kind``; numbers: what ``Tracked`` says."""
    numbers = UNTRACKED if numbers is None else numbers
    corrected = int(kind == "renorm")  # all that a backward asks of the last of the pairs
    forth = OWN + FORTH_REST.pack(*NO_PAIRS, shape.eps, *NO_BOUNDS, *numbers)
    back = OWN + BACK_REST.pack(*NO_PAIRS[:-1], corrected, shape.eps, *NO_GRADIENTS)
    blocks = _block(plan.forth, forth), _block(plan.back, back), _block(plan.no_dx, back)
    at = AT.get(kind, 0)
    slopes = 0 if at == 0 or corrected else at + SLOPES
    places = at and REST + at, slopes and REST + slopes
    return Again(plan, tuple(x.shape), x.stride(), x.dtype, *blocks, *places, AS_IT_IS if as_it_is else b"")


def _block(way: Way, rest: bytes) -> bytes:
    """``rest`` behind what a way's blocks begin with, made so long that one assignment replaces a thread's block."""
    return (way.block + rest).ljust(SIZE, b"\0")


def forward(
    again: Again,
    places: Sequence[int],
    bounds: tuple[float, float] | None,
    x: Tensor,
    residual: Tensor | None,
    *parts: Tensor,
) -> tuple[Tensor, Tensor]:
    """y, and what the backward needs beside x.

    places: of the running statistics and their count, or zeros; with ``bounds``, r_max and d_max, the first two are
    corrected towards. parts: weight and bias, and a threshold or a pair of further parts; or a threshold alone.
    """
    plan, size, stride, dtype, whole, _, _, pair, _, given = again
    y, work = empty(size, stride, dtype), empty((plan.work,), (1,), torch.float64)
    way, (block, address, split) = plan.forth, space.near
    large = None if plan.split <= KEPT else scratch(plan.split)
    block[:] = whole
    at = work.data_ptr()
    if given:
        ctypes.memmove(at, given, len(given))
    AGAIN_FORTH.pack_into(
        block, REST, x.data_ptr(), at, split if large is None else large.data_ptr(), *_three(parts),
        y.data_ptr(), *places, 0 if residual is None else residual.data_ptr(),
    )  # fmt: skip
    if bounds is not None:
        PAIR.pack_into(block, pair, places[0], places[1])
        BOUNDS.pack_into(block, REST + BOUNDS_AT, *bounds)
    elif pair:
        PAIR.pack_into(block, pair, parts[2].data_ptr(), parts[3].data_ptr())
    share_out(way, address)
    return y, work


def _three(parts: Sequence[Tensor]) -> tuple[int, int, int]:
    """Where weight, bias and threshold, or their gradients, lie; 0 for what is not there."""
    if len(parts) == 1:
        return 0, 0, parts[0].data_ptr()
    return parts[0].data_ptr(), parts[1].data_ptr(), parts[2].data_ptr() if len(parts) == 3 else 0


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
    plan, size, stride, dtype, _, whole, no_dx, pair, slopes, _ = again
    dx = empty(size, stride, dtype) if wants_x else None
    found = [empty(size[1:2], (1,), dtype) for _ in parts]
    dz = None if y is None else empty(size, stride, dtype)
    way, (block, address, at) = plan.back if wants_x else plan.no_dx, space.near
    large = None if plan.sums + plan.split <= KEPT else scratch(plan.sums + plan.split)
    if large is not None:
        at = large.data_ptr()
    block[:] = whole if wants_x else no_dx
    if slopes:
        PAIR.pack_into(block, pair, parts[2].data_ptr(), parts[3].data_ptr())
        PAIR.pack_into(block, slopes, found[2].data_ptr(), found[3].data_ptr())
    AGAIN_BACK.pack_into(
        block, REST, x.data_ptr(), work.data_ptr(), at + 8 * plan.sums, *_three(parts),
        dy.data_ptr(), 0 if dx is None else dx.data_ptr(), at, *_three(found),
        0 if y is None else y.data_ptr(), 0 if dz is None else dz.data_ptr(),
    )  # fmt: skip
    share_out(way, address)
    return dx, dz, *found
