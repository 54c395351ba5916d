"""A sweep as a frame: which line and which column of the table each cell belongs to, and what stands there.

A *line* is a normalizer and every configuration value that tells its cells apart; a *column* is a batch. Only seeds are
averaged. Values that merely follow the batch (a learning rate by rule, BGN's number of groups by table) make no line
of their own, but are told in the notes.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from normbench import records
from normbench.errors import StoreError

# Comparisons hold inside one of these blocks: another network or other pictures are another experiment.
BLOCK = ("data", "arch")
# What may follow the batch by a rule, besides a normalizer's own options (``norm.…``).
FOLLOWS = ("lr", "steps")
# The baselines come first, the rest by name.
FIRST = ("none", "bn")
NOTHING_YET = "–"


def read(folder: Path | str) -> pd.DataFrame:
    """The cells of one sweep: the columns of ``results.csv`` and ``line`` and ``block``, sorted as they are to be shown.

    ``line``: label of the cell's line, without its block; ``block``: data and architecture where they vary, else "".
    Cells that left no configuration behind (damaged ones) have an empty ``line``.
    Raises StoreError if the folder has no cell, or was written by another schema version.
    """
    rows = records.rows(folder)
    if not rows:
        raise StoreError(f"{str(folder)!r} has no cell yet; expected a sweep that has begun at least one")
    frame = pd.DataFrame(rows, dtype=object)
    for column in configuration(frame):
        frame[column] = frame[column].map(_known)
    whole = frame[["norm", "batch"]].notna().all(axis=1)
    frame.loc[whole, "batch"] = frame.loc[whole, "batch"].map(int)
    return _sorted(_labelled(frame, whole), whole).reset_index(drop=True)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per block, line and batch: ``mean std n_ok n text complete best`` of top-1 over the seeds, in percent.

    ``std`` is the sample's (n − 1), NaN below two values. ``n`` counts failures too. ``complete``: every seed ended ok,
    and no other line has more seeds at that batch. ``best``: the highest mean among the complete ones of a block
    and batch, all of them where they print alike, none where there is nothing to compare.
    """
    cells = frame[frame["line"] != ""]
    if cells.empty:
        columns = ["block", "line", "batch", "mean", "std", "n_ok", "n", "text", "complete", "best"]
        return pd.DataFrame(columns=columns)
    table = pd.DataFrame(
        {"block": block, "line": line, "batch": batch, **_summed(cell)}
        for (block, line, batch), cell in cells.groupby(["block", "line", "batch"], sort=False)
    )
    return _marked(table)


def configuration(frame: pd.DataFrame) -> list[str]:
    """The columns that configure a cell: all that are no measurement."""
    return [column for column in frame.columns if column not in records.METRICS and column not in ("line", "block")]


def shown(frame: pd.DataFrame) -> dict[str, set[str]]:
    """For every configuration column that varies beside norm, batch and seed: the norms in whose labels it stands."""
    columns = [c for c in configuration(frame) if c not in ("norm", "batch", "seed") and _words(frame, c).nunique() > 1]
    norms = set(frame["norm"].dropna())
    general = [c for c in columns if not _may_follow(c)]
    found = {column: norms for column in general}
    for column in (c for c in columns if _may_follow(c)):
        found[column] = _norms_split_by(frame, column, general)
    # The rate is asked last: an option that is shown may be the reason why it differs.
    return found | {c: _norms_split_by(frame, c, [k for k in found if k not in FOLLOWS]) for c in FOLLOWS if c in found}


