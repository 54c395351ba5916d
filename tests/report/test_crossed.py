"""The mean squares of seeds × pictures, against closed forms and what they estimate."""

import math

import numpy as np
import pytest

from normbench.report.crossed import squares

SEEDS, PICTURES = 5, 80


def anova(d):
    """Of a two-way table without replication, term by term: the textbook's sums of squares."""
    n, M = d.shape
    grand, rows, columns = d.mean(), d.mean(1, keepdims=True), d.mean(0, keepdims=True)
    seed = M * ((rows - grand) ** 2).sum() / (n - 1)
    picture = n * ((columns - grand) ** 2).sum() / (M - 1)
    residual = ((d - rows - columns + grand) ** 2).sum() / ((n - 1) * (M - 1))
    return seed, picture, residual


@pytest.mark.parametrize("seeds", [2, 5])
@pytest.mark.parametrize("alone", [True, False])
def test_mean_squares_are_the_textbooks(seeds, alone):
    generator = np.random.default_rng(0)
    right, other = generator.random((2, seeds, PICTURES)) < np.linspace(0.1, 0.99, PICTURES)
    found = squares(right) if alone else squares(right, other)
    wanted = anova(right.astype(float) - (0 if alone else other))
    assert (found.seed, found.picture, found.residual) == pytest.approx([1e4 * ms / PICTURES for ms in wanted])
    assert (found.seeds, found.pictures) == (seeds, PICTURES)


def test_the_seeds_mean_square_is_the_variance_of_top1():
    right, other = np.random.default_rng(1).random((2, SEEDS, PICTURES)) < 0.8
    top1 = 100 * (right.mean(1) - other.mean(1))
    assert squares(right, other).seed == pytest.approx(np.var(top1, ddof=1))


def test_a_single_seed_has_the_binomial_variance():
    right = np.arange(1, PICTURES + 1)[None] <= 60
    found = squares(right)
    assert found.picture / found.seeds == pytest.approx(1e4 * 0.75 * 0.25 / (PICTURES - 1))
    assert math.isnan(found.seed)
    assert math.isnan(found.residual)
    assert found.beyond(math.nan) == found.picture


def test_components_are_found_again():
    """d is Gaussian here: ``squares`` takes what is right or wrong, ``anova`` is the same arithmetic on any table."""
    generator = np.random.default_rng(2)
    sd, total = (0.03, 0.2, 0.4), np.zeros(3)
    for _ in range(1000):
        shape = (SEEDS, PICTURES)
        parts = (
            generator.normal(size=size) * s for size, s in zip(((SEEDS, 1), (1, PICTURES), shape), sd, strict=True)
        )
        total += anova(np.sum(np.broadcast_arrays(*parts), axis=0))
    seed, picture, residual = total / 1000
    assert residual == pytest.approx(0.4**2, rel=0.01)
    assert (seed - residual) / PICTURES == pytest.approx(0.03**2, rel=0.1)
    assert (picture - residual) / SEEDS == pytest.approx(0.2**2, rel=0.05)


@pytest.mark.parametrize("seed", [0.0, 0.5, 2.0, 50.0])
def test_the_variance_is_never_below_either_part_alone(seed):
    right, other = np.random.default_rng(3).random((2, SEEDS, PICTURES)) < np.linspace(0.1, 0.99, PICTURES)
    found = squares(right, other)
    whole = seed / SEEDS + found.beyond(seed)
    assert whole >= seed / SEEDS
    assert whole >= found.picture / SEEDS * (1 - 1e-12)


def test_equal_networks_have_no_noise():
    right = np.random.default_rng(4).random((SEEDS, PICTURES)) < 0.8
    found = squares(right, right.copy())
    assert (found.seed, found.picture, found.residual) == (0, 0, 0)
