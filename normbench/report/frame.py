"""A sweep as a frame: which line and which column of the table each cell belongs to, and what stands there.

A *line* is a normalizer and every configuration value that tells its cells apart; a *column* is a batch. Only seeds are
averaged. Values that merely follow the batch (a learning rate by rule, BGN's number of groups by table) make no line
of their own, but are told in the notes.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from normbench import records
from normbench.errors import StoreError
from normbench.files import legible
from normbench.report.verdict import LEVEL_SIGN, SIGNS, Versus

# Comparisons hold inside one of these blocks: another network or other pictures are another experiment.
BLOCK = ("data", "arch")
# The hash of a user's file or of the pictures: told behind a name that stands for several.
SOURCE = ".source"
# What may follow the batch by a rule, besides a normalizer's own options (``norm.…``) and the number of workers, where
# batch × workers is kept.
FOLLOWS = ("lr", "steps")
# By what trials a cell's rate was chosen, in words; nothing where it was given, or by the recipe's rule.
TUNE = "tune"
# The baselines come first, the rest by name.
FIRST = ("none", "bn")


def read(folder: Path | str) -> pd.DataFrame:
    """The cells of one sweep: the columns of ``results.csv`` and ``line`` and ``block``, in the order to be shown.

    ``line``: label of the cell's line, without its block; ``block``: data and architecture where they vary, else "".
    Cells that left no configuration behind (damaged ones), or that are left out (``records.LEFT_OUT``), have an empty
    ``line``.
    Raises StoreError if the folder has no cell, or was written by another schema version.
    """
    return make(folder, records.rows(folder))


def make(folder: Path | str, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """``read`` of rows that are at hand (``records.rows``); ``folder`` is for the error."""
    if not rows:
        raise StoreError(f"{str(folder)!r} has no cell yet; expected a sweep that has begun at least one")
    # As objects: pandas would make floats of integers beside a missing value, and 4 groups 4.0.
    frame = pd.DataFrame([{key: _known(value) for key, value in row.items()} for row in rows], dtype=object)
    whole = frame[["norm", "batch", "seed"]].notna().all(axis=1) & ~frame["status"].isin(records.LEFT_OUT)
    return _sorted(_labelled(frame, whole), whole).reset_index(drop=True)


@dataclass(frozen=True)
class Spot:
    """What stands at one line and batch: the top-1 (%) of the seeds that ended ok, and how the others ended.

    seeds, cells: of the values, one each.  interval: of 95 % for the mean, where there is one.
    contest: all settings but the norm's, batch and seed; only spots of one contest are compared.
    best: the highest mean of its block, batch and contest among the complete ones, all of them where they print alike,
    none where there is nothing to compare. Complete: every seed ended ok, and no rival has more seeds there.
    versus: beside the baseline; level: not significantly worse than the best, where that could be told
    (``statistics.judged``).
    """

    block: str
    line: str
    batch: int
    values: tuple[float, ...]
    failed: Mapping[str, int]
    contest: str = ""
    best: bool = False
    seeds: tuple[int, ...] = ()
    cells: tuple[str, ...] = ()
    interval: tuple[float, float] | None = None
    versus: Versus | None = None
    level: bool = False

    def is_of(self, name: str) -> bool:
        """Whether ``name`` is its line's label, or its normalizer's name."""
        return name in (self.line, self.line.split(" ")[0])

    @property
    def n(self) -> int:
        """Seeds, those without a result included."""
        return len(self.values) + sum(self.failed.values())

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def sd(self) -> float:
        """Of the sample (n − 1); NaN for fewer than two results."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    @property
    def text(self) -> str:
        """``98.1 ± 0.2 (3)``, ``97.9 (2/3, 1 diverged)``, ``diverged``; ± the sample's standard deviation (n − 1)."""
        kinds = ", ".join(f"{count} {status}" for status, count in sorted(self.failed.items()))
        if not self.values:
            alike = next(iter(self.failed)) + (f" ({self.n})" if self.n > 1 else "")
            return alike if len(self.failed) == 1 else f"0/{self.n}, {kinds}"
        if self.failed:
            return f"{self.mean:.1f} ({len(self.values)}/{self.n}, {kinds})"
        return f"{self.mean:.1f}" + (f" ± {self.sd:.1f} ({self.n})" if self.n > 1 else "")

    @property
    def marks(self) -> str:
        """``▲``, ``▼≈``, "": better or worse than the baseline, level with the best."""
        return (SIGNS.get(self.versus.verdict, "") if self.versus else "") + (LEVEL_SIGN if self.level else "")


