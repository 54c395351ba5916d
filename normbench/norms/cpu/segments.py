"""Kernels for groups that are segments of an image, (N, C, H, W) in this order, and not whole maps of it.

Of the D = C·H·W features of an image, d is of group (d·G)//D. What a group has of one channel is a cell: a run in
memory, in every image of the row. A group and the next one share a channel or not, so c + g names cell (g, c) for good.
A piece of work is a group of a row from first to last, whose runs are still in the cache when they are needed again.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from normbench.norms.cpu import maps
from normbench.norms.cpu.blocks import FINISHED, GROUP, HEAD, SEGMENTS_FIXED, TRACK
from normbench.norms.cpu.pointers import NUMBER, WHOLE, algebra, at, number, root, worker

START, REST = HEAD.size, HEAD.size + SEGMENTS_FIXED.size


class Job(NamedTuple):
    """See ``unpack``."""

    C: Any
    S: Any
    R: Any
    G: Any
    images: Any
    fixed: Any
    x: Any
    y: Any
    dy: Any
    dx: Any
    weight: Any
    bias: Any
    mean: Any
    var: Any
    rstd: Any
    sums: Any
    gradients: Any
    eps: Any
    low: Any
    high: Any
    has_dx: Any
    has_weight: Any
    has_bias: Any
    uncut: Any
    D: Any
    running_mean: Any
    running_var: Any
    count: Any
    share: Any
    begins: Any
    stretches: Any
    span: Any
    blocks: Any
    edges: Any
    group: Any
    slopes: Any
    table: Any
    direct: Any
    residual: Any
    out: Any
    dz: Any
    has_sum: Any
    has_after: Any
    has_threshold: Any


@algebra
def unpack(block, T):
    """The block at this address as a Job over maps of type T; what is in it: blocks.SEGMENTS_FIXED and SEGMENTS.

    From ``stretches`` on it is for stretches.py; at the end what lanes.py asks for, and segments never have.
    """
    s, a, f = at(block + START, WHOLE), at(block + REST, WHOLE), at(block + REST + 12 * 8, NUMBER)
    RG, x, has_dx = s[2] * s[3], at(a[0], T), a[3] != 0
    slopes = a[7] + 16 * s[2] * s[9] * s[7] * s[0]
    return Job(
        s[0], s[1], s[2], s[3], s[4], s[5] != 0,
        x, at(a[1], T), at(a[2], T), at(a[3], T), at(a[4], T), at(a[5], T),
        at(a[6], NUMBER), at(a[6] + 8 * RG, NUMBER), at(a[6] + 16 * RG, NUMBER), at(a[7], NUMBER), at(a[8], T),
        f[0], f[1], f[2],
        has_dx, a[4] != 0, a[5] != 0, (f[1] == -math.inf) & (f[2] == math.inf), s[0] * s[1],
        at(a[9], T), at(a[10], T), at(a[11], WHOLE), f[3],
        at(s[6], WHOLE), s[7], s[8], s[9], at(s[10], WHOLE), at(s[11], WHOLE),
        at(slopes, NUMBER), at(slopes + 16 * RG, T),
        (s[5] != 0) & has_dx, x, x, x, False, False, False,
    )  # fmt: skip


@algebra
def run_of(w, first, last, c):
    """Where in an image, and how long, is what features ``first`` to ``last`` have of channel c."""
    start = max(first, c * w.S)
    return start, min(last, (c + 1) * w.S) - start


@algebra
def moments(w, r, start, length):
    """Mean and biased variance of a segment over the images of row r; their means are pooled about the first one's."""
    at_x, per_value = r * w.images * w.D + start, 1.0 / length
    mean, squares = maps.moments(w.x, at_x, length, per_value)
    away, away_squares = 0.0, 0.0
    for _ in range(1, w.images):
        at_x += w.D
        here, around = maps.moments(w.x, at_x, length, per_value)
        away += here - mean
        away_squares += (here - mean) * (here - mean)
        squares += around
    shift = away / w.images
    squares += length * max(away_squares - away * shift, 0.0)
    return mean + shift, squares / (length * w.images)


@algebra
def coefficients(w, i, c):
    """m, a, b with y = (x − m) a + b, of channel c in group i, the same forward and backward; m is μ rounded to the
    maps' type, and what rounding took from it goes into b.
    """
    gamma, beta, m = 1.0, 0.0, number(w.x, w.mean[i])
    if w.has_weight:
        gamma = NUMBER(w.weight[c])
    if w.has_bias:
        beta = NUMBER(w.bias[c])
    factor = gamma * w.rstd[i]
    return m, number(w.x, factor), number(w.x, beta + factor * (m - w.mean[i]))


