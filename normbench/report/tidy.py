"""A table's entries as data: one row per line and batch, every number in a column of its own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from normbench.report.frame import Spot, configuration, places, word
from normbench.report.verdict import Noise


def rows(frame: pd.DataFrame, spots: Iterable[Spot]) -> list[dict[str, Any]]:
    """What table.csv holds, in the order of the table; results.csv has the single cells.

    ``line`` (its label), all that configures its cells but the seed, ``top1_mean`` and ``top1_sd`` (%, of the sample)
    over the ``n`` seeds with a result, ``failed`` (seeds without one), ``status`` and ``reason`` of those, ``best``.
    ``top1_low`` and ``top1_high``: 95 % interval of the mean; ``level``: not significantly worse than the best. Then,
    in points of top-1, the ``difference`` to the line ``baseline`` at the same batch over ``pairs`` seeds that both
    have, its 95 % interval ``difference_low``, ``difference_high``, ``p``, ``p_holm`` in a family of ``family``
    p-values, ``verdict``, and the noise of a difference: ``seed_sd``, ``picture_sd``, ``residual_sd`` (verdict.Noise),
    ``pooled``: whether the first is of the whole family. NaN: no such number.
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
        **_judged(spot),
    }


def _judged(spot: Spot) -> dict[str, Any]:
    versus, nothing = spot.versus, math.nan
    low, high = spot.interval or (nothing, nothing)
    difference_low, difference_high = versus.interval if versus else (nothing, nothing)
    noise = versus.noise if versus else Noise()
    return {
        "top1_low": _rounded(low),
        "top1_high": _rounded(high),
        "level": spot.level,
        "baseline": versus.baseline if versus else "",
        "pairs": versus.seeds if versus else 0,
        "difference": _rounded(versus.difference if versus else nothing),
        "difference_low": _rounded(difference_low),
        "difference_high": _rounded(difference_high),
        "p": _significant(versus.p if versus else nothing),
        "p_holm": _significant(versus.p_holm if versus else nothing),
        "family": versus.family.size if versus else 0,
        "verdict": versus.verdict if versus else "",
        "seed_sd": _rounded(noise.seed),
        "picture_sd": _rounded(noise.picture),
        "residual_sd": _rounded(noise.residual),
        "pooled": bool(versus and versus.pooled),
    }


def _alike(values: pd.Series) -> Any:
    """The value of all seeds; should they differ after all, every one of them."""
    found: Mapping[str, Any] = {word(value): value for value in values}
    return next(iter(found.values())) if len(found) == 1 else " ".join(found)


def _significant(p: float) -> float:
    """Six digits: small p-values matter, and their last digits differ from machine to machine."""
    return float(f"{p:.6g}")


def _rounded(number: float) -> float:
    """Without the noise of summing: 90.5, not 90.50000000000001."""
    return number if math.isnan(number) else round(number, 6)
