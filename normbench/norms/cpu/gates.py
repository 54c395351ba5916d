"""The algebra of gated groups that are a column of each image (iebn), channel by channel in vector registers.

As ``settle``, ``pull`` and ``gather`` of family.py, for neighbouring channels at a time, image by image.
"""

from __future__ import annotations

from normbench.norms.cpu.blocks import RUN
from normbench.norms.cpu.pointers import NUMBER, algebra, number, power_of_two, root, rounded, scratch

# log₂ e, and ln 2 in two parts, of which the first times a whole number is exact.
LOG2_E, LN2_HIGH, LN2_LOW = 1.4426950408889634, 6.93147180369123816490e-01, 1.90821492927058770002e-10
# Beyond these the sigmoid is 0 or 1 in float64, and 2ⁿ a number still.
LARGEST = 700.0


@algebra
def gated(w):
    """Whether each group is the columns of one channel, with gates."""
    return w.has_gate and w.width == 1 and not w.has_renorm


@algebra
def exponential(x):
    """eˣ to the last digit but one, without a branch, so that many are done at once (the C library's does one)."""
    x = min(max(x, -LARGEST), LARGEST)
    n = rounded(x * LOG2_E)
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    p = 1.0 / 6227020800.0
    p = p * r + 1.0 / 479001600.0
    p = p * r + 1.0 / 39916800.0
    p = p * r + 1.0 / 3628800.0
    p = p * r + 1.0 / 362880.0
    p = p * r + 1.0 / 40320.0
    p = p * r + 1.0 / 5040.0
    p = p * r + 1.0 / 720.0
    p = p * r + 1.0 / 120.0
    p = p * r + 1.0 / 24.0
    p = p * r + 1.0 / 6.0
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    return p * power_of_two(n)


@algebra
def pooled_run(w, r, first, length, mean, var):
    """Mean and biased variance of the channels from ``first`` on, over the images of row r."""
    away, between = scratch(w.mean, RUN), scratch(w.mean, RUN)
    start = r * w.split
    for t in range(length):
        mean[t], var[t], away[t], between[t] = w.columns[start * w.C + first + t], 0.0, 0.0, 0.0
    for k in range(start, start + w.split):
        j = k * w.C + first
        for t in range(length):
            apart = w.columns[j + t] - mean[t]
            away[t] += apart
            between[t] += apart * apart
            var[t] += w.squares[j + t]
    for t in range(length):
        shift = away[t] / w.split
        mean[t] += shift
        var[t] = max(between[t] - shift * away[t], 0.0) / w.split + var[t] * w.per_column / w.split


@algebra
def settle_gates(w, r, first, last):
    """``settle`` for channels ``first`` to ``last``, RUN or fewer, of row r."""
    length, KC, i = last - first, w.K * w.C, r * w.C + first
    mean, var, rstd = scratch(w.mean, RUN), scratch(w.mean, RUN), scratch(w.mean, RUN)
    gamma, beta = scratch(w.mean, RUN), scratch(w.mean, RUN)
    slope, bias = scratch(w.mean, RUN), scratch(w.mean, RUN)
    if w.fixed:
        for t in range(length):
            mean[t], var[t] = w.mean[i + t], w.var[i + t]
    else:
        pooled_run(w, r, first, length, mean, var)
        if not w.centered:
            for t in range(length):
                var[t] += mean[t] * mean[t]
                mean[t] = 0.0
        for t in range(length):
            w.mean[i + t], w.var[i + t] = mean[t], var[t]
    for t in range(length):
        rstd[t] = 1.0 / root(var[t] + w.eps)
        gamma[t], beta[t] = rstd[t], 0.0
        slope[t], bias[t] = NUMBER(w.gate_weight[first + t]), NUMBER(w.gate_bias[first + t])
    for t in range(length):
        w.rstd[i + t] = rstd[t]
    if w.has_weight:
        for t in range(length):
            gamma[t] = NUMBER(w.weight[first + t]) * rstd[t]
    if w.has_bias:
        for t in range(length):
            beta[t] = NUMBER(w.bias[first + t])
    m, a, b, open_to = scratch(w.x, RUN), scratch(w.x, RUN), scratch(w.x, RUN), scratch(w.mean, RUN)
    for k in range(r * w.split, (r + 1) * w.split):
        j = k * w.C + first
        for t in range(length):
            open_to[t] = 1.0 / (1.0 + exponential(-(slope[t] * w.columns[j + t] + bias[t])))
        for t in range(length):
            factor = gamma[t] * open_to[t]
            m[t] = number(w.x, mean[t])
            a[t] = number(w.x, factor)
            b[t] = number(w.x, beta[t] + factor * (m[t] - mean[t]))
        for t in range(length):
            w.squares[j + t] = open_to[t]  # kept where the map's sum of squares was, which is needed no more
            w.forth[j + t] = m[t]
            w.forth[KC + j + t] = a[t]
            w.forth[2 * KC + j + t] = b[t]


