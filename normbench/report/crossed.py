"""The two-way table seeds × pictures: its mean squares, and what they say of each source of noise.

Each trained network s gets picture i right (1) or wrong (0); of two networks that share a seed the difference d is −1,
0 or 1. Seeds and pictures are both drawn from more, so the model has crossed random effects (Searle, Casella &
McCulloch, Variance Components, 1992, ch. 4; one value a cell):

    d[s, i] = δ + A[s] + B[i] + E[s, i]          variances σ²_A, σ²_B, σ²_E; n seeds, M pictures
    E MS_seed = σ²_E + M σ²_A     E MS_picture = σ²_E + n σ²_B     E MS_residual = σ²_E
    Var(mean) = (MS_seed + MS_picture − MS_residual) / (n M)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from normbench.report.verdict import Noise

POINTS = 100.0  # of a share


@dataclass(frozen=True)
class Squares:
    """Mean squares over M, in points²: ``seed`` is the variance over seeds of the means over pictures.

    residual: NaN for a single seed, seed too.  pictures: M.  seeds: n.
    """

    seed: float
    picture: float
    residual: float
    pictures: int
    seeds: int

    def noise(self, seed: float | None = None) -> Noise:
        """The components as s.d. in points; none below 0. ``seed``: a better value of that mean square (pooled)."""
        seed = self.seed if seed is None else seed
        return Noise(
            seed=_root(seed - self.residual),
            picture=_root((self.picture - self.residual) / self.seeds),
            residual=_root(self.residual),
        )

    def beyond(self, seed: float) -> float:
        """The variance of the mean that the test set adds to ``seed / n``, points².

        (MS_picture − MS_residual) / (n M), and never so little that the two together fall below MS_picture / (n M),
        the pictures' part alone: where few seeds happen to agree (``seed`` below the residual) that is what is known.
        """
        least = self.residual if math.isnan(seed) else min(seed, self.residual)
        return max(self.picture - (0.0 if math.isnan(least) else least), 0.0) / self.seeds


def squares(right: np.ndarray, other: np.ndarray | None = None) -> Squares:
    """Of ``right``, bool (seeds, pictures), or of the differences ``right`` − ``other``, seed by seed."""
    n, M = right.shape
    by_picture, by_seed = right.sum(0, dtype=np.int32), right.sum(1, dtype=np.int64)
    if other is None:
        total = int(by_seed.sum())  # 1² = 1
    else:
        by_picture = by_picture - other.sum(0, dtype=np.int32)
        by_seed = by_seed - other.sum(1, dtype=np.int64)
        total = int(np.count_nonzero(right != other))
    grand = by_seed.sum() / (n * M)
    of_seeds = M * float(np.square(by_seed / M - grand).sum())
    of_pictures = float(np.square(by_picture.astype(np.float64)).sum()) / n - n * M * grand**2
    rest = max(total - n * M * grand**2 - of_seeds - of_pictures, 0.0)
    unit = POINTS**2 / M
    return Squares(
        seed=unit * of_seeds / (n - 1) if n > 1 else math.nan,
        picture=unit * max(of_pictures, 0.0) / (M - 1) if M > 1 else math.nan,
        residual=unit * rest / ((n - 1) * (M - 1)) if n > 1 and M > 1 else math.nan,
        pictures=M,
        seeds=n,
    )


def _root(variance: float) -> float:
    return variance if math.isnan(variance) else math.sqrt(max(variance, 0.0))
