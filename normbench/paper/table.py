"""A published table and ours beside it: for the terminal, as Markdown and as data."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from normbench import files, records
from normbench.attempt import FAILURES
from normbench.errors import StoreError
from normbench.grid.paper import Paper
from normbench.paper.compare import Row

HEADER = ("line", "batch × workers", "theirs", "ours", "difference", "")
LEFT = {0, 5}  # columns of words
NOTHING = "–"
PICTURES = {"paper.png", "paper.svg"}
FAILED = (*FAILURES, "skipped")


@dataclass(frozen=True)
class Comparison:
    """What is printed and written of one table at one scale, from what ``compare.compared`` gives."""

    paper: Paper
    scale: float
    folder: Path
    rows: Sequence[Row]
    problems: Sequence[str] = ()

    @property
    def heading(self) -> str:
        return f"{self.name}: {self.paper.title}"

    @property
    def name(self) -> str:
        """With the scale, where it is not the paper's."""
        return self.paper.name + (f" (scale {self.scale:g})" if self.scale != 1 else "")

    def lines(self) -> list[tuple[str, ...]]:
        """The table's texts, one tuple a row, as HEADER says."""
        marks = self._marks()
        found: list[tuple[str, ...]] = []
        for row in self.rows:
            reduced = self.reduced(row)
            states = [*row.states, *([f"reduced [{marks[reduced]}]"] if reduced else [])]
            found.append((row.line, f"{row.batch} × {row.workers}", *self._numbers(row), "; ".join(states)))
        return found

    def reduced(self, row: Row) -> tuple[str, ...]:
        """Where what was run is not the paper's protocol, its scale first; nothing where nothing was."""
        scaled = (f"scale {self.scale:g} of epochs or steps",) if self.scale != 1 and row.runs else ()
        return (*scaled, *row.differs)

    @staticmethod
    def _numbers(row: Row) -> tuple[str, str, str]:
        theirs = NOTHING
        if row.theirs:
            theirs = row.theirs.text + ("" if row.theirs.confidence == "high" else f" ({row.theirs.confidence})")
        n = len(row.values)
        ours = f"{row.ours:.2f}" + (f" ± {row.sd:.2f} ({n})" if n > 1 else "") if n else NOTHING
        apart = NOTHING if math.isnan(row.difference) else f"{row.difference:+.2f}".replace("-", "−")
        return theirs, ours, apart

    def notes(self) -> list[str]:
        """What a reader must know, a line each."""
        published = [row for row in self.rows if row.theirs]
        both = [row for row in published if row.values]
        plain = sum(not self.reduced(row) and not row.missing for row in both)
        found = [
            f"claim: {self.paper.claim}",
            "top-1 in %, ours of the last epoch; difference: ours − theirs, in points",
            f"{len(self.rows)} entries: {len(published)} published; {len(both)} of these have both numbers, {plain} of "
            "them in the paper's protocol",
        ]
        if self.scale != 1:  # here too, should somebody cut the heading off
            found.append(
                f"scale {self.scale:g}: every run of ours has {100 * self.scale:g} % of the paper's epochs or steps, "
                "one at least, and of its warm-up; such numbers say that the table runs, nothing of the paper"
            )
        found += [f"[{mark}] {', '.join(kind)} (the paper's in brackets)" for kind, mark in self._marks().items()]
        if others := sum(row.others for row in self.rows):
            found.append(f"left out: {others} runs in this folder that are further from the paper's protocol")
        found += [f"not as in the paper: {text}" for text in self.paper.differs]
        return [*found, *self._sources(), *self.problems]

    def _marks(self) -> dict[tuple[str, ...], str]:
        """A number for every protocol that is not the paper's, in the order of the rows."""
        kinds = dict.fromkeys(kind for row in self.rows if (kind := self.reduced(row)))
        return {kind: str(k + 1) for k, kind in enumerate(kinds)}

    def _sources(self) -> list[str]:
        """Where theirs was read, and how sure that is."""
        entries = [row.theirs for row in self.rows if row.theirs]
        kinds = dict.fromkeys((e.paper, e.table, e.source, e.confidence) for e in entries)
        return [f"theirs: {who}, {where}; read in {source}; confidence {sure}" for who, where, source, sure in kinds]

    def markdown(self) -> str:
        table = [HEADER, tuple("---" if k in LEFT else "---:" for k in range(len(HEADER)))]
        text = "\n".join("| " + " | ".join(cells) + " |" for cells in [*table, *self.lines()])
        return f"**{self.heading}**\n\n{text}\n\n" + "".join(f"- {note}\n" for note in self.notes())

    def data(self) -> list[dict[str, Any]]:
        """One row an entry, numbers in columns of their own; NaN: no such number."""
        return [self._data(row) for row in self.rows]

    def _data(self, row: Row) -> dict[str, Any]:
        theirs, nan = row.theirs, math.nan
        low, high = row.interval or (nan, nan)
        return {
            "table": self.paper.name, "scale": self.scale, "line": row.line, "norm": row.norm, "batch": row.batch,
            "workers": row.workers, "theirs": theirs.value if theirs else nan,
            "theirs_std": float(theirs.std) if theirs and theirs.std else nan,
            "printed": theirs.printed if theirs else "", "metric": theirs.metric if theirs else "",
            "confidence": theirs.confidence if theirs else "", "source": theirs.source if theirs else "",
            "ours": _rounded(row.ours), "ours_sd": _rounded(row.sd), "ours_low": low, "ours_high": high,
            "n": len(row.values), "failed": sum(n for status, n in row.ended.items() if status in FAILED),
            "difference": _rounded(row.difference), "state": "; ".join(row.states),
            "reduced": "; ".join(self.reduced(row)),
            "cells": " ".join(run.cell_id for run in row.runs),
        }  # fmt: skip

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.heading, style="bold")
        table = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="none")
        for k, name in enumerate(HEADER):
            table.add_column(name, justify="left" if k in LEFT else "right", no_wrap=k != len(HEADER) - 1)
        last = ""
        for row, (label, *cells) in zip(self.rows, self.lines(), strict=True):
            table.add_row(*map(Text, ("" if label == last else label, *cells)), style="" if row.values else "dim")
            last = label
        yield table
        yield Text()
        for note in self.notes():
            yield Text(note, style="dim")


