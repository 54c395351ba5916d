"""The algebra of the moment family on coefficients (K, C), in Triton: from moments to y = (x − m) a + b, and back.

The same as ``normbench.norms.cpu.family``, in float64 whatever the maps are: these kernels touch little memory. m is μ
rounded to float32; what rounding took from it goes into b, so that a mean far above the spread costs no digits.

A program takes GROUPS groups (r, g) and goes through their entries, ENTRIES at a time: a column (k, c) of the group,
or one span of it. ``split``: rows of coefficients of a row of statistics; ``widest``: channels of the widest group.
"""
# mypy: disable-error-code="no-untyped-def, import-untyped, import-not-found"

from __future__ import annotations

import triton
import triton.language as tl

from normbench.norms.cuda.maps import position

PLACES = ("C", "G", "RG", "K", "split", "widest", "spans", "each", "items", "chunks", "run", "runs", "pulls")


@triton.jit
def groups(number, C, G, RG, GROUPS: tl.constexpr):
    """Groups i = r·G + g of a program, as a column: i, their first channels and numbers of channels, and which are."""
    i = number * GROUPS + tl.arange(0, GROUPS)[:, None].to(tl.int64)
    g = i % G
    first = (g * C + G - 1) // G
    return i, first, ((g + 1) * C + G - 1) // G - first, i < RG


