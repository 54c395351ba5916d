"""What a kernel is given: a block of 8-byte slots, by its address, which a kernel unpacks into a ``Job``.

N, C images and channels; S pixels of a map; R × G groups that share statistics; K × C coefficients, where K is R, or N
where an image has coefficients of its own. An address of 0 means: there is none. T is the type of x.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from normbench.norms.cpu.pointers import NUMBER, WHOLE, algebra, at

# The order of the slots.
INTEGERS = (
    # pieces of work: the next one, how many, how many at a time; what to do with them
    "counter", "total", "chunk", "phase",
    # extents; images of a row of coefficients, rows of coefficients of a row of statistics; channels of a group (0 if
    # groups are uneven); whether statistics are centred, or given
    "N", "C", "S", "R", "G", "K", "images", "split", "width", "centered", "fixed",
    # pixels that are gone over at once, and how often in a row of coefficients (channels_last)
    "span", "spans",
)  # fmt: skip
MAPS = ("x", "y", "dy", "dx")  # T, (N, C, H, W)
PARTS = (  # T, (C,); bounds: float64, (2,)
    "weight", "bias", "threshold", "scale", "shift", "gate_weight", "gate_bias", "to_mean", "to_std", "bounds",
)  # fmt: skip
SMALL = (
    # float64: μ, σ² and 1/√(σ² + ε), (R, G) each; r and d, (2, R, G); moments of columns, (2, K, C)
    "mean", "var", "rstd", "correction", "columns",
    # T: m, a, b with y = (x − m) a + b, and a, p, q with dx = dz a + (x − m) p + q; (3, K, C) each
    "forth", "back",
    # float64: sums over columns, (3, K, C), and over spans of them, (K, spans, 3, C)
    "sums", "parts",
)  # fmt: skip
GRADIENTS = (  # T, (C,), of the first parts; of σ²: float64, (R, G)
    "dweight", "dbias", "dthreshold", "dscale", "dshift", "dgate_weight", "dgate_bias", "dvar",
)  # fmt: skip
# 1 / values of a map, of a column, of a group (0 if uneven): divisions would cost more than the rest of a small map
FLOATS = ("eps", "low", "high", "per_map", "per_column", "per_group")

BLOCK = struct.Struct(f"={len(INTEGERS + MAPS + PARTS + SMALL + GRADIENTS)}q{len(FLOATS)}d")
HEAD = struct.Struct("=4q")


class Job(NamedTuple):
    """The slots, typed; those of which there may be none with a flag."""

    block: Any
    total: Any
    chunk: Any
    phase: Any
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
    bounds: Any
    mean: Any
    var: Any
    rstd: Any
    correction: Any
    columns: Any
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
    low: Any
    high: Any
    per_map: Any
    per_column: Any
    per_group: Any
    has_dx: Any
    has_weight: Any
    has_bias: Any
    has_threshold: Any
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


@algebra
def unpack(block, T):
    """The block at this address as a Job over maps of type T."""
    a = at(block, WHOLE)
    f = at(block + 48 * 8, NUMBER)
    return Job(
        block, a[1], a[2], a[3],
        a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13] != 0, a[14] != 0, a[15], a[16],
        at(a[17], T), at(a[18], T), at(a[19], T), at(a[20], T),
        at(a[21], T), at(a[22], T), at(a[23], T), at(a[24], T), at(a[25], T),
        at(a[26], T), at(a[27], T), at(a[28], T), at(a[29], T), at(a[30], NUMBER),
        at(a[31], NUMBER), at(a[32], NUMBER), at(a[33], NUMBER), at(a[34], NUMBER), at(a[35], NUMBER),
        at(a[36], T), at(a[37], T), at(a[38], NUMBER), at(a[39], NUMBER),
        at(a[40], T), at(a[41], T), at(a[42], T), at(a[43], T), at(a[44], T), at(a[45], T), at(a[46], T),
        at(a[47], NUMBER),
        f[0], f[1], f[2], f[3], f[4], f[5],
        a[20] != 0,
        a[21] != 0, a[22] != 0, a[23] != 0, a[24] != 0, a[26] != 0, a[29] != 0,
        a[35] != 0,
        a[40] != 0, a[41] != 0, a[42] != 0, a[43] != 0, a[45] != 0, a[47] != 0,
    )  # fmt: skip
