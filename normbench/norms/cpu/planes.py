"""Kernels for maps that lie one after another, (N, C, H, W) in this order.

Column (k, c) is channel c of the images of coefficient row k. Where there are groups enough for the threads, a piece of
work is a group from first to last (phase GROUP), whose maps are still in the cache when they are needed again; else the
same is done in phases over columns, groups and maps.
"""

from __future__ import annotations

from normbench.norms.cpu import maps
from normbench.norms.cpu.arguments import unpack
from normbench.norms.cpu.blocks import COLUMNS, GROUP, MAPS, RUN, SETTLE, TRACK
from normbench.norms.cpu.family import (
    channels,
    finish,
    plain,
    pull,
    pull_run,
    scale_after,
    settle,
    settle_group,
    settle_run,
)
from normbench.norms.cpu.gates import gated, pull_gates, settle_gates
from normbench.norms.cpu.moving import track
from normbench.norms.cpu.pointers import NUMBER, algebra, number, scratch, worker

# Values of a column up to which a run of them is done together: it stays in the second cache.
SMALL = 4096
# Values of a map from which its neighbour in the next image is worth fetching ahead.
FAR = 256


@algebra
def column_moments(w, k, c):
    """Mean, and sum of squares about it, of column (k, c). Its maps' means are pooled about the first of them."""
    start = (k * w.images * w.C + c) * w.S
    mean, squares = maps.moments(w.x, start, w.S, w.per_map)
    if w.images == 1:
        return mean, squares
    away, away_squares = 0.0, 0.0
    for i in range(1, w.images):
        start += w.C * w.S
        if w.S >= FAR and i + 1 < w.images:
            maps.next_map(w.x, start + w.C * w.S)
        here, around = maps.moments(w.x, start, w.S, w.per_map)
        away += here - mean
        away_squares += (here - mean) * (here - mean)
        squares += around
    shift = away * w.S * w.per_column
    return mean + shift, squares + w.S * max(away_squares - away * shift, 0.0)


@algebra
def note_moments(w, k, c):
    mean, squares = column_moments(w, k, c)
    w.columns[k * w.C + c], w.columns[(w.K + k) * w.C + c] = mean, squares


@algebra
def apply_column(w, k, c, first, last):
    """The maps ``first`` to ``last`` of column (k, c)."""
    j, KC = k * w.C + c, w.K * w.C
    m, a, b = w.forth[j], w.forth[KC + j], w.forth[2 * KC + j]
    low, high = number(w.x, w.low), number(w.x, w.high)
    if w.has_threshold:
        low = w.threshold[c]
    start = ((k * w.images + first) * w.C + c) * w.S
    for i in range(first, last):
        if w.S >= FAR and i + 1 < last:
            maps.next_map(w.x, start + w.C * w.S)
        if w.has_sum:
            if w.S >= FAR and i + 1 < last:
                maps.next_map(w.residual, start + w.C * w.S)
            maps.apply_sum(w.x, w.residual, w.y, start, w.S, m, a, b, low, high)
        else:
            maps.apply(w.x, w.y, start, w.S, m, a, b, low, high)
        if w.has_after:
            maps.scale_shift(w.y, start, w.S, w.scale[c], w.shift[c])
        start += w.C * w.S


@algebra
def forward_group(w, r, g):
    first, last = channels(w, g)
    if w.has_columns:
        for k in range(r * w.split, (r + 1) * w.split):
            for c in range(first, last):
                note_moments(w, k, c)
    measure_and_settle(w, r, g)
    for k in range(r * w.split, (r + 1) * w.split):
        for c in range(first, last):
            apply_column(w, k, c, 0, w.images)


@algebra
def measure_and_settle(w, r, g):
    if w.fixed or w.has_columns:
        settle_group(w, r, g)
    else:  # the group is one column
        mean, squares = column_moments(w, r, g)
        settle(w, r, g, mean, squares * w.per_column)


