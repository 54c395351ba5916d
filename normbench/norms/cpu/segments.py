"""Kernels for groups that are segments of an image, (N, C, H, W) in this order, and not whole maps of it.

Of the D = C·H·W features of an image, d is of group (d·G)//D. What a group has of one channel is a cell: a run in
memory, in every image of the row. A group and the next one share a channel or not, so c + g names cell (g, c) for good.
A piece of work is a group of a row from first to last, whose runs are still in the cache when they are needed again.
"""

from __future__ import annotations

from normbench.norms.cpu import maps
from normbench.norms.cpu.arguments import unpack
from normbench.norms.cpu.blocks import FINISHED, GROUP, TRACK
from normbench.norms.cpu.pointers import NUMBER, algebra, number, root, worker


@algebra
def run_of(w, first, last, c):
    """Where in an image, and how long, is what features ``first`` to ``last`` have of channel c."""
    start = max(first, c * w.S)
    return start, min(last, (c + 1) * w.S) - start


@algebra
def moments(w, r, start, length):
    """Mean and biased variance of a segment over the images of row r; their means are pooled about the first one's."""
    at_x, per_value = r * w.images * (w.C * w.S) + start, 1.0 / length
    mean, squares = maps.moments(w.x, at_x, length, per_value)
    away, away_squares = 0.0, 0.0
    for _ in range(1, w.images):
        at_x += w.C * w.S
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
            maps.apply(w.x, w.y, n * (w.C * w.S) + start, length, m, a, b, low, high)


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
        old_mean, old = NUMBER(w.running_mean[g]), NUMBER(w.running[g])
        w.running_mean[g] = number(w.x, old_mean + share * (mean - old_mean))
        w.running[g] = number(w.x, old + share * (var - old))


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
            place = n * (w.C * w.S) + start
            if w.direct:
                here, there = maps.direct(w.x, w.dy, w.dx, place, length, m, a, b, cut, high, a, w.uncut)
            else:
                here, there = maps.sums(w.x, w.dy, place, length, m, a, b, cut, high, w.uncut)
            one += here
            two += there
        two -= (w.mean[i] - m) * one
        j = cell(w, r, g, c)
        w.parts[j], w.parts[j + 1] = one, two
        q += a * one
        p += a * two
    if w.direct or not w.has_dx:
        return
    per_value, m = 1.0 / ((last - first) * w.images), number(w.x, w.mean[i])
    p *= -w.rstd[i] * w.rstd[i] * per_value
    q *= -per_value
    slope, shift = number(w.x, p), number(w.x, q - p * (w.mean[i] - m))
    for c in channels:
        start, length = run_of(w, first, last, c)
        m, a, b = coefficients(w, i, c)
        for n in range(r * w.images, (r + 1) * w.images):
            place = n * (w.C * w.S) + start
            if w.uncut:
                maps.back_known(w.x, w.dy, w.dx, place, length, m, a, slope, shift)
            else:
                maps.back(w.x, w.dy, w.dx, place, length, m, a, b, cut, high, a, slope, shift)


@algebra
def finish(w, block):
    """The gradients of γ and β of a block of channels, from the sums of their cells."""
    for c in range(block * FINISHED, min((block + 1) * FINISHED, w.C)):
        gamma, beta = 0.0, 0.0
        first, last = c * w.S * w.G // (w.C * w.S), ((c + 1) * w.S - 1) * w.G // (w.C * w.S)
        for r in range(w.R):
            for g in range(first, last + 1):
                j = cell(w, r, g, c)
                beta += w.parts[j]
                gamma += w.parts[j + 1] * w.rstd[r * w.G + g]
        if w.wants_weight:
            w.dweight[c] = number(w.x, gamma)
        if w.wants_bias:
            w.dbias[c] = number(w.x, beta)


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