def spots(frame: pd.DataFrame) -> list[Spot]:
    """The table's entries, line by line as they are to be shown."""
    known = frame[frame["line"] != ""]
    known = known.assign(top1=pd.to_numeric(known["top1"], errors="coerce"))
    contests = _contests(known)
    return _marked(
        [_spot(block, line, batch, cells, contests[cells.index[0]]) for (block, line, batch), cells in places(known)]
    )


def places(frame: pd.DataFrame) -> list[tuple[tuple[str, str, int], pd.DataFrame]]:
    """The cells at every (block, line, batch), as they are to be shown."""
    groups: Iterable[Any] = frame[frame["line"] != ""].groupby(["block", "line", "batch"], sort=False)
    return [((str(block), str(line), int(batch)), cells) for (block, line, batch), cells in groups]


def grouped(spots: Iterable[Spot], key: str) -> dict[Any, list[Spot]]:
    """Spots by ``block``, ``line`` or ``batch``, in the order in which these first appear."""
    groups: dict[Any, list[Spot]] = {}
    for spot in spots:
        groups.setdefault(getattr(spot, key), []).append(spot)
    return groups


def configuration(frame: pd.DataFrame) -> list[str]:
    """The columns that configure a cell: all that are no measurement."""
    not_axes = {*records.METRICS, *records.PLACES, "line", "block"}
    return [column for column in frame.columns if column not in not_axes]


def shown(frame: pd.DataFrame) -> dict[str, set[str]]:
    """For every configuration column that varies beside norm, batch and seed: the norms in whose labels it stands."""
    told = [c for c in configuration(frame) if c not in ("norm", "batch", "seed") and not c.endswith(SOURCE)]
    columns = [c for c in told if _words(frame, c).nunique() > 1]
    norms = set(frame["norm"].dropna())
    general = [c for c in columns if not _may_follow(c)]
    found = dict.fromkeys(general, norms)
    for column in (c for c in columns if _may_follow(c)):
        found[column] = _norms_split_by(frame, column, general)
    # The rate is asked last: an option that is shown may be the reason why it differs.
    return found | {c: _norms_split_by(frame, c, [k for k in found if k not in FOLLOWS]) for c in FOLLOWS if c in found}


def named(frame: pd.DataFrame, group: str) -> pd.Series:
    """The name of every cell's norm, data or arch, as labels show it: ``gn``, ``mine.py:MyNorm @1a2b3c4d``.

    Folders and hashes are told only where a name would stand for several without them.
    """
    names = frame[group].map(_exact).map(_short_values(frame[group]))
    column = group + SOURCE
    if column not in frame:
        return names
    # A limit on the pictures may change their hash, and stands in the label already.
    options = [c for c in configuration(frame) if c.startswith("data.") and c != column] if group == "data" else []
    keys = [_words(frame, key).rename(key) for key in (group, *options)]
    marks = frame[column].map(word)
    several = marks.groupby(keys, sort=False).transform("nunique") > 1
    return names + (" @" + marks).where(several & (marks != ""), "")


