"""Kernels for small maps that lie one after another, (N, C, H, W) in this order: a few channels' maps at a time.

The maps of a run of neighbouring channels are one stretch of an image's memory. Every value of it is a lane (lanes.py):
images are summed lane by lane, and what is of one channel at the end (``fold``); a channel's coefficients go to all of
its lanes (``spread``). Map by map, as planes.py goes, a vector register would be filled once, or not even once. Which
channels are a run depends on threads, and what comes of one must not: what is summed has an order of its own
(pointers.ALIKE).

Columns and phases are those of planes.py, but that in MAPS a piece of work is a column. There are no gates: an image
with coefficients of its own is a column's only one, for which it does not pay (plan.goes_by_lanes).
"""

from __future__ import annotations

from normbench.norms.cpu import lanes
from normbench.norms.cpu.arguments import unpack
from normbench.norms.cpu.blocks import COLUMNS, GROUP, MAPS, RUN, SETTLE, TILE
from normbench.norms.cpu.family import (
    channels,
    finish,
    plain,
    pull,
    pull_run,
    scale_after,
    settle_group,
    settle_noted,
    settle_run,
)
from normbench.norms.cpu.moving import track
from normbench.norms.cpu.pointers import NUMBER, algebra, number, scratch, worker

# Images that are summed in the maps' own type before the sum goes on in float64.
BLOCK = 32
# Sums that are made side by side of a channel's lanes.
ABREAST = 8


