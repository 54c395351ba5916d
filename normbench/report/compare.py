"""Tests of mean differences: their p-values, intervals and Holm's correction.

A mean difference D varies by its seeds, variance S known with ν degrees of freedom, and by its pictures, variance P
known with M − 1. Its interval is

    D ± √(t²(ν) S + t²(M − 1) P)

with Student's quantiles of one level, and its p-value the level at which that interval just reaches 0 (the method of
variance estimates recovery: Graybill & Wang, JASA 75, 1980; Zou & Donner 2008). With one source alone it is the t test.
Satterthwaite's degrees of freedom for S + P, the usual way, do not hold here: they come from the same S, and where two
or three seeds happen to agree S is lost beside P, and the few degrees of freedom with it. Tried on 28 comparisons
without a difference, three seeds, no pooling, pictures a third as noisy (s.d.) as the mean over seeds: one or more
"significant" in 38 of 100 tables instead of 5; this way in 2.
"""

from __future__ import annotations

import numpy as np
from scipy import special

LEVEL = 0.05
HALVINGS = 60  # of the interval that log p is sought in
LOWEST = -700.0  # log of the least p-value told apart from 0


def half_width(
    level: float | np.ndarray, S: np.ndarray, freedom: np.ndarray, P: np.ndarray, M: np.ndarray
) -> np.ndarray:
    """Half of the interval whose two-sided error is ``level``; M: pictures, anything where P is 0. They broadcast."""
    return np.sqrt(_quantile(freedom, level) ** 2 * S + _quantile(np.maximum(M - 1, 1), level) ** 2 * P)


def p_values(D: np.ndarray, S: np.ndarray, freedom: np.ndarray, P: np.ndarray, M: np.ndarray) -> np.ndarray:
    """Two-sided; 1 where there is neither difference nor variance, 0 where there is a difference and no variance."""
    D, S, freedom, P, M = np.broadcast_arrays(*(np.asarray(value, dtype=float) for value in (D, S, freedom, P, M)))
    with np.errstate(divide="ignore", invalid="ignore"):
        alone = 2 * special.stdtr(freedom, -np.abs(D) / np.sqrt(S))
    alone = np.where((S == 0) & (D == 0), 1.0, alone)
    both = P > 0
    if both.any():
        alone[both] = _inverted(D[both], S[both], freedom[both], P[both], M[both])
    return alone


def _inverted(D: np.ndarray, S: np.ndarray, freedom: np.ndarray, P: np.ndarray, M: np.ndarray) -> np.ndarray:
    low, high = np.full(D.shape, LOWEST), np.zeros(D.shape)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        beyond = half_width(np.exp(middle), S, freedom, P, M) < np.abs(D)
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    return np.exp((low + high) / 2)


def _quantile(freedom: np.ndarray, level: float | np.ndarray) -> np.ndarray:
    """Student's, two-sided."""
    return -special.stdtrit(freedom, np.asarray(level) / 2)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979) along the last axis."""
    order = np.argsort(p, axis=-1, kind="stable")
    stepped = np.take_along_axis(p, order, -1) * (p.shape[-1] - np.arange(p.shape[-1]))
    stepped = np.minimum(np.maximum.accumulate(stepped, axis=-1), 1.0)
    corrected = np.empty_like(stepped)
    np.put_along_axis(corrected, order, stepped, -1)
    return corrected
