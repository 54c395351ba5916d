"""Medians, quartiles and means on numbers that are known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from normbench.bench import results, statistics, table
from normbench.bench.measure import Samples
from normbench.bench.results import Row
from normbench.bench.statistics import BASELINE, Quartiles, geo_mean, quartiles, summarize


def row(name: str, C: int, ratio: float, ms: float, sites: int = 1, kept: float = 1.0) -> Row:
    return Row(
        name, "norm", "net", 2, C, 4, 4, True, sites, "contiguous", "float32", 0.1,
        median_ms=ms, ratio=ratio, copy_ratio=10 * ratio, kept_mib=kept,
    )  # fmt: skip


def test_quartiles() -> None:
    assert quartiles([5, 1, 4, 2, 3]) == Quartiles(2, 3, 4)
    assert quartiles([7]) == Quartiles(7, 7, 7)
    assert math.isnan(quartiles([]).median)


def test_the_geometric_mean_of_a_ratio_and_its_inverse_is_one() -> None:
    assert geo_mean([4, 1 / 4]) == pytest.approx(1)
    assert geo_mean([2, 8]) == pytest.approx(4)
    assert math.isnan(geo_mean([]))


def test_ratios_are_of_the_same_round() -> None:
    """A machine that halves its speed halfway changes the times, not the ratio."""
    samples = {BASELINE: Samples([1, 2, 2], [1, 2, 2], 1), "x": Samples([3, 6, 6], [1, 2, 2], 4)}
    found = results.measures("x", samples)
    assert (found["ratio"], found["ratio_q25"], found["ratio_q75"]) == (3, 3, 3)
    assert (found["median_ms"], found["rounds"], found["repeats"]) == (6000, 3, 4)
    assert results.measures(BASELINE, samples)["ratio"] == 1


def test_without_a_baseline_there_are_times_and_no_ratios() -> None:
    samples = {BASELINE: Samples(reason="it broke"), "x": Samples([1, 1], [1, 1], 1)}
    found = results.measures("x", samples)
    assert found["median_ms"] == 1000
    assert math.isnan(found["ratio"])
    assert "it broke" in found["reason"]
    assert statistics.ratios([1.0], []) == []


def test_an_unsteady_machine_is_told() -> None:
    calm, shaken = (replace(row(BASELINE, C, 1, 1), q25_ms=1, q75_ms=high) for C, high in ((8, 1.1), (16, 2)))
    assert table.make([calm], [], "here").notes == []
    (note,) = table.make([calm, shaken], [], "here").notes
    assert note.startswith("unsteady: in 1 of 2 cases")


def test_a_summary() -> None:
    rows = [row("x", 8, 2, 2, sites=3), row("x", 16, 8, 80), row("x", 32, math.nan, math.nan)]
    base = {rows[0].case: row(BASELINE, 8, 1, 1, kept=2.0), rows[1].case: row(BASELINE, 16, 1, 10, kept=4.0)}
    found = summarize(rows, base)
    assert found is not None
    assert (found.geo_mean, found.least, found.largest, found.count) == (pytest.approx(4), 2, 8, 2)
    assert found.largest_at.C == 16
    assert found.together == pytest.approx((3 * 2 + 80) / (3 * 1 + 10))
    assert found.kept == pytest.approx((3 * 1 + 1) / (3 * 2 + 4))
    assert found.copy == pytest.approx(40)
    assert summarize(rows[2:], base) is None