@algebra
def at_once(w):
    """Channels whose maps are taken at a time."""
    return min(RUN, TILE // w.S)


@algebra
def runs(w, first, last):
    """How often channels are taken from ``first`` to ``last``."""
    return (last - first + at_once(w) - 1) // at_once(w)


@algebra
def fold_by(values, some, each, out):
    part = scratch(values, ABREAST)
    for c in range(some):
        at = c * each
        for i in range(ABREAST):
            part[i] = number(values, 0.0)
        for step in range(each // ABREAST):
            for i in range(ABREAST):
                part[i] += values[at + step * ABREAST + i]
        for i in range(each % ABREAST):
            part[i] += values[at + each // ABREAST * ABREAST + i]
        even, odd = (part[0] + part[4]) + (part[2] + part[6]), (part[1] + part[5]) + (part[3] + part[7])
        out[c] = NUMBER(even + odd)


@algebra
def fold(values, some, each, out):
    """Of ``some`` channels the sums over ``each`` lanes."""
    if each == 4:  # told apart for the compiler, which then needs no loop for a channel
        fold_by(values, some, 4, out)
    elif each == 16:
        fold_by(values, some, 16, out)
    else:
        fold_by(values, some, each, out)


@algebra
def spread_by(values, first, some, each, out):
    for c in range(some):
        value = values[first + c]
        for i in range(each):
            out[c * each + i] = value


@algebra
def spread(values, first, some, each, out):
    """Each of ``some`` channels' values, from ``first`` on, to ``each`` lanes: the way back of ``fold``."""
    if each == 4:
        spread_by(values, first, some, 4, out)
    elif each == 16:
        spread_by(values, first, some, 16, out)
    else:
        spread_by(values, first, some, each, out)


@algebra
def moments(w, k, c, some, mean, squares):
    """Mean, and sum of squares about it, of ``some`` columns from (k, c) on."""
    one, m, around = scratch(w.x, TILE), scratch(w.x, TILE), scratch(w.x, TILE)
    centre, first, second = scratch(w.x, RUN), scratch(w.mean, RUN), scratch(w.mean, RUN)
    length, stride = some * w.S, w.C * w.S
    start = (k * w.images * w.C + c) * w.S
    for t in range(some):
        mean[t], squares[t] = 0.0, 0.0
    for seen in range(0, w.images, BLOCK):
        images = min(BLOCK, w.images - seen)
        at, per_value, share = start + seen * stride, 1.0 / (images * w.S), images / (seen + images)
        lanes.totals(w.x, at, images, stride, length, one)
        fold(one, some, w.S, first)
        for t in range(some):
            centre[t] = number(w.x, first[t] * per_value)
        spread(centre, 0, some, w.S, m)
        lanes.squares(w.x, at, images, stride, length, m, one, around)
        fold(one, some, w.S, first)
        fold(around, some, w.S, second)
        for t in range(some):
            left = first[t] * per_value
            away = NUMBER(centre[t]) + left - mean[t]
            mean[t] += away * share
            squares[t] += max(second[t] - left * first[t], 0.0) + away * away * (seen * w.S) * share


@algebra
def note_moments(w, k, first, last):
    """The moments of columns (k, first) to (k, last)."""
    mean, squares = scratch(w.mean, RUN), scratch(w.mean, RUN)
    for run in range(runs(w, first, last)):
        c = first + run * at_once(w)
        some, j = min(at_once(w), last - c), k * w.C + c
        moments(w, k, c, some, mean, squares)
        for t in range(some):
            w.columns[j + t], w.squares[j + t] = mean[t], squares[t]


@algebra
def coefficients(w, j, c, some, m, a, b, low):
    """The coefficients from j on, of channels from c on, and what the activation cuts off at, lane by lane."""
    KC = w.K * w.C
    spread(w.forth, j, some, w.S, m)
    spread(w.forth, KC + j, some, w.S, a)
    spread(w.forth, 2 * KC + j, some, w.S, b)
    if w.has_threshold:
        spread(w.threshold, c, some, w.S, low)
    else:
        for i in range(some * w.S):
            low[i] = number(w.x, w.low)


@algebra
def apply(w, k, first, last):
    """y of columns (k, first) to (k, last)."""
    m, a, b, low = scratch(w.x, TILE), scratch(w.x, TILE), scratch(w.x, TILE), scratch(w.x, TILE)
    scale, shift = scratch(w.x, TILE), scratch(w.x, TILE)
    for run in range(runs(w, first, last)):
        c = first + run * at_once(w)
        some = min(at_once(w), last - c)
        coefficients(w, k * w.C + c, c, some, m, a, b, low)
        if w.has_after:
            spread(w.scale, c, some, w.S, scale)
            spread(w.shift, c, some, w.S, shift)
        base = (k * w.images * w.C + c) * w.S
        lanes.apply_all(w, base, w.C * w.S, 0, w.images, 1, some * w.S, m, a, b, low, scale, shift)


@algebra
def sums(w, k, first, last):
    """The sums of columns (k, first) to (k, last); where they are ``direct``, write dx too."""
    m, a, b, cut = scratch(w.x, TILE), scratch(w.x, TILE), scratch(w.x, TILE), scratch(w.x, TILE)
    one, two, three = scratch(w.x, TILE), scratch(w.x, TILE), scratch(w.x, TILE)
    through, here = scratch(w.x, TILE), scratch(w.mean, RUN)
    factor, KC = scratch(w.x, RUN), w.K * w.C
    for run in range(runs(w, first, last)):
        c = first + run * at_once(w)
        some, j = min(at_once(w), last - c), k * w.C + c
        length, base = some * w.S, (k * w.images * w.C + c) * w.S
        coefficients(w, j, c, some, m, a, b, cut)
        if w.direct:
            for t in range(some):
                factor[t] = number(w.x, NUMBER(w.forth[KC + j + t]) * scale_after(w, c + t))
            spread(factor, 0, some, w.S, through)
        for t in range(some):
            w.sums[j + t], w.sums[KC + j + t], w.sums[2 * KC + j + t] = 0.0, 0.0, 0.0
        for image in range(0, w.images, BLOCK):
            stop = min(image + BLOCK, w.images)
            for i in range(length):
                one[i], two[i], three[i] = number(w.x, 0.0), number(w.x, 0.0), number(w.x, 0.0)
            lanes.sum_all(w, base, w.C * w.S, image, stop, 1, length, m, a, b, cut, through, one, two, three)
            fold(one, some, w.S, here)
            for t in range(some):
                w.sums[j + t] += here[t]
            fold(two, some, w.S, here)
            for t in range(some):
                w.sums[KC + j + t] += here[t]
            if w.has_threshold or w.has_after:
                fold(three, some, w.S, here)
                for t in range(some):
                    w.sums[2 * KC + j + t] += here[t]


@algebra
def back(w, k, first, last):
    """dx of columns (k, first) to (k, last)."""
    m, a, b, cut = scratch(w.x, TILE), scratch(w.x, TILE), scratch(w.x, TILE), scratch(w.x, TILE)
    through, slope, shift = scratch(w.x, TILE), scratch(w.x, TILE), scratch(w.x, TILE)
    KC = w.K * w.C
    for run in range(runs(w, first, last)):
        c = first + run * at_once(w)
        some, j = min(at_once(w), last - c), k * w.C + c
        length, base = some * w.S, (k * w.images * w.C + c) * w.S
        coefficients(w, j, c, some, m, a, b, cut)
        spread(w.back, j, some, w.S, through)
        spread(w.back, KC + j, some, w.S, slope)
        spread(w.back, 2 * KC + j, some, w.S, shift)
        lanes.back_all(w, base, w.C * w.S, 0, w.images, 1, length, m, a, b, cut, through, slope, shift)


@algebra
def forward_group(w, r, g):
    first, last = channels(w, g)
    if not w.fixed:
        note_moments(w, r, first, last)
    settle_group(w, r, g)
    apply(w, r, first, last)


@algebra
def backward_group(w, r, g):
    first, last = channels(w, g)
    sums(w, r, first, last)
    if w.direct:
        return
    pull(w, r, g)
    if w.has_dx:
        back(w, r, first, last)


@algebra
def forward_run(w, r, first, last):
    """Groups ``first`` to ``last`` of row r, a column each."""
    if w.fixed:
        for g in range(first, last):
            settle_group(w, r, g)
    else:
        mean, squares = scratch(w.mean, RUN), scratch(w.mean, RUN)
        moments(w, r, first, last - first, mean, squares)
        settle_run(w, r * w.G + first, r * w.G + last, mean, squares)
    apply(w, r, first, last)


@algebra
def backward_run(w, r, first, last):
    """Groups ``first`` to ``last`` of row r, a column each."""
    sums(w, r, first, last)
    if w.direct:
        return
    pull_run(w, r * w.G + first, r * w.G + last)
    if w.has_dx:
        back(w, r, first, last)


@algebra
def run_end(w, start, stop):
    """The piece before which a run ends that begins at ``start``: of columns, or groups of one each, of one row."""
    return min(start + at_once(w), stop, (start // w.C + 1) * w.C)


@algebra
def forward_pieces(w, phase, start, stop):
    while start < stop:
        end, row = run_end(w, start, stop), start // w.C
        c, last = start % w.C, start % w.C + end - start
        if phase == GROUP and w.width == 1:
            forward_run(w, row, c, last)
        elif phase == COLUMNS:
            note_moments(w, row, c, last)
        elif phase == SETTLE and plain(w):  # as in a run, to the bit
            settle_noted(w, start, end)
        elif phase == MAPS:
            apply(w, row, c, last)
        else:
            end = start + 1
            if phase == GROUP:
                forward_group(w, start // w.G, start % w.G)
            elif phase == SETTLE:
                settle_group(w, start // w.G, start % w.G)
            else:
                track(w)
        start = end


@algebra
def backward_pieces(w, phase, start, stop):
    while start < stop:
        end, row = run_end(w, start, stop), start // w.C
        c, last = start % w.C, start % w.C + end - start
        if phase == GROUP and w.width == 1:
            backward_run(w, row, c, last)
        elif phase == COLUMNS:
            sums(w, row, c, last)
        elif phase == SETTLE and plain(w):
            pull_run(w, start, end)
        elif phase == MAPS:
            back(w, row, c, last)
        else:
            end = start + 1
            if phase == GROUP:
                backward_group(w, start // w.G, start % w.G)
            elif phase == SETTLE:
                pull(w, start // w.G, start % w.G)
            else:
                finish(w, start)
        start = end


small_forward = worker(unpack, forward_pieces)
small_backward = worker(unpack, backward_pieces)
