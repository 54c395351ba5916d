"""p-values, intervals and Holm's correction, against scipy and by hand."""

import numpy as np
import pytest
from scipy import stats

from normbench.report.compare import half_width, holm, p_values


@pytest.mark.parametrize("n", [2, 3, 10])
def test_seeds_alone_are_the_paired_t_test(n):
    a, b = np.random.default_rng(n).normal(size=(2, n))
    wanted = stats.ttest_rel(a, b)
    d = a - b
    S = np.var(d, ddof=1) / n
    assert p_values(d.mean(), S, n - 1, 0, 2) == pytest.approx(wanted.pvalue)
    half = half_width(0.05, S, np.asarray(n - 1), np.asarray(0.0), np.asarray(2))
    low, high = wanted.confidence_interval(0.95)
    assert (d.mean() - half, d.mean() + half) == pytest.approx((low, high))


def test_many_pictures_alone_are_the_z_test():
    assert p_values(1.0, 0.0, 4, 0.25, 10**6) == pytest.approx(2 * stats.norm.sf(2.0), rel=1e-4)


@pytest.mark.parametrize("freedom", [1, 2, 7.5, 40])
@pytest.mark.parametrize("D", [0.01, 1.0, 30.0])
def test_the_p_value_is_the_level_whose_interval_reaches_zero(freedom, D):
    S, P, M = 0.3, 0.2, 400
    p = float(p_values(D, S, freedom, P, M))
    t = stats.t.isf(p / 2, freedom), stats.t.isf(p / 2, M - 1)
    assert np.sqrt(t[0] ** 2 * S + t[1] ** 2 * P) == pytest.approx(D, rel=1e-6)
    assert p >= max(float(p_values(D, S, freedom, 0, M)), float(p_values(D, 0, freedom, P, M)))


def test_without_variance_a_difference_is_sure_and_none_is_none():
    assert p_values(np.array([0.0, 1.0]), 0, 3, 0, 2).tolist() == [1, 0]


def test_holm_by_hand():
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.9, 0.8])) == pytest.approx([1, 1])
    assert holm(np.array([0.2])) == pytest.approx([0.2])
    assert holm(np.array([])).size == 0


def test_holm_is_its_definition_row_by_row():
    p = np.random.default_rng(0).random((50, 12)) ** 2
    p[0] = 0.01  # ties
    for row, found in zip(p, holm(p), strict=True):
        order = sorted(range(12), key=lambda k: row[k])
        largest = 0.0
        for rank, k in enumerate(order):
            largest = max(largest, (12 - rank) * row[k])
            assert found[k] == pytest.approx(min(1.0, largest))
