"""The algebra of the moment family, on coefficients (K, C): from moments to y = (x − m) a + b, and back.

Written once for both memory formats, in float64 whatever the maps are. m is μ rounded to the maps' type; what rounding
took from it goes into b, so that a mean far above the spread costs no digits. ``w`` is the Job.
"""

from __future__ import annotations

import math

from normbench.norms.cpu.blocks import FINISHED, RUN
from normbench.norms.cpu.gates import gated, gather_gates
from normbench.norms.cpu.pointers import NUMBER, WHOLE, algebra, at, number, root, scratch


@algebra
def channels(w, g):
    """First channel of group g, and the first one after it: group(c) = (c·G)//C."""
    if w.width != 0:
        return g * w.width, (g + 1) * w.width
    return (g * w.C + w.G - 1) // w.G, ((g + 1) * w.C + w.G - 1) // w.G


@algebra
def gate(w, j):
    """The factor on γ of coefficient j: 1, or what ``open_gate`` left."""
    if not w.has_gate:
        return 1.0
    return w.columns[w.K * w.C + j]


@algebra
def open_gate(w, j, c):
    """The sigmoid of a map's mean, kept where the map's sum of squares was, which is needed no more."""
    argument = w.gate_weight[c] * w.columns[j] + w.gate_bias[c]
    w.columns[w.K * w.C + j] = 1.0 / (1.0 + math.exp(-argument))


@algebra
def pooled(w, r, g):
    """Mean and biased variance of group (r, g) from the moments of its columns, which hold equally many values."""
    first, last = channels(w, g)
    count = w.split * (last - first)
    mean, squares = 0.0, 0.0
    for k in range(r * w.split, (r + 1) * w.split):
        for c in range(first, last):
            mean += w.columns[k * w.C + c]
            squares += w.columns[(w.K + k) * w.C + c]
    mean /= count
    between = 0.0
    for k in range(r * w.split, (r + 1) * w.split):
        for c in range(first, last):
            apart = w.columns[k * w.C + c] - mean
            between += apart * apart
    return mean, between / count + squares * w.per_column / count


@algebra
def settle(w, r, g, mean, var):
    """Note the statistics of group (r, g), and write the coefficients of its channels."""
    i, KC = r * w.G + g, w.K * w.C
    if not w.fixed:
        if not w.centered:
            mean, var = 0.0, var + mean * mean
        w.mean[i], w.var[i] = mean, var
    std = root(var + w.eps)
    rstd, ratio, offset = 1.0 / std, 1.0, 0.0
    w.rstd[i] = rstd
    if w.has_renorm:
        ratio = min(max(std / w.to_std[g], 1.0 / w.r_max), w.r_max)
        offset = min(max((mean - w.to_mean[g]) / w.to_std[g], -w.d_max), w.d_max)
        w.correction[i], w.correction[w.R * w.G + i] = ratio, offset
    m = number(w.x, mean)
    first, last = channels(w, g)
    if w.split == 1 and w.has_weight and w.has_bias and not w.has_gate:  # as below, in vector registers
        at_c, rest = r * w.C, m - mean
        for c in range(first, last):
            gamma = NUMBER(w.weight[c])
            factor = gamma * ratio * rstd
            w.forth[at_c + c] = m
            w.forth[KC + at_c + c] = number(w.x, factor)
            w.forth[2 * KC + at_c + c] = number(w.x, NUMBER(w.bias[c]) + gamma * offset + factor * rest)
        return
    for c in range(first, last):
        gamma, shift = 1.0, 0.0
        if w.has_weight:
            gamma = NUMBER(w.weight[c])
        if w.has_bias:
            shift = NUMBER(w.bias[c])
        for k in range(r * w.split, (r + 1) * w.split):
            j = k * w.C + c
            if w.has_gate:
                open_gate(w, j, c)
            factor = gamma * ratio * rstd * gate(w, j)
            w.forth[j] = m
            w.forth[KC + j] = number(w.x, factor)
            w.forth[2 * KC + j] = number(w.x, shift + gamma * offset + factor * (m - mean))


@algebra
def settle_group(w, r, g):
    """``settle`` by the moments that are given, or those of the group's columns."""
    if w.fixed:
        mean, var = w.mean[r * w.G + g], w.var[r * w.G + g]
    else:
        mean, var = pooled(w, r, g)
    settle(w, r, g, mean, var)


@algebra
def plain(w):
    """Whether each group is one column, with moments of its own and no gate."""
    return w.width == 1 and w.split == 1 and not (w.fixed or w.has_gate)


