"""The blocks of 8-byte slots that kernels read their arguments from, and the phases they know. Needs no Numba.

N, C images and channels; S pixels of a map; R × G groups that share statistics; K × C coefficients, where K is R, or N
where an image has coefficients of its own. An address of 0 means: there is none. T is the type of x.
"""

from __future__ import annotations

import struct

# Phases of the moment family's kernels: all of a group or row, or one after another.
GROUP, COLUMNS, MERGE, SETTLE, MAPS, FINISH = range(6)
# Channels whose gradients are finished at once.
FINISHED = 64
# Numbers of a kind that are kept near at hand where pixels lie one after another: channels, or lanes of several pixels.
TILE = 512

# What differs from call to call.
MOVING = struct.Struct(
    "="
    "4q"  # pieces of work: the next one, how many, how many at a time; what to do with them
    "4q"  # x, y, dy, dx: T, (N, C, H, W)
    "3q"  # work and sums, float64, which hold what is small; parts of sums, (K, spans, 3, C)
    "10q"  # the parts, T, (C,), but bounds: float64, (2,)
    "8q"  # gradients of the first seven parts; of σ², float64, (R, G)
    "1d"  # eps, which may be learned
)
HEAD = struct.Struct("=4q")
# What is the same for all calls of one shape.
FIXED = struct.Struct(
    "="
    "6q"  # N, C, S, R, G, K
    "3q"  # images of a row of coefficients; rows of these in a row of statistics; channels of a group (0: uneven)
    "2q"  # whether statistics are centred, and given
    "2q"  # pixels that are gone over at once, and how often in a row of coefficients (channels_last)
    "3q"  # where in work the moments of columns are, and whether they are kept; where the coefficients are
    "2d"  # the lowest and highest value that the activation lets through
    "3d"  # 1 / values of a map, of a column, of a group (0: uneven), as divisions cost more than a small map does
)

# Running statistics: the head; rows, workers, statistics of a row, kind; addresses of mean, var (float64), and of both
# buffers; the share of the new value, unbiased, eps, and what var is yet to be multiplied by.
RUNNING = struct.Struct("=12q4d")
KINDS = ("var", "std", "total")

# Positional normalization: the head; N, C, S, pixels of a span, spans; x, y, dy, dx, γ, β, what is kept of positions,
# sums over spans, gradients; ε, lowest and highest value, 1 / C, 1 / the variance's divisor.
POSITIONS = struct.Struct("=18q6d")
SPANS, POSITIONS_FINISH = range(2)

# Proxy statistics: the head; channels, points of the grid; γ, β; grid, ends; scale, shift, and the gradients of both,
# and of γ, β; ε.
QUANTILES = struct.Struct("=4q2q4q6qd")
