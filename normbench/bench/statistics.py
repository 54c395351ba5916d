"""Medians, quartiles and geometric means of what was measured. Free of torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normbench.bench.results import Row

BASELINE, COPY = "nn.BatchNorm2d", "copy"


@dataclass(frozen=True)
class Quartiles:
    """Of the rounds. NaN without any."""

    low: float
    median: float
    high: float


def quartiles(values: Sequence[float]) -> Quartiles:
    """The quarter points, by linear interpolation between the values."""
    if not values:
        return Quartiles(math.nan, math.nan, math.nan)
    if len(values) == 1:
        return Quartiles(values[0], values[0], values[0])
    return Quartiles(*statistics.quantiles(values, n=4, method="inclusive"))


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Round by round; none where one of the two has no rounds."""
    return [a / b for a, b in zip(values, others, strict=True)] if values and others else []


def geo_mean(values: Iterable[float]) -> float:
    """The geometric mean: of a ratio and its inverse, 1. NaN without any."""
    logs = [math.log(value) for value in values]
    return math.exp(statistics.fmean(logs)) if logs else math.nan


@dataclass(frozen=True)
class Summary:
    """One contestant over many rows: geometric mean, least and largest of the median ratios, and where the largest is.

    together, kept: time of all sites of the networks, and memory that they keep for the backward, over the baseline's.
    copy: geometric mean of the ratios to the copy.
    """

    geo_mean: float
    least: float
    largest: float
    largest_at: Row
    together: float
    kept: float
    copy: float
    count: int


def summarize(rows: Sequence[Row], base: Mapping[tuple[Any, ...], Row]) -> Summary | None:
    """Over the rows that were measured; None if there is none. ``base``: the baseline's row of each case."""
    measured = [row for row in rows if row.measured]
    if not measured:
        return None
    largest = max(measured, key=lambda row: row.ratio)
    return Summary(
        geo_mean=geo_mean(row.ratio for row in measured),
        least=min(row.ratio for row in measured),
        largest=largest.ratio,
        largest_at=largest,
        together=sum(row.sites * row.median_ms for row in measured)
        / sum(row.sites * base[row.case].median_ms for row in measured),
        kept=sum(row.sites * row.kept_mib for row in measured)
        / sum(row.sites * base[row.case].kept_mib for row in measured),
        copy=geo_mean(row.copy_ratio for row in measured if row.copy_ratio > 0),
        count=len(measured),
    )