def word(value: Any) -> str:
    """A configuration value as a label shows it, on one line; "" if it has none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else legible(str(value))


def _known(value: Any) -> Any:
    return None if word(value) == "" else value


def _words(frame: pd.DataFrame, column: str) -> pd.Series:
    """Exact texts to group by: ``word`` rounds, which would put two rates in one group."""
    return frame[column].map(_exact)


def _exact(value: Any) -> str:
    return "" if word(value) == "" else json.dumps(value, default=str)


def _may_follow(column: str) -> bool:
    return column in FOLLOWS or column == "workers" or column.startswith("norm.")


def _norms_split_by(frame: pd.DataFrame, column: str, others: Iterable[str]) -> set[str]:
    """The norms for which ``column`` takes several values at one batch, all ``others`` equal; rates as far as given."""
    if column == "lr" and TUNE in frame:
        frame = frame[frame[TUNE].isna()]
    keys = [_words(frame, key).rename(key) for key in ("norm", *others, "batch")]
    values = _words(frame, column).groupby(keys, sort=False).transform("nunique")
    return set(frame.loc[values > 1, "norm"].dropna())


def _labelled(frame: pd.DataFrame, whole: pd.Series) -> pd.DataFrame:
    stands = shown(frame[whole])
    names = _short_names([column for column in stands if column not in BLOCK and stands[column]])
    short = {column: _short_values(frame[column]) for column in names}
    groups = frame.assign(**{group: named(frame, group) for group in ("norm", *BLOCK) if group in frame})
    blocks = [c for c in BLOCK if c in groups and groups.loc[whole, c].nunique() > 1]

    ways = _ways(frame)

    def line(row: Mapping[Any, Any], norm: str) -> str:
        tuned = row.get(TUNE) is not None
        set_here = (c for c in names if row["norm"] in stands[c] and row[c] is not None and not (tuned and c == "lr"))
        own = (ways[row[c]] if c == TUNE else f"{names[c]}={short[c][_exact(row[c])]}" for c in set_here)
        return " ".join([norm, *own])

    rows = zip(frame.to_dict("records"), groups["norm"], whole, strict=True)
    lines = [line(row, norm) if known else "" for row, norm, known in rows]
    block = [" · ".join(row) for row in groups[blocks].to_numpy()]
    return _told_apart(frame.assign(line=lines, block=pd.Series(block, frame.index).where(whole, "")))


def _ways(frame: pd.DataFrame) -> dict[str, str]:
    """How a label says that a rate was tuned: with the rates tried where there were several, with all if need be."""
    told = list(frame[TUNE].dropna().unique()) if TUNE in frame else []
    rates = [text.partition(" on ")[0] for text in told]
    said = told if len(set(rates)) < len(told) else rates
    return {text: f"tuned over {way}" if len(told) > 1 else "tuned" for text, way in zip(told, said, strict=True)}


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
    """From exact text to what is shown of it: ``my.py:Norm`` for ``/home/me/my.py:Norm``, and numbers rounded, where
    that stays unambiguous.
    """
    words = {_exact(value): word(value) for value in column}
    alike = Counter(words.values())
    texts = {exact: text if alike[text] == 1 else legible(exact) for exact, text in words.items()}
    short = {exact: text.rpartition("/")[2] for exact, text in texts.items()}
    last = Counter(short.values())
    return {exact: short[exact] if last[short[exact]] == 1 else text for exact, text in texts.items()}


def _sorted(frame: pd.DataFrame, whole: pd.Series) -> pd.DataFrame:
    columns = [c for c in shown(frame[whole]) if c not in BLOCK]

    def place(row: Mapping[Any, Any]) -> tuple[Any, ...]:
        norm = word(row["norm"])
        baseline = FIRST.index(norm) if norm in FIRST else len(FIRST)
        values = [_natural(row[c]) for c in (*columns, "batch", "seed")]
        return (row["line"] == "", _natural(row["block"]), baseline, norm, *values[:-2], row["line"], *values[-2:])

    rows = frame.to_dict("records")
    return frame.iloc[sorted(range(len(rows)), key=lambda k: place(rows[k]))]


def _natural(value: Any) -> tuple[tuple[int, float, str], ...]:
    """Numbers by size, inside words too (resnet8 before resnet20); no value comes first."""
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63):
        return ((1, float(value), ""),)
    parts = re.split(r"([0-9]+)", word(value))
    return tuple((1, float(part), "") if k % 2 else (2, 0.0, part) for k, part in enumerate(parts) if part)


def _contests(frame: pd.DataFrame) -> pd.Series:
    own = {"norm", "batch", "seed"}
    settings = [c for c in configuration(frame) if c not in own and not c.startswith("norm.")]
    words = {column: _words(frame, column) for column in settings}
    if TUNE in words and "lr" in words:  # chosen in one way, rates may differ as the norms do
        words["lr"] = words["lr"].where(words[TUNE] == "", "")
    rows = zip(*words.values(), strict=True)
    return pd.Series(["|".join(row) for row in rows], frame.index, dtype=object)


def _spot(block: str, line: str, batch: int, cells: pd.DataFrame, contest: str) -> Spot:
    some = list(zip(*(cells[key].tolist() for key in ("status", "top1", "seed", "cell_id")), strict=True))
    ok = [cell for cell in some if _has_result(*cell[:2])]
    failed = Counter(str(cell[0]) if cell[0] != "ok" else "no top-1" for cell in some if not _has_result(*cell[:2]))
    _, values, seeds, ids = zip(*ok, strict=True) if ok else ((),) * 4
    return Spot(block, line, batch, values, failed, contest, seeds=tuple(map(int, seeds)), cells=ids)


def _has_result(status: object, top1: float) -> bool:
    return status == "ok" and not math.isnan(top1)


def _marked(spots: list[Spot]) -> list[Spot]:
    contests: dict[tuple[str, int, str], list[Spot]] = {}
    for spot in spots:
        contests.setdefault((spot.block, spot.batch, spot.contest), []).append(spot)
    best: set[int] = set()
    for rivals in contests.values():
        most = max(spot.n for spot in rivals)
        entrants = [spot for spot in rivals if spot.n == most and not spot.failed]
        highest = max((f"{spot.mean:.1f}" for spot in entrants), key=float, default="")
        best |= {id(spot) for spot in entrants if len(entrants) > 1 and f"{spot.mean:.1f}" == highest}
    return [replace(spot, best=True) if id(spot) in best else spot for spot in spots]
