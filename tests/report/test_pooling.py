"""When the seeds' variance is pooled, and what it then is."""

import numpy as np
import pytest
from scipy import stats

from normbench.report.pooling import EQUAL, bartlett, pool

CELLS, BATCHES = 12, [2, 4, 8] * 4


def pooled(sd, n, *, seed=0, batches=BATCHES, scale=None, shared=0.0):
    """Of comparisons whose seeds' differences have these standard deviations; ``shared``: the baseline's own."""
    generator = np.random.default_rng(seed)
    sd = np.broadcast_to(sd, len(batches))
    base = {batch: generator.normal(size=n) * shared for batch in batches}
    d = [generator.normal(size=n) * s - base[batch] for s, batch in zip(sd, batches, strict=True)]
    ones = np.ones(len(batches))
    return pool([row - row.mean() for row in d], ones if scale is None else scale, 0 * ones, batches), d


@pytest.mark.parametrize("n", [2, 3, 8])
def test_bartlett_is_scipys(n):
    samples = np.random.default_rng(n).normal(size=(6, n))
    wanted = stats.bartlett(*samples).pvalue
    assert bartlett(samples.var(1, ddof=1), np.full(6, n - 1.0)) == pytest.approx(wanted)


def test_bartlett_with_samples_of_several_sizes_is_scipys():
    generator = np.random.default_rng(0)
    samples = [generator.normal(size=n) for n in (2, 3, 7, 4)]
    freedom = np.array([len(sample) - 1.0 for sample in samples])
    found = bartlett(np.array([np.var(sample, ddof=1) for sample in samples]), freedom)
    assert found == pytest.approx(stats.bartlett(*samples).pvalue)


def test_equal_variances_become_their_mean():
    found, d = pooled(1.0, 4)
    assert found.accepted
    assert found.pooled.all()
    assert found.variance == pytest.approx(np.full(CELLS, np.mean([np.var(row, ddof=1) for row in d])))
    assert found.known.all()


def test_what_varies_in_proportion_is_pooled_in_proportion():
    scale = np.linspace(1, 30, CELLS)
    found, _ = pooled(np.sqrt(scale), 9, scale=scale)
    assert found.accepted
    assert found.variance / found.variance[0] == pytest.approx(scale)
    assert not pooled(np.sqrt(scale), 9)[0].accepted


def test_unequal_variances_are_not_pooled():
    sd = np.where(np.arange(CELLS) < 6, 1.0, 6.0)
    found, d = pooled(sd, 5)
    assert found.equality < EQUAL
    assert not found.pooled.any()
    own = np.array([np.var(row, ddof=1) for row in d])
    assert found.variance == pytest.approx(np.maximum(own, own.mean() / 4))
    assert (found.freedom == 4).all()


@pytest.mark.parametrize(("n", "known"), [(2, False), (3, True)])
def test_two_seeds_of_their_own_are_too_few(n, known):
    found, _ = pooled(np.where(np.arange(CELLS) < 6, 1.0, 1e4), n)
    assert not found.accepted
    assert found.known.tolist() == [known] * CELLS


def test_one_that_stands_out_keeps_its_own():
    """In 12 with 9 degrees of freedom, so unlucky draws aside Bartlett's test passes a factor of 1.7."""
    for seed in range(20):
        found, d = pooled(np.where(np.arange(CELLS) == 5, 1.7, 1.0), 10, seed=seed)
        if found.accepted and not found.pooled[5]:
            assert found.variance[5] == pytest.approx(np.var(d[5], ddof=1))
            assert found.freedom[5] == 9
            assert found.pooled.sum() >= CELLS - 4
            return
    pytest.fail("never accepted with one standing out")


def test_a_single_comparison_has_its_own():
    found, d = pooled(1.0, 3, batches=[2])
    assert not found.accepted
    assert found.variance == pytest.approx([np.var(d[0], ddof=1)])


def test_degrees_of_freedom_are_those_of_the_mean_variance():
    """Over many families: Var(mean) = 2 σ⁴ / freedom, for lines that share an equally noisy baseline."""
    families = [pooled(1.0, 3, seed=seed, shared=1.0)[0] for seed in range(1000)]
    means = np.array([family.mean[0] for family in families])
    freedom = np.mean([family.shared_freedom for family in families])
    assert means.mean() == pytest.approx(2.0, rel=0.05)
    true = 2 * 2.0**2 / means.var()
    assert freedom <= true * 1.1
    assert freedom >= true * 0.7
    assert freedom < CELLS * 2


def test_no_more_than_whole_pictures_is_told():
    zero = [np.zeros(3)] * 2
    found = pool(zero, np.ones(2), np.full(2, 0.5), [2, 4])
    assert found.variance.tolist() == [0.5, 0.5]
    assert pool(zero, np.ones(2), np.zeros(2), [2, 4]).equality == 0