@algebra
def sum_masked(w, k, c):
    """``sum_column`` behind a residual sum: writes dz, which is the residual's gradient."""
    j, KC = k * w.C + c, w.K * w.C
    m, low, high = w.forth[j], number(w.x, w.low), number(w.x, w.high)
    through = w.forth[KC + j]
    one, two = 0.0, 0.0
    start = (k * w.images * w.C + c) * w.S
    for i in range(w.images):
        if w.S >= FAR and i + 1 < w.images:
            maps.next_map(w.x, start + w.C * w.S)
            maps.next_map(w.dy, start + w.C * w.S)
            maps.next_map(w.out, start + w.C * w.S)
        here, there = maps.masked(w.x, w.out, w.dy, w.dz, w.dx, start, w.S, m, low, high, through, w.direct)
        one += here
        two += there
        start += w.C * w.S
    w.sums[j], w.sums[KC + j] = one, two


@algebra
def sum_column(w, k, c):
    """Sums of column (k, c) over dz, dz (x − m), and dy where wanted; where they are ``direct``, writes its dx too."""
    if w.has_sum:
        sum_masked(w, k, c)
        return
    j, KC = k * w.C + c, w.K * w.C
    m, a, b = w.forth[j], w.forth[KC + j], w.forth[2 * KC + j]
    cut, high = number(w.x, w.low), number(w.x, w.high)
    if w.has_threshold:
        cut = w.threshold[c]
    through = number(w.x, NUMBER(a) * scale_after(w, c))
    one, two, three = 0.0, 0.0, 0.0
    start = (k * w.images * w.C + c) * w.S
    for i in range(w.images):
        if w.S >= FAR and i + 1 < w.images:
            maps.next_map(w.x, start + w.C * w.S)
            maps.next_map(w.dy, start + w.C * w.S)
        if w.direct:
            here, there = maps.direct(w.x, w.dy, w.dx, start, w.S, m, a, b, cut, high, through, w.uncut)
        else:
            here, there = maps.sums(w.x, w.dy, start, w.S, m, a, b, cut, high, w.uncut)
        one += here
        two += there
        if w.has_threshold or w.has_after:
            three += maps.total(w.dy, start, w.S)
        start += w.C * w.S
    w.sums[j], w.sums[KC + j], w.sums[2 * KC + j] = one, two, three


@algebra
def back_column(w, k, c, first, last):
    """The maps ``first`` to ``last`` of column (k, c)."""
    j, KC = k * w.C + c, w.K * w.C
    m, a, b = w.forth[j], w.forth[KC + j], w.forth[2 * KC + j]
    through, p, q = w.back[j], w.back[KC + j], w.back[2 * KC + j]
    cut, high = number(w.x, w.low), number(w.x, w.high)
    if w.has_threshold:
        cut = w.threshold[c]
    start = ((k * w.images + first) * w.C + c) * w.S
    for i in range(first, last):
        if w.S >= FAR and i + 1 < last:
            maps.next_map(w.x, start + w.C * w.S)
            maps.next_map(w.dy, start + w.C * w.S)
        if w.has_sum:
            maps.back_known(w.x, w.dz, w.dx, start, w.S, m, through, p, q)
        elif w.uncut:
            maps.back_known(w.x, w.dy, w.dx, start, w.S, m, through, p, q)
        else:
            maps.back(w.x, w.dy, w.dx, start, w.S, m, a, b, cut, high, through, p, q)
        start += w.C * w.S


@algebra
def backward_group(w, r, g):
    first, last = channels(w, g)
    for k in range(r * w.split, (r + 1) * w.split):
        for c in range(first, last):
            sum_column(w, k, c)
    if w.direct:
        return
    pull(w, r, g)
    if w.has_dx:
        for k in range(r * w.split, (r + 1) * w.split):
            for c in range(first, last):
                back_column(w, k, c, 0, w.images)


@algebra
def forward_run(w, first, last):
    """Groups ``first`` to ``last`` of a row, a column each: as forward_group, but with their algebra in one go."""
    row = first // w.C
    mean, squares = scratch(w.mean, RUN), scratch(w.mean, RUN)
    for t in range(last - first):
        mean[t], squares[t] = column_moments(w, row, first - row * w.C + t)
    settle_run(w, first, last, mean, squares)
    for i in range(first, last):
        apply_column(w, row, i - row * w.C, 0, w.images)


