"""Kernels for segments of images whose pixels lie one after another, (N, H, W, C) in this order: channels_last.

Where a group begins amid a channel, its pixel cuts the maps of all channels: within a stretch, from one such pixel to
the next, every channel is of one group (the table ``group``, made once a shape: plan.py). So a stretch is gone over
lane by lane, as pixels.py does, with a coefficient a channel; and what is summed of its channels is gathered by group.
A piece of work is a stretch of a block of a row's images, or a row from first to last (phase GROUP).
"""

from __future__ import annotations

from normbench.norms.cpu import lanes
from normbench.norms.cpu.arguments import unpack
from normbench.norms.cpu.blocks import COLUMNS, FINISHED, GROUP, MAPS, MERGE, SETTLE, SPREAD, TILE
from normbench.norms.cpu.pixels import BLOCK, fold_moments, run_moments, side_by_side
from normbench.norms.cpu.pointers import NUMBER, algebra, number, root, scratch, worker
from normbench.norms.cpu.segments import coefficients, track

# Steps, from pixel to pixel, that are too few for an image to be gone over alone.
FEW = 4


@algebra
def place(w, i):
    """Row, stretch, first image and the one after the last, first pixel and the one after the last, of a piece."""
    block, t = i // w.stretches, i % w.stretches
    r = block // w.spans
    n = r * w.images + block % w.spans * w.span
    return r, t, n, min(n + w.span, (r + 1) * w.images), w.edges[t], w.edges[t + 1]


@algebra
def pieces_of(w, r):
    """The pieces of row r: the first, and the one after the last."""
    each = w.spans * w.stretches
    return r * each, (r + 1) * each


@algebra
def goes_crosswise(w, images, pixels):
    """Whether a piece is gone over by pixels of all its images, and not image by image: where pixels are few."""
    return pixels < min(FEW, images) * side_by_side(w)


@algebra
def runs(w, n, last_n, p, last_p):
    """In how many runs a piece is gone over, and whether crosswise."""
    side = side_by_side(w)
    if goes_crosswise(w, last_n - n, last_p - p):
        return (last_p - p + side - 1) // side, True
    return last_n - n, False


@algebra
def run(w, n, last_n, p, last_p, j, crosswise, tile, some):
    """Run j of a piece, of ``some`` channels from ``tile`` on: where its steps would begin, how far apart they are, the
    first and the one after the last, how many are a stretch of memory; pixels side by side in a step.
    """
    side = side_by_side(w)
    if crosswise:
        return (p + j * side) * w.C + tile, w.S * w.C, n, last_n, 1, min(side, last_p - p - j * side)
    return (n + j) * w.S * w.C + tile, w.C, p, last_p, side, 1


@algebra
def note_moments(w, i):
    """The moments of a piece's channels: means, and then sums of squares about them."""
    mean, squares = scratch(w.mean, TILE), scratch(w.mean, TILE)
    _, _, n, last_n, p, last_p = place(w, i)
    images, side, crosswise = last_n - n, side_by_side(w), goes_crosswise(w, last_n - n, last_p - p)
    if crosswise:
        side = min(side, last_p - p)
    wide, rest = (last_p - p) // side, (last_p - p) % side
    for tile in range(0, w.C, TILE):
        some, at = min(TILE, w.C - tile), 2 * i * w.C + tile
        start = (n * w.S + p) * w.C + tile
        for c in range(side * some):
            mean[c], squares[c] = 0.0, 0.0
        if crosswise:
            for j in range(wide):
                base = start + j * side * w.C
                run_moments(w.x, base, w.S * w.C, images, side * some, mean, squares, j * images)
        else:
            for j in range(images):
                base = start + j * w.S * w.C
                run_moments(w.x, base, side * w.C, wide, side * some, mean, squares, j * wide)
        seen = wide * images
        fold_moments(some, side, seen, mean, squares)
        if rest > 0:
            seen *= side
            for j in range(images):
                base = start + (j * w.S + wide * side) * w.C
                run_moments(w.x, base, w.C, rest, some, mean, squares, seen + j * rest)
        for c in range(some):
            w.parts[at + c], w.parts[at + w.C + c] = mean[c], squares[c]


