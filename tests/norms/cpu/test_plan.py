"""Plans: what they are made of, worked out by hand."""

from __future__ import annotations

import itertools

import pytest
import torch

from normbench.norms.cpu.plan import goes_by_stretches, stretches
from normbench.norms.plain import first_features


def begins_of(D: int, G: int) -> torch.Tensor:
    return first_features(D, G, torch.device("cpu"))


@pytest.mark.parametrize("most", [1, 5, 1000])
@pytest.mark.parametrize("G", [1, 4, 5, 6, 12, 17, 100, 209])
def test_no_group_changes_within_a_stretch(G: int, most: int) -> None:
    C, S = 6, 35
    edges, group = (table.tolist() for table in stretches(begins_of(C * S, G), C, S, most))
    assert (edges[0], edges[-1]) == (0, S)
    assert len(group) == len(edges) - 1
    for (first, last), of_channel in zip(itertools.pairwise(edges), group, strict=True):
        assert 0 < last - first <= most
        for c in range(C):
            assert {(c * S + s) * G // (C * S) for s in range(first, last)} == {of_channel[c]}


def test_there_are_no_more_stretches_than_needed() -> None:
    """The thirds of a map, where every group is of four thirds; none, where groups begin with channels."""
    assert stretches(begins_of(48 * 1225, 36), 48, 1225, 10**6)[0].tolist() == [0, 409, 817, 1225]
    assert stretches(begins_of(48 * 1225, 24), 48, 1225, 10**6)[0].tolist() == [0, 1225]


@pytest.mark.parametrize(
    ("C", "S", "G", "expected"),
    [(48, 1225, 32, True), (64, 1024, 30, True), (64, 1024, 63, False), (512, 49, 500, False), (512, 16, 511, True)],
)
def test_few_or_long_stretches_are_gone_over(C: int, S: int, G: int, expected: bool) -> None:
    assert goes_by_stretches(begins_of(C * S, G), S) is expected