def write(comparison: Comparison) -> list[Path]:
    """Write paper.csv, paper.md and the picture of the differences into the sweep's folder. Raises StoreError."""
    contents: dict[str, str | bytes] = {
        "paper.csv": records.to_csv(comparison.data()),
        "paper.md": comparison.markdown(),
        **_pictures(comparison),
    }
    written = []
    for name, content in contents.items():
        path = comparison.folder / name
        try:
            files.write_atomically(path, content)
        except OSError as error:
            why = error.strerror or error
            raise StoreError(f"cannot write {str(path)!r}: {why}; expected a folder this user can write") from None
        written.append(path)
    for name in PICTURES - contents.keys():  # of an earlier comparison
        with contextlib.suppress(OSError):
            (comparison.folder / name).unlink()
    return written


def _pictures(comparison: Comparison) -> dict[str, bytes]:
    """Of the differences; none where there is none."""
    both = [row for row in comparison.rows if row.theirs and row.values]
    if not both:
        return {}
    from normbench.report import apart  # matplotlib

    drawn = [
        apart.Difference(
            line=row.line, norm=row.norm, batch=row.batch, ours=row.ours, interval=row.interval,
            theirs=row.theirs.value, reduced=bool(comparison.reduced(row)),
        )
        for row in both if row.theirs
    ]  # fmt: skip
    title, told = f"Difference to the paper, {comparison.name}", [comparison.paper.title]
    return {f"paper.{kind}": picture for kind, picture in apart.draw(title, drawn, told).items()}


def _rounded(number: float) -> float:
    return number if math.isnan(number) else round(number, 6)
