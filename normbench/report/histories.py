"""What the table's cells went through, epoch by epoch: top-1 and the training loss of every seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from normbench import records
from normbench.report.frame import places

COLUMNS = ("epoch", "top1", "train_loss")
Place = tuple[str, str, int]


@dataclass(frozen=True)
class History:
    """Of one block, line and batch: per seed (epochs, 3) with the columns epoch, top-1 (%) and training loss.

    whole: the seeds that ended ok, which the table averages; cut: those that did not, as far as they came.
    """

    whole: tuple[np.ndarray, ...]
    cut: tuple[np.ndarray, ...]

    def mean(self) -> np.ndarray:
        """Over the whole seeds, (epochs, 3), for the epochs that all of them have; empty if there is none."""
        if not self.whole:
            return np.empty((0, 3))
        common = self.whole[0][:, 0]
        for seed in self.whole[1:]:
            common = np.intersect1d(common, seed[:, 0])
        return np.mean([seed[np.isin(seed[:, 0], common)] for seed in self.whole], axis=0)


def collect(frame: pd.DataFrame, epochs: Mapping[str, Sequence[Any]]) -> dict[Place, History]:
    """The histories of every place in the table that has one, from columns as ``epochs.read`` gives them."""
    rows: dict[str, list[Sequence[Any]]] = {}
    columns = (epochs[column] for column in COLUMNS)
    for cell, row in zip(epochs["cell_id"], zip(*columns, strict=True), strict=True):
        rows.setdefault(cell, []).append(row)
    seeds = {cell: _seed(some) for cell, some in rows.items()}
    found = {place: _history(seeds, cells) for place, cells in places(frame)}
    return {place: history for place, history in found.items() if history.whole or history.cut}


def _history(seeds: Mapping[str, np.ndarray], cells: pd.DataFrame) -> History:
    whole: list[np.ndarray] = []
    cut: list[np.ndarray] = []
    for cell, status in zip(cells["cell_id"], cells["status"], strict=True):
        seed = seeds.get(str(cell))
        if seed is not None and len(seed):
            (whole if status == "ok" else cut).append(seed)
    return History(tuple(whole), tuple(cut))


def _seed(rows: Iterable[Sequence[Any]]) -> np.ndarray:
    """NaN for what a row does not say; an epoch that was written twice, by two attempts, counts as it was last."""
    numbers = np.array([_numbers(row) for row in rows], dtype=float)
    numbers = numbers[~np.isnan(numbers[:, 0])]
    return numbers[records.latest(numbers[:, 0].tolist())]


def _numbers(row: Sequence[Any]) -> Sequence[float]:
    if {type(value) for value in row} <= {int, float}:
        return row
    return [float(value) if isinstance(value, int | float) else math.nan for value in row]
