"""What is known of each cell's pictures: which it gets right, and which set they are, so that only like is paired."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from normbench.records import Problems, correct
from normbench.report.crossed import POINTS
from normbench.report.frame import word

# What makes two cells' pictures the same, in the same order, beside their number.
SAME = ("split", "data", "data.source", "eval_count")

UNUSED = "cells whose correct.npy cannot be used: not paired by picture"


@dataclass(frozen=True)
class Pictures:
    """Which pictures a cell gets right, bool (pictures,), and the set they belong to."""

    right: np.ndarray
    belongs: Hashable


class Evidence:
    """The correctness of a sweep's cells, read a column of the table at a time: 2,000 cells would be a lot at once.

    problems: where what cannot be used is told.
    """

    def __init__(self, folder: Path, frame: pd.DataFrame, problems: Problems | None = None) -> None:
        self._folder = folder
        columns = [column for column in SAME if column in frame]
        known: Iterable[dict[Any, Any]] = frame[["cell_id", "top1", *columns]].to_dict("records")
        self._rows = {str(row["cell_id"]): row for row in known}
        self._held: dict[str, Pictures | None] = {}
        self._problems = problems or Problems()

    def read(self, cells: Iterable[str]) -> None:
        """Hold these cells', and no others any more."""
        self._held = {cell: self._read(cell) for cell in cells}

    def of(self, cells: Sequence[str]) -> list[Pictures] | None:
        """Of cells that were all evaluated on the same pictures; None if one is not known, or has others."""
        found = [self._held.get(cell) for cell in cells]
        whole = [pictures for pictures in found if pictures is not None]
        return whole if whole and len(whole) == len(found) and len({p.belongs for p in whole}) == 1 else None

    def step(self, cell: str) -> float:
        """Points of top-1 that one picture is worth; 0 if their number is not known."""
        count = self._rows[cell].get("eval_count")
        return POINTS / float(count) if count and count == count and float(count) > 0 else 0.0

    def _read(self, cell: str) -> Pictures | None:
        row = self._rows[cell]
        right = correct.read(self._folder / cell)
        if right is None or len(right) < 2:
            if (self._folder / cell / correct.NAME).exists():
                self._problems.add(UNUSED, cell, "damaged")
            return None
        # Left by another attempt, or of other pictures than top-1: it does not say what top-1 says.
        told, count = float(row["top1"]) * len(right) / POINTS, int(np.count_nonzero(right))
        if abs(told - count) > 0.5 + 1e-6 * len(right):
            why = f"top-1 says {told:.0f} pictures, it {count}"
            self._problems.add(UNUSED, cell, why)
            return None
        return Pictures(right, (len(right), *(word(row[column]) for column in SAME if column in row)))
