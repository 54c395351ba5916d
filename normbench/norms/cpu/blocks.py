"""The blocks of 8-byte slots that kernels read their arguments from, and the phases they know. Needs no Numba.

N, C images and channels; S pixels of a map; R × G groups that share statistics; K × C coefficients, where K is R, or N
where an image has coefficients of its own. An address of 0 means: there is none. T is the type of x.
"""

from __future__ import annotations

import struct

# Phases of the kernels of the moment family and of segments: all of a group or row, or one after another; at the end of
# a forward, move the running statistics; at the beginning of a backward, what statistics make of coefficients.
GROUP, COLUMNS, MERGE, SETTLE, MAPS, FINISH, TRACK, SPREAD = range(8)
# Channels, or groups of one each, whose algebra is done in one go, in vector registers.
RUN = 32
# Channels whose gradients are finished at once.
FINISHED = 64
# Numbers of a kind that are kept near at hand where pixels lie one after another: channels, or lanes of several pixels.
TILE = 512

# What every kernel that takes pieces of work begins with: which steps to do, from one to before another; and a table of
# steps, each with the next piece of work, how many there are, how many are taken at a time, the phase.
STEPS = 6
HEAD = struct.Struct("=2q24q")
WHICH = struct.Struct("=2q")
# What is the same for all calls of one shape; it follows the head.
FIXED = struct.Struct(
    "="
    "6q"  # N, C, S, R, G, K
    "3q"  # images of a row of coefficients; rows of these in a row of statistics; channels of a group (0: uneven)
    "2q"  # whether statistics are centred, and given
    "2q"  # pixels (of segments: images) that are gone over at once, and how often in a row of coefficients
    # (channels_last)
    "3q"  # where in work the moments of columns are, and whether they are kept; where the coefficients are
    "2d"  # the lowest and highest value that the activation lets through (call.ceiling)
    "3d"  # 1 / values of a map, of a column, of a group (0: uneven), as divisions cost more than a small map does
    # Of groups that are segments:
    "1q"  # stretches of a map (channels_last)
    "1q"  # the first feature of each group, and of none, (G + 1,)
    "2q"  # channels_last: the first pixel of each stretch, and S, (stretches + 1,); channels' groups, (stretches, C)
)
# What differs from call to call. Forward and backward put their own into the same places; first what no two calls have
# in common, so that a call like the one before (repeated.py) writes that alone.
SHARED = (
    "="
    "3q"  # x: T, (N, C, H, W); work, float64, which holds what is small; parts of sums, float64, (K, spans, 3, C), or
    # what segments.py and stretches.py find
    "3q"  # weight, bias, threshold: T, (C,)
)
FORTH_OWN = SHARED + (
    "1q"  # y
    "3q"  # running mean and the other one, T, (G,) or (C,); their count, int64
    "24x1q"  # a residual to add before the activation
)
BACK_OWN = SHARED + (
    "3q"  # dy, dx; sums, float64
    "3q"  # gradients of weight, bias, threshold
    "2q"  # behind a residual sum: y; dz, the residual's gradient
)
AGAIN_FORTH, AGAIN_BACK = struct.Struct(FORTH_OWN), struct.Struct(BACK_OWN)
PARTS = (
    "="
    "6q"  # the other parts, T, (C,): scale, shift; the gate's weight, bias; mean, std to correct towards
    "1d"  # eps, which may be learned
)
FORTH_REST = struct.Struct(
    f"{PARTS}"
    "2d"  # r_max, d_max
    "3q3d"  # of running statistics: kind, workers, whether of channels; share of the new value (below 0: one of so
    # many), unbiased, eps
)
BACK_REST = struct.Struct(
    f"{PARTS}"
    "4q"  # gradients of the first four of the other parts
    "1q"  # of σ², float64, (R, G)
)
FORTH, BACK = (struct.Struct(own + rest.format[1:]) for own, rest in ((FORTH_OWN, FORTH_REST), (BACK_OWN, BACK_REST)))
KINDS = {"var": 0, "std": 1, "total": 2}
# What stands in a block for running statistics that nobody moves, and for bounds where there are none.
UNTRACKED, NO_BOUNDS = (0, 1, 0, 0.0, 0.0, 0.0), (0.0, 0.0)
# Two of the other parts, or their gradients, and the bounds; and where they begin, in bytes behind what is fixed. What
# calls have of their own is equally long forward and backward.
PAIR, BOUNDS = struct.Struct("=2q"), struct.Struct("=2d")
AFTER_AT, GATE_AT, RENORM_AT = (AGAIN_FORTH.size + PAIR.size * pair for pair in range(3))
BOUNDS_AT = AGAIN_FORTH.size + struct.calcsize(PARTS)
SLOPES = BOUNDS_AT - AFTER_AT  # from a pair to its gradients

# Positional normalization: after the head, N, C, S, pixels of a span, spans; x, y, dy, dx, γ, β, what is kept of
# positions, sums over spans, gradients; ε, lowest and highest value, 1 / C, 1 / the variance's divisor.
POSITIONS = struct.Struct("=14q6d")
SPANS, POSITIONS_FINISH = range(2)

# A change of layout: after the head, A, B of (N, A, B) in memory; T, from and to. A piece of work is SIDE rows of A.
SIDE = 16
TRANSPOSE = struct.Struct("=4q")

# Proxy statistics, without a head: channels, points of the grid; γ, β; grid, ends; scale, shift, and the gradients of
# both, and of γ, β; ε.
QUANTILES = struct.Struct("=2q4q6qd")
