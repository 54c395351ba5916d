"""How a forward moves running statistics, in the kernel that found the statistics of the batch.

Rows of statistics are those of workers, or of an equal number of ghosts for each. The formulas: norms/running.py.
"""

from __future__ import annotations

from normbench.norms.cpu.blocks import KINDS
from normbench.norms.cpu.pointers import NUMBER, algebra, number, root

STD, TOTAL = KINDS["std"], KINDS["total"]


@algebra
def track(w):
    """Count the batch, and move both running statistics: of groups, or of channels where there are moments of these."""
    w.count[0] += 1
    share = w.share
    if share < 0.0:
        share = 1.0 / w.count[0]
    if w.by_channel:
        move(w, w.columns, w.squares, w.C, w.per_column, share)
    else:
        move(w, w.mean, w.var, w.G, 1.0, share)


@algebra
def move(w, mean, var, length, scale, share):
    """By mean and ``scale`` times var, (R, length) each."""
    ghosts = w.R // w.workers
    per_ghost, per_worker = 1.0 / ghosts, 1.0 / w.workers
    for c in range(length):
        old, new_mean, new, apart = NUMBER(w.running_mean[c]), 0.0, 0.0, 0.0
        for i in range(w.workers):
            here, around = 0.0, 0.0
            for g in range(i * ghosts, (i + 1) * ghosts):
                here += mean[g * length + c] * per_ghost
                around += var[g * length + c] * scale * per_ghost
            if ghosts > 1:
                for g in range(i * ghosts, (i + 1) * ghosts):
                    away = mean[g * length + c] - here
                    around += away * away * per_ghost
            new_mean += here * per_worker
            apart += (old - here) * (old - here) * per_worker
            if w.kind == STD:
                around = root(around + w.running_eps)
            new += around * per_worker
        if w.kind == TOTAL:
            new += (1.0 - share) * apart
        second = NUMBER(w.running[c])
        w.running_mean[c] = number(w.x, old + share * (new_mean - old))
        w.running[c] = number(w.x, second + share * (new * w.unbiased - second))