@algebra
def spread(w, r, t):
    """m, a, b of the channels in a stretch of row r."""
    j, RTC = (r * w.stretches + t) * w.C, w.R * w.stretches * w.C
    for c in range(w.C):
        m, a, b = coefficients(w, r * w.G + w.group[t * w.C + c], c)
        w.table[j + c], w.table[RTC + j + c], w.table[2 * RTC + j + c] = m, a, b


@algebra
def take(w, j, tile, some, used, lane):
    """A tile of what the table has from j on, near at hand, once for each lane."""
    for c in range(some):
        lane[c] = w.table[j + tile + c]
    for i in range(some, used):
        lane[i] = lane[i - some]


@algebra
def take_all(w, r, t, tile, some, used, m, a, b, low):
    """A tile of m, a, b, and of what the activation cuts off at."""
    j, RTC = (r * w.stretches + t) * w.C, w.R * w.stretches * w.C
    take(w, j, tile, some, used, m)
    take(w, RTC + j, tile, some, used, a)
    take(w, 2 * RTC + j, tile, some, used, b)
    for i in range(used):
        low[i] = number(w.x, w.low)


@algebra
def merge(w, r, t):
    """The moments of a stretch over all images of row r, which then stand where those of the first ones stood."""
    mean, squares = scratch(w.mean, TILE), scratch(w.mean, TILE)
    first = r * w.spans * w.stretches + t
    for tile in range(0, w.C, TILE):
        some, seen = min(TILE, w.C - tile), w.span
        for c in range(some):
            at = 2 * first * w.C + tile + c
            mean[c], squares[c] = w.parts[at], w.parts[at + w.C]
        for block in range(1, w.spans):
            at = 2 * (first + block * w.stretches) * w.C + tile
            here = min(w.span, w.images - seen)
            share, per_value = here / (seen + here), (w.edges[t + 1] - w.edges[t]) * seen
            for c in range(some):
                away = w.parts[at + c] - mean[c]
                mean[c] += away * share
                squares[c] += w.parts[at + w.C + c] + away * away * per_value * share
            seen += here
        for c in range(some):
            at = 2 * first * w.C + tile + c
            w.parts[at], w.parts[at + w.C] = mean[c], squares[c]


@algebra
def merge_sums(w, r, t):
    """As ``merge``, of sums."""
    first = r * w.spans * w.stretches + t
    for block in range(1, w.spans):
        at, more = 2 * first * w.C, 2 * (first + block * w.stretches) * w.C
        for c in range(2 * w.C):
            w.parts[at + c] += w.parts[more + c]


@algebra
def settle(w, r):
    """The statistics of row r's groups, from those of its stretches, and its coefficients."""
    row, first = r * w.G, r * w.spans * w.stretches
    if not w.fixed:
        for g in range(row, row + w.G):
            w.mean[g], w.var[g] = 0.0, 0.0
        for t in range(w.stretches):
            at, values = 2 * (first + t) * w.C, w.images * (w.edges[t + 1] - w.edges[t])
            for c in range(w.C):
                w.mean[row + w.group[t * w.C + c]] += values * w.parts[at + c]
        for g in range(w.G):
            w.mean[row + g] /= w.images * (w.begins[g + 1] - w.begins[g])
        for t in range(w.stretches):
            at, values = 2 * (first + t) * w.C, w.images * (w.edges[t + 1] - w.edges[t])
            for c in range(w.C):
                g = row + w.group[t * w.C + c]
                away = w.parts[at + c] - w.mean[g]
                w.var[g] += w.parts[at + w.C + c] + values * away * away
        for g in range(w.G):
            w.var[row + g] /= w.images * (w.begins[g + 1] - w.begins[g])
    for g in range(w.G):
        w.rstd[row + g] = 1.0 / root(w.var[row + g] + w.eps)
    for t in range(w.stretches):
        spread(w, r, t)


