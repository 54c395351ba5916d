"""The rates that the statistics promise, over 1,000 made families each: of false findings, of true ones, of coverage.

Networks are made picture by picture: right where level + A[seed] + B[picture] + E > 0, with A, B and E Gaussian, so
that the seeds, the pictures and the residual have as much noise as a case says, and all lines are equally good.
"""

import functools

import numpy as np
import pytest
from scipy import stats

from normbench.report.compare import LEVEL, half_width, holm, p_values
from normbench.report.crossed import squares
from normbench.report.pooling import pool

TIMES = 1000
MOST = stats.binom.ppf(0.999, TIMES, LEVEL) / TIMES  # of 1,000 families whose true rate is 5 %
PICTURES = np.array(10_000)


@functools.cache
def families(lines, batches, seeds, factor=1.0, noisy=0):
    """D, S, freedom, known of 1,000 families, (1000, comparisons): differences of Gaussian seeds to shared baselines.

    The s.d. of a seed is 1; of the first ``noisy`` lines × batches ``factor``.
    """
    generator = np.random.default_rng(lines * 100 + batches * 10 + seeds)
    columns = np.repeat(np.arange(batches), lines)
    sd = np.where(np.arange(len(columns)) < noisy, factor, 1.0)[:, None]
    out = []
    for _ in range(TIMES):
        d = sd * generator.normal(size=(len(columns), seeds)) - generator.normal(size=(batches, seeds))[columns]
        D = d.mean(1)
        found = pool(d - D[:, None], np.ones(len(columns)), np.zeros(len(columns)), columns.tolist())
        out.append((D, found.variance / seeds, found.freedom, found.known))
    return [np.array(values) for values in zip(*out, strict=True)]


def of_pictures(sd, lines, batches):
    """What the test set adds to each difference, when it makes a line's s.d. so large; and its variance."""
    generator = np.random.default_rng(1)
    own, base = generator.normal(size=(TIMES, batches, lines)), generator.normal(size=(TIMES, batches, 1))
    return sd * (own - base).reshape(TIMES, -1), np.full(lines * batches, 2 * sd**2)


def any_error(D, S, freedom, P, known):
    """Share of null families with a finding: one is a finding of Holm's first step."""
    size = np.maximum(known.sum(1, keepdims=True), 1)
    return (known & (np.abs(D) > half_width(LEVEL / size, S, freedom, P, PICTURES))).any(1).mean()


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("picture", [0.0, 0.3, 1.0], ids=["seeds", "both", "pictures"])
def test_a_null_table_has_a_false_finding_as_seldom_as_stated(seeds, picture):
    D, S, freedom, known = families(4, 3, seeds)
    added, P = of_pictures(picture, 4, 3)
    assert any_error(D + added, S, freedom, P, known) <= MOST


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("noisy", [1, 6], ids=["one cell", "half"])
def test_unequal_noise_makes_no_findings(seeds, noisy):
    """Some lines three times as noisy as others: pooling is refused, or what stands out is kept apart."""
    D, S, freedom, known = families(4, 3, seeds, 3.0, noisy)
    assert any_error(D, S, freedom, np.zeros(12), known) <= MOST


@pytest.mark.parametrize("factor", [3.0, 5.0])
def test_a_noisy_baseline_makes_no_more_findings_than_is_said(factor):
    """At one batch of four, with three seeds: pooling.py says that 8 to 9 of 100 null tables have a false finding."""
    generator, lines, batches, seeds = np.random.default_rng(4), 7, 4, 3
    columns, sd = np.repeat(np.arange(batches), lines), np.where(np.arange(batches) == 0, factor, 1.0)[:, None]
    errors = 0
    for _ in range(TIMES):
        d = generator.normal(size=(len(columns), seeds)) - (sd * generator.normal(size=(batches, seeds)))[columns]
        D = d.mean(1)
        found = pool(d - D[:, None], np.ones(len(columns)), np.zeros(len(columns)), columns.tolist())
        half = half_width(LEVEL / len(columns), found.variance / seeds, found.freedom, np.zeros(1), PICTURES)
        errors += bool((np.abs(D) > half).any())
    assert errors / TIMES <= stats.binom.ppf(0.999, TIMES, 0.08) / TIMES


def test_one_difference_is_found_beside_many_that_are_none():
    """The other comparisons of its family stay without a finding: errors are those of the family, not of the null."""
    D, S, freedom, known = families(4, 3, 5)
    planted = np.where(np.arange(12) == 0, 4.0, 0.0)
    found = holm(np.where(known, p_values(D + planted, S, freedom, 0, PICTURES), 1.0)) <= LEVEL
    assert found[:, 0].mean() > 0.85
    assert found[:, 1:].any(1).mean() <= MOST


def networks(generator, lines, seeds, pictures, sd):
    """right, bool (lines, seeds, pictures); sd: latent, of seeds, pictures, residual."""
    hard = generator.normal(size=pictures)  # the same for all
    z = np.hypot.reduce((1, *sd)) + hard + sd[0] * generator.normal(size=(lines, seeds, 1))
    z = (
        z
        + sd[1] * generator.normal(size=(lines, 1, pictures))
        + sd[2] * generator.normal(size=(lines, seeds, pictures))
    )
    return z > 0


CASES = {"residual": (0.0, 0.0, 0.7), "pictures": (0.0, 0.7, 0.3), "seeds": (0.2, 0.0, 0.3), "all": (0.1, 0.5, 0.5)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seeds", [2, 3])
def test_networks_that_are_equally_good_are_told_so(case, seeds):
    """Paired by picture, pictures too few to count on: familywise errors, and 95 % intervals that hold the truth, 0."""
    generator, errors, held = np.random.default_rng(seeds), 0, []
    lines, M = 4, 200
    for _ in range(TIMES):
        right = networks(generator, lines + 1, seeds, M, CASES[case])
        found = [squares(line, right[0]) for line in right[1:]]
        d = 100 * (right[1:].mean(2) - right[0].mean(1))
        D = d.mean(1)
        scale = np.array([max(one.residual, 1e-9) for one in found])
        shared = pool(d - D[:, None], scale, np.full(lines, (100 / M) ** 2 / 6), [2] * lines)
        P = np.array([one.beyond(v) for one, v in zip(found, shared.variance, strict=True)])
        S = shared.variance / seeds
        held.append(np.abs(D) <= half_width(LEVEL, S, shared.freedom, P, np.array(M)))
        p = np.where(shared.known, half_width(LEVEL / lines, S, shared.freedom, P, np.array(M)), np.inf)
        errors += bool((np.abs(D) > p).any())  # the first step of Holm: one error is as many as there are
    assert errors / TIMES <= MOST
    assert np.mean(held) >= 0.94
