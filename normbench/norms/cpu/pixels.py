"""Kernels for pixels that lie one after another, (N, H, W, C) in this order: channels_last.

The pixels of a coefficient row are one run in memory, whatever images they are of. Channels are taken a TILE at a time,
so that what is kept of each stays in the first cache. A piece of work is a row of statistics from first to last (phase
GROUP) where there are rows enough for the threads, else a span of a row's pixels.
"""

from __future__ import annotations

from normbench.norms.cpu import lanes
from normbench.norms.cpu.arguments import unpack
from normbench.norms.cpu.blocks import COLUMNS, GROUP, MAPS, MERGE, RUN, SETTLE, TILE, TRACK
from normbench.norms.cpu.family import finish, plain, pull, pull_run, scale_after, settle_group, settle_noted
from normbench.norms.cpu.gates import gated, pull_gates, settle_gates
from normbench.norms.cpu.moving import track
from normbench.norms.cpu.pointers import NUMBER, algebra, number, scratch, worker

# Numbers that are summed in the maps' own type before the sum goes on in float64: so many times a tile.
BLOCK = 16


@algebra
def side_by_side(w):
    """Pixels side by side in a tile."""
    return max(1, TILE // w.C)


@algebra
def block_moments(x, start, pixels, stride, some, mean, squares, seen):
    """Merge ``pixels`` pixels from ``start`` on into the moments of ``some`` lanes, which hold ``seen`` pixels."""
    total, rest, around, m = scratch(x, TILE), scratch(x, TILE), scratch(x, TILE), scratch(x, TILE)
    per_pixel, share = 1.0 / pixels, pixels / (seen + pixels)
    lanes.totals(x, start, pixels, stride, some, total)
    for c in range(some):
        m[c] = number(x, NUMBER(total[c]) * per_pixel)
    lanes.squares(x, start, pixels, stride, some, m, rest, around)
    for c in range(some):
        left = NUMBER(rest[c]) * per_pixel
        here = max(NUMBER(around[c]) - left * NUMBER(rest[c]), 0.0)
        away = NUMBER(m[c]) + left - mean[c]
        mean[c] += away * share
        squares[c] += here + away * away * seen * share


@algebra
def run_moments(x, base, stride, steps, some, mean, squares, seen):
    """Merge steps of ``some`` lanes, ``stride`` apart from ``base`` on, into moments that hold ``seen`` of them."""
    for p in range(0, steps, BLOCK):
        block_moments(x, base + p * stride, min(BLOCK, steps - p), stride, some, mean, squares, seen + p)


@algebra
def join(out, mean_at, squares_at, some, mean, squares, here, seen):
    """Merge moments of ``here`` values a channel into those in ``out``, which hold ``seen``."""
    share = here / (seen + here)
    for c in range(some):
        away = mean[c]
        if seen > 0:
            away -= out[mean_at + c]
            out[mean_at + c] += away * share
            out[squares_at + c] += squares[c] + away * away * seen * share
        else:
            out[mean_at + c], out[squares_at + c] = mean[c], squares[c]


@algebra
def moments(w, k, first, last, out, mean_at, squares_at, seen):
    """Merge the moments of pixels ``first`` to ``last`` of row k into those in ``out``, which hold ``seen`` pixels."""
    mean, squares = scratch(w.mean, TILE), scratch(w.mean, TILE)
    row, side = k * w.images * w.S * w.C, side_by_side(w)
    for tile in range(0, w.C, TILE):
        some, wide = min(TILE, w.C - tile), (last - first) // side
        start, rest = row + first * w.C + tile, (last - first) % side
        for c in range(side * some):
            mean[c], squares[c] = 0.0, 0.0
        run_moments(w.x, start, side * w.C, wide, side * some, mean, squares, 0)
        fold_moments(some, side, wide, mean, squares)
        if rest > 0:
            run_moments(w.x, start + wide * side * w.C, w.C, rest, some, mean, squares, wide * side)
        join(out, mean_at + tile, squares_at + tile, some, mean, squares, last - first, seen)


@algebra
def fold_moments(some, side, pixels, mean, squares):
    """The moments of lanes that hold ``pixels`` pixels each, as one."""
    if side == 1:
        return
    for c in range(some):
        total, around = 0.0, 0.0
        for i in range(side):
            total += mean[i * some + c]
            around += squares[i * some + c]
        total /= side
        for i in range(side):
            away = mean[i * some + c] - total
            around += away * away * pixels
        mean[c], squares[c] = total, around


@algebra
def merge(w, k, tile):
    """The moments of a row's columns from those of its spans."""
    mean, squares = scratch(w.mean, TILE), scratch(w.mean, TILE)
    some, pixels = min(TILE, w.C - tile), w.images * w.S
    for c in range(some):
        mean[c], squares[c] = 0.0, 0.0
    seen = 0
    for s in range(w.spans):
        here = min(w.span, pixels - s * w.span)
        share, at = here / (seen + here), (k * w.spans + s) * 3 * w.C + tile
        for c in range(some):
            away = w.parts[at + c] - mean[c]
            mean[c] += away * share
            squares[c] += w.parts[at + w.C + c] + away * away * seen * share
        seen += here
    for c in range(some):
        w.columns[k * w.C + tile + c] = mean[c]
        w.columns[(w.K + k) * w.C + tile + c] = squares[c]


@algebra
def settle_row(w, r, first, last):
    """Groups ``first`` to ``last`` of row r, from the moments of its columns."""
    if plain(w):
        for start in range(r * w.G + first, r * w.G + last, RUN):
            settle_noted(w, start, min(start + RUN, r * w.G + last))
        return
    if gated(w):
        for start in range(first, last, RUN):
            settle_gates(w, r, start, min(start + RUN, last))
        return
    for g in range(first, last):
        settle_group(w, r, g)


@algebra
def pull_row(w, r, first, last):
    if plain(w):
        for start in range(r * w.G + first, r * w.G + last, RUN):
            pull_run(w, start, min(start + RUN, r * w.G + last))
        return
    if gated(w):
        for start in range(first, last, RUN):
            pull_gates(w, r, start, min(start + RUN, last))
        return
    for g in range(first, last):
        pull(w, r, g)


@algebra
def apply(w, k, first, last):
    """Pixels ``first`` to ``last`` of row k."""
    m, a, b, low = scratch(w.x, TILE), scratch(w.x, TILE), scratch(w.x, TILE), scratch(w.x, TILE)
    scale, shift = scratch(w.x, TILE), scratch(w.x, TILE)
    row, side = k * w.images * w.S * w.C, side_by_side(w)
    for tile in range(0, w.C, TILE):
        some = min(TILE, w.C - tile)
        coefficients(w, k, tile, some, side, m, a, b, low)
        if w.has_after:
            for i in range(side):
                for c in range(some):
                    scale[i * some + c], shift[i * some + c] = w.scale[tile + c], w.shift[tile + c]
        lanes.apply_all(w, row + tile, w.C, first, last, side, some, m, a, b, low, scale, shift)


@algebra
def coefficients(w, k, tile, some, side, m, a, b, low):
    """A tile of m, a, b of row k, and of what the activation cuts off at, near at hand, once for each lane."""
    j, KC = k * w.C + tile, w.K * w.C
    for c in range(some):
        m[c], a[c], b[c] = w.forth[j + c], w.forth[KC + j + c], w.forth[2 * KC + j + c]
        low[c] = number(w.x, w.low)
    if w.has_threshold:
        for c in range(some):
            low[c] = w.threshold[tile + c]
    for i in range(some, side * some):
        m[i], a[i], b[i], low[i] = m[i - some], a[i - some], b[i - some], low[i - some]


@algebra
def run_sums(w, base, stride, first, last, side, some, m, a, b, cut, through, ones, twos, threes):
    """``lanes.sum_all``, into sums in float64."""
    one, two, three = scratch(w.x, TILE), scratch(w.x, TILE), scratch(w.x, TILE)
    for step in range((last - first + BLOCK * side - 1) // (BLOCK * side)):
        block = first + step * BLOCK * side
        stop = min(block + BLOCK * side, last)
        for c in range(side * some):
            one[c], two[c], three[c] = number(w.x, 0.0), number(w.x, 0.0), number(w.x, 0.0)
        lanes.sum_all(w, base, stride, block, stop, side, some, m, a, b, cut, through, one, two, three)
        for c in range(side * some):
            ones[c] += NUMBER(one[c])
            twos[c] += NUMBER(two[c])
        if w.has_threshold or w.has_after:
            for c in range(side * some):
                threes[c] += NUMBER(three[c])


@algebra
def sums(w, k, first, last, out, out_at, stride, seen):
    """Add to ``out`` the sums over dz, dz (x − m), and dy where wanted, of pixels ``first`` to ``last`` of row k; where
    they are ``direct``, write dx too."""
    m, a, b, cut = scratch(w.x, TILE), scratch(w.x, TILE), scratch(w.x, TILE), scratch(w.x, TILE)
    through = scratch(w.x, TILE)
    ones, twos, threes = scratch(w.mean, TILE), scratch(w.mean, TILE), scratch(w.mean, TILE)
    row, side = k * w.images * w.S * w.C, side_by_side(w)
    for tile in range(0, w.C, TILE):
        some = min(TILE, w.C - tile)
        coefficients(w, k, tile, some, side, m, a, b, cut)
        if w.direct:
            for c in range(some):
                through[c] = number(w.x, NUMBER(a[c]) * scale_after(w, tile + c))
            for i in range(some, side * some):
                through[i] = through[i - some]
        for c in range(side * some):
            ones[c], twos[c], threes[c] = 0.0, 0.0, 0.0
        run_sums(w, row + tile, w.C, first, last, side, some, m, a, b, cut, through, ones, twos, threes)
        for i in range(some, side * some):
            ones[i % some] += ones[i]
            twos[i % some] += twos[i]
            threes[i % some] += threes[i]
        at = out_at + tile
        if seen == 0:
            for c in range(some):
                out[at + c], out[at + stride + c], out[at + 2 * stride + c] = 0.0, 0.0, 0.0
        for c in range(some):
            out[at + c] += ones[c]
            out[at + stride + c] += twos[c]
            out[at + 2 * stride + c] += threes[c]


@algebra
def merge_sums(w, k, tile):
    """The sums of a row's columns from those of its spans."""
    some, j, KC = min(TILE, w.C - tile), k * w.C + tile, w.K * w.C
    for i in range(3):
        total = scratch(w.mean, TILE)
        for c in range(some):
            total[c] = 0.0
        for s in range(w.spans):
            at = ((k * w.spans + s) * 3 + i) * w.C + tile
            for c in range(some):
                total[c] += w.parts[at + c]
        for c in range(some):
            w.sums[i * KC + j + c] = total[c]


@algebra
def back(w, k, first, last):
    """Pixels ``first`` to ``last`` of row k."""
    m, a, b, cut = scratch(w.x, TILE), scratch(w.x, TILE), scratch(w.x, TILE), scratch(w.x, TILE)
    through, slope, shift = scratch(w.x, TILE), scratch(w.x, TILE), scratch(w.x, TILE)
    row, KC, side = k * w.images * w.S * w.C, w.K * w.C, side_by_side(w)
    for tile in range(0, w.C, TILE):
        some, j = min(TILE, w.C - tile), k * w.C + tile
        coefficients(w, k, tile, some, side, m, a, b, cut)
        for c in range(some):
            through[c], slope[c], shift[c] = w.back[j + c], w.back[KC + j + c], w.back[2 * KC + j + c]
        for i in range(some, side * some):
            through[i], slope[i], shift[i] = through[i - some], slope[i - some], shift[i - some]
        lanes.back_all(w, row + tile, w.C, first, last, side, some, m, a, b, cut, through, slope, shift)


@algebra
def forward_row(w, r):
    """A row of statistics from first to last, a span at a time, which stays in the second cache."""
    pixels, KC = w.images * w.S, w.K * w.C
    for k in range(r * w.split, (r + 1) * w.split):
        if w.has_gate or not w.fixed:
            for i in range(w.spans):
                p = i * w.span
                moments(w, k, p, min(p + w.span, pixels), w.columns, k * w.C, KC + k * w.C, p)
    settle_row(w, r, 0, w.G)
    for k in range(r * w.split, (r + 1) * w.split):
        for i in range(w.spans):
            p = i * w.span
            apply(w, k, p, min(p + w.span, pixels))


@algebra
def backward_row(w, r):
    """A row of statistics from first to last, a span at a time."""
    pixels, KC = w.images * w.S, w.K * w.C
    for k in range(r * w.split, (r + 1) * w.split):
        for i in range(w.spans):
            p = i * w.span
            sums(w, k, p, min(p + w.span, pixels), w.sums, k * w.C, KC, p)
    if w.direct:
        return
    pull_row(w, r, 0, w.G)
    if w.has_dx:
        for k in range(r * w.split, (r + 1) * w.split):
            for i in range(w.spans):
                p = i * w.span
                back(w, k, p, min(p + w.span, pixels))


@algebra
def span_of(w, i):
    """Row, first pixel and the first one after it, of the i-th span."""
    s = i % w.spans
    return i // w.spans, s * w.span, min((s + 1) * w.span, w.images * w.S)


@algebra
def forward_pieces(w, phase, start, stop):
    tiles = (w.C + TILE - 1) // TILE
    for i in range(start, stop):
        k, first, last = span_of(w, i)
        if phase == GROUP:
            forward_row(w, i)
        elif phase == COLUMNS:
            moments(w, k, first, last, w.parts, 3 * i * w.C, (3 * i + 1) * w.C, 0)
        elif phase == MERGE:
            merge(w, i // tiles, i % tiles * TILE)
        elif phase == SETTLE:
            settle_row(w, i, 0, w.G)
        elif phase == TRACK:
            track(w)
        else:
            apply(w, k, first, last)


@algebra
def backward_pieces(w, phase, start, stop):
    tiles = (w.C + TILE - 1) // TILE
    for i in range(start, stop):
        k, first, last = span_of(w, i)
        if phase == GROUP:
            backward_row(w, i)
        elif phase == COLUMNS:
            sums(w, k, first, last, w.parts, 3 * i * w.C, w.C, 0)
        elif phase == MERGE:
            merge_sums(w, i // tiles, i % tiles * TILE)
        elif phase == SETTLE:
            pull_row(w, i, 0, w.G)
        elif phase == MAPS:
            back(w, k, first, last)
        else:
            finish(w, i)


pixels_forward = worker(unpack, forward_pieces)
pixels_backward = worker(unpack, backward_pieces)
