"""What the trials of tune.lr came to: tune.csv, and what a table says of rates that were chosen by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from normbench import records
from normbench.errors import StoreError
from normbench.files import TRIALS, read_json
from normbench.report.frame import TUNE, word

# What is told of a trial beside its configuration.
MEASURED = ("split", "eval_count", "top1", "loss", "status", "reason")


def read(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """What tune.csv holds, and what is wrong with the trials: a row per trial of a sweep, none where there are none.

    All that configures it, ``split`` and ``eval_count`` (which pictures it was evaluated on, and how many), ``top1``
    (%) and ``loss`` on them, ``status`` and ``reason``, ``chosen``: whether its rate was taken; empty while that is
    open.
    """
    if not records.is_sweep(folder / TRIALS):
        return [], []
    try:
        contents = records.read(folder / TRIALS)
    except StoreError as error:  # the cells' table stands without them
        return [], [f"trials left out: {error}"]
    found, taken = contents.rows, _taken(folder)
    extra = [key for key in (found or [{}])[0] if key not in (*records.COLUMNS, *records.METRICS)]
    columns = ("cell_id", *records.AXES, *extra, *MEASURED)
    made = [{**{key: row[key] for key in columns}, "chosen": taken.get(row["cell_id"])} for row in found]
    return made, [f"trials: {problem}" for problem in contents.problems]


def _taken(folder: Path) -> dict[str, bool]:
    """The trials that the sweep's cells had, by their ids: whether the rate of each was taken."""
    taken: dict[str, bool] = {}
    for cell in records.cells_of(folder):
        result = read_json(cell / "result.json")
        trials, config = result.get("trials"), result.get("config")
        if isinstance(trials, dict) and isinstance(config, dict):
            for trial, rate in trials.items():
                taken[trial] = taken.get(trial, False) or rate == config.get("lr")
    return taken


def notes(frame: pd.DataFrame) -> list[str]:
    """How rates were chosen, whose were not, and where the best one was at the edge of those tried."""
    if TUNE not in frame or frame[TUNE].isna().all():
        return []
    chosen = frame[frame[TUNE].notna()]
    plain = len(chosen) < len(frame)
    ways = " or ".join(sorted(map(word, chosen[TUNE].unique())))
    said = [f"{'tuned: ' if plain else ''}learning rate tuned over {ways}, for each norm and batch; then tested once"]
    if plain:
        said.append("lines that are not tuned have the recipe's rate, or one that was given: another contest")
    return said + _edges(chosen)


def _edges(chosen: pd.DataFrame) -> list[str]:
    """``at the edge of the rates tried, a better one may lie beyond: bn at batch 2, 8 (highest)``."""
    if "tune_edge" not in chosen:
        return []
    groups = chosen[chosen["tune_edge"].notna()].groupby(["block", "line", "tune_edge"], sort=False)
    places = [
        f"{block} {line}".strip() + f" at batch {', '.join(map(str, sorted(set(cells['batch']))))} ({edge})"
        for (block, line, edge), cells in groups
    ]
    return [f"at the edge of the rates tried, a better one may lie beyond: {'; '.join(places)}"] if places else []