@algebra
def forward_group(w, r, g):
    i, first, last = r * w.G + g, w.begins[g], w.begins[g + 1]
    if not w.fixed:
        w.mean[i], w.var[i] = moments(w, r, first, last - first)
    w.rstd[i] = 1.0 / root(w.var[i] + w.eps)
    low, high = number(w.x, w.low), number(w.x, w.high)
    for c in range(first // w.S, (last - 1) // w.S + 1):
        start, length = run_of(w, first, last, c)
        m, a, b = coefficients(w, i, c)
        for n in range(r * w.images, (r + 1) * w.images):
            maps.apply(w.x, w.y, n * w.D + start, length, m, a, b, low, high)


@algebra
def track(w):
    """Count the batch, and move the running statistics to the rows' mean, as norms/running.py has it."""
    w.count[0] += 1
    share, per_row = w.share, 1.0 / w.R
    if share < 0.0:
        share = 1.0 / w.count[0]
    for g in range(w.G):
        values, mean, var = w.images * (w.begins[g + 1] - w.begins[g]), 0.0, 0.0
        for r in range(w.R):
            mean += w.mean[r * w.G + g] * per_row
            var += w.var[r * w.G + g] * per_row
        var *= values / max(values - 1, 1)
        old_mean, old = NUMBER(w.running_mean[g]), NUMBER(w.running_var[g])
        w.running_mean[g] = number(w.x, old_mean + share * (mean - old_mean))
        w.running_var[g] = number(w.x, old + share * (var - old))


@algebra
def cell(w, r, g, c):
    """Where the sums over dz and dz (x − μ) of cell (g, c) of row r are."""
    return 2 * (r * (w.C + w.G) + c + g)


@algebra
def backward_group(w, r, g):
    i, first, last = r * w.G + g, w.begins[g], w.begins[g + 1]
    cut, high = number(w.x, w.low), number(w.x, w.high)
    channels = range(first // w.S, (last - 1) // w.S + 1)
    p, q = 0.0, 0.0
    for c in channels:
        start, length = run_of(w, first, last, c)
        m, a, b = coefficients(w, i, c)
        one, two = 0.0, 0.0
        for n in range(r * w.images, (r + 1) * w.images):
            here, there = maps.sums(w.x, w.dy, n * w.D + start, length, m, a, b, cut, high, w.uncut)
            one += here
            two += there
        two -= (w.mean[i] - m) * one
        j = cell(w, r, g, c)
        w.sums[j], w.sums[j + 1] = one, two
        if not w.fixed:
            q += a * one
            p += a * two
    if not w.has_dx:
        return
    per_value, m = 1.0 / ((last - first) * w.images), number(w.x, w.mean[i])
    p *= -w.rstd[i] * w.rstd[i] * per_value
    q *= -per_value
    slope, shift = number(w.x, p), number(w.x, q - p * (w.mean[i] - m))
    for c in channels:
        start, length = run_of(w, first, last, c)
        m, a, b = coefficients(w, i, c)
        for n in range(r * w.images, (r + 1) * w.images):
            place = n * w.D + start
            if w.uncut:
                maps.back_known(w.x, w.dy, w.dx, place, length, m, a, slope, shift)
            else:
                maps.back(w.x, w.dy, w.dx, place, length, m, a, b, cut, high, a, slope, shift)


@algebra
def finish(w, block):
    """The gradients of γ and β of a block of channels, from the sums of their cells."""
    for c in range(block * FINISHED, min((block + 1) * FINISHED, w.C)):
        gamma, beta = 0.0, 0.0
        first, last = c * w.S * w.G // w.D, ((c + 1) * w.S - 1) * w.G // w.D
        for r in range(w.R):
            for g in range(first, last + 1):
                j = cell(w, r, g, c)
                beta += w.sums[j]
                gamma += w.sums[j + 1] * w.rstd[r * w.G + g]
        w.gradients[c], w.gradients[w.C + c] = number(w.x, gamma), number(w.x, beta)


@algebra
def forward_pieces(w, phase, start, stop):
    if phase == TRACK:
        track(w)
        return
    for i in range(start, stop):
        forward_group(w, i // w.G, i % w.G)


@algebra
def backward_pieces(w, phase, start, stop):
    for i in range(start, stop):
        if phase == GROUP:
            backward_group(w, i // w.G, i % w.G)
        else:
            finish(w, i)


segments_forward = worker(unpack, forward_pieces)
segments_backward = worker(unpack, backward_pieces)
