"""Fixed choices: stratified, the same every time, disjoint where they must be."""

from __future__ import annotations

import numpy as np
import pytest

from normbench.data import split
from normbench.errors import DataError

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [40, 20, 10, 5]))


def per_class(at: np.ndarray) -> list[int]:
    return np.bincount(LABELS[at], minlength=4).tolist()


def test_a_share_is_taken_of_every_class():
    assert per_class(np.flatnonzero(split.share(LABELS, 0.2, split.OURS))) == [8, 4, 2, 1]


def test_a_share_takes_at_least_one_and_leaves_at_least_one():
    assert per_class(np.flatnonzero(split.share(LABELS, 0.001, split.OURS))) == [1, 1, 1, 1]
    assert per_class(np.flatnonzero(~split.share(LABELS, 0.999, split.OURS))) == [1, 1, 1, 1]


def test_each_takes_the_same_number_of_every_class():
    assert per_class(np.flatnonzero(split.each(LABELS, 3, split.OURS))) == [3, 3, 3, 3]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(4, [1, 1, 1, 1]), (2, [1, 1, 0, 0]), (18, [5, 5, 4, 4]), (30, [9, 8, 8, 5]), (500, [40, 20, 10, 5])],
)
def test_a_limit_is_as_even_as_the_classes_allow(limit, expected):
    at = split.limited(LABELS, limit)
    assert per_class(at) == expected
    assert (np.diff(at) > 0).all()


def test_a_smaller_limit_is_a_subset_of_a_larger_one():
    assert set(split.limited(LABELS, 10)) < set(split.limited(LABELS, 20))


def test_the_choice_is_the_same_for_ever():
    # Numbers from the day this was written: published results stand on them.
    assert split.ranks(np.repeat([0, 1], 6), split.LIMIT).tolist() == [2, 5, 4, 1, 3, 0, 1, 2, 0, 4, 5, 3]


def test_without_valid_the_test_set_is_evaluated_on():
    train, test = split.choose(LABELS, LABELS[:9], valid=0, limit=None, name="x")
    assert len(train) == 75
    assert test.tolist() == list(range(9))


def test_valid_is_held_out_of_training_before_the_limit():
    train, valid = split.choose(LABELS, LABELS, valid=0.2, limit=None, name="x")
    assert per_class(valid) == [8, 4, 2, 1]
    assert sorted([*train, *valid]) == list(range(75))
    few, few_valid = split.choose(LABELS, LABELS, valid=0.2, limit=8, name="x")
    assert (len(few), len(few_valid)) == (8, 8)
    assert set(few) < set(train)
    assert set(few_valid) < set(valid)


def test_valid_that_leaves_a_side_empty_is_an_error():
    with pytest.raises(DataError, match=r"data.valid: got 0.1 of x's 2 training pictures.*data.valid=0"):
        split.choose(np.array([0, 1]), np.array([0]), valid=0.1, limit=None, name="x")
