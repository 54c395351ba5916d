"""Kernels of positional normalization, each pixel over its channels, for both memory formats.

    t = (x − μ) r,   y = γ t + β;   dx = r (g − mean(g) − t Σ(g t) / d),   g = γ dz
with r = 1/√(σ² + ε), and d the number of channels that the variance divides by. A piece of work is a span of pixels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from normbench.norms.cpu import maps
from normbench.norms.cpu.blocks import HEAD, SPANS, TILE
from normbench.norms.cpu.pointers import (
    NUMBER,
    WHOLE,
    algebra,
    at,
    elementwise,
    number,
    reduction,
    root,
    scratch,
    worker,
)

# Terms of a sum in the maps' own type before it goes on in float64.
FEW = 32
START = HEAD.size


class Job(NamedTuple):
    """See ``unpack``."""

    N: Any
    C: Any
    S: Any
    span: Any
    spans: Any
    x: Any
    y: Any
    dy: Any
    dx: Any
    weight: Any
    bias: Any
    keep: Any
    parts: Any
    gradients: Any
    eps: Any
    low: Any
    high: Any
    per_channel: Any
    per_other: Any
    affine: Any
    positions: Any


@algebra
def unpack(block, T):
    """The block at this address: N, C, S; pixels of a span, spans; maps; γ, β; kept: m, r, rest, T, (3, N S); sums over
    spans, float64, (spans, 2, C); gradients of γ and β, T, (2, C); ε, the activation's bounds, 1/C and 1/d."""
    a, f = at(block + START, WHOLE), at(block + START + 14 * 8, NUMBER)
    return Job(
        a[0], a[1], a[2], a[3], a[4],
        at(a[5], T), at(a[6], T), at(a[7], T), at(a[8], T), at(a[9], T), at(a[10], T), at(a[11], T),
        at(a[12], NUMBER), at(a[13], T), f[0], f[1], f[2], f[3], f[4], a[9] != 0, a[0] * a[2],
    )  # fmt: skip


@algebra
def keep_moments(w, position, mean, squares):
    """Note how a position is normalized: m is μ rounded to the maps' type, and rest what is then left, times r."""
    r = 1.0 / root(squares * w.per_other + w.eps)
    m = number(w.x, mean)
    w.keep[position] = m
    w.keep[w.positions + position] = number(w.x, r)
    w.keep[2 * w.positions + position] = number(w.x, (mean - m) * r)


@algebra
def affine_of(w, c):
    if w.affine:
        return w.weight[c], w.bias[c]
    return number(w.x, 1.0), number(w.x, 0.0)


@reduction
def channel_moments(x, start, S, C, some, mean, squares, per_channel):
    """Of ``some`` neighbouring pixels, over C channels S apart: two passes, the second correcting the first."""
    total, rest, around, m = scratch(x, TILE), scratch(x, TILE), scratch(x, TILE), scratch(x, TILE)
    for s in range(some):
        mean[s], squares[s] = 0.0, 0.0
    for first in range(0, C, FEW):
        for s in range(some):
            total[s] = number(x, 0.0)
        for c in range(first, min(first + FEW, C)):
            at_c = start + c * S
            for s in range(some):
                total[s] += x[at_c + s]
        for s in range(some):
            mean[s] += NUMBER(total[s]) * per_channel
    for s in range(some):
        m[s] = number(x, mean[s])
        mean[s] = 0.0
    for first in range(0, C, FEW):
        for s in range(some):
            rest[s], around[s] = number(x, 0.0), number(x, 0.0)
        for c in range(first, min(first + FEW, C)):
            at_c = start + c * S
            for s in range(some):
                apart = x[at_c + s] - m[s]
                rest[s] += apart
                around[s] += apart * apart
        for s in range(some):
            mean[s] += NUMBER(rest[s])
            squares[s] += NUMBER(around[s])
    for s in range(some):
        left = mean[s] * per_channel
        squares[s] = max(squares[s] - left * mean[s], 0.0)
        mean[s] = m[s] + left


@elementwise
def apply_map(x, y, start, some, m, r, rest, gamma, beta, low, high):
    for s in range(some):
        z = ((x[start + s] - m[s]) * r[s] - rest[s]) * gamma + beta
        y[start + s] = maps.clipped(z, low, high)