@algebra
def backward_run(w, first, last):
    """Groups ``first`` to ``last`` of a row, a column each: as backward_group, but with their algebra in one go."""
    row = first // w.C
    for i in range(first, last):
        sum_column(w, row, i - row * w.C)
    pull_run(w, first, last)
    if w.has_dx:
        for i in range(first, last):
            back_column(w, row, i - row * w.C, 0, w.images)


@algebra
def at_once(w):
    """Gated channels that are done together: as many as the second cache holds of, and a vector register if one."""
    return min(RUN, max(1, RUN * SMALL // (w.S * w.images * w.split)))


@algebra
def forward_gates(w, first, last):
    """As forward_run, where each image has a gate."""
    r, c, some = first // w.C, first % w.C, last - first
    for k in range(r * w.split, (r + 1) * w.split):
        for t in range(c, c + some):
            note_moments(w, k, t)
    settle_gates(w, r, c, c + some)
    for k in range(r * w.split, (r + 1) * w.split):
        for t in range(c, c + some):
            apply_column(w, k, t, 0, w.images)


@algebra
def backward_gates(w, first, last):
    """As backward_run, where each image has a gate."""
    r, c, some = first // w.C, first % w.C, last - first
    for k in range(r * w.split, (r + 1) * w.split):
        for t in range(c, c + some):
            sum_column(w, k, t)
    pull_gates(w, r, c, c + some)
    if w.has_dx:
        for k in range(r * w.split, (r + 1) * w.split):
            for t in range(c, c + some):
                back_column(w, k, t, 0, w.images)


@algebra
def forward_pieces(w, phase, start, stop):
    if phase == GROUP and w.S * w.images <= SMALL and plain(w):
        while start < stop:
            last = min(start + RUN, stop, (start // w.C + 1) * w.C)
            forward_run(w, start, last)
            start = last
        return
    if phase == GROUP and gated(w):
        some = at_once(w)
        while start < stop:
            last = min(start + some, stop, (start // w.C + 1) * w.C)
            forward_gates(w, start, last)
            start = last
        return
    for i in range(start, stop):
        if phase == GROUP:
            forward_group(w, i // w.G, i % w.G)
        elif phase == COLUMNS:
            note_moments(w, i // w.C, i % w.C)
        elif phase == SETTLE and gated(w):
            settle_gates(w, i // w.G, i % w.G, i % w.G + 1)
        elif phase == SETTLE:
            measure_and_settle(w, i // w.G, i % w.G)
        elif phase == TRACK:
            track(w)
        else:
            n, c = i // w.C, i % w.C
            apply_column(w, n // w.images, c, n % w.images, n % w.images + 1)


@algebra
def backward_pieces(w, phase, start, stop):
    if phase == GROUP and w.S * w.images <= SMALL and plain(w):
        while start < stop:
            last = min(start + RUN, stop, (start // w.C + 1) * w.C)
            backward_run(w, start, last)
            start = last
        return
    if phase == GROUP and gated(w):
        some = at_once(w)
        while start < stop:
            last = min(start + some, stop, (start // w.C + 1) * w.C)
            backward_gates(w, start, last)
            start = last
        return
    for i in range(start, stop):
        if phase == GROUP:
            backward_group(w, i // w.G, i % w.G)
        elif phase == COLUMNS:
            sum_column(w, i // w.C, i % w.C)
        elif phase == SETTLE and gated(w):
            pull_gates(w, i // w.G, i % w.G, i % w.G + 1)
        elif phase == SETTLE:
            pull(w, i // w.G, i % w.G)
        elif phase == MAPS:
            n, c = i // w.C, i % w.C
            back_column(w, n // w.images, c, n % w.images, n % w.images + 1)
        else:
            finish(w, i)


planes_forward = worker(unpack, forward_pieces)
planes_backward = worker(unpack, backward_pieces)
