"""The interval of a mean top-1, by resampling seeds and pictures.

Resampling both ways at once, rows and columns of the table as they are, counts the residual three times over (Owen,
The pigeonhole bootstrap, Annals of Applied Statistics 1, 2007), and n seeds resampled as they are vary too little. So
the effects are resampled, each to the variance that the mean squares (crossed.py) give it:

* seeds: n of their n deviations, with replacement, their s.d. made unbiased, √(n/(n − 1)), and stretched by
  t(n − 1) / z, as few of them know their own s.d. badly (both as in Hesterberg, The American Statistician 69, 2015).
* pictures: M of M, with replacement. They matter only by the number of seeds that get them right, so that one
  resample is one multinomial draw of n + 1 counts. Half a picture right and half a picture wrong by all seeds are
  added, or a perfect score would have no interval. Deviations are scaled to the test set's own part of the variance,
  √(1 − MS_residual / MS_picture): the rest is in the seeds' already.

Of 100 such intervals of a mean whose seeds are Gaussian 94 or more hold the truth, 93 with 2 seeds; 98 or more with 2
seeds and pictures (tests/report/test_bootstrap.py). With a single seed it covers the noise of the test set alone.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
from scipy import special

from normbench.report.crossed import POINTS, Squares, squares

RESAMPLES = 2000
COVERED = 0.95


def interval(values: Sequence[float], right: np.ndarray | None, name: str) -> tuple[float, float] | None:
    """Of 95 % for the mean of ``values`` (%, one per seed); None for one seed without pictures, or no seed.

    right: bool (seeds, pictures), None where not known.  name: seeds the generator, so that equal stores have equal
    intervals.  Within 0 and 100.
    """
    found = squares(right) if right is not None else None
    if len(values) == 0 or (len(values) == 1 and found is None):
        return None
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    drawn = np.zeros(RESAMPLES)
    if len(values) > 1:
        drawn += _seeds(np.asarray(values, dtype=float), generator)
    if right is not None and found is not None:
        drawn += _pictures(right, found, generator)
    low, high = np.quantile(drawn + np.mean(values), [(1 - COVERED) / 2, (1 + COVERED) / 2])
    return max(float(low), 0.0), min(float(high), POINTS)


def stretch(n: int) -> float:
    """What deviations of n > 1 seeds are multiplied by."""
    side = (1 + COVERED) / 2
    return math.sqrt(n / (n - 1)) * float(special.stdtrit(n - 1, side) / special.ndtri(side))


def _seeds(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    n = len(values)
    deviations = (values - values.mean()) * stretch(n)
    return deviations[generator.integers(n, size=(RESAMPLES, n))].mean(1)


def _pictures(right: np.ndarray, found: Squares, generator: np.random.Generator) -> np.ndarray:
    n, M = right.shape
    counts = np.bincount(right.sum(0, dtype=np.int32), minlength=n + 1).astype(float)
    counts[[0, n]] += 0.5
    shares = counts / counts.sum()
    drawn = generator.multinomial(M, shares, size=RESAMPLES) @ np.linspace(0, POINTS, n + 1) / M
    mean = float(shares @ np.linspace(0, POINTS, n + 1))
    part = found.beyond(found.seed) * n / found.picture if found.picture > 0 else 1.0
    return (drawn - mean) * math.sqrt(part)
