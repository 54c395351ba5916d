"""The passes over memory, in Triton: moments, y, sums for the backward, dx; one kernel each for both memory formats.

A column (k, c) is channel c of the images of coefficient row k: ``runs`` runs of ``run`` values. With maps one after
another a run is a map, and an image a run; with channels last all pixels of a column's images are one run, in steps of
C. Runs are cut into ``chunks`` of SIZE values; a chunk of WIDTH channels is a tile, and an ``item`` of its column. A
program does ``each`` items of WIDTH columns: a span. The axis that lies in memory without steps is ``inner`` × UNIT
long, which tells the compiler how wide its loads can be.

Sums are kept per place of the tile in float32, for a few dozen items at most, and added up once at the end: nothing
depends on the order in which programs run.
"""
# mypy: disable-error-code="no-untyped-def, import-untyped, import-not-found"

from __future__ import annotations

import triton
import triton.language as tl

# What these numbers are changes no code, so a kernel is compiled once for all of them.
PLACES = ("inner", "other", "K", "runs", "chunks", "items", "each", "spans")


@triton.jit
def extents(inner, other, LAST: tl.constexpr, UNIT: tl.constexpr):
    """C, and the values of a run."""
    if LAST:
        C = inner * UNIT
        run = other
    else:
        C = other
        run = inner * UNIT
    return C, run