@algebra
def pull_gates(w, r, first, last):
    """``pull`` for channels ``first`` to ``last``, RUN or fewer, of row r."""
    length, KC, i = last - first, w.K * w.C, r * w.C + first
    p, q, after = scratch(w.mean, RUN), scratch(w.mean, RUN), scratch(w.mean, RUN)
    slope, apart, square = scratch(w.mean, RUN), scratch(w.mean, RUN), scratch(w.mean, RUN)
    through, pull, shift = scratch(w.x, RUN), scratch(w.x, RUN), scratch(w.x, RUN)
    for t in range(length):
        p[t], q[t], after[t] = 0.0, 0.0, 1.0
        square[t] = w.rstd[i + t] * w.rstd[i + t]
        apart[t] = w.mean[i + t] - w.forth[r * w.split * w.C + first + t]
        slope[t] = w.rstd[i + t] * NUMBER(w.gate_weight[first + t]) * w.per_column
    if w.has_weight:
        for t in range(length):
            slope[t] *= NUMBER(w.weight[first + t])
    if w.has_after:
        for t in range(length):
            after[t] = NUMBER(w.scale[first + t])
    if not w.fixed:
        for k in range(r * w.split, (r + 1) * w.split):
            j = k * w.C + first
            for t in range(length):
                factor, one = w.forth[KC + j + t] * after[t], w.sums[j + t]
                q[t] += factor * one
                p[t] += factor * (w.sums[KC + j + t] - apart[t] * one)
        for t in range(length):
            p[t] *= -square[t] * w.per_group
            q[t] *= -w.per_group * w.centered
        if w.wants_var:
            for t in range(length):
                w.dvar[i + t] = p[t] / (2.0 * w.per_group)
    for k in range(r * w.split, (r + 1) * w.split):
        j = k * w.C + first
        for t in range(length):
            gate = w.squares[j + t]
            centred = w.sums[KC + j + t] - apart[t] * w.sums[j + t]
            own = q[t] + centred * slope[t] * after[t] * gate * (1.0 - gate)
            through[t] = number(w.x, w.forth[KC + j + t] * after[t])
            pull[t] = number(w.x, p[t])
            shift[t] = number(w.x, own - p[t] * apart[t])
        for t in range(length):
            w.back[j + t] = through[t]
            w.back[KC + j + t] = pull[t]
            w.back[2 * KC + j + t] = shift[t]


@algebra
def gather_gates(w, i, j, first, length, gamma, beta, slope, bias):
    """Add what coefficients from j on, of the statistics from i on, give to the gradients of channels ``first`` on."""
    KC = w.K * w.C
    if w.has_weight:
        for c in range(length):
            gate = w.squares[j + c]
            centred = (w.sums[KC + j + c] - (w.mean[i + c] - w.forth[j + c]) * w.sums[j + c]) * w.rstd[i + c] * gate
            here = NUMBER(w.weight[first + c]) * centred * (1.0 - gate)
            gamma[c] += centred
            beta[c] += w.sums[j + c]
            bias[c] += here
            slope[c] += here * w.columns[j + c]
    else:
        for c in range(length):
            gate = w.squares[j + c]
            centred = (w.sums[KC + j + c] - (w.mean[i + c] - w.forth[j + c]) * w.sums[j + c]) * w.rstd[i + c] * gate
            here = centred * (1.0 - gate)
            beta[c] += w.sums[j + c]
            bias[c] += here
            slope[c] += here * w.columns[j + c]