@algebra
def settle_run(w, first, last, mean, squares):
    """``settle`` for RUN or fewer groups of one row, from their moments in scratch: statistic i is coefficient i."""
    length, KC, c = last - first, w.K * w.C, first % w.C
    var, rstd = scratch(w.mean, RUN), scratch(w.mean, RUN)
    gamma, beta, ratio = scratch(w.mean, RUN), scratch(w.mean, RUN), scratch(w.mean, RUN)
    m, a, b = scratch(w.x, RUN), scratch(w.x, RUN), scratch(w.x, RUN)
    for t in range(length):
        var[t] = squares[t] * w.per_column
        gamma[t], beta[t] = 1.0, 0.0
    if not w.centered:
        for t in range(length):
            var[t] += mean[t] * mean[t]
            mean[t] = 0.0
    if w.has_weight:
        for t in range(length):
            gamma[t] = NUMBER(w.weight[c + t])
    if w.has_bias:
        for t in range(length):
            beta[t] = NUMBER(w.bias[c + t])
    for t in range(length):
        rstd[t] = 1.0 / root(var[t] + w.eps)
        ratio[t] = rstd[t]
    if w.has_renorm:
        r_max, d_max = w.r_max, w.d_max
        for t in range(length):
            scale = 1.0 / w.to_std[c + t]
            r = min(max((var[t] + w.eps) * rstd[t] * scale, 1.0 / r_max), r_max)
            d = min(max((mean[t] - w.to_mean[c + t]) * scale, -d_max), d_max)
            w.correction[first + t], w.correction[w.R * w.G + first + t] = r, d
            ratio[t] = rstd[t] * r
            beta[t] += gamma[t] * d
    for t in range(length):
        m[t] = number(w.x, mean[t])
        a[t] = number(w.x, gamma[t] * ratio[t])
        b[t] = number(w.x, beta[t] + gamma[t] * ratio[t] * (m[t] - mean[t]))
    for t in range(length):
        w.mean[first + t] = mean[t]
        w.var[first + t] = var[t]
        w.rstd[first + t] = rstd[t]
    for t in range(length):
        w.forth[first + t] = m[t]
        w.forth[KC + first + t] = a[t]
        w.forth[2 * KC + first + t] = b[t]


@algebra
def settle_noted(w, first, last):
    """``settle_run`` by the moments that were noted of the columns."""
    mean, squares = scratch(w.mean, RUN), scratch(w.mean, RUN)
    for t in range(last - first):
        mean[t], squares[t] = w.columns[first + t], w.squares[first + t]
    settle_run(w, first, last, mean, squares)


@algebra
def pull_run(w, first, last):
    """``pull`` for RUN or fewer groups of one row: statistic i is coefficient i."""
    length, KC, c = last - first, w.K * w.C, first % w.C
    through, p, q = scratch(w.mean, RUN), scratch(w.mean, RUN), scratch(w.mean, RUN)
    after = scratch(w.mean, RUN)
    for t in range(length):
        after[t] = 1.0
    if w.has_after:
        for t in range(length):
            after[t] = NUMBER(w.scale[c + t])
    for t in range(length):
        i = first + t
        apart, factor, one = w.mean[i] - w.forth[i], w.forth[KC + i] * after[t], w.sums[i]
        slope = (w.sums[KC + i] - apart * one) * factor * -(w.rstd[i] * w.rstd[i]) * w.per_group
        through[t], p[t] = factor, slope
        q[t] = -one * factor * w.per_group * w.centered - slope * apart
    for t in range(length):
        w.back[first + t] = number(w.x, through[t])
        w.back[KC + first + t] = number(w.x, p[t])
        w.back[2 * KC + first + t] = number(w.x, q[t])
    if w.wants_var:
        for t in range(length):
            w.dvar[first + t] = p[t] / (2.0 * w.per_group)


@algebra
def scale_after(w, c):
    if not w.has_after:
        return 1.0
    return NUMBER(w.scale[c])


@algebra
def gate_slope(w, rstd, centred, j, c):
    """The gradient of the gate's argument at coefficient j, of channel c, from the sum over dz (x − μ)."""
    gamma, factor = 1.0, gate(w, j)
    if w.has_weight:
        gamma = NUMBER(w.weight[c])
    return gamma * centred * rstd * factor * (1.0 - factor)


