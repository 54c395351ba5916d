"""How a call is cut into pieces of work, and the block of arguments that its kernels read.

At small shapes the time goes to Python, so what depends on shapes alone is worked out once and kept.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normbench.norms.call import Shape
from normbench.norms.cpu import compiler, team
from normbench.norms.cpu.blocks import (
    BACK,
    COLUMNS,
    FINISH,
    FINISHED,
    FIXED,
    FORTH,
    GROUP,
    HEAD,
    MAPS,
    MERGE,
    RUN,
    SETTLE,
    STEPS,
    TILE,
    TRACK,
    WHICH,
)
from normbench.norms.cpu.compiler import Kernel

DTYPES = {torch.float32: "float32", torch.float64: "float64"}
# Values that a piece of work should have at least, so that taking it from the shared counter costs nothing.
PIECE = 2**14
# Values below which threads do not pay if they must wait for each other in every phase.
WHOLE = 2**17
# Values of a span of pixels.
SPAN = 2**16
# Where maps are taken by lanes (small.py): values of a map at most, and for each further image of a row; images of a
# row at least, where several channels share statistics; values at most, where statistics are given.
LANES, LANES_PER_IMAGE, LANES_SHARED, LANES_GIVEN = 100, 6, 16, 36
# Images of a piece of work where a map is one pixel: so many terms are summed in the maps' own type.
IMAGES = 16
# Plans that are kept.
MOST = 4096
# Numbers that each thread holds ready, as memory is not free even where it is small.
KEPT = 2**15
# Where a block of the moment family is no longer fixed, and how large a thread's block is.
REST = HEAD.size + FIXED.size
SIZE = REST + max(FORTH.size, BACK.size)


class Step(NamedTuple):
    """A phase of a kernel: how many pieces of work, how many are taken at a time, by how many threads."""

    phase: int
    pieces: int
    chunk: int
    threads: int


class Use(NamedTuple):
    """What a call has beside its shape: a gate, a renormalization; statistics given; columns' moments wanted; running
    statistics to move."""

    gated: bool
    corrected: bool
    fixed: bool
    by_channel: bool
    tracked: bool = False


class Way(NamedTuple):
    """One pass of a kernel: where it goes through its steps alone, one foreign call does them all."""

    kernel: Kernel
    block: bytes  # what its block begins with, the same for all calls
    steps: tuple[Step, ...]
    calls: tuple[tuple[int, int, int], ...]  # the first step, the one after the last, threads
    alone: bool  # whether one call in one thread does it all


class Plan(NamedTuple):
    """What is the same for all calls with tensors of one shape and layout."""

    forth: Way
    back: Way
    no_dx: Way
    work: int  # float64 numbers to allocate: for μ … coefficients
    sums: int  # for sums and the coefficients of dx
    split: int  # for the parts of sums
    columns: int  # where the moments of columns are in work
    coefficients: int  # K × C
    per_column: float  # 1 / values of a column
    lone: bool = False  # whether groups are of one value, of which nothing is kept


plans: dict[Any, Plan] = {}


def plan_for(x: Tensor, shape: Shape, use: tuple[bool, ...]) -> Plan:
    """The plan for a tensor like x; ``use``: what Use holds."""
    rows, groups, _, centered, low, high = shape  # eps may be another at every call
    key = (x.shape, x.stride(), x.dtype, rows, groups, centered, low, high, use, torch.get_num_threads())
    plan = plans.get(key)
    if plan is None:
        if len(plans) >= MOST:
            plans.clear()
        asked = Use(*use)
        plan = plans[key] = _rows(x, shape) if goes_by_rows(x, shape, asked) else _plan(x, shape, asked)
    return plan


def lies_by_pixel(x: Tensor) -> bool:
    """Whether the channels of a pixel are neighbours in memory; maps of one pixel are taken so too."""
    return x.is_contiguous(memory_format=torch.channels_last) and (not x.is_contiguous() or x.shape[2:].numel() == 1)


def _plan(x: Tensor, shape: Shape, use: Use) -> Plan:
    N, C, H, W = x.shape
    R, G, _, centered, low, high = shape
    S, values, pixels = H * W, x.numel(), lies_by_pixel(x)
    K = N if use.gated else R
    small = not pixels and goes_by_lanes(S, N // K, G == C or use.fixed, use.fixed)
    threads = team.threads_for(values)
    groups = R if pixels else R * G
    whole = threads == 1 or groups >= 4 * threads or groups % threads == 0
    if not whole and values < WHOLE:
        threads, whole = 1, True
    run, at_once = N // K * S, max(1, min(RUN, TILE // S))
    span = min(run, max(1, SPAN // C))
    spans = -(-run // span)

    def step(phase: int, pieces: int, alone: bool = False) -> Step:
        if threads == 1 or alone:
            return Step(phase, pieces, pieces, 1)
        chunk = max(1, min(PIECE * pieces // values, pieces // (4 * threads)))
        if small and pieces == K * C:  # whole runs of channels, as far as there is one for each thread
            chunk = min(-(-chunk // at_once) * at_once, -(-pieces // threads))
        return Step(phase, pieces, chunk, threads)

    few = K * C < PIECE
    measure = [step(COLUMNS, K * spans), step(MERGE, K * -(-C // TILE), few)] if pixels else [step(COLUMNS, K * C)]
    settle = step(SETTLE, groups, True)
    maps = step(MAPS, K * spans if pixels else K * C if small else N * C)
    finish = step(FINISH, -(-C // FINISHED), few)
    forth = [*([] if use.fixed and not use.gated else measure), settle, maps]
    back = [*measure, settle, maps, finish]
    if use.fixed and not use.gated:  # dx is written with the sums
        back = [*measure, finish]
    if whole:
        forth, back = [step(GROUP, groups)], [step(GROUP, groups), finish]
    kept = use.by_channel or use.gated or pixels or G < C or not whole
    columns = (5 if use.corrected else 3) * R * G
    coefficients = columns + 2 * K * C * kept
    extents = (N, C, S, R, G, K, N // K, K // R, 0 if C % G else C // G)
    per = (1 / S, K / (N * S), 0.0 if C % G else R * G / values)
    places = (columns, kept, coefficients)
    fixed = FIXED.pack(*extents, centered, use.fixed, span, spans, *places, low, high, *per)
    layout, dtype = "pixels" if pixels else "small" if small else "planes", DTYPES[x.dtype]
    if use.tracked:
        forth.append(Step(TRACK, 1, 1, 1))
    three = -(-3 * K * C * x.element_size() // 8)
    forward, backward = (compiler.kernel(layout, f"{layout}_{name}", dtype) for name in ("forward", "backward"))
    return Plan(
        forth=way(forward, forth, fixed),
        back=way(backward, back, fixed),
        no_dx=way(backward, [step for step in back if step is not maps], fixed),
        work=coefficients + three,
        sums=3 * K * C + three,
        split=3 * K * spans * C if pixels and not whole else 0,
        columns=columns,
        coefficients=K * C,
        per_column=per[1],
    )


def goes_by_lanes(S: int, images: int, own: bool, given: bool = False) -> bool:
    """Whether small maps are taken several channels at a time: what this costs a channel, a row's images make up for.

    own: no channels share statistics. given: these are not x's own. Measured by scripts/small_maps.py.
    """
    most = min(LANES_GIVEN if given else LANES, LANES_PER_IMAGE * (images - 1))
    return images >= (2 if own else LANES_SHARED) and most >= S


def goes_by_rows(x: Tensor, shape: Shape, use: Use) -> bool:
    """Whether maps are of one pixel, statistics of one image and even groups, and nothing is asked beside (rows.py)."""
    N, C, H, W = x.shape
    return H * W == 1 and shape.rows == N and C % shape.groups == 0 and not any(use)


def _rows(x: Tensor, shape: Shape) -> Plan:
    """The plan for maps of one pixel, which keeps the statistics of groups alone, and none of groups of one value."""
    N, C, *_ = x.shape
    _, G, _, centered, low, high = shape
    spans, threads = -(-N // IMAGES), team.threads_for(x.numel())
    chunk = max(1, min(PIECE // (IMAGES * C), spans // (4 * threads)))
    group = Step(GROUP, spans, spans if threads == 1 else chunk, threads)
    finish = Step(FINISH, -(-C // FINISHED), -(-C // FINISHED), 1)
    extents = (N, C, 1, N, G, N, 1, 1, C // G)
    fixed = FIXED.pack(*extents, centered, False, IMAGES, spans, 0, False, 0, low, high, 1.0, 1.0, G / C)
    forward, backward = (compiler.kernel("rows", f"rows_{name}", DTYPES[x.dtype]) for name in ("forward", "backward"))
    back = way(backward, [group, finish], fixed)
    return Plan(
        forth=way(forward, [group], fixed),
        back=back,
        no_dx=back,
        work=3 * N * G,
        sums=2 * N * G if C // G > TILE else 0,
        split=3 * spans * C,
        columns=0,
        coefficients=0,
        per_column=1.0,
        lone=G == C,
    )


def way(kernel: Kernel, steps: Sequence[Step], fixed: bytes = b"") -> Way:
    """These steps of a kernel, whose block goes on with ``fixed`` behind the head."""
    table = [number for phase, pieces, chunk, _ in steps for number in (0, pieces, chunk, phase)]
    head = HEAD.pack(0, len(steps), *table, *[0] * (4 * STEPS - len(table)))
    calls, first = [], 0
    for last in range(1, len(steps) + 1):  # neighbours that one thread does are one call
        if last == len(steps) or max(steps[last - 1].threads, steps[last].threads) > 1:
            calls.append((first, last, steps[last - 1].threads))
            first = last
    alone = len(calls) == 1 and calls[0][2] == 1
    return Way(kernel, head + fixed, tuple(steps), tuple(calls), alone)


class _Space(threading.local):
    """A thread's block of arguments and its scratch memory: a call is over before the thread makes the next."""

    def __init__(self) -> None:
        self.block = bytearray(SIZE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.block))
        self.scratch = torch.empty(KEPT, dtype=torch.float64, device="cpu")
        self.near = self.block, self.address, self.scratch.data_ptr()


space = _Space()


def scratch(numbers: int) -> Tensor:
    """So many float64 numbers, or more, for one call."""
    return space.scratch if numbers <= KEPT else torch.empty(numbers, dtype=torch.float64, device="cpu")


def run(way: Way, rest: bytes) -> None:
    """Run a kernel whose block is of its own kind behind the head."""
    block = way.block + rest
    space.block[: len(block)] = block
    share_out(way, space.address)


def run_alone(kernel: Kernel, block: bytes) -> None:
    """Run a kernel that knows no pieces of work."""
    space.block[: len(block)] = block
    kernel.call(space.address)


def share_out(way: Way, address: int) -> None:
    """Run a kernel on this thread's block, which lies at ``address``, in as many threads as its steps have."""
    if way.alone:
        way.kernel.call(address)
        return
    for first, last, threads in way.calls:
        WHICH.pack_into(space.block, 0, first, last)
        team.run(way.kernel, address, threads)
