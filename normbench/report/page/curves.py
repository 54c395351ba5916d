"""The learning curves of all cells, as small as they can be: top-1 and training loss per epoch, rounded."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from normbench import records

MEASURES = {"top1": 2, "train_loss": 4}  # and their decimals: finer than a curve can show


def of(cells: Iterable[str], epochs: Mapping[str, Sequence[Any]]) -> list[list[Any] | None]:
    """Of each cell a list per measure, and its epochs where these are not 1, 2, 3 …; None for a cell without any.

    epochs: the columns ``cell_id epoch top1 train_loss`` of all epochs (``epochs.read``), a cell's rows one by one.
    """
    places, start = dict[str, slice](), 0
    for cell, rows in itertools.groupby(epochs["cell_id"]):
        stop = start + len(list(rows))
        places[cell], start = slice(start, stop), stop
    columns = [epochs[name] for name in ("epoch", *MEASURES)]
    return [_curve(*(column[places[cell]] for column in columns)) if cell in places else None for cell in cells]


def _curve(epochs: Sequence[Any], *measured: Sequence[Any]) -> list[Any] | None:
    if not all(numbered := [isinstance(epoch, int) for epoch in epochs]):
        epochs, *rest = ([*itertools.compress(column, numbered)] for column in (epochs, *measured))
        measured = tuple(rest)
    if not epochs:
        return None
    if (at := records.latest(epochs)) != list(range(len(epochs))):
        epochs, *rest = ([column[k] for k in at] for column in (epochs, *measured))
        measured = tuple(rest)
    curve: list[Any] = [_rounded(values, digits) for values, digits in zip(measured, MEASURES.values(), strict=True)]
    return curve if list(epochs) == list(range(1, len(epochs) + 1)) else [*curve, list(epochs)]


def _rounded(values: Sequence[Any], digits: int) -> list[float | None]:
    """At once, as there may be 100,000s of them; what is no number is None."""
    try:
        numbers = np.array(values, dtype=float)
    except (TypeError, ValueError, OverflowError):
        numbers = np.array([value if isinstance(value, int | float) else math.nan for value in values], dtype=float)
    finite = np.isfinite(numbers)
    rounded = numbers.round(digits).tolist()
    return rounded if finite.all() else [value if known else None for value, known in zip(rounded, finite, strict=True)]
