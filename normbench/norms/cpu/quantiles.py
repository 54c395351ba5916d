"""The kernel of proxy normalization's statistics: those of relu(γ Y + β) over a sorted grid Y, for every channel.

The formulas stand in norms/proxy.py (relu_moments), with the table ``ends`` that both read. Here a binary search and a
dozen operations a channel, where tensors need as many passes over all channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from normbench.norms.cpu.pointers import NUMBER, WHOLE, algebra, at, number, root


@algebra
def first_above(grid, points, gamma, beta):
    """The first point with γ Y + β > 0, for γ not negative."""
    if gamma == 0.0:
        return 0 if beta > 0.0 else points
    edge, low, high = -beta / gamma, 0, points
    while low < high:
        middle = (low + high) // 2
        if grid[middle] <= edge:
            low = middle + 1
        else:
            high = middle
    return low


def quantiles(T: Any) -> Callable[[int], None]:
    """For parameters of type T: scale and shift, or, where their gradients are given, those of γ and β."""

    def run(block: int) -> None:
        a, eps = at(block, WHOLE), at(block + 12 * 8, NUMBER)[0]
        grid, ends = at(a[4], NUMBER), at(a[5], NUMBER)
        for c in range(a[0]):
            gamma, beta = NUMBER(at(a[2], T)[c]), NUMBER(at(a[3], T)[c])
            slope = abs(gamma)
            i = 3 * first_above(grid, a[1], slope, beta)
            share, mean, squares = ends[i], ends[i + 1], ends[i + 2]
            inside = slope * mean + beta
            m = share * inside
            v = slope * slope * squares + share * (1.0 - share) * inside * inside
            scale = 1.0 / root(v + eps)
            if a[8] == 0:
                at(a[6], T)[c] = number(at(a[6], T), scale)
                at(a[7], T)[c] = number(at(a[7], T), -m * scale)
            else:
                dscale, dshift = NUMBER(at(a[8], T)[c]), NUMBER(at(a[9], T)[c])
                dm = -scale * dshift
                dv = -0.5 * scale * scale * scale * (dscale - m * dshift)
                dinside = dm * share + 2.0 * dv * share * (1.0 - share) * inside
                dslope = dinside * mean + 2.0 * dv * slope * squares
                if gamma < 0.0:
                    dslope = -dslope
                if gamma == 0.0:
                    dslope = 0.0
                at(a[10], T)[c] = number(at(a[10], T), dslope)
                at(a[11], T)[c] = number(at(a[11], T), dinside)

    return run
