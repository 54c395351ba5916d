"""The seeds' variance of many comparisons, as one where they may be taken as one.

With three or four seeds a comparison's own variance is hardly known; the others of its family know it too, if they are
as noisy. The rule, whose error rates tests/report/test_statistics_rates.py holds:

* By Bartlett's test (Bartlett 1937) at 25 %, a level that refuses early, all are equally noisy → one variance, their
  mean weighted by degrees of freedom. Where pictures are known it is the ratio MS_seed / MS_residual that is pooled
  (1: seeds differ by nothing but single pictures), since networks that disagree on more pictures vary more.
* A comparison whose own variance stands out above the pooled one (F test at 10 %; 25 % with two seeds, where it sees
  little) keeps its own.
* Refused: each its own, at least a quarter of the mean: of many variances with few degrees of freedom the least are
  too small by luck, and refusal selects such families.
* With two seeds there is no verdict. What no rule can see is a noisy comparison whose two seeds happen to agree; where
  it is the baseline that is noisy at one batch, all comparisons of that batch are quiet together. Of 100 null tables of
  7 lines and 4 batches, the baseline 5 to 8 times as noisy at one of them (s.d.), 10 to 12 would have a false finding
  with two seeds. With three it is 8 to 9, for 3 to 5 times the noise, the worst case known; with four 5. (6,000 made
  tables each, as the test makes them.)

All comparisons of a batch share the baseline, so that their variances are correlated: with correlation ρ of two
differences (measured over the family, at least ½, that of equally noisy lines) and k of them with ν degrees of freedom
each, the mean has kν / (1 + (k − 1)ρ²), not kν: the variances of Gaussians correlate by ρ².
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

EQUAL = 0.25  # level of Bartlett's test
STANDS_OUT, STANDS_OUT_OF_TWO = 0.10, 0.25  # levels of the F test
LEAST_SHARE = 0.25  # of the mean variance, for one's own where pooling is refused
SHARED = 0.5  # least correlation of two differences to one baseline
LEAST_SEEDS = 3  # for a verdict


@dataclass(frozen=True)
class Pool:
    """variance: per comparison, of one seed's difference (points²).  freedom: its degrees of freedom.

    pooled: which have the family's.  known: where it is good enough for a verdict.  equality: Bartlett's p.
    accepted, mean, shared_freedom: whether they were pooled; the pooled variances; the pool's degrees of freedom.
    """

    variance: np.ndarray
    freedom: np.ndarray
    pooled: np.ndarray
    known: np.ndarray
    equality: float
    accepted: bool
    mean: np.ndarray
    shared_freedom: float


def pool(deviations: Sequence[np.ndarray], scale: np.ndarray, least: np.ndarray, batches: Sequence[int]) -> Pool:
    """The variances of a family.

    deviations: per comparison its seeds' differences less their mean, points, (n ≥ 2,).  scale: what the variances are
    proportional to, (k,), points² (ones: to nothing).  least: variances that rounding to whole pictures alone makes,
    (k,).  batches: of the comparisons; those of one batch share a baseline.
    """
    freedom = np.array([len(row) - 1 for row in deviations], dtype=float)
    own = np.maximum([float(row @ row) for row in deviations] / freedom, least)
    ratio = own / scale
    mean = float((freedom * ratio).sum() / freedom.sum())
    together = _freedom(deviations, scale, freedom, mean, batches)
    equality = bartlett(ratio, freedom) if len(ratio) > 1 else math.nan
    accepted = equality >= EQUAL  # a NaN is none
    expected = mean * scale
    level = np.where(freedom == 1, STANDS_OUT_OF_TWO, STANDS_OUT)
    out = special.fdtrc(freedom, together, own / expected) < level if mean > 0 else np.zeros(len(own), bool)
    pooled = ~out & accepted
    alone = own if len(own) == 1 else np.maximum(own, LEAST_SHARE * expected)
    return Pool(
        variance=np.where(pooled, expected, alone),
        freedom=np.where(pooled, together, freedom),
        pooled=pooled,
        known=freedom >= LEAST_SEEDS - 1,
        equality=equality,
        accepted=accepted,
        mean=expected,
        shared_freedom=together,
    )


def bartlett(variances: np.ndarray, freedom: np.ndarray) -> float:
    """p of Bartlett's test that variances (k > 1,) with so many degrees of freedom are equal; 0 if one of them is 0.

    As scipy.stats.bartlett of samples; these are not at hand here: variances are scaled, and none is below rounding.
    """
    if not (variances > 0).all():
        return 0.0
    k, all_of_it = len(variances), freedom.sum()
    mean = (freedom * variances).sum() / all_of_it
    statistic = all_of_it * math.log(mean) - (freedom * np.log(variances)).sum()
    correction = 1 + ((1 / freedom).sum() - 1 / all_of_it) / (3 * (k - 1))
    return float(special.chdtrc(k - 1, max(statistic / correction, 0.0)))


def _freedom(
    deviations: Sequence[np.ndarray], scale: np.ndarray, freedom: np.ndarray, mean: float, batches: Sequence[int]
) -> float:
    """Degrees of freedom of the mean of correlated variances."""
    batch, total = np.asarray(batches), float(freedom.sum())
    shared = np.minimum.outer(freedom, freedom) * np.equal.outer(batch, batch)
    np.fill_diagonal(shared, 0)
    pairs = float(shared.sum())
    if not pairs or mean <= 0:
        return total
    together = 0.0
    for name in np.unique(batch):
        rows = [deviations[k] / math.sqrt(scale[k]) for k in map(int, np.flatnonzero(batch == name))]
        # Seeds that not all of them have cannot be matched here; what is left out makes the correlation no larger.
        alike = [row for row in rows if len(row) == len(rows[0])]
        together += float(np.square(np.sum(alike, axis=0)).sum() - sum(row @ row for row in alike))
    correlation = min(max(together / (mean * pairs), SHARED), 1.0)
    return total**2 / (total + correlation**2 * pairs)