@algebra
def forward_planes(w, i):
    mean, squares = scratch(w.parts, TILE), scratch(w.parts, TILE)
    m, r, rest = scratch(w.x, TILE), scratch(w.x, TILE), scratch(w.x, TILE)
    low, high = number(w.x, w.low), number(w.x, w.high)
    per_image = (w.S + w.span - 1) // w.span
    n, first = i // per_image, i % per_image * w.span
    some, start, position = min(w.span, w.S - first), n * w.C * w.S + first, n * w.S + first
    channel_moments(w.x, start, w.S, w.C, some, mean, squares, w.per_channel)
    for s in range(some):
        keep_moments(w, position + s, mean[s], squares[s])
    near(w, position, some, m, r, rest)
    for c in range(w.C):
        gamma, beta = affine_of(w, c)
        apply_map(w.x, w.y, start + c * w.S, some, m, r, rest, gamma, beta, low, high)


@algebra
def near(w, position, some, m, r, rest):
    for s in range(some):
        m[s], r[s] = w.keep[position + s], w.keep[w.positions + position + s]
        rest[s] = w.keep[2 * w.positions + position + s]


@reduction
def gather_map(x, dy, start, some, m, r, rest, gamma, beta, cut, high, one, two):
    """Add what a map gives to the sums of pixels; its own sums over dz and dz t."""
    sum_z, sum_zt = number(x, 0.0), number(x, 0.0)
    for s in range(some):
        t = (x[start + s] - m[s]) * r[s] - rest[s]
        z = t * gamma + beta
        dz = dy[start + s]
        if z <= cut or z >= high:
            dz = number(x, 0.0)
        sum_z += dz
        sum_zt += dz * t
        one[s] += dz * gamma
        two[s] += dz * gamma * t
    return NUMBER(sum_z), NUMBER(sum_zt)


@elementwise
def back_map(x, dy, dx, start, some, m, r, rest, gamma, beta, cut, high, one, two):
    for s in range(some):
        t = (x[start + s] - m[s]) * r[s] - rest[s]
        z = t * gamma + beta
        dz = dy[start + s]
        if z <= cut or z >= high:
            dz = number(x, 0.0)
        dx[start + s] = r[s] * (dz * gamma - one[s] - t * two[s])


@algebra
def backward_planes(w, i):
    m, r, rest = scratch(w.x, TILE), scratch(w.x, TILE), scratch(w.x, TILE)
    one, two = scratch(w.x, TILE), scratch(w.x, TILE)
    ones, twos = scratch(w.parts, TILE), scratch(w.parts, TILE)
    cut, high = number(w.x, w.low), number(w.x, w.high)
    per_image = (w.S + w.span - 1) // w.span
    n, first = i // per_image, i % per_image * w.span
    some, start, position = min(w.span, w.S - first), n * w.C * w.S + first, n * w.S + first
    near(w, position, some, m, r, rest)
    for s in range(some):
        ones[s], twos[s] = 0.0, 0.0
    for few in range(0, w.C, FEW):
        for s in range(some):
            one[s], two[s] = number(w.x, 0.0), number(w.x, 0.0)
        for c in range(few, min(few + FEW, w.C)):
            gamma, beta = affine_of(w, c)
            at_c = start + c * w.S
            sum_z, sum_zt = gather_map(w.x, w.dy, at_c, some, m, r, rest, gamma, beta, cut, high, one, two)
            w.parts[2 * i * w.C + c], w.parts[(2 * i + 1) * w.C + c] = sum_z, sum_zt
        for s in range(some):
            ones[s] += NUMBER(one[s])
            twos[s] += NUMBER(two[s])
    for s in range(some):
        one[s], two[s] = number(w.x, ones[s] * w.per_channel), number(w.x, twos[s] * w.per_other)
    for c in range(w.C):
        gamma, beta = affine_of(w, c)
        back_map(w.x, w.dy, w.dx, start + c * w.S, some, m, r, rest, gamma, beta, cut, high, one, two)


@elementwise
def apply_row(x, y, start, C, m, r, rest, weight, bias, affine, low, high):
    if affine:
        for c in range(C):
            z = ((x[start + c] - m) * r - rest) * weight[c] + bias[c]
            y[start + c] = maps.clipped(z, low, high)
    else:
        for c in range(C):
            z = (x[start + c] - m) * r - rest
            y[start + c] = maps.clipped(z, low, high)


@algebra
def forward_pixels(w, i):
    low, high = number(w.x, w.low), number(w.x, w.high)
    for position in range(i * w.span, min((i + 1) * w.span, w.positions)):
        start = position * w.C
        mean, squares = maps.moments(w.x, start, w.C, w.per_channel)
        keep_moments(w, position, mean, squares)
        m, r = w.keep[position], w.keep[w.positions + position]
        rest = w.keep[2 * w.positions + position]
        apply_row(w.x, w.y, start, w.C, m, r, rest, w.weight, w.bias, w.affine, low, high)


