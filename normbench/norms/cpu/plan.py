"""How a call is cut into pieces of work, and the block of arguments that its kernels read.

At small shapes the time goes to Python, so what depends on shapes alone is worked out once and kept.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normbench.norms.call import Shape
from normbench.norms.cpu import compiler, team
from normbench.norms.cpu.blocks import (
    COLUMNS,
    FINISH,
    FINISHED,
    FIXED,
    GROUP,
    HEAD,
    MAPS,
    MERGE,
    MOVING,
    SETTLE,
    TILE,
)
from normbench.norms.cpu.compiler import Kernel

DTYPES = {torch.float32: "float32", torch.float64: "float64"}
# Values that a piece of work should have at least, so that taking it from the shared counter costs nothing.
PIECE = 2**14
# Values below which threads do not pay if they must wait for each other in every phase.
WHOLE = 2**17
# Values of a span of pixels.
SPAN = 2**16
# Plans that are kept.
MOST = 4096


class Step(NamedTuple):
    """A phase of a kernel: how many pieces of work, how many are taken at a time, by how many threads."""

    phase: int
    pieces: int
    chunk: int
    threads: int


# What is not worth sharing out.
ONCE = (Step(0, 1, 1, 1),)


class Use(NamedTuple):
    """What a call has beside its shape: a gate, a renormalization; statistics given; columns' moments wanted."""

    gated: bool
    corrected: bool
    fixed: bool
    by_channel: bool


class Plan(NamedTuple):
    """What is the same for all calls with tensors of one shape and layout."""

    forward: Kernel
    backward: Kernel
    fixed: bytes  # the block's unmoving part
    work: int  # float64 numbers to allocate: for μ … coefficients
    sums: int  # for sums and the coefficients of dx
    split: int  # for the parts of sums
    columns: int  # where the moments of columns are in work
    coefficients: int  # K × C
    per_column: float  # 1 / values of a column
    forth: tuple[Step, ...]
    back: tuple[Step, ...]
    no_dx: tuple[Step, ...]


_plans: dict[Any, Plan] = {}


def plan_for(x: Tensor, shape: Shape, use: Use) -> Plan:
    """The plan for a tensor like x."""
    rows, groups, _, centered, low, high = shape  # eps may be another at every call
    key = (x.shape, x.stride(), x.dtype, rows, groups, centered, low, high, use, torch.get_num_threads())
    found = _plans.get(key)
    if found is None:
        if len(_plans) >= MOST:
            _plans.clear()
        found = _plans[key] = _plan(x, shape, use)
    return found


def lies_by_pixel(x: Tensor) -> bool:
    """Whether the channels of a pixel are neighbours in memory; maps of one pixel are taken so too."""
    return x.is_contiguous(memory_format=torch.channels_last) and (not x.is_contiguous() or x.shape[2:].numel() == 1)


def _plan(x: Tensor, shape: Shape, use: Use) -> Plan:
    N, C, H, W = x.shape
    R, G, _, centered, low, high = shape
    S, values, pixels = H * W, x.numel(), lies_by_pixel(x)
    K = N if use.gated else R
    threads = team.threads_for(values)
    groups = R if pixels else R * G
    whole = threads == 1 or groups >= 4 * threads or groups % threads == 0
    if not whole and values < WHOLE:
        threads, whole = 1, True
    run = N // K * S
    span = min(run, max(1, SPAN // C))
    spans = -(-run // span)

    def step(phase: int, pieces: int, alone: bool = False) -> Step:
        if threads == 1 or alone:
            return Step(phase, pieces, pieces, 1)
        return Step(phase, pieces, max(1, min(PIECE * pieces // values, pieces // (4 * threads))), threads)

    few = K * C < PIECE
    measure = [step(COLUMNS, K * spans), step(MERGE, K * -(-C // TILE), few)] if pixels else [step(COLUMNS, K * C)]
    settle = step(SETTLE, groups, True)
    maps = step(MAPS, K * spans if pixels else N * C)
    finish = step(FINISH, -(-C // FINISHED), few)
    forth = [*([] if use.fixed and not use.gated else measure), settle, maps]
    back = [*measure, settle, maps, finish]
    if whole:
        forth, back = [step(GROUP, groups)], [step(GROUP, groups), finish]
    kept = use.by_channel or use.gated or pixels or G < C or not whole
    columns = (5 if use.corrected else 3) * R * G
    coefficients = columns + 2 * K * C * kept
    extents = (N, C, S, R, G, K, N // K, K // R, 0 if C % G else C // G)
    per = (1 / S, K / (N * S), 0.0 if C % G else R * G / values)
    places = (columns, kept, coefficients)
    fixed = FIXED.pack(*extents, centered, use.fixed, span, spans, *places, low, high, *per)
    layout, dtype = "pixels" if pixels else "planes", DTYPES[x.dtype]
    three = -(-3 * K * C * x.element_size() // 8)
    return Plan(
        forward=compiler.kernel(layout, f"{layout}_forward", dtype),
        backward=compiler.kernel(layout, f"{layout}_backward", dtype),
        fixed=fixed,
        work=coefficients + three,
        sums=3 * K * C + three,
        split=3 * K * spans * C if pixels and not whole else 0,
        columns=columns,
        coefficients=K * C,
        per_column=per[1],
        forth=tuple(forth),
        back=tuple(back),
        no_dx=tuple(phase for phase in back if phase is not maps),
    )


class _Space(threading.local):
    """A thread's block of arguments: a call is over before the thread makes the next."""

    def __init__(self) -> None:
        self.block = bytearray(MOVING.size + FIXED.size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.block))


_space = _Space()


def run(kernel: Kernel, steps: Iterable[Step], fixed: bytes, *moving: float) -> None:
    """Run a kernel through its phases; ``moving``: what follows the head of the block."""
    block = _space.block
    MOVING.pack_into(block, 0, 0, 0, 0, 0, *moving)
    block[MOVING.size : MOVING.size + FIXED.size] = fixed
    _go(kernel, steps)


def run_block(kernel: Kernel, steps: Iterable[Step], block: bytes) -> None:
    """Run a kernel with a block of its own kind, which begins with the same head."""
    _space.block[: len(block)] = block
    _go(kernel, steps)


def _go(kernel: Kernel, steps: Iterable[Step]) -> None:
    block, address = _space.block, _space.address
    for phase, pieces, chunk, threads in steps:
        HEAD.pack_into(block, 0, 0, pieces, chunk, phase)
        if threads == 1:
            kernel.call(address)
        else:
            team.run(kernel, address, threads)