def word(value: Any) -> str:
    """A configuration value as a label shows it; "" if it has none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _known(value: Any) -> Any:
    return None if word(value) == "" else value


def _words(frame: pd.DataFrame, column: str) -> pd.Series:
    """Exact texts to group by: ``word`` rounds, which would put two rates in one group."""
    return frame[column].map(lambda value: "" if word(value) == "" else json.dumps(value, default=str))


def _may_follow(column: str) -> bool:
    return column in FOLLOWS or column.startswith("norm.")


def _norms_split_by(frame: pd.DataFrame, column: str, others: Iterable[str]) -> set[str]:
    """The norms for which ``column`` takes several values at one batch, all ``others`` equal."""
    keys = [_words(frame, key).rename(key) for key in ("norm", *others, "batch")]
    values = _words(frame, column).groupby(keys, sort=False).transform("nunique")
    return set(frame.loc[values > 1, "norm"].dropna())


def _labelled(frame: pd.DataFrame, whole: pd.Series) -> pd.DataFrame:
    stands = shown(frame[whole])
    names = _short_names([column for column in stands if column not in BLOCK and stands[column]])
    short = {column: _short_values(frame[column]) for column in ("norm", *stands)}
    blocks, lines = [], []
    for row, known in zip(frame.to_dict("records"), whole, strict=True):
        parts = [f"{name}={short[c][word(row[c])]}" for c, name in names.items() if row["norm"] in stands[c] and row[c] is not None]
        lines.append(" ".join([short["norm"][word(row["norm"])], *parts]) if known else "")
        blocks.append(" · ".join(short[c][word(row[c])] for c in BLOCK if c in stands) if known else "")
    return _told_apart(frame.assign(line=lines, block=blocks))


def _told_apart(frame: pd.DataFrame) -> pd.DataFrame:
    """Number cells that are alike in all we see (their data or a user's file changed): they are no repetitions."""
    keys = [frame[key].map(word) for key in ("block", "line", "batch", "seed")]
    twin = frame.groupby(keys, sort=False).cumcount()
    mark = twin.map(lambda k: f" #{k + 1}" if k else "")
    return frame.assign(line=frame["line"] + mark.where(frame["line"] != "", ""))


def _short_names(columns: list[str]) -> dict[str, str]:
    """Option names without their group, where that stays unambiguous."""
    last = Counter(column.rpartition(".")[2] for column in columns)
    return {c: c.rpartition(".")[2] if last[c.rpartition(".")[2]] == 1 else c for c in columns}


def _short_values(column: pd.Series) -> dict[str, str]:
    """Values without their folders (``/home/me/my.py:Norm`` reads ``my.py:Norm``), where that stays unambiguous."""
    words = set(column.map(word))
    last = Counter(text.rpartition("/")[2] for text in words)
    return {text: text.rpartition("/")[2] if last[text.rpartition("/")[2]] == 1 else text for text in words}


def _sorted(frame: pd.DataFrame, whole: pd.Series) -> pd.DataFrame:
    columns = [c for c in shown(frame[whole]) if c not in BLOCK]

    def place(row: dict[str, Any]) -> tuple[Any, ...]:
        norm = word(row["norm"])
        baseline = FIRST.index(norm) if norm in FIRST else len(FIRST)
        values = [_natural(row[c]) for c in (*columns, "batch", "seed")]
        return (row["line"] == "", row["block"], baseline, norm, *values[:-2], row["line"], *values[-2:])

    rows = frame.to_dict("records")
    return frame.iloc[sorted(range(len(rows)), key=lambda k: place(rows[k]))]


def _natural(value: Any) -> tuple[int, float, str]:
    """Numbers by size, then words; no value comes first."""
    number = isinstance(value, int | float)
    return (1, float(value), "") if number else (2 if word(value) else 0, 0.0, word(value))


def _summed(cell: pd.DataFrame) -> dict[str, Any]:
    """Mean, spread and counts of the seeds of one cell of the table."""
    top1 = pd.to_numeric(cell["top1"], errors="coerce")
    ok = (cell["status"] == "ok") & top1.notna()
    values = top1[ok]
    failed = Counter(status if status != "ok" else "no top-1" for status in cell.loc[~ok, "status"])
    mean, std = (float(values.mean()), float(values.std())) if len(values) else (math.nan, math.nan)
    counts = {"n_ok": len(values), "n": len(cell)}
    return {"mean": mean, "std": std, **counts, "text": text(mean, std, **counts, failed=failed)}


def text(mean: float, std: float, n_ok: int, n: int, failed: Counter[str]) -> str:
    """What stands in the table: ``98.1 ± 0.2 (3)``, ``97.9 (2/3, 1 diverged)``, ``diverged``."""
    kinds = ", ".join(f"{count} {status}" for status, count in sorted(failed.items()))
    if not n_ok:
        return next(iter(failed)) + (f" ({n})" if n > 1 else "") if len(failed) == 1 else f"0/{n}, {kinds}"
    if n_ok < n:
        return f"{mean:.1f} ({n_ok}/{n}, {kinds})"
    return f"{mean:.1f} ± {std:.1f} ({n})" if n > 1 else f"{mean:.1f}"


def _marked(table: pd.DataFrame) -> pd.DataFrame:
    """Add ``complete`` and ``best``."""
    columns = table.groupby(["block", "batch"], sort=False)
    table["complete"] = (table["n_ok"] == table["n"]) & (table["n"] == columns["n"].transform("max"))
    entrants = table["mean"].where(table["complete"]).round(1)
    groups = entrants.groupby([table["block"], table["batch"]], sort=False)
    table["best"] = (entrants == groups.transform("max")) & (groups.transform("count") > 1)
    return table
