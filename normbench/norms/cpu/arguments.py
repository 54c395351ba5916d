"""What a kernel is given: a block of 8-byte slots, by its address, which a kernel unpacks into a ``Job``.

N, C images and channels; S pixels of a map; R × G groups that share statistics; K × C coefficients, where K is R, or N
where an image has coefficients of its own. An address of 0 means: there is none. T is the type of x.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from normbench.norms.cpu.blocks import FIXED, HEAD
from normbench.norms.cpu.pointers import NUMBER, WHOLE, algebra, at

START, REST = HEAD.size, HEAD.size + FIXED.size


class Job(NamedTuple):
    """The slots, typed; those of which there may be none with a flag.

    ``uncut``: no activation cuts anything off. ``direct``: statistics are given, so that dx needs no sums, and is
    written while these are made.
    """

    block: Any
    N: Any
    C: Any
    S: Any
    R: Any
    G: Any
    K: Any
    images: Any
    split: Any
    width: Any
    centered: Any
    fixed: Any
    span: Any
    spans: Any
    x: Any
    y: Any
    dy: Any
    dx: Any
    weight: Any
    bias: Any
    threshold: Any
    scale: Any
    shift: Any
    gate_weight: Any
    gate_bias: Any
    to_mean: Any
    to_std: Any
    mean: Any
    var: Any
    rstd: Any
    correction: Any
    columns: Any
    squares: Any
    forth: Any
    back: Any
    sums: Any
    parts: Any
    dweight: Any
    dbias: Any
    dthreshold: Any
    dscale: Any
    dshift: Any
    dgate_weight: Any
    dgate_bias: Any
    dvar: Any
    eps: Any
    r_max: Any
    d_max: Any
    low: Any
    high: Any
    per_map: Any
    per_column: Any
    per_group: Any
    has_dx: Any
    has_weight: Any
    has_bias: Any
    has_threshold: Any
    uncut: Any
    direct: Any
    has_after: Any
    has_gate: Any
    has_renorm: Any
    has_columns: Any
    wants_weight: Any
    wants_bias: Any
    wants_threshold: Any
    wants_after: Any
    wants_gate: Any
    wants_var: Any
    running_mean: Any
    running: Any
    count: Any
    kind: Any
    workers: Any
    by_channel: Any
    share: Any
    unbiased: Any
    running_eps: Any
    residual: Any
    out: Any
    dz: Any
    has_sum: Any
    stretches: Any
    begins: Any
    edges: Any
    group: Any
    slopes: Any
    table: Any


@algebra
def unpack(block, T):
    """The block at this address as a Job over maps of type T.

    work holds, one after another, μ, σ² and 1/√(σ² + ε), (R, G) each; r and d, (2, R, G), if there are any; moments of
    columns, (2, K, C), if they are kept; and of T the coefficients m, a, b with y = (x − m) a + b, (3, K, C).
    sums holds the sums over columns, (3, K, C), and of T a, p, q with dx = dz a + (x − m) p + q, (3, K, C).
    parts holds the parts of those, (K, spans, 3, C); of segments sums of cells (segments.py), or sums of pieces,
    (R, spans, stretches, 2, C), sums of groups, (2, R, G), and of T m, a, b, p and q, (5, R, stretches, C).
    What forward and backward do not share lies in the same places: of y, dy … one is there.
    """
    s = at(block + START, WHOLE)
    f = at(block + START + 16 * 8, NUMBER)
    a = at(block + REST, WHOLE)
    d = at(block + REST, NUMBER)
    work, RG, KC = a[1], s[3] * s[4], s[5] * s[1]
    slopes = a[2] + 16 * KC * s[12] * s[21]
    return Job(
        block,
        s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9] != 0, s[10] != 0, s[11], s[12],
        at(a[0], T), at(a[6], T), at(a[6], T), at(a[7], T),
        at(a[3], T), at(a[4], T), at(a[5], T), at(a[14], T), at(a[15], T),
        at(a[16], T), at(a[17], T), at(a[18], T), at(a[19], T),
        at(work, NUMBER), at(work + 8 * RG, NUMBER), at(work + 16 * RG, NUMBER), at(work + 24 * RG, NUMBER),
        at(work + 8 * s[13], NUMBER), at(work + 8 * (s[13] + KC), NUMBER), at(work + 8 * s[15], T),
        at(a[8] + 24 * KC, T), at(a[8], NUMBER), at(a[2], NUMBER),
        at(a[9], T), at(a[10], T), at(a[11], T), at(a[21], T), at(a[22], T), at(a[23], T), at(a[24], T),
        at(a[25], NUMBER),
        d[20], d[21], d[22], f[0], f[1], f[2], f[3], f[4],
        a[7] != 0,
        a[3] != 0, a[4] != 0, a[5] != 0, (a[5] == 0) & (f[0] == -math.inf) & math.isnan(f[1]),
        (s[10] != 0) & (a[7] != 0) & (a[16] == 0),
        a[14] != 0, a[16] != 0, a[19] != 0,
        s[14] != 0,
        a[9] != 0, a[10] != 0, a[11] != 0, a[21] != 0, a[23] != 0, a[25] != 0,
        at(a[7], T), at(a[8], T), at(a[9], WHOLE), a[23], a[24], a[25] != 0, d[26], d[27], d[28],
        at(a[13], T), at(a[12], T), at(a[13], T), a[13] != 0,
        s[21], at(s[22], WHOLE), at(s[23], WHOLE), at(s[24], WHOLE), at(slopes, NUMBER), at(slopes + 16 * RG, T),
    )  # fmt: skip
