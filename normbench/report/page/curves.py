"""The learning curves of all cells, as small as they can be: top-1 and training loss per epoch, rounded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from normbench import records

MEASURES = {"top1": 2, "train_loss": 4}  # and their decimals: finer than a curve can show


def read(folder: Path, cells: Iterable[Any]) -> list[list[Any] | None]:
    """Of each cell a list per measure, and its epochs where these are not 1, 2, 3 …; None for a cell without any."""
    return [_curve(records.epochs(folder / str(cell))) if inside(cell) else None for cell in cells]


def inside(cell: Any) -> bool:
    """Whether a cell's id is the name of a folder in its sweep; a damaged store may say anything."""
    return Path(str(cell)).name == str(cell) and "\0" not in str(cell)


def _curve(rows: Sequence[Any]) -> list[Any] | None:
    rows = [row for row in rows if isinstance(row, dict) and isinstance(row.get("epoch"), int)]
    if not rows:
        return None
    curve: list[Any] = [_rounded([row.get(name) for row in rows], digits) for name, digits in MEASURES.items()]
    epochs = [row["epoch"] for row in rows]
    return curve if epochs == list(range(1, len(rows) + 1)) else [*curve, epochs]


def _rounded(values: list[Any], digits: int) -> list[float | None]:
    """At once, as there may be 100,000s of them; what is no number is None."""
    try:
        numbers = np.array(values, dtype=float)
    except (TypeError, ValueError, OverflowError):
        numbers = np.array([value if isinstance(value, int | float) else math.nan for value in values], dtype=float)
    finite = np.isfinite(numbers)
    rounded = numbers.round(digits).tolist()
    return rounded if finite.all() else [value if known else None for value, known in zip(rounded, finite, strict=True)]