@triton.jit
def entries(e, i, first, width, inside, C, G, split, widest, spans):
    """Columns j = k·C + c of the entries e of groups i, their channels and spans, and which there are."""
    rest = e // widest
    k = (i // G) * split + rest % split
    c = first + e % widest
    t = rest // split
    return k * C + c, c, t, inside & (e % widest < width) & (t < spans)


@triton.jit
def count(t, each, items, chunks, run, SIZE: tl.constexpr):
    """Values of span t of a column."""
    last = tl.minimum(t * each + each, items)
    return (position(last, run, chunks, SIZE) - position(t * each, run, chunks, SIZE)).to(tl.float64)


@triton.jit
def parameter(values, c, there, absent: tl.constexpr):
    """A parameter of channels c, or ``absent`` where the method has none."""
    if values is None:
        result = tl.full(c.shape, absent, tl.float64)
    else:
        result = tl.load(values + c, mask=there, other=0.0).to(tl.float64)
    return result


@triton.jit
def between(value, low, high):
    """value, not below ``low`` nor above ``high``; NaN stays."""
    value = tl.where(value < low, low, value)
    return tl.where(value > high, high, value)


@triton.jit
def gate(gate_weight, gate_bias, plane, c, there):
    """The factor on γ of columns whose means are ``plane``."""
    value = parameter(gate_weight, c, there, 1.0) * plane + parameter(gate_bias, c, there, 0.0)
    return 1.0 / (1.0 + tl.exp(-value))


@triton.jit(do_not_specialize=PLACES)
def settle(
    mean, squares, given_mean, given_var, more_eps, weight, bias, gate_weight, gate_bias, to_mean, to_std, bounds,
    moments, statistics, forth, planes,
    eps, C, G, RG, K, split, widest, spans, each, items, chunks, run, runs,
    CENTERED: tl.constexpr, GROUPS: tl.constexpr, ENTRIES: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Pool the columns' moments, or take the given ones; write them, and the coefficients m, a, b of every column.

    ``moments``: μ and σ², (2, R, G), float32. ``statistics``: μ, 1/√(σ² + ε) and, to renormalize, r and d, (4, R, G),
    float64. ``forth``: (3, K, C), float32. ``planes``: means of columns, (K, C), float64, for the gate.
    """
    i, first, width, inside = groups(tl.program_id(0), C, G, RG, GROUPS)
    KC = K.to(tl.int64) * C
    column = run.to(tl.float64) * runs
    if given_mean is None:
        total = tl.zeros((GROUPS, ENTRIES), tl.float64)
        around = tl.zeros((GROUPS, ENTRIES), tl.float64)
        for e0 in range(0, split * widest * spans, ENTRIES):
            e = e0 + tl.arange(0, ENTRIES)[None, :]
            j, c, t, there = entries(e, i, first, width, inside, C, G, split, widest, spans)
            here = tl.load(mean + t * KC + j, mask=there, other=0.0)
            total += tl.where(there, here * count(t, each, items, chunks, run, SIZE), 0.0)
            around += tl.load(squares + t * KC + j, mask=there, other=0.0).to(tl.float64)
        values = column * split * width
        mu = tl.sum(total, 1)[:, None] / values
        for e0 in range(0, split * widest * spans, ENTRIES):
            e = e0 + tl.arange(0, ENTRIES)[None, :]
            j, c, t, there = entries(e, i, first, width, inside, C, G, split, widest, spans)
            apart = tl.load(mean + t * KC + j, mask=there, other=0.0) - mu
            around += tl.where(there, apart * apart * count(t, each, items, chunks, run, SIZE), 0.0)
        var = tl.sum(around, 1)[:, None] / values
        if not CENTERED:
            var += mu * mu
            mu = tl.zeros_like(mu)
    else:
        mu = tl.load(given_mean + i, mask=inside, other=0.0).to(tl.float64)
        var = tl.load(given_var + i, mask=inside, other=1.0).to(tl.float64)
    tl.store(moments + i, mu.to(tl.float32), mask=inside)
    tl.store(moments + RG + i, var.to(tl.float32), mask=inside)
    padded = var + eps
    if more_eps is not None:
        padded += tl.load(more_eps).to(tl.float64)
    std = tl.sqrt(padded)
    rstd = 1.0 / std
    tl.store(statistics + i, mu, mask=inside)
    tl.store(statistics + RG + i, rstd, mask=inside)
    ratio = tl.full((GROUPS, 1), 1.0, tl.float64)
    offset = tl.zeros((GROUPS, 1), tl.float64)
    if to_std is not None:
        r_max = tl.load(bounds).to(tl.float64)
        d_max = tl.load(bounds + 1).to(tl.float64)
        to = tl.load(to_std + i % G, mask=inside, other=1.0).to(tl.float64)
        ratio = between(std / to, 1.0 / r_max, r_max)
        offset = between((mu - tl.load(to_mean + i % G, mask=inside, other=0.0).to(tl.float64)) / to, -d_max, d_max)
        tl.store(statistics + 2 * RG + i, ratio, mask=inside)
        tl.store(statistics + 3 * RG + i, offset, mask=inside)
    m = mu.to(tl.float32)
    for e0 in range(0, split * widest, ENTRIES):
        e = e0 + tl.arange(0, ENTRIES)[None, :]
        j, c, t, there = entries(e, i, first, width, inside, C, G, split, widest, 1)
        gamma = parameter(weight, c, there, 1.0)
        factor = gamma * ratio * rstd
        if gate_weight is not None:
            plane = tl.zeros((GROUPS, ENTRIES), tl.float64)
            for s in range(spans):
                here = tl.load(mean + s * KC + j, mask=there, other=0.0)
                plane += here * count(s, each, items, chunks, run, SIZE)
            plane /= column
            tl.store(planes + j, plane, mask=there)
            factor *= gate(gate_weight, gate_bias, plane, c, there)
        shift = parameter(bias, c, there, 0.0) + gamma * offset + factor * (m.to(tl.float64) - mu)
        tl.store(forth + j, tl.broadcast_to(m, (GROUPS, ENTRIES)), mask=there)
        tl.store(forth + KC + j, factor.to(tl.float32), mask=there)
        tl.store(forth + 2 * KC + j, shift.to(tl.float32), mask=there)


@triton.jit
def pull(
    number, sums, statistics, forth, back, planes, weight, scale, gate_weight, gate_bias, dvar,
    C, G, RG, K, split, widest, spans, run, runs,
    FIXED: tl.constexpr, CENTERED: tl.constexpr, SUMS: tl.constexpr, GROUPS: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    """Coefficients of dx = dz a + (x − m) p + q, (3, K, C), and the gradient of σ², from the sums over dz."""
    i, first, width, inside = groups(number, C, G, RG, GROUPS)
    KC = K.to(tl.int64) * C
    column = run.to(tl.float64) * runs
    mu = tl.load(statistics + i, mask=inside, other=0.0)
    rstd = tl.load(statistics + RG + i, mask=inside, other=0.0)
    p = tl.zeros((GROUPS, ENTRIES), tl.float64)
    q = tl.zeros((GROUPS, ENTRIES), tl.float64)
    for e0 in range(0, split * widest * spans, ENTRIES):
        e = e0 + tl.arange(0, ENTRIES)[None, :]
        j, c, t, there = entries(e, i, first, width, inside, C, G, split, widest, spans)
        one = tl.load(sums + t * SUMS * KC + j, mask=there, other=0.0).to(tl.float64)
        two = tl.load(sums + t * SUMS * KC + KC + j, mask=there, other=0.0).to(tl.float64)
        m = tl.load(forth + j, mask=there, other=0.0).to(tl.float64)
        factor = tl.load(forth + KC + j, mask=there, other=0.0).to(tl.float64) * parameter(scale, c, there, 1.0)
        q += tl.where(there, factor * one, 0.0)
        p += tl.where(there, factor * (two - (mu - m) * one), 0.0)
    half = tl.sum(p, 1)[:, None] * rstd * rstd * -0.5
    if dvar is not None:
        tl.store(dvar + i, half.to(tl.float32), mask=inside)
    values = column * split * width
    slope = 2.0 * half / values
    level = -tl.sum(q, 1)[:, None] / values
    if FIXED:
        slope = tl.zeros_like(slope)
    if FIXED or not CENTERED:
        level = tl.zeros_like(level)
    for e0 in range(0, split * widest, ENTRIES):
        e = e0 + tl.arange(0, ENTRIES)[None, :]
        j, c, t, there = entries(e, i, first, width, inside, C, G, split, widest, 1)
        m = tl.load(forth + j, mask=there, other=0.0).to(tl.float64)
        own = level - slope * (mu - m)
        if gate_weight is not None:
            one = tl.zeros((GROUPS, ENTRIES), tl.float64)
            two = tl.zeros((GROUPS, ENTRIES), tl.float64)
            for s in range(spans):
                one += tl.load(sums + s * SUMS * KC + j, mask=there, other=0.0).to(tl.float64)
                two += tl.load(sums + s * SUMS * KC + KC + j, mask=there, other=0.0).to(tl.float64)
            factor = gate(gate_weight, gate_bias, tl.load(planes + j, mask=there, other=0.0), c, there)
            gain = parameter(weight, c, there, 1.0) * parameter(scale, c, there, 1.0)
            bend = gain * (two - (mu - m) * one) * rstd * factor * (1.0 - factor)
            own += bend * parameter(gate_weight, c, there, 0.0) / column
        through = tl.load(forth + KC + j, mask=there, other=0.0).to(tl.float64) * parameter(scale, c, there, 1.0)
        tl.store(back + j, through.to(tl.float32), mask=there)
        tl.store(back + KC + j, tl.broadcast_to(slope, (GROUPS, ENTRIES)).to(tl.float32), mask=there)
        tl.store(back + 2 * KC + j, own.to(tl.float32), mask=there)


@triton.jit
def keep(gradient, c, there, value):
    """Store the gradient of a parameter, where there is one."""
    if gradient is not None:
        tl.store(gradient + c, tl.sum(value, 1).to(tl.float32).to(gradient.dtype.element_ty), mask=there)


@triton.jit
def finish(
    number, sums, statistics, planes, weight, scale, gate_weight, gate_bias, to_std, forth,
    dweight, dbias, dthreshold, dscale, dshift, dgate_weight, dgate_bias,
    C, G, RG, K, split, spans,
    SUMS: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The gradients of the parameters of CHANNELS channels, ROWS spans of columns at a time."""
    KC = K.to(tl.int64) * C
    c = number * CHANNELS + tl.arange(0, CHANNELS)[:, None].to(tl.int64)
    after = parameter(scale, c, c < C, 1.0)
    gamma = parameter(weight, c, c < C, 1.0)
    for_weight = tl.zeros((CHANNELS, ROWS), tl.float64)
    for_bias = tl.zeros((CHANNELS, ROWS), tl.float64)
    for_shift = tl.zeros((CHANNELS, ROWS), tl.float64)
    for_scale = tl.zeros((CHANNELS, ROWS), tl.float64)
    for_gate_weight = tl.zeros((CHANNELS, ROWS), tl.float64)
    for_gate_bias = tl.zeros((CHANNELS, ROWS), tl.float64)
    for e0 in range(0, K * spans, ROWS):
        e = e0 + tl.arange(0, ROWS)[None, :]
        k = e % K
        there = (c < C) & (e < K * spans)
        j = k.to(tl.int64) * C + c
        i = (k // split).to(tl.int64) * G + c * G // C
        at = sums + (e // K).to(tl.int64) * SUMS * KC + j
        one = tl.load(at, mask=there, other=0.0).to(tl.float64)
        mu = tl.load(statistics + i, mask=there, other=0.0)
        rstd = tl.load(statistics + RG + i, mask=there, other=0.0)
        m = tl.load(forth + j, mask=there, other=0.0).to(tl.float64)
        standard = (tl.load(at + KC, mask=there, other=0.0).to(tl.float64) - (mu - m) * one) * rstd
        for_bias += one
        if gate_weight is not None:
            plane = tl.load(planes + j, mask=there, other=0.0)
            factor = gate(gate_weight, gate_bias, plane, c, c < C)
            bend = tl.where(there, gamma * standard * factor * (1.0 - factor), 0.0)
            for_gate_bias += bend
            for_gate_weight += bend * plane
            standard *= factor
        if to_std is not None:
            standard *= tl.load(statistics + 2 * RG + i, mask=there, other=0.0)
            standard += tl.load(statistics + 3 * RG + i, mask=there, other=0.0) * one
        for_weight += tl.where(there, standard, 0.0)
        if SUMS > 2:
            for_shift += tl.load(at + 2 * KC, mask=there, other=0.0).to(tl.float64)
        if SUMS > 3:
            for_scale += tl.load(at + 3 * KC, mask=there, other=0.0).to(tl.float64)
    row = number * CHANNELS + tl.arange(0, CHANNELS)
    keep(dweight, row, row < C, for_weight * after)
    keep(dbias, row, row < C, for_bias * after)
    keep(dthreshold, row, row < C, (for_shift - for_bias) * after)
    keep(dscale, row, row < C, for_scale)
    keep(dshift, row, row < C, for_shift)
    keep(dgate_weight, row, row < C, for_gate_weight * after)
    keep(dgate_bias, row, row < C, for_gate_bias * after)


@triton.jit(do_not_specialize=PLACES)
def resolve(
    sums, statistics, forth, back, planes, weight, scale, gate_weight, gate_bias, to_std, dvar,
    dweight, dbias, dthreshold, dscale, dshift, dgate_weight, dgate_bias,
    C, G, RG, K, split, widest, spans, run, runs, pulls,
    FIXED: tl.constexpr, CENTERED: tl.constexpr, SUMS: tl.constexpr, GROUPS: tl.constexpr, ENTRIES: tl.constexpr,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """All of the backward's algebra at once: the first ``pulls`` programs pull, the others finish."""
    number = tl.program_id(0)
    if number < pulls:
        pull(
            number, sums, statistics, forth, back, planes, weight, scale, gate_weight, gate_bias, dvar,
            C, G, RG, K, split, widest, spans, run, runs,
            FIXED, CENTERED, SUMS, GROUPS, ENTRIES,
        )  # fmt: skip
    else:
        finish(
            number - pulls, sums, statistics, planes, weight, scale, gate_weight, gate_bias, to_std, forth,
            dweight, dbias, dthreshold, dscale, dshift, dgate_weight, dgate_bias,
            C, G, RG, K, split, spans,
            SUMS, CHANNELS, ROWS,
        )  # fmt: skip