@triton.jit
def piece(number, C, items, each, spans, WIDTH: tl.constexpr):
    """Row of coefficients, span, first channel, and first and last item of piece of work ``number``."""
    blocks = tl.cdiv(C, WIDTH)
    t = (number // blocks) % spans
    first = t * each
    k = (number // (blocks * spans)).to(tl.int64)
    return k, t, (number % blocks) * WIDTH, first, tl.minimum(first + each, items)


@triton.jit
def turned():
    """Number of this program from the end: what the pass before read last is still in the cache."""
    return tl.num_programs(0) - 1 - tl.program_id(0)


@triton.jit
def tile(k, c, q, C, run, runs, chunks, LAST: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr):
    """Where item q of the columns (k, c), (k, c + 1) … begins, its places from there, and which of them there are."""
    start = (q % chunks) * SIZE
    channels = tl.arange(0, WIDTH)[:, None]
    values = tl.arange(0, SIZE)[None, :]
    base = (k * runs + q // chunks) * C * run
    if LAST:
        base += start.to(tl.int64) * C + c
        places = channels + values * C
    else:
        base += c.to(tl.int64) * run + start
        places = channels * run + values
    return base, places, (channels < C - c) & (values < run - start)


@triton.jit
def position(q, run, chunks, SIZE: tl.constexpr):
    """Values of a column before item q."""
    return (q // chunks).to(tl.int64) * run + tl.minimum((q % chunks) * SIZE, run)


@triton.jit
def coefficients(table, K, C, k, c, there):
    """Three coefficients of each of the columns (k, c), as columns of a tile."""
    at = table + k * C + c
    one = tl.load(at, mask=there, other=0.0)
    two = tl.load(at + K.to(tl.int64) * C, mask=there, other=0.0)
    three = tl.load(at + 2 * K.to(tl.int64) * C, mask=there, other=0.0)
    return one[:, None], two[:, None], three[:, None]


@triton.jit
def parameter(values, c, there):
    """A parameter of each channel, as a column of a tile."""
    return tl.load(values + c, mask=there, other=0.0).to(tl.float32)[:, None]


@triton.jit
def affine(apart, a, b):
    """(x − m) a + b, rounded once and so the same in forward and backward, which see the same sign of it."""
    return tl.fma(apart, a, b)


@triton.jit
def clipped(z, low, high):
    """z, not below ``low`` nor above ``high``; NaN stays."""
    return tl.where(z > high, high, tl.maximum(z, low, propagate_nan=tl.PropagateNan.ALL))


@triton.jit(do_not_specialize=PLACES)
def moments(
    x, mean, squares,
    inner, other, K, runs, chunks, items, each, spans,
    LAST: tl.constexpr, UNIT: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Mean (float64) and sum of squares about it (float32) of each span of each column: (spans, K, C) each.

    Deviations are from the mean of the span's first item. A span's own mean is at most √items standard deviations
    from that, so the squares lose no digits, however far from zero the values lie.
    """
    C, run = extents(inner, other, LAST, UNIT)
    k, t, c0, first, last = piece(tl.program_id(0), C, items, each, spans, WIDTH)
    base, places, there = tile(k, c0, first, C, run, runs, chunks, LAST, WIDTH, SIZE)
    some = tl.load(x + base + places, mask=there, other=0.0).to(tl.float32)
    pivot = tl.sum(some, 1) / tl.minimum(run - (first % chunks) * SIZE, SIZE).to(tl.float32)
    away = tl.zeros((WIDTH, SIZE), tl.float32)
    away_squares = tl.zeros((WIDTH, SIZE), tl.float32)
    for q in tl.range(first, last, loop_unroll_factor=2):
        base, places, there = tile(k, c0, q, C, run, runs, chunks, LAST, WIDTH, SIZE)
        values = tl.load(x + base + places, mask=there, other=0.0).to(tl.float32)
        apart = tl.where(there, values - pivot[:, None], 0.0)
        away += apart
        away_squares += apart * apart
    total = tl.sum(away, 1)
    rest = total / (position(last, run, chunks, SIZE) - position(first, run, chunks, SIZE)).to(tl.float32)
    around = tl.sum(away_squares, 1) - total * rest
    c = c0 + tl.arange(0, WIDTH)
    j = (t.to(tl.int64) * K + k) * C + c
    tl.store(mean + j, pivot.to(tl.float64) + rest.to(tl.float64), mask=c < C)
    tl.store(squares + j, tl.where(around < 0, 0.0, around), mask=c < C)


@triton.jit(do_not_specialize=PLACES)
def apply(
    x, y, forth, threshold, scale, shift, low, high,
    inner, other, K, runs, chunks, items, each, spans,
    LAST: tl.constexpr, UNIT: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """y = (x − m) a + b, clipped, and what follows the activation."""
    C, run = extents(inner, other, LAST, UNIT)
    k, _, c0, first, last = piece(turned(), C, items, each, spans, WIDTH)
    c = c0 + tl.arange(0, WIDTH)
    m, a, b = coefficients(forth, K, C, k, c, c < C)
    if threshold is not None:
        low = parameter(threshold, c, c < C)
    if scale is not None:
        gain = parameter(scale, c, c < C)
        offset = parameter(shift, c, c < C)
    for q in range(first, last):
        base, places, there = tile(k, c0, q, C, run, runs, chunks, LAST, WIDTH, SIZE)
        values = tl.load(x + base + places, mask=there, other=0.0).to(tl.float32)
        z = clipped(affine(values - m, a, b), low, high)
        if scale is not None:
            z = z * gain + offset
        tl.store(y + base + places, z.to(y.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=PLACES)
def sums(
    x, dy, out, forth, threshold, scale, low, high,
    inner, other, K, runs, chunks, items, each, spans,
    LAST: tl.constexpr, UNIT: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """Sums over each span of each column, (spans, SUMS, K, C), where dz is dy as the activation lets it through.

    SUMS 2: of dz and dz (x − m); 3: of dy too; 4: and of dy times the clipped z.
    """
    C, run = extents(inner, other, LAST, UNIT)
    k, t, c0, first, last = piece(turned(), C, items, each, spans, WIDTH)
    c = c0 + tl.arange(0, WIDTH)
    m, a, b = coefficients(forth, K, C, k, c, c < C)
    if threshold is not None:
        low = parameter(threshold, c, c < C)
    one = tl.zeros((WIDTH, SIZE), tl.float32)
    two = tl.zeros((WIDTH, SIZE), tl.float32)
    three = tl.zeros((WIDTH, SIZE), tl.float32)
    four = tl.zeros((WIDTH, SIZE), tl.float32)
    for q in tl.range(first, last, loop_unroll_factor=2):
        base, places, there = tile(k, c0, q, C, run, runs, chunks, LAST, WIDTH, SIZE)
        values = tl.load(x + base + places, mask=there, other=0.0).to(tl.float32)
        given = tl.load(dy + base + places, mask=there, other=0.0).to(tl.float32)
        apart = values - m
        z = affine(apart, a, b)
        stopped = (z <= low) | (z >= high)
        dz = tl.where(stopped, 0.0, given)
        one += dz
        two += dz * apart
        if SUMS > 2:
            three += given
        if SUMS > 3:
            four += given * clipped(z, low, high)
    j = out + t.to(tl.int64) * SUMS * K * C + k * C + c
    KC = K.to(tl.int64) * C
    tl.store(j, tl.sum(one, 1), mask=c < C)
    tl.store(j + KC, tl.sum(two, 1), mask=c < C)
    if SUMS > 2:
        tl.store(j + 2 * KC, tl.sum(three, 1), mask=c < C)
    if SUMS > 3:
        tl.store(j + 3 * KC, tl.sum(four, 1), mask=c < C)


@triton.jit(do_not_specialize=PLACES)
def back(
    x, dy, dx, forth, through, threshold, low, high,
    inner, other, K, runs, chunks, items, each, spans,
    LAST: tl.constexpr, UNIT: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """dx = dz a + (x − m) p + q."""
    C, run = extents(inner, other, LAST, UNIT)
    # Not turned: the pass before was, and ended where this one begins.
    k, _, c0, first, last = piece(tl.program_id(0), C, items, each, spans, WIDTH)
    c = c0 + tl.arange(0, WIDTH)
    m, a, b = coefficients(forth, K, C, k, c, c < C)
    gain, p, q0 = coefficients(through, K, C, k, c, c < C)
    if threshold is not None:
        low = parameter(threshold, c, c < C)
    for q in range(first, last):
        base, places, there = tile(k, c0, q, C, run, runs, chunks, LAST, WIDTH, SIZE)
        values = tl.load(x + base + places, mask=there, other=0.0).to(tl.float32)
        given = tl.load(dy + base + places, mask=there, other=0.0).to(tl.float32)
        apart = values - m
        z = affine(apart, a, b)
        stopped = (z <= low) | (z >= high)
        result = tl.where(stopped, 0.0, given) * gain + (apart * p + q0)
        tl.store(dx + base + places, result.to(dx.dtype.element_ty), mask=there)