@algebra
def apply(w, i):
    """y of a piece."""
    m, a, b, low = scratch(w.x, TILE), scratch(w.x, TILE), scratch(w.x, TILE), scratch(w.x, TILE)
    r, t, n, last_n, p, last_p = place(w, i)
    count, crosswise = runs(w, n, last_n, p, last_p)
    for tile in range(0, w.C, TILE):
        some = min(TILE, w.C - tile)
        used = min(side_by_side(w), last_p - p) * some
        take_all(w, r, t, tile, some, used, m, a, b, low)
        for j in range(count):
            base, stride, first, last, side, abreast = run(w, n, last_n, p, last_p, j, crosswise, tile, some)
            lanes.apply_all(w, base, stride, first, last, side, abreast * some, m, a, b, low, m, m)


@algebra
def pour(one, two, ones, twos, used):
    """Add sums in the maps' type to those in float64, and begin them anew."""
    for c in range(used):
        ones[c] += NUMBER(one[c])
        twos[c] += NUMBER(two[c])
        one[c], two[c] = number(one, 0.0), number(two, 0.0)


@algebra
def note_sums(w, i):
    """The sums over dz, and then over dz (x − m), of a piece's channels; where they are ``direct``, dx too."""
    m, a, b, cut = scratch(w.x, TILE), scratch(w.x, TILE), scratch(w.x, TILE), scratch(w.x, TILE)
    one, two = scratch(w.x, TILE), scratch(w.x, TILE)
    ones, twos = scratch(w.mean, TILE), scratch(w.mean, TILE)
    r, t, n, last_n, p, last_p = place(w, i)
    count, crosswise = runs(w, n, last_n, p, last_p)
    for tile in range(0, w.C, TILE):
        some, at = min(TILE, w.C - tile), 2 * i * w.C + tile
        used = min(side_by_side(w), last_p - p) * some
        take_all(w, r, t, tile, some, used, m, a, b, cut)
        for c in range(used):
            one[c], two[c], ones[c], twos[c] = number(w.x, 0.0), number(w.x, 0.0), 0.0, 0.0
        held = 0
        for j in range(count):
            base, stride, first, last, side, abreast = run(w, n, last_n, p, last_p, j, crosswise, tile, some)
            for step in range((last - first + BLOCK * side - 1) // (BLOCK * side)):
                block = first + step * BLOCK * side
                stop = min(block + BLOCK * side, last)
                lanes.sum_all(w, base, stride, block, stop, side, abreast * some, m, a, b, cut, a, one, two, one)
                held += (stop - block + side - 1) // side
                if held >= BLOCK:
                    pour(one, two, ones, twos, used)
                    held = 0
        pour(one, two, ones, twos, used)
        for c in range(some, used):
            ones[c % some] += ones[c]
            twos[c % some] += twos[c]
        for c in range(some):
            w.parts[at + c], w.parts[at + w.C + c] = ones[c], twos[c]


@algebra
def pull(w, r):
    """From the sums of row r's stretches, p and q of its coefficients, with dx = dz a + (x − m) p + q."""
    row, RG, TC, RTC = r * w.G, w.R * w.G, w.stretches * w.C, w.R * w.stretches * w.C
    for g in range(row, row + w.G):
        w.slopes[g], w.slopes[RG + g] = 0.0, 0.0
    for t in range(w.stretches):
        at = 2 * (r * w.spans * w.stretches + t) * w.C
        for c in range(w.C):
            g, j = row + w.group[t * w.C + c], (r * w.stretches + t) * w.C + c
            one, a = w.parts[at + c], NUMBER(w.table[RTC + j])
            w.slopes[g] += a * (w.parts[at + w.C + c] - (w.mean[g] - w.table[j]) * one)
            w.slopes[RG + g] += a * one
    for g in range(w.G):
        per_value = 1.0 / (w.images * (w.begins[g + 1] - w.begins[g]))
        w.slopes[row + g] *= -w.rstd[row + g] * w.rstd[row + g] * per_value
        w.slopes[RG + row + g] *= -per_value
    for i in range(TC):
        g, j = row + w.group[i], r * TC + i
        w.table[3 * RTC + j] = number(w.x, w.slopes[g])
        w.table[4 * RTC + j] = number(w.x, w.slopes[RG + g] - w.slopes[g] * (w.mean[g] - w.table[j]))


@algebra
def back(w, i):
    """dx of a piece."""
    m, a, b, cut = scratch(w.x, TILE), scratch(w.x, TILE), scratch(w.x, TILE), scratch(w.x, TILE)
    slope, shift = scratch(w.x, TILE), scratch(w.x, TILE)
    r, t, n, last_n, p, last_p = place(w, i)
    count, crosswise = runs(w, n, last_n, p, last_p)
    at, RTC = (r * w.stretches + t) * w.C, w.R * w.stretches * w.C
    for tile in range(0, w.C, TILE):
        some = min(TILE, w.C - tile)
        used = min(side_by_side(w), last_p - p) * some
        take_all(w, r, t, tile, some, used, m, a, b, cut)
        take(w, 3 * RTC + at, tile, some, used, slope)
        take(w, 4 * RTC + at, tile, some, used, shift)
        for j in range(count):
            base, stride, first, last, side, abreast = run(w, n, last_n, p, last_p, j, crosswise, tile, some)
            lanes.back_all(w, base, stride, first, last, side, abreast * some, m, a, b, cut, a, slope, shift)


@algebra
def finish(w, block):
    """The gradients of γ and β of a block of channels, from the sums of all stretches."""
    first = block * FINISHED
    length = min(FINISHED, w.C - first)
    gamma, beta = scratch(w.mean, FINISHED), scratch(w.mean, FINISHED)
    for c in range(length):
        gamma[c], beta[c] = 0.0, 0.0
    for i in range(w.R * w.stretches):
        r, t, j = i // w.stretches, i % w.stretches, i * w.C + first
        at = 2 * (r * w.spans * w.stretches + t) * w.C + first
        for c in range(length):
            g, one = r * w.G + w.group[t * w.C + first + c], w.parts[at + c]
            beta[c] += one
            gamma[c] += (w.parts[at + w.C + c] - (w.mean[g] - w.table[j + c]) * one) * w.rstd[g]
    for c in range(length):
        if w.wants_weight:
            w.dweight[first + c] = number(w.x, gamma[c])
        if w.wants_bias:
            w.dbias[first + c] = number(w.x, beta[c])


@algebra
def forward_row(w, r):
    first, stop = pieces_of(w, r)
    if not w.fixed:
        for i in range(first, stop):
            note_moments(w, i)
        for t in range(w.stretches):
            merge(w, r, t)
    settle(w, r)
    for i in range(first, stop):
        apply(w, i)


@algebra
def backward_row(w, r):
    first, stop = pieces_of(w, r)
    for t in range(w.stretches):
        spread(w, r, t)
    for i in range(first, stop):
        note_sums(w, i)
    for t in range(w.stretches):
        merge_sums(w, r, t)
    if w.has_dx and not w.direct:
        pull(w, r)
        for i in range(first, stop):
            back(w, i)


@algebra
def forward_pieces(w, phase, start, stop):
    for i in range(start, stop):
        if phase == GROUP:
            forward_row(w, i)
        elif phase == COLUMNS:
            note_moments(w, i)
        elif phase == MERGE:
            merge(w, i // w.stretches, i % w.stretches)
        elif phase == SETTLE:
            settle(w, i)
        elif phase == MAPS:
            apply(w, i)
        else:
            track(w)


@algebra
def backward_pieces(w, phase, start, stop):
    for i in range(start, stop):
        if phase == GROUP:
            backward_row(w, i)
        elif phase == SPREAD:
            spread(w, i // w.stretches, i % w.stretches)
        elif phase == COLUMNS:
            note_sums(w, i)
        elif phase == MERGE:
            merge_sums(w, i // w.stretches, i % w.stretches)
        elif phase == SETTLE:
            pull(w, i)
        elif phase == MAPS:
            back(w, i)
        else:
            finish(w, i)


stretches_forward = worker(unpack, forward_pieces)
stretches_backward = worker(unpack, backward_pieces)
