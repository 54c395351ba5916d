"""Every epoch of every cell of a sweep, as columns."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from normbench import records
from normbench.files import legible
from normbench.records.cells import LARGEST

# What an epoch has, in this order; whatever else a row holds comes behind.
COLUMNS = (
    "epoch", "step", "lr", "train_loss", "top1", "top5", "loss", "eval_count", "images_per_s", "train_seconds",
)  # fmt: skip


def read(folder: Path) -> tuple[dict[str, list[Any]], list[str]]:
    """``cell_id`` and a list per key of the rows, None where a row lacks it; and lines on rows that cannot be read.

    A loss without bounds, as one that diverges may leave, is None too.
    """
    columns: dict[str, list[Any]] = {column: [] for column in ("cell_id", *COLUMNS)}
    problems, lost = records.Problems(), list[str]()
    count = 0
    for place in records.cells_of(folder):
        rows, damaged = records.read_rows(place)
        if not rows and not (place / "rows.jsonl").exists():
            lost.append(place.name)
        if damaged:
            problems.add("cells with lines in rows.jsonl that cannot be read", place.name, str(damaged))
        columns["cell_id"] += [legible(place.name)] * len(rows)
        for key, values in _turned(rows).items():
            if key not in columns:
                columns[key] = [None] * count
            columns[key].extend(values)
        count += len(rows)
        for values in columns.values():
            values.extend([None] * (count - len(values)))
    for name in lost if count else ():  # where there are no rows at all, nobody misses any
        problems.add("cells whose rows.jsonl is missing", name)
    for name in COLUMNS:
        for k in _impossible(columns[name]):
            problems.add("numbers in rows.jsonl left out that cannot be right", columns["cell_id"][k], name)
            columns[name][k] = None
    known = ("cell_id", *COLUMNS)
    return {key: columns[key] for key in (*known, *sorted(columns.keys() - set(known)))}, problems.told()


def _impossible(values: list[Any]) -> list[int]:
    """Where there are numbers so large that no float32 holds them, and infinities; quickly where there is none."""
    try:
        size = np.abs(np.array(values, dtype=float))
        return np.flatnonzero(size > LARGEST).tolist()
    except (TypeError, ValueError, OverflowError):  # words, or whole numbers of more than 300 digits
        return [k for k, value in enumerate(values) if isinstance(value, int | float) and abs(value) > LARGEST]


def _turned(rows: list[dict[str, Any]]) -> dict[str, Iterable[Any]]:
    """A column per key; quickly where all rows have the same keys in the same order, as a run writes them."""
    keys = list(rows[0]) if rows else []
    if all(list(row) == keys for row in rows):
        turned: dict[str, Iterable[Any]] = dict(
            zip(keys, zip(*(row.values() for row in rows), strict=True), strict=True)
        )
    else:
        turned = {key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)}
    turned.pop("cell_id", None)
    return turned
