"""Which lines a picture shows where it has no room for all."""

from made import spots

from normbench.report import chosen
from normbench.report.frame import Spot

MADE = spots([f"norm{k:02}" for k in range(20)] + ["bn lr=1", "bn lr=2"])


def test_the_baseline_and_the_best_stay_in_their_order():
    kept, left_out = chosen.most(MADE, 3)
    assert list(dict.fromkeys(spot.line for spot in kept)) == ["norm19", "bn lr=1", "bn lr=2"]
    assert left_out == 19
    assert chosen.most(MADE, 22) == (MADE, 0)


def test_those_that_tell_most_are_the_baseline_the_best_and_the_worst():
    assert chosen.telling(MADE, 3) == ["norm00", "bn lr=1", "bn lr=2"]
    worse = [*MADE, Spot("", "broken", 2, (10.0,), {}), Spot("", "dead", 2, (), {"oom": 1})]
    assert chosen.telling(worse, 4) == ["norm00", "bn lr=1", "bn lr=2", "broken"]
    assert chosen.telling(MADE[:6], 3) == ["norm00", "norm01"]


def test_a_sweep_without_batch_norm_has_no_baseline():
    assert chosen.baseline(spots(["gn", "bgn"])) is None
    assert chosen.baseline(MADE) == "bn lr=1"


def test_some_batches_are_the_outer_ones_and_some_between():
    assert chosen.evenly([2, 4, 8, 16, 32], 3) == [2, 8, 32]
    assert chosen.evenly([2, 4], 3) == [2, 4]
    assert chosen.evenly([2, 4, 8], 1) == [8]
