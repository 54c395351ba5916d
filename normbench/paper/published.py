"""The published numbers: what was printed, what it is in our words, where it was read and how sure that is.

One schema for all files of published/:

    paper, table          who published it, and where in that
    task, dataset, arch_printed, norm_printed, batch_printed, batch_scope, metric, printed, std    as printed
    data, arch, norm, options, batch, workers     the same in our words; empty: not among ours, or not known
    top1                  in percent, from ``printed`` by ``top1_of``; empty: not comparable
    source, confidence    where it was read; high, medium, low
    overlay, line         the table of conf/paper that has it, and its line there; empty: none
    note                  what else was said of it
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "published"
CLASSIFICATION = "classification"


@dataclass(frozen=True)
class Entry:
    """One published number; see the module for the columns. Numbers that stand for others are text, as printed."""

    paper: str
    table: str
    task: str
    dataset: str
    data: str
    arch_printed: str
    arch: str
    norm_printed: str
    norm: str
    options: str
    batch_printed: str
    batch_scope: str
    batch: int | None
    workers: int | None
    metric: str
    printed: str
    top1: str
    std: str
    source: str
    confidence: str
    overlay: str
    line: str
    note: str

    @property
    def value(self) -> float:
        """Top-1 in percent. Raises ValueError where it is not comparable."""
        return float(self.top1)

    @property
    def text(self) -> str:
        return self.top1 + (f" ± {self.std}" if self.std else "")


def top1_of(task: str, metric: str, printed: str) -> str:
    """The rule: an accuracy as it is, an error as 100 − error, with as many decimals; anything else is no top-1."""
    if task != CLASSIFICATION or metric not in ("top1_acc", "top1_err"):
        return ""
    decimals = len(printed.partition(".")[2])
    return printed if metric == "top1_acc" else f"{100 - float(printed):.{decimals}f}"


@functools.cache
def entries() -> tuple[Entry, ...]:
    """All of them, file by file."""
    return tuple(entry for path in sorted(FOLDER.glob("*.csv")) for entry in _read(path))


def of(overlay: str) -> dict[tuple[str, int], Entry]:
    """The entries that a table of conf/paper has, by line and batch."""
    return {(e.line, e.batch): e for e in entries() if e.overlay == overlay and e.batch is not None}


def _read(path: Path) -> Iterable[Entry]:
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            numbers = {key: int(row[key]) if row[key] else None for key in ("batch", "workers")}
            yield Entry(**{**row, **numbers})  # type: ignore[arg-type]
