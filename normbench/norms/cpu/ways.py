"""How a kernel goes through its pieces of work, and the block of arguments that each thread has for it."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from normbench.norms.cpu import team
from normbench.norms.cpu.blocks import BACK, FIXED, FORTH, HEAD, STEPS, WHICH
from normbench.norms.cpu.compiler import Kernel

DTYPES = {torch.float32: "float32", torch.float64: "float64"}
# Values that a piece of work should have at least, so that taking it from the shared counter costs nothing.
PIECE = 2**14
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


class Way(NamedTuple):
    """One pass of a kernel: where it goes through its steps alone, one foreign call does them all."""

    kernel: Kernel
    block: bytes  # what its block begins with, the same for all calls
    steps: tuple[Step, ...]
    calls: tuple[tuple[int, int, int], ...]  # the first step, the one after the last, threads
    alone: bool  # whether one call in one thread does it all


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
