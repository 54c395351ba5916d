"""Names of lines at their ends."""

import itertools

import pytest

from normbench.report import labels


@pytest.mark.parametrize("wanted", [[5, 5, 5], [0, 1, 2, 50], [99, 100, 100, 101], [3], []])
def test_labels_are_moved_apart_and_keep_their_order(wanted):
    heights = {str(k): float(height) for k, height in enumerate(wanted)}
    placed = labels.spread(heights, 9, 0, 100)
    order = sorted(heights, key=heights.__getitem__)
    assert all(placed[b] - placed[a] > 8.99 for a, b in itertools.pairwise(order))
    assert all(-1e-9 <= height <= 100 + 1e-9 for height in placed.values())
