"""Kernels for maps of one pixel with statistics of each image: a group's values lie side by side, and so do an image's.

    t = (x − μ) r,   y = γ t + β;   dx = r (g − mean(g) − t mean(g t)),   g = γ dz
with r = 1/√(σ² + ε). A coefficient would belong to a single value, so none is kept: the backward has μ and r of the
groups, (N, G), and where a group is one value, x itself. A piece of work is a span of images, a TILE of channels at a
time; its sums over dz, dz t and dy go into ``parts``, (spans, 3, C), of which FINISH makes the parameters' gradients.
``sums`` holds those over g and g t of groups wider than a tile, (N, G, 2).
"""

from __future__ import annotations

from normbench.norms.cpu import maps
from normbench.norms.cpu.arguments import unpack
from normbench.norms.cpu.blocks import FINISHED, GROUP, RUN, TILE
from normbench.norms.cpu.family import scale_after
from normbench.norms.cpu.lanes import scale_shift
from normbench.norms.cpu.pointers import NUMBER, algebra, elementwise, number, reduction, root, scratch, worker


@algebra
def tile_of(w):
    """Channels that are gone over at once: whole groups, if a tile holds one."""
    return TILE // w.width * w.width if w.width <= TILE else TILE


@algebra
def affine(w, tile, some, gamma, beta, low):
    """A tile of γ, β and of what the activation cuts off at, near at hand."""
    for c in range(some):
        gamma[c], beta[c], low[c] = number(w.x, 1.0), number(w.x, 0.0), number(w.x, w.low)
    if w.has_weight:
        for c in range(some):
            gamma[c] = w.weight[tile + c]
    if w.has_bias:
        for c in range(some):
            beta[c] = w.bias[tile + c]
    if w.has_threshold:
        for c in range(some):
            low[c] = w.threshold[tile + c]


@algebra
def measure(w, first, last):
    """Note the statistics of groups ``first`` to ``last``, RUN or fewer, whose algebra is done in one go."""
    mean, var, per_value = scratch(w.mean, RUN), scratch(w.mean, RUN), w.per_group
    for i in range(last - first):
        mean[i], var[i] = maps.moments(w.x, (first + i) * w.width, w.width, per_value)
    for i in range(last - first):
        var[i] *= per_value
    if not w.centered:
        for i in range(last - first):
            var[i] += mean[i] * mean[i]
            mean[i] = 0.0
    for i in range(last - first):
        w.mean[first + i] = mean[i]
        w.var[first + i] = var[i]
        w.rstd[first + i] = 1.0 / root(var[i] + w.eps)


@elementwise
def standard(x, at, length, mean, rstd, t, first):
    """t of a run of a group's values. m is μ rounded, and what rounding took from it is left over."""
    m, r = number(x, mean), number(x, rstd)
    rest = number(x, (mean - m) * rstd)
    for c in range(length):
        t[first + c] = (x[at + c] - m) * r - rest


@elementwise
def standard_lone(x, at, some, own, eps, t, r):
    """t and r of groups of one value: centred (``own`` 0) they are nothing, else their mean square is their square."""
    for c in range(some):
        apart = x[at + c] - x[at + c] * (number(x, 1.0) - own)
        r[c] = number(x, 1.0) / root(apart * apart + eps)
        t[c] = apart * r[c]


@algebra
def normal(w, n, tile, some, t, r):
    """A tile of t of image n; and of r, if groups are of one value."""
    start = n * w.C
    if w.width == 1:
        standard_lone(w.x, start + tile, some, number(w.x, not w.centered), number(w.x, w.eps), t, r)
        return
    g, c = tile // w.width, tile
    while c < tile + some:
        stop, i = min((g + 1) * w.width, tile + some), n * w.G + g
        standard(w.x, start + c, stop - c, w.mean[i], w.rstd[i], t, c - tile)
        g, c = g + 1, stop


@elementwise
def apply(y, at, some, t, gamma, beta, low, high):
    for c in range(some):
        y[at + c] = maps.clipped(t[c] * gamma[c] + beta[c], low[c], high)


@elementwise
def apply_sum(residual, y, at, some, t, gamma, beta, low, high):
    for c in range(some):
        y[at + c] = maps.clipped(t[c] * gamma[c] + beta[c] + residual[at + c], low[c], high)


