"""Kernel that turns maps into pixels or pixels into maps: (N, A, B) in memory to (N, B, A).

By blocks through scratch, so that every line of memory is read and written once, in one go: rows that are a power of
two apart drive one another out of the first cache.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from normbench.norms.cpu.blocks import HEAD, SIDE
from normbench.norms.cpu.pointers import WHOLE, algebra, at, elementwise, scratch, worker

START = HEAD.size
AREA = SIDE * SIDE


class Job(NamedTuple):
    """See ``unpack``."""

    A: Any
    B: Any
    x: Any
    y: Any


@algebra
def unpack(block, T):
    """The block at this address: blocks.TRANSPOSE."""
    a = at(block + START, WHOLE)
    return Job(a[0], a[1], at(a[2], T), at(a[3], T))


@elementwise
def whole_block(x, y, start, A, B, into):
    near = scratch(x, AREA)
    for a in range(SIDE):
        for b in range(SIDE):
            near[a * SIDE + b] = x[start + a * B + b]
    for b in range(SIDE):
        for a in range(SIDE):
            y[into + b * A + a] = near[a * SIDE + b]


@elementwise
def part_block(x, y, start, A, B, into, rows, columns):
    for b in range(columns):
        for a in range(rows):
            y[into + b * A + a] = x[start + a * B + b]


@algebra
def pieces(w, phase, start, stop):
    strips = (w.A + SIDE - 1) // SIDE
    for i in range(start, stop):
        image, a = i // strips * w.A * w.B, i % strips * SIDE
        rows = min(SIDE, w.A - a)
        for b in range(0, w.B, SIDE):
            columns = min(SIDE, w.B - b)
            if rows == SIDE and columns == SIDE:
                whole_block(w.x, w.y, image + a * w.B + b, w.A, w.B, image + b * w.A + a)
            else:
                part_block(w.x, w.y, image + a * w.B + b, w.A, w.B, image + b * w.A + a, rows, columns)


transpose = worker(unpack, pieces)
