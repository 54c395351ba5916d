"""The moment family on CPU: one call forward and one backward, for float32 and float64 in both memory formats."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from normbench.norms.call import Gradients, Parts, Saved, Shape
from normbench.norms.cpu import compiler, moving, team
from normbench.norms.cpu.arguments import BLOCK, HEAD
from normbench.norms.cpu.family import BLOCK as FINISHED
from normbench.norms.cpu.pixels import COLUMNS, FINISH, GROUP, MAPS, MERGE, SETTLE, TILE

DTYPES = {torch.float32: "float32", torch.float64: "float64"}
# Values that a piece of work should have at least, so that taking it from the shared counter costs nothing.
PIECE = 2**14
# Values below which threads do not pay if they must wait for each other in every phase.
WHOLE = 2**17
# Values of a span of pixels.
SPAN = 2**16


class Rest(NamedTuple):
    """Saved for the backward beside μ and σ²: the float64 that they lie in, and coefficients of x's type."""

    small: Tensor
    forth: Tensor
    columns: int  # numbers of ``small``, at its end, that are moments of columns


class _Plan(NamedTuple):
    """How a call is cut into pieces of work."""

    pixels: bool
    K: int
    RG: int
    KC: int
    threads: int
    whole: bool
    span: int
    spans: int


def _plan(x: Tensor, shape: Shape, gated: bool) -> _Plan:
    N, C, H, W = x.shape
    R, G, values = shape.rows, shape.groups, x.numel()
    pixels = lies_by_pixel(x)
    K = N if gated else R
    threads = team.threads_for(values)
    pieces = R if pixels else R * G
    whole = threads == 1 or pieces >= 4 * threads or pieces % threads == 0
    if not whole and values < WHOLE:
        threads, whole = 1, True
    run = N // K * H * W
    span = min(run, max(1, SPAN // C))
    return _Plan(pixels, K, R * G, K * C, threads, whole, span, -(-run // span))


def lies_by_pixel(x: Tensor) -> bool:
    """Whether the channels of a pixel are neighbours in memory; maps of one pixel are taken so too."""
    return x.is_contiguous(memory_format=torch.channels_last) and (not x.is_contiguous() or x.shape[2:].numel() == 1)


def takes(x: Tensor) -> bool:
    """Whether the kernels take a tensor of this type and layout."""
    return x.dtype in DTYPES and (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last))


def forward(
    x: Tensor, shape: Shape, parts: Parts, given: tuple[Tensor, Tensor] | None = None, every_column: bool = False
) -> tuple[Tensor, Saved]:
    """y, and what the backward needs. given: mean and var, (rows, groups), where they are not x's own.

    ``every_column``: keep the moments of columns, whether they are needed or not.
    """
    N, C, H, W = x.shape
    R, G, S, values = shape.rows, shape.groups, H * W, x.numel()
    gated, fixed = parts.gate_weight is not None, given is not None
    pixels, K, RG, KC, _, whole, span, spans = plan = _plan(x, shape, gated)
    corrected = 2 * RG if parts.to_std is not None else 0
    columns = 2 * KC if every_column or gated or pixels or G < C or not whole else 0
    y = torch.empty_like(x)
    small = torch.empty(3 * RG + corrected + columns, dtype=torch.float64)
    forth = x.new_empty(3 * KC)
    mean, var = small[: 2 * RG].view(2, R, G)
    if given is not None:
        mean.copy_(given[0])
        var.copy_(given[1])
    split = torch.empty(3 * K * spans * C, dtype=torch.float64) if pixels and not whole else None
    at = small.data_ptr()
    block = BLOCK.pack(
        0, 0, 0, 0,
        N, C, S, R, G, K, N // K, K // R, 0 if C % G else C // G, shape.centered, fixed, span, spans,
        x.data_ptr(), y.data_ptr(), 0, 0,
        *_addresses(parts),
        at, at + 8 * RG, at + 16 * RG, at + 24 * RG, at + 8 * (3 * RG + corrected) if columns else 0,
        forth.data_ptr(), 0, 0, 0 if split is None else split.data_ptr(),
        0, 0, 0, 0, 0, 0, 0, 0,
        shape.eps, shape.low, shape.high, 1 / S, K / (N * S), 0.0 if C % G else RG / values,
    )  # fmt: skip
    work = _Work("forward", x, plan, block)
    if whole:
        work.run(GROUP, R if pixels else RG)
    else:
        if gated or not fixed:
            work.columns(C)
        work.run(SETTLE, R if pixels else RG, alone=True)
        work.run(MAPS, K * spans if pixels else N * C)
    return y, Saved(mean, var, Rest(small, forth, columns))


def columns(saved: Saved, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, (rows, C), after a ``forward`` of x by groups and without gate."""
    N, C, H, W = x.shape
    mean, squares = saved.rest.small[-saved.rest.columns :].view(2, -1, C)
    return mean, squares * (len(mean) / (N * H * W))


def move(
    buffers: tuple[Tensor, Tensor],
    mean: Tensor,
    var: Tensor,
    workers: int,
    share: float,
    unbiased: float,
    eps: float,
    kind: str,
) -> None:
    """Move two running statistics (K,) towards those of rows, (rows, K) each, float64: moving.py."""
    first, second = buffers
    mean, var = mean.contiguous(), var.contiguous()
    rows, length = mean.shape
    block = moving.BLOCK.pack(
        rows, workers, length, moving.KINDS.index(kind),
        mean.data_ptr(), var.data_ptr(), first.data_ptr(), second.data_ptr(),
        share, unbiased, eps,
    )  # fmt: skip
    space = bytearray(block)
    kernel = compiler.kernel("moving", "moving", DTYPES[first.dtype])
    kernel.call(ctypes.addressof(ctypes.c_char.from_buffer(space)))


def prepare() -> None:
    """Raises what stands in the way of compiling and loading kernels here."""
    compiler.prepare()


def backward(
    dy: Tensor, x: Tensor, shape: Shape, parts: Parts, saved: Saved, fixed: bool, wants_x: bool, wants_var: bool
) -> Gradients:
    """The gradients; dy must lie in memory as x does."""
    N, C, H, W = x.shape
    R, G, S, values = shape.rows, shape.groups, H * W, x.numel()
    pixels, K, RG, KC, _, whole, span, spans = plan = _plan(x, shape, parts.gate_weight is not None)
    if parts.threshold is not None:  # τ itself lets a gradient through, and the kernel cuts at what it is given
        parts = parts._replace(threshold=torch.nextafter(parts.threshold, parts.threshold.new_tensor(-torch.inf)))
    corrected = 2 * RG if parts.to_std is not None else 0
    dx = torch.empty_like(x) if wants_x else None
    grads = [None if part is None else torch.empty_like(part) for part in parts[:7]]
    back = x.new_empty(3 * KC)
    split = 3 * K * spans * C if pixels and not whole else 0
    sums = torch.empty(3 * KC + split, dtype=torch.float64)
    dvar = sums.new_empty(R, G) if wants_var else None
    at = saved.rest.small.data_ptr()
    block = BLOCK.pack(
        0, 0, 0, 0,
        N, C, S, R, G, K, N // K, K // R, 0 if C % G else C // G, shape.centered, fixed, span, spans,
        x.data_ptr(), 0, dy.data_ptr(), 0 if dx is None else dx.data_ptr(),
        *_addresses(parts),
        at, at + 8 * RG, at + 16 * RG, at + 24 * RG, at + 8 * (3 * RG + corrected),
        saved.rest.forth.data_ptr(), back.data_ptr(), sums.data_ptr(), sums.data_ptr() + 24 * KC,
        *(0 if grad is None else grad.data_ptr() for grad in grads), 0 if dvar is None else dvar.data_ptr(),
        shape.eps, shape.low, shape.high, 1 / S, K / (N * S), 0.0 if C % G else RG / values,
    )  # fmt: skip
    work = _Work("backward", x, plan, block)
    if whole:
        work.run(GROUP, R if pixels else RG)
    else:
        work.columns(C)
        work.run(SETTLE, R if pixels else RG, alone=True)
        if wants_x:
            work.run(MAPS, K * spans if pixels else N * C)
    if any(grad is not None for grad in grads):
        work.run(FINISH, -(-C // FINISHED), alone=KC < PIECE)
    return Gradients(dx, *grads, dvar)


def _addresses(parts: Parts) -> tuple[int, ...]:
    return tuple([0 if part is None else part.data_ptr() for part in parts])


class _Work:
    """A kernel, its arguments, and the phases it is run through."""

    def __init__(self, name: str, x: Tensor, plan: _Plan, block: bytes) -> None:
        layout = "pixels" if plan.pixels else "planes"
        self.kernel = compiler.kernel(layout, f"{layout}_{name}", DTYPES[x.dtype])
        self.block = bytearray(block)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.block))
        self.plan, self.values = plan, x.numel()

    def run(self, phase: int, pieces: int, alone: bool = False) -> None:
        """Do all pieces of work of a phase."""
        threads = 1 if alone else self.plan.threads
        chunk = pieces if threads == 1 else max(1, min(PIECE * pieces // self.values, pieces // (4 * threads)))
        HEAD.pack_into(self.block, 0, 0, pieces, chunk, phase)
        team.run(self.kernel, self.address, threads)

    def columns(self, C: int) -> None:
        """What there is to know of the columns."""
        if not self.plan.pixels:
            return self.run(COLUMNS, self.plan.KC)
        self.run(COLUMNS, self.plan.K * self.plan.spans)
        return self.run(MERGE, self.plan.K * -(-C // TILE), alone=self.plan.KC < PIECE)
