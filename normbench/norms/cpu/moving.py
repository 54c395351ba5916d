"""How a forward moves running statistics, in the kernel that found the statistics of the batch.

Rows of statistics are those of workers, or of an equal number of ghosts for each. The formulas: norms/running.py.
"""

from __future__ import annotations

from normbench.norms.cpu.blocks import FINISHED, KINDS
from normbench.norms.cpu.pointers import NUMBER, algebra, number, root, scratch

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
    """By mean and ``scale`` times var, (R, length) each; by blocks, in which rows are gone through as they lie."""
    here, around, old = scratch(w.mean, FINISHED), scratch(w.mean, FINISHED), scratch(w.mean, FINISHED)
    new_mean, new, apart = scratch(w.mean, FINISHED), scratch(w.mean, FINISHED), scratch(w.mean, FINISHED)
    ghosts = w.R // w.workers
    per_ghost, per_worker = 1.0 / ghosts, 1.0 / w.workers
    for first in range(0, length, FINISHED):
        some = min(FINISHED, length - first)
        for c in range(some):
            old[c], new_mean[c], new[c], apart[c] = NUMBER(w.running_mean[first + c]), 0.0, 0.0, 0.0
        for i in range(w.workers):
            of_worker(mean, var, i, ghosts, length, first, some, scale, per_ghost, here, around)
            if w.kind == STD:
                for c in range(some):
                    around[c] = root(around[c] + w.running_eps)
            for c in range(some):
                new_mean[c] += here[c] * per_worker
                new[c] += around[c] * per_worker
                apart[c] += (old[c] - here[c]) * (old[c] - here[c]) * per_worker
        if w.kind == TOTAL:
            for c in range(some):
                new[c] += (1.0 - share) * apart[c]
        for c in range(some):
            second = NUMBER(w.running[first + c])
            w.running_mean[first + c] = number(w.x, old[c] + share * (new_mean[c] - old[c]))
            w.running[first + c] = number(w.x, second + share * (new[c] * w.unbiased - second))


@algebra
def of_worker(mean, var, i, ghosts, length, first, some, scale, per_ghost, here, around):
    """Moments of all the ghosts of worker i together."""
    for c in range(some):
        here[c], around[c] = 0.0, 0.0
    for g in range(i * ghosts, (i + 1) * ghosts):
        row = g * length + first
        for c in range(some):
            here[c] += mean[row + c] * per_ghost
            around[c] += var[row + c] * scale * per_ghost
    if ghosts > 1:
        for g in range(i * ghosts, (i + 1) * ghosts):
            row = g * length + first
            for c in range(some):
                away = mean[row + c] - here[c]
                around[c] += away * away * per_ghost