@algebra
def pull(w, r, g):
    """From the sums over dz and dz (x − m) of group (r, g), the coefficients of dx = dz a + (x − m) p + q."""
    i, KC = r * w.G + g, w.K * w.C
    mean, rstd = w.mean[i], w.rstd[i]
    first, last = channels(w, g)
    p, q = 0.0, 0.0
    if not w.fixed:
        for k in range(r * w.split, (r + 1) * w.split):
            for c in range(first, last):
                j = k * w.C + c
                factor = w.forth[KC + j] * scale_after(w, c)
                q += factor * w.sums[j]
                p += factor * (w.sums[KC + j] - (mean - w.forth[j]) * w.sums[j])
        per_value = w.per_group
        if per_value == 0.0:
            per_value = w.per_column / (w.split * (last - first))
        p *= -rstd * rstd * per_value
        q *= -per_value
        if w.wants_var:
            w.dvar[i] = p / (2.0 * per_value)
        if not w.centered:
            q = 0.0
    if w.split == 1 and not (w.has_gate or w.has_after):  # as below, in vector registers
        at_c, apart = r * w.C, mean - w.forth[r * w.C + first]
        for c in range(first, last):
            w.back[at_c + c] = w.forth[KC + at_c + c]
            w.back[KC + at_c + c] = number(w.x, p)
            w.back[2 * KC + at_c + c] = number(w.x, q - p * apart)
        return
    for k in range(r * w.split, (r + 1) * w.split):
        for c in range(first, last):
            j = k * w.C + c
            own = q
            if w.has_gate:
                centred = w.sums[KC + j] - (mean - w.forth[j]) * w.sums[j]
                own += gate_slope(w, rstd, centred, j, c) * scale_after(w, c) * w.gate_weight[c] * w.per_column
            w.back[j] = number(w.x, w.forth[KC + j] * scale_after(w, c))
            w.back[KC + j] = number(w.x, p)
            w.back[2 * KC + j] = number(w.x, own - p * (mean - w.forth[j]))


@algebra
def finish(w, block):
    """The gradients of the parameters of a block of channels, from the sums of their columns, row by row of those."""
    first = block * FINISHED
    length, KC = min(FINISHED, w.C - first), w.K * w.C
    gamma, beta, other = scratch(w.sums, FINISHED), scratch(w.sums, FINISHED), scratch(w.sums, FINISHED)
    slope, bias, dy = scratch(w.sums, FINISHED), scratch(w.sums, FINISHED), scratch(w.sums, FINISHED)
    group = scratch(at(w.block, WHOLE), FINISHED)
    for c in range(length):
        gamma[c], beta[c], other[c], slope[c], bias[c], dy[c] = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        group[c] = (first + c) * w.G // w.C
    for k in range(w.K):
        row, j = k // w.split * w.G, k * w.C + first
        if gated(w):
            gather_gates(w, row + first, j, first, length, gamma, beta, slope, bias)
        elif w.has_gate or (w.has_renorm and w.width != 1):
            for c in range(length):
                gather(w, row + group[c], j + c, first + c, c, gamma, beta, slope, bias)
        elif w.has_renorm:
            i, RG = row + first, w.R * w.G
            for c in range(length):
                one = w.sums[j + c]
                centred = w.sums[KC + j + c] - (w.mean[i + c] - w.forth[j + c]) * one
                gamma[c] += centred * w.rstd[i + c] * w.correction[i + c] + w.correction[RG + i + c] * one
                beta[c] += one
        elif w.width == 1:
            i = row + first
            for c in range(length):
                one = w.sums[j + c]
                gamma[c] += (w.sums[KC + j + c] - (w.mean[i + c] - w.forth[j + c]) * one) * w.rstd[i + c]
                beta[c] += one
        else:
            for c in range(length):
                i, one = row + group[c], w.sums[j + c]
                gamma[c] += (w.sums[KC + j + c] - (w.mean[i] - w.forth[j + c]) * one) * w.rstd[i]
                beta[c] += one
        if w.has_threshold or w.has_after:
            for c in range(length):
                dy[c] += w.sums[2 * KC + j + c]
                other[c] += w.forth[KC + j + c] * w.sums[KC + j + c] + w.forth[2 * KC + j + c] * w.sums[j + c]
            if w.has_threshold:
                for c in range(length):
                    other[c] += w.threshold[first + c] * (w.sums[2 * KC + j + c] - w.sums[j + c])
    for c in range(length):
        after = scale_after(w, first + c)
        if w.wants_weight:
            w.dweight[first + c] = number(w.x, gamma[c] * after)
        if w.wants_bias:
            w.dbias[first + c] = number(w.x, beta[c] * after)
        if w.wants_threshold:
            w.dthreshold[first + c] = number(w.x, (dy[c] - beta[c]) * after)
        if w.wants_after:
            w.dscale[first + c] = number(w.x, other[c])
            w.dshift[first + c] = number(w.x, dy[c])
        if w.wants_gate:
            w.dgate_weight[first + c] = number(w.x, slope[c] * after)
            w.dgate_bias[first + c] = number(w.x, bias[c] * after)


@algebra
def gather(w, i, j, channel, c, gamma, beta, slope, bias):
    """Add what coefficient j, of statistic i, gives to the gradients of a channel, the c-th of its block."""
    KC = w.K * w.C
    ratio, offset, one = 1.0, 0.0, w.sums[j]
    if w.has_renorm:
        ratio, offset = w.correction[i], w.correction[w.R * w.G + i]
    centred = w.sums[KC + j] - (w.mean[i] - w.forth[j]) * one
    gamma[c] += centred * ratio * w.rstd[i] * gate(w, j) + offset * one
    beta[c] += one
    if w.has_gate:
        here = gate_slope(w, w.rstd[i], centred, j, channel)
        bias[c] += here
        slope[c] += here * w.columns[j]
