"""Intervals of a mean: they hold the truth as often as they say, and are the same every time."""

import numpy as np
import pytest

from normbench.report import bootstrap
from normbench.report.bootstrap import interval


def truth_held(n, pictures, sd, times):
    """Share of intervals that hold the top-1 over all seeds and pictures; sd: of seeds, pictures, residual (latent)."""
    generator, held = np.random.default_rng(n), 0
    latent = np.hypot.reduce(sd)
    level = 0.9 * latent  # Φ(0.9) = 81.6 % right
    truth = 100 * 0.8159398746532405
    for k in range(times):
        z = level + sd[0] * generator.normal(size=(n, 1)) + sd[1] * generator.normal(size=pictures)
        right = z + sd[2] * generator.normal(size=(n, pictures)) > 0
        low, high = interval(100 * right.mean(1), right, str(k))
        held += low <= truth <= high
    return held / times


@pytest.mark.parametrize("n", [2, 5])
@pytest.mark.parametrize("sd", [(0.0, 1.0, 0.7), (0.1, 1.0, 0.7), (0.05, 0.1, 0.3)])
def test_they_hold_the_truth(n, sd, monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 500)
    assert truth_held(n, 300, sd, times=400) >= 0.925


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_seeds_alone_hold_the_truth(n, monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 2000)
    values = np.random.default_rng(n).normal(50, 1, size=(1000, n))
    held = np.mean([low <= 50 <= high for k, v in enumerate(values) for low, high in [interval(v, None, str(k))]])
    assert 0.92 <= held <= 0.97


def test_a_single_seed_is_judged_by_its_pictures():
    right = np.arange(400)[None] < 300
    low, high = interval([75.0], right, "a")
    half = 1.96 * 100 * np.sqrt(0.75 * 0.25 / 400)
    assert (low, high) == pytest.approx((75 - half, 75 + half), abs=0.3)
    assert interval([75.0], None, "a") is None
    assert interval([], None, "a") is None


def test_a_perfect_score_has_an_interval():
    low, high = interval([100.0, 100.0], np.ones((2, 359), bool), "a")
    assert 98.9 < low < 99.8
    assert high == 100


def test_equal_seeds_without_pictures_are_a_point():
    assert interval([90.0, 90.0], None, "a") == (90, 90)


def test_the_same_bytes_every_time_and_others_for_another_cell():
    values = [90.0, 91.0, 90.2]
    assert interval(values, None, "a") == interval(values, None, "a")
    right = np.random.default_rng(0).random((8, 500)) < 0.9
    assert interval(100 * right.mean(1), right, "a") != interval(100 * right.mean(1), right, "b")


def test_many_seeds_are_the_plain_bootstrap():
    values = np.random.default_rng(0).exponential(size=400) * 3 + 50
    drawn = np.random.default_rng(1).choice(values, size=(4000, 400)).mean(1)
    assert interval(values, None, "a") == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.05)
