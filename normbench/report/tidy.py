"""A table's entries as data: one row per line and batch, every number in a column of its own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from normbench.report.frame import Spot, configuration, places, word


def rows(frame: pd.DataFrame, spots: Iterable[Spot]) -> list[dict[str, Any]]:
    """What table.csv holds, in the order of the table; results.csv has the single cells.

    ``line`` (its label), all that configures its cells but the seed, ``top1_mean`` and ``top1_sd`` (%, of the sample)
    over the ``n`` seeds with a result, ``failed`` (seeds without one), ``status`` and ``reason`` of those, ``best``.
    NaN: no such number.
    """
    columns = [column for column in configuration(frame) if column != "seed"]
    cells = dict(places(frame))
    return [_row(spot, cells[spot.block, spot.line, spot.batch], columns) for spot in spots]


def _row(spot: Spot, cells: pd.DataFrame, columns: list[str]) -> dict[str, Any]:
    failed = cells[cells["status"] != "ok"]
    return {
        "line": spot.line,
        **{column: _alike(cells[column]) for column in columns},
        "top1_mean": _rounded(spot.mean),
        "top1_sd": _rounded(spot.sd),
        "n": len(spot.values),
        "failed": sum(spot.failed.values()),
        "status": ", ".join(f"{count} {status}" for status, count in sorted(spot.failed.items())),
        "reason": "; ".join(dict.fromkeys(" ".join(word(reason).split()) for reason in failed["reason"] if reason)),
        "best": spot.best,
    }


def _alike(values: pd.Series) -> Any:
    """The value of all seeds; should they differ after all, every one of them."""
    found: Mapping[str, Any] = {word(value): value for value in values}
    return next(iter(found.values())) if len(found) == 1 else " ".join(found)


def _rounded(number: float) -> float:
    """Without the noise of summing: 90.5, not 90.50000000000001."""
    return number if math.isnan(number) else round(number, 6)
