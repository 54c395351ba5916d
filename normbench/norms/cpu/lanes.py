"""Lanes: values side by side in memory that have coefficients of their own, up to TILE; and the loops over them.

In channels_last they are the channels of a pixel, or of a few (pixels.py); in small maps that lie one after another,
the values of the maps of a few channels of an image (small.py). ``at`` is where the first lane's value lies. What is
summed in a lane does not depend on which other lanes there are.
"""

from __future__ import annotations

from normbench.norms.cpu import maps
from normbench.norms.cpu.pointers import algebra, alike, elementwise, number

# How many steps ahead dy is fetched.
STEPS_AHEAD = 2


@alike
def totals(x, start, steps, stride, some, total):
    """Sums over steps, the first of which lies at ``start``."""
    for c in range(some):
        total[c] = number(x, 0.0)
    for i in range(steps // 4):
        at = start + 4 * i * stride
        for c in range(some):
            total[c] += (x[at + c] + x[at + stride + c]) + (x[at + 2 * stride + c] + x[at + 3 * stride + c])
    for i in range(steps // 4 * 4, steps):
        at = start + i * stride
        for c in range(some):
            total[c] += x[at + c]


@alike
def squares(x, start, steps, stride, some, m, rest, around):
    """Sums over steps of x − m, which is what rounding left of m, and of its square."""
    for c in range(some):
        rest[c], around[c] = number(x, 0.0), number(x, 0.0)
    for i in range(steps // 2):
        at = start + 2 * i * stride
        for c in range(some):
            apart, other = x[at + c] - m[c], x[at + stride + c] - m[c]
            rest[c] += apart + other
            around[c] += apart * apart + other * other
    if steps % 2:
        at = start + (steps - 1) * stride
        for c in range(some):
            apart = x[at + c] - m[c]
            rest[c] += apart
            around[c] += apart * apart


@elementwise
def apply(x, y, at, some, m, a, b, low, high):
    """y = (x − m) a + b, not below ``low`` nor above ``high``; NaN stays."""
    for c in range(some):
        y[at + c] = maps.clipped((x[at + c] - m[c]) * a[c] + b[c], low[c], high)


@elementwise
def apply_sum(x, residual, y, at, some, m, a, b, low, high):
    """As ``apply``, of y and the residual together."""
    for c in range(some):
        y[at + c] = maps.clipped((x[at + c] - m[c]) * a[c] + b[c] + residual[at + c], low[c], high)


@elementwise
def scale_shift(y, at, some, scale, shift):
    """y scale + shift in place."""
    for c in range(some):
        y[at + c] = y[at + c] * scale[c] + shift[c]


@alike
def sums(x, dy, at, some, m, a, b, cut, high, one, two):
    """Add dz and dz (x − m), where dz is dy as the activation lets it through."""
    for c in range(some):
        dz, moment = maps.passed(x, dy, at + c, m[c], a[c], b[c], cut[c], high)
        one[c] += dz
        two[c] += moment


@alike
def sums_two(x, dy, at, next_at, some, m, a, b, cut, high, one, two):
    """``sums`` for two of them: what is kept near at hand is then fetched and put back once."""
    for c in range(some):
        dz, moment = maps.passed(x, dy, at + c, m[c], a[c], b[c], cut[c], high)
        other, other_moment = maps.passed(x, dy, next_at + c, m[c], a[c], b[c], cut[c], high)
        one[c] += dz + other
        two[c] += moment + other_moment


@alike
def sums_uncut(x, dz, at, some, m, one, two):
    """``sums`` where nothing is cut off."""
    for c in range(some):
        one[c] += dz[at + c]
        two[c] += dz[at + c] * (x[at + c] - m[c])


@alike
def sums_two_uncut(x, dz, at, next_at, some, m, one, two):
    """``sums_two`` where nothing is cut off."""
    for c in range(some):
        one[c] += dz[at + c] + dz[next_at + c]
        two[c] += dz[at + c] * (x[at + c] - m[c]) + dz[next_at + c] * (x[next_at + c] - m[c])


@alike
def sums_direct(x, dy, dx, at, some, m, a, b, cut, high, through, one, two):
    """``sums``, which writes dx = dz ``through``."""
    for c in range(some):
        dz, moment = maps.passed(x, dy, at + c, m[c], a[c], b[c], cut[c], high)
        dx[at + c] = dz * through[c]
        one[c] += dz
        two[c] += moment


@alike
def sums_direct_uncut(x, dy, dx, at, some, m, through, one, two):
    """``sums_direct`` where nothing is cut off."""
    for c in range(some):
        dx[at + c] = dy[at + c] * through[c]
        one[c] += dy[at + c]
        two[c] += dy[at + c] * (x[at + c] - m[c])


@alike
def sums_masked(x, y, dy, dz, at, some, m, low, high, one, two):
    """``sums`` behind a residual sum, where y tells what the activation let through; writes dz."""
    for c in range(some):
        dz[at + c], moment = maps.let_by(x, y, dy, at + c, m[c], low, high)
        one[c] += dz[at + c]
        two[c] += moment


@alike
def sums_masked_direct(x, y, dy, dz, dx, at, some, m, low, high, through, one, two):
    """``sums_masked``, which writes dx = dz ``through`` too."""
    for c in range(some):
        dz[at + c], moment = maps.let_by(x, y, dy, at + c, m[c], low, high)
        dx[at + c] = dz[at + c] * through[c]
        one[c] += dz[at + c]
        two[c] += moment


@alike
def total(dy, at, some, three):
    """Add dy."""
    for c in range(some):
        three[c] += dy[at + c]


@elementwise
def back(x, dy, dx, at, some, m, a, b, cut, high, through, p, q):
    """dx = dz ``through`` + (x − m) p + q."""
    for c in range(some):
        apart = x[at + c] - m[c]
        z = apart * a[c] + b[c]
        dz = dy[at + c]
        if z <= cut[c] or z >= high:
            dz = number(x, 0.0)
        dx[at + c] = dz * through[c] + (apart * p[c] + q[c])


@elementwise
def back_known(x, dz, dx, at, some, m, through, p, q):
    """As ``back``, of dz itself."""
    for c in range(some):
        dx[at + c] = dz[at + c] * through[c] + ((x[at + c] - m[c]) * p[c] + q[c])


@algebra
def apply_all(w, base, stride, first, last, side, some, m, a, b, low, scale, shift):
    """y from x, for steps ``first`` to ``last``, of which p lies at ``base`` + p ``stride``.

    ``side`` steps of ``some`` lanes each are one stretch of memory, and done at a time.
    """
    high = number(w.x, w.high)
    for i in range((last - first + side - 1) // side):
        p = first + i * side
        at, length = base + p * stride, min(side, last - p) * some
        if w.has_sum:
            apply_sum(w.x, w.residual, w.y, at, length, m, a, b, low, high)
        else:
            apply(w.x, w.y, at, length, m, a, b, low, high)
        if w.has_after:
            scale_shift(w.y, at, length, scale, shift)


@algebra
def sum_all(w, base, stride, first, last, side, some, m, a, b, cut, through, one, two, three):
    """Add dz to ``one``, dz (x − m) to ``two`` and, where wanted, dy to ``three``; steps as in ``apply_all``.

    Where sums are ``direct``, and behind a residual sum, dx and dz are written too.
    """
    high, low = number(w.x, w.high), number(w.x, w.low)
    p = first
    while p < last:
        at, next_at, length = base + p * stride, base + (p + side) * stride, min(side, last - p) * some
        if w.has_sum:
            if w.direct:
                sums_masked_direct(w.x, w.out, w.dy, w.dz, w.dx, at, length, m, low, high, through, one, two)
            else:
                sums_masked(w.x, w.out, w.dy, w.dz, at, length, m, low, high, one, two)
            p += side
        elif w.direct:
            if w.uncut:
                sums_direct_uncut(w.x, w.dy, w.dx, at, length, m, through, one, two)
            else:
                sums_direct(w.x, w.dy, w.dx, at, length, m, a, b, cut, high, through, one, two)
            p += side
        elif p + 2 * side <= last:
            if w.uncut:
                sums_two_uncut(w.x, w.dy, at, next_at, side * some, m, one, two)
            else:
                sums_two(w.x, w.dy, at, next_at, side * some, m, a, b, cut, high, one, two)
            p += 2 * side
        else:
            if w.uncut:
                sums_uncut(w.x, w.dy, at, length, m, one, two)
            else:
                sums(w.x, w.dy, at, length, m, a, b, cut, high, one, two)
            p += side
    if w.has_threshold or w.has_after:
        for i in range((last - first + side - 1) // side):
            p = first + i * side
            total(w.dy, base + p * stride, min(side, last - p) * some, three)


@algebra
def back_all(w, base, stride, first, last, side, some, m, a, b, cut, through, slope, shift):
    """dx, from dy, or from dz where that is there. Steps as in ``apply_all``."""
    high = number(w.x, w.high)
    for i in range((last - first + side - 1) // side):
        p = first + i * side
        at, length = base + p * stride, min(side, last - p) * some
        if w.has_sum:
            back_known(w.x, w.dz, w.dx, at, length, m, through, slope, shift)
        elif w.uncut:
            back_known(w.x, w.dy, w.dx, at, length, m, through, slope, shift)
        else:
            if p + STEPS_AHEAD * side < last:  # dy is not read where it is cut off, and so not foreseen
                maps.ahead(w.dy, at + STEPS_AHEAD * side * stride, length)
            back(w.x, w.dy, w.dx, at, length, m, a, b, cut, high, through, slope, shift)
