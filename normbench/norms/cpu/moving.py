"""The kernel that moves running statistics: a few microseconds in place of a dozen small operations.

Rows of statistics are those of workers, or of an equal number of ghosts for each. The formulas: norms/running.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from normbench.norms.cpu.pointers import NUMBER, WHOLE, at, root

VAR, STD, TOTAL = range(3)


def moving(T: Any) -> Callable[[int], None]:
    """For buffers of type T."""

    def run(block: int) -> None:
        a, f = at(block, WHOLE), at(block + 12 * 8, NUMBER)
        rows, workers, length, kind = a[4], a[5], a[6], a[7]
        mean, var, first, second = at(a[8], NUMBER), at(a[9], NUMBER), at(a[10], T), at(a[11], T)
        share, unbiased, eps, scale = f[0], f[1], f[2], f[3]
        ghosts = rows // workers
        per_ghost, per_worker = 1.0 / ghosts, 1.0 / workers
        for c in range(length):
            old, new_mean, new, apart = NUMBER(first[c]), 0.0, 0.0, 0.0
            for w in range(workers):
                here, around = 0.0, 0.0
                for g in range(w * ghosts, (w + 1) * ghosts):
                    here += mean[g * length + c] * per_ghost
                    around += var[g * length + c] * scale * per_ghost
                if ghosts > 1:
                    for g in range(w * ghosts, (w + 1) * ghosts):
                        away = mean[g * length + c] - here
                        around += away * away * per_ghost
                new_mean += here * per_worker
                apart += (old - here) * (old - here) * per_worker
                if kind == STD:
                    around = root(around + eps)
                new += around * per_worker
            first[c] = old + share * (new_mean - old)
            if kind == TOTAL:
                new += (1.0 - share) * apart
            second[c] = second[c] + share * (new * unbiased - second[c])

    return run