@algebra
def forward_span(w, first, last):
    gamma, beta, low = scratch(w.x, TILE), scratch(w.x, TILE), scratch(w.x, TILE)
    scale, shift = scratch(w.x, TILE), scratch(w.x, TILE)
    t, r, high = scratch(w.x, TILE), scratch(w.x, TILE), number(w.x, w.high)
    if w.width > 1:
        for start in range(first * w.G, last * w.G, RUN):
            measure(w, start, min(start + RUN, last * w.G))
    wide = tile_of(w)
    for part in range((w.C + wide - 1) // wide):
        tile, some = part * wide, min(wide, w.C - part * wide)
        affine(w, tile, some, gamma, beta, low)
        if w.has_after:
            for c in range(some):
                scale[c], shift[c] = w.scale[tile + c], w.shift[tile + c]
        for n in range(first, last):
            at = n * w.C + tile
            normal(w, n, tile, some, t, r)
            if w.has_sum:
                apply_sum(w.residual, w.y, at, some, t, gamma, beta, low, high)
            else:
                apply(w.y, at, some, t, gamma, beta, low, high)
            if w.has_after:
                scale_shift(w.y, at, some, scale, shift)


@elementwise
def gather(dy, at, some, t, gamma, beta, cut, high, through, one, two, g):
    """g, of dy as far as the activation let it through, and what that adds to the sums over dz and dz t."""
    for c in range(some):
        z = t[c] * gamma[c] + beta[c]
        dz = dy[at + c]
        if z <= cut[c] or z >= high:
            dz = number(dy, 0.0)
        one[c] += dz
        two[c] += dz * t[c]
        g[c] = dz * through[c]


@elementwise
def gather_sum(y, dy, out, at, some, t, low, high, through, one, two, g):
    """The same behind a residual sum, where y tells what the activation let through; writes dz."""
    for c in range(some):
        dz = dy[at + c]
        if y[at + c] <= low or y[at + c] >= high:
            dz = number(dy, 0.0)
        one[c] += dz
        two[c] += dz * t[c]
        g[c] = dz * through[c]
        out[at + c] = dz


@reduction
def total(first, last, g, t):
    """Sums over g and g t of a run of a group's values."""
    one, two = number(g, 0.0), number(g, 0.0)
    for c in range(first, last):
        one += g[c]
        two += g[c] * t[c]
    return NUMBER(one), NUMBER(two)


@elementwise
def back(dx, at, first, last, rstd, one, two, t, g):
    """dx of a group from its means of g and g t."""
    r, mean_g, mean_gt = number(dx, rstd), number(dx, one), number(dx, two)
    for c in range(first, last):
        dx[at + c] = r * (g[c] - mean_g - t[c] * mean_gt)


@algebra
def back_groups(w, n, tile, some, t, g):
    """dx of a tile of image n that holds whole groups, and the gradient of σ²."""
    at, first = n * w.C + tile, n * w.G + tile // w.width
    for i in range(some // w.width):
        rstd = w.rstd[first + i]
        one, two = total(i * w.width, (i + 1) * w.width, g, t)
        if w.wants_var:
            w.dvar[first + i] = -0.5 * rstd * rstd * two
        if w.has_dx:
            one, two = one * w.per_group * w.centered, two * w.per_group
            back(w.dx, at, i * w.width, (i + 1) * w.width, rstd, one, two, t, g)


@algebra
def total_tile(w, n, tile, some, t, g):
    """Add a tile of image n, of a group that is wider than a tile, or the ends of two, to the sums over g and g t."""
    group, c = tile // w.width, tile
    while c < tile + some:
        stop, i = min((group + 1) * w.width, tile + some), 2 * (n * w.G + group)
        one, two = total(c - tile, stop - tile, g, t)
        w.sums[i] += one
        w.sums[i + 1] += two
        group, c = group + 1, stop


@elementwise
def back_lone(dx, at, some, own, eps, g, r):
    """dx = r (g − t² g), of which 1 − t² is ε r²; nothing if centred."""
    for c in range(some):
        dx[at + c] = g[c] * own * (eps * r[c] * r[c]) * r[c]


@elementwise
def back_wide(x, dx, at, length, mean, rstd, one, two):
    """dx of a group, from g, which is where dx shall be."""
    m, r = number(x, mean), number(x, rstd)
    rest, mean_g, mean_gt = number(x, (mean - m) * rstd), number(x, one), number(x, two)
    for c in range(length):
        t = (x[at + c] - m) * r - rest
        dx[at + c] = r * (dx[at + c] - mean_g - t * mean_gt)


@algebra
def finish_wide(w, n):
    """dx of image n and the gradient of σ² where groups are wider than a tile, from their sums."""
    for i in range(n * w.G, (n + 1) * w.G):
        rstd, one, two = w.rstd[i], w.sums[2 * i] * w.per_group, w.sums[2 * i + 1] * w.per_group
        if w.wants_var:
            w.dvar[i] = -0.5 * rstd * rstd * w.sums[2 * i + 1]
        if w.has_dx:
            back_wide(w.x, w.dx, i * w.width, w.width, w.mean[i], rstd, one * w.centered, two)


@algebra
def back_tile(w, n, tile, some, t, r, g):
    """What a tile of image n gives to dx and to the gradient of σ²; of a group wider than a tile as yet g."""
    at = n * w.C + tile
    if w.width > TILE:
        total_tile(w, n, tile, some, t, g)
        if w.has_dx:
            for c in range(some):
                w.dx[at + c] = g[c]
        return
    if w.width > 1:
        back_groups(w, n, tile, some, t, g)
        return
    if w.has_dx:
        back_lone(w.dx, at, some, number(w.x, not w.centered), number(w.x, w.eps), g, r)
    if w.wants_var:
        for c in range(some):
            w.dvar[at + c] = -0.5 * NUMBER(r[c]) * NUMBER(r[c]) * NUMBER(g[c]) * NUMBER(t[c])


@algebra
def backward_span(w, i, first, last):
    gamma, beta, cut, through = scratch(w.x, TILE), scratch(w.x, TILE), scratch(w.x, TILE), scratch(w.x, TILE)
    t, r, g = scratch(w.x, TILE), scratch(w.x, TILE), scratch(w.x, TILE)
    one, two, three = scratch(w.x, TILE), scratch(w.x, TILE), scratch(w.x, TILE)
    low, high = number(w.x, w.low), number(w.x, w.high)
    if w.width > TILE:
        for s in range(2 * first * w.G, 2 * last * w.G):
            w.sums[s] = 0.0
    wide = tile_of(w)
    for part in range((w.C + wide - 1) // wide):
        tile, some = part * wide, min(wide, w.C - part * wide)
        affine(w, tile, some, gamma, beta, cut)
        for c in range(some):
            through[c] = number(w.x, gamma[c] * scale_after(w, tile + c))
            one[c], two[c], three[c] = number(w.x, 0.0), number(w.x, 0.0), number(w.x, 0.0)
        for n in range(first, last):
            at = n * w.C + tile
            normal(w, n, tile, some, t, r)
            if w.has_sum:
                gather_sum(w.out, w.dy, w.dz, at, some, t, low, high, through, one, two, g)
            else:
                gather(w.dy, at, some, t, gamma, beta, cut, high, through, one, two, g)
            if w.has_threshold or w.has_after:
                for c in range(some):
                    three[c] += w.dy[at + c]
            back_tile(w, n, tile, some, t, r, g)
        place = 3 * i * w.C + tile
        for c in range(some):
            w.parts[place + c], w.parts[place + w.C + c] = NUMBER(one[c]), NUMBER(two[c])
            w.parts[place + 2 * w.C + c] = NUMBER(three[c])
    if w.width > TILE:
        for n in range(first, last):
            finish_wide(w, n)


@algebra
def finish(w, block):
    """The gradients of the parameters of a block of channels, from the sums of the spans."""
    one, two, three = scratch(w.sums, FINISHED), scratch(w.sums, FINISHED), scratch(w.sums, FINISHED)
    first = block * FINISHED
    length = min(FINISHED, w.C - first)
    for c in range(length):
        one[c], two[c], three[c] = 0.0, 0.0, 0.0
    for i in range(w.spans):
        at = 3 * i * w.C + first
        for c in range(length):
            one[c] += w.parts[at + c]
            two[c] += w.parts[at + w.C + c]
            three[c] += w.parts[at + 2 * w.C + c]
    for c in range(length):
        after, cut, other = scale_after(w, first + c), three[c] - one[c], 0.0
        if w.wants_weight:
            w.dweight[first + c] = number(w.x, two[c] * after)
        if w.wants_bias:
            w.dbias[first + c] = number(w.x, one[c] * after)
        if w.wants_threshold:
            w.dthreshold[first + c] = number(w.x, cut * after)
        if w.wants_after:  # Σ dy z, where z is γ t + β or the threshold
            if w.has_weight:
                two[c] *= w.weight[first + c]
            other = two[c]
            if w.has_bias:
                other += w.bias[first + c] * one[c]
            if w.has_threshold:
                other += w.threshold[first + c] * cut
            w.dscale[first + c], w.dshift[first + c] = number(w.x, other), number(w.x, three[c])


@algebra
def forward_pieces(w, phase, start, stop):
    for i in range(start, stop):
        forward_span(w, i * w.span, min((i + 1) * w.span, w.N))


@algebra
def backward_pieces(w, phase, start, stop):
    for i in range(start, stop):
        if phase == GROUP:
            backward_span(w, i, i * w.span, min((i + 1) * w.span, w.N))
        else:
            finish(w, i)


rows_forward = worker(unpack, forward_pieces)
rows_backward = worker(unpack, backward_pieces)