@reduction
def sum_row(x, dy, start, some, m, r, rest, gamma, beta, cut, high, one, two):
    """Add what a pixel gives to the sums of channels; its own sums over g and g t."""
    sum_g, sum_gt = number(x, 0.0), number(x, 0.0)
    for c in range(some):
        t = (x[start + c] - m) * r - rest
        z = t * gamma[c] + beta[c]
        dz = dy[start + c]
        if z <= cut or z >= high:
            dz = number(x, 0.0)
        one[c] += dz
        two[c] += dz * t
        sum_g += dz * gamma[c]
        sum_gt += dz * gamma[c] * t
    return NUMBER(sum_g), NUMBER(sum_gt)


@elementwise
def back_row(x, dy, dx, start, some, m, r, rest, gamma, beta, cut, high, one, two):
    for c in range(some):
        t = (x[start + c] - m) * r - rest
        z = t * gamma[c] + beta[c]
        dz = dy[start + c]
        if z <= cut or z >= high:
            dz = number(x, 0.0)
        dx[start + c] = r * (dz * gamma[c] - one - t * two)


@algebra
def tile_of_affine(w, tile, some, gamma, beta):
    for c in range(some):
        gamma[c], beta[c] = affine_of(w, tile + c)


@algebra
def backward_pixels(w, i):
    gamma, beta = scratch(w.x, TILE), scratch(w.x, TILE)
    one, two = scratch(w.x, TILE), scratch(w.x, TILE)
    g, gt = scratch(w.parts, FEW), scratch(w.parts, FEW)
    cut, high, P = number(w.x, w.low), number(w.x, w.high), w.positions
    last = min((i + 1) * w.span, P)
    for c in range(2 * w.C):
        w.parts[2 * i * w.C + c] = 0.0
    for first in range(i * w.span, last, FEW):
        few = min(FEW, last - first)
        for p in range(few):
            g[p], gt[p] = 0.0, 0.0
        for tile in range(0, w.C, TILE):
            some = min(TILE, w.C - tile)
            tile_of_affine(w, tile, some, gamma, beta)
            for c in range(some):
                one[c], two[c] = number(w.x, 0.0), number(w.x, 0.0)
            for p in range(few):
                q = first + p
                m, r, rest = w.keep[q], w.keep[P + q], w.keep[2 * P + q]
                start = q * w.C + tile
                here, there = sum_row(w.x, w.dy, start, some, m, r, rest, gamma, beta, cut, high, one, two)
                g[p] += here
                gt[p] += there
            for c in range(some):
                w.parts[2 * i * w.C + tile + c] += NUMBER(one[c])
                w.parts[(2 * i + 1) * w.C + tile + c] += NUMBER(two[c])
        for tile in range(0, w.C, TILE):
            some = min(TILE, w.C - tile)
            tile_of_affine(w, tile, some, gamma, beta)
            for p in range(few):
                q = first + p
                m, r, rest = w.keep[q], w.keep[P + q], w.keep[2 * P + q]
                mean_g, mean_gt = number(w.x, g[p] * w.per_channel), number(w.x, gt[p] * w.per_other)
                start = q * w.C + tile
                back_row(w.x, w.dy, w.dx, start, some, m, r, rest, gamma, beta, cut, high, mean_g, mean_gt)


@algebra
def finish(w, block):
    """The gradients of γ and β of a block of channels."""
    dbias, dweight = scratch(w.parts, TILE), scratch(w.parts, TILE)
    first = block * TILE
    some = min(TILE, w.C - first)
    for c in range(some):
        dbias[c], dweight[c] = 0.0, 0.0
    for i in range(w.spans):
        for c in range(some):
            dbias[c] += w.parts[2 * i * w.C + first + c]
            dweight[c] += w.parts[(2 * i + 1) * w.C + first + c]
    for c in range(some):
        w.gradients[first + c] = number(w.x, dweight[c])
        w.gradients[w.C + first + c] = number(w.x, dbias[c])


def pieces(piece: Any) -> Any:
    """Spans done by ``piece``, then the gradients of γ and β."""

    @algebra
    def work(w, phase, start, stop):
        for i in range(start, stop):
            if phase == SPANS:
                piece(w, i)
            else:
                finish(w, i)

    return work


positions_planes_forward = worker(unpack, pieces(forward_planes))
positions_planes_backward = worker(unpack, pieces(backward_planes))
positions_pixels_forward = worker(unpack, pieces(forward_pixels))
positions_pixels_backward = worker(unpack, pieces(backward_pixels))
