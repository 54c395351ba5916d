"""Two entries of the table, seed by seed and picture by picture, and what many such pairs come to together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from normbench.report.compare import LEVEL, half_width, p_values
from normbench.report.crossed import Squares, squares
from normbench.report.evidence import Evidence
from normbench.report.frame import Spot
from normbench.report.pooling import Pool, pool
from normbench.report.verdict import AGAINST, Noise


@dataclass(frozen=True)
class Pair:
    """An entry and what it is compared with: the seeds of both. deviations: of the differences, points, (seeds,).

    least: the variance of a seed's difference that rounding to whole pictures makes.  squares: where both are known by
    picture.
    """

    spot: Spot
    other: Spot
    left_out: int
    difference: float
    deviations: np.ndarray
    least: float
    squares: Squares | None

    @property
    def seeds(self) -> int:
        return len(self.deviations)

    @property
    def usable(self) -> bool:
        """Whether it may have a p-value."""
        return self.seeds > 1 and not against(self.spot) and not against(self.other)

    @property
    def identical(self) -> bool:
        """The two got the same in every seed, as far as one sees: nothing to learn of noise from."""
        return not self.difference and not self.deviations.any() and not (self.squares and self.squares.residual)


@dataclass(frozen=True)
class Assessed:
    """Of pairs: p-values, half-widths of 95 % intervals (points), where the noise comes from (all: see compare.py).

    known: which have a variance that is good enough for a verdict.  pooled: which have the family's.  pool: of those
    that are not identical; None if all are.
    """

    p: np.ndarray
    half: np.ndarray
    noise: list[Noise]
    known: np.ndarray
    pooled: np.ndarray
    pool: Pool | None


def against(spot: Spot) -> bool:
    """Whether a seed of the entry failed in a way that counts against the method."""
    return any(status in AGAINST for status in spot.failed)


def paired(spot: Spot, other: Spot, evidence: Evidence) -> Pair:
    """An entry and another, on the seeds that both have."""
    mine, theirs = ({seed: k for k, seed in enumerate(one.seeds)} for one in (spot, other))
    seeds = sorted(mine.keys() & theirs.keys())
    differences = np.array([spot.values[mine[seed]] - other.values[theirs[seed]] for seed in seeds])
    cells = [spot.cells[mine[seed]] for seed in seeds], [other.cells[theirs[seed]] for seed in seeds]
    pictures = evidence.of([*cells[0], *cells[1]]) if seeds else None
    found = None
    if pictures:
        right = np.array([p.right for p in pictures])
        found = squares(right[: len(seeds)], right[len(seeds) :])
    mean = float(differences.mean()) if seeds else math.nan
    step = max((evidence.step(cell) for cell in cells[0]), default=0.0)
    left_out = len(mine.keys() ^ theirs.keys())
    # Two counts rounded to a picture each: each has a variance of step² / 12.
    return Pair(spot, other, left_out, mean, differences - mean, step**2 / 6, found)


def assess(pairs: Sequence[Pair]) -> Assessed:
    """Test pairs that are ``usable``, as one family. Identical ones have p = 1, and no say in the pool."""
    noisy = np.array([not pair.identical for pair in pairs], dtype=bool)
    count = len(pairs)
    p, half, known, pooled = np.ones(count), np.zeros(count), np.ones(count, bool), np.zeros(count, bool)
    noise = [Noise(0.0, 0.0, 0.0)] * count
    chosen = [pair for pair in pairs if not pair.identical]
    if not chosen:
        return Assessed(p, half, noise, known, pooled, None)
    found, shared = [pair.squares for pair in chosen], _pool(chosen)
    S = shared.variance / np.array([pair.seeds for pair in chosen], dtype=float)
    P = np.array([one.beyond(v) if one else 0.0 for one, v in zip(found, shared.variance, strict=True)])
    M = np.array([one.pictures if one else 2 for one in found], dtype=float)
    D = np.array([pair.difference for pair in chosen])
    # Without any variance (one step of rounding is not known either) there is nothing to judge by.
    p[noisy] = np.where((S == 0) & (P == 0), math.nan, p_values(D, S, shared.freedom, P, M))
    half[noisy] = half_width(LEVEL, S, shared.freedom, P, M)
    known[noisy], pooled[noisy] = shared.known, shared.pooled
    for k, one, variance in zip(np.flatnonzero(noisy), found, shared.variance, strict=True):
        noise[k] = one.noise(variance) if one else Noise(seed=math.sqrt(variance))
    return Assessed(p, half, noise, known, pooled, shared)


def _pool(pairs: Sequence[Pair]) -> Pool:
    by_picture = all(pair.squares and pair.squares.residual > 0 for pair in pairs)
    scale = [pair.squares.residual if by_picture and pair.squares else 1.0 for pair in pairs]
    least = np.array([pair.least for pair in pairs])
    batches = [pair.spot.batch for pair in pairs]
    return pool([pair.deviations for pair in pairs], np.array(scale), least, batches)
