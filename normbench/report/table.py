"""The table norm × batch of one sweep, on the terminal and as Markdown; below it what a reader must know."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pandas as pd
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from normbench.report import notes
from normbench.report.frame import Spot, grouped
from normbench.report.verdict import MARKS

NOTHING = "–"  # no such cell in the sweep, or none yet


@dataclass(frozen=True)
class Table:
    """A sweep's table. Printing it with rich breaks it by batch where the terminal is too narrow.

    title: what all cells share.  blocks: per (data, architecture) its name and lines; a line is its label and, per
    batch, the text, with ``Spot.marks`` at its end, and whether it is the best.  notes: lines below the table.
    """

    title: str
    batches: list[int]
    blocks: list[tuple[str, list[tuple[str, list[tuple[str, bool]]]]]]
    notes: list[str]

    def markdown(self) -> str:
        """Title, a table per block, notes."""
        return "\n".join([f"**{_escaped(self.title)}**", "", *self._markdown_blocks(), *self._markdown_notes()]) + "\n"

    def _markdown_blocks(self) -> Iterator[str]:
        for name, lines in self.blocks:
            if name:
                yield from (f"*{_escaped(name)}*", "")
            yield "| " + " | ".join(["norm \\ batch", *map(str, self.batches)]) + " |"
            yield "|:---|" + "---:|" * len(self.batches)
            for label, cells in lines:
                texts = [f"**{cell}**" if best else cell for cell, best in cells]
                yield "| " + " | ".join([_escaped(label), *texts]) + " |"
            yield ""

    def _markdown_notes(self) -> list[str]:
        return [f"- {_escaped(note)}" for note in self.notes]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.title, style="bold")
        for part in self._parts(console, options):
            yield part
            yield Text()
        for note in self.notes:
            yield Text(note, style="dim")

    def _parts(self, console: Console, options: ConsoleOptions) -> Iterator[RichTable]:
        """As few tables as fit the width, each with some of the batches."""
        columns = list(range(len(self.batches)))
        while columns:
            sizes = range(1, len(columns) + 1)
            width = partial(self._width, columns, console, options)
            count = max(1, bisect.bisect_right(sizes, options.max_width, key=width))
            yield self._part(columns[:count])
            columns = columns[count:]

    def _width(self, columns: list[int], console: Console, options: ConsoleOptions, count: int) -> int:
        """Of the first ``count`` columns."""
        unlimited = options.update(max_width=10_000)
        return Measurement.get(console, unlimited, self._part(columns[:count])).maximum

    def _part(self, columns: list[int]) -> RichTable:
        """Marks have a column of their own, so that numbers stand below each other where some have none."""
        marked = [k for k in columns if any(_split(cells[k][0])[1] for _, lines in self.blocks for _, cells in lines)]
        table = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="none")
        table.add_column("norm \\ batch", overflow="fold")  # alone may wrap: no number may be cut
        for k in columns:
            table.add_column(str(self.batches[k]), justify="right", no_wrap=True)
            if k in marked:
                table.add_column(no_wrap=True)
        for name, lines in self.blocks:
            if name:
                table.add_row(Text(name, style="italic"))
            for label, cells in lines:
                table.add_row(Text(label), *(part for k in columns for part in _styled(*cells[k], k in marked)))
        return table


def make(name: str, frame: pd.DataFrame, spots: list[Spot]) -> Table:
    """The table of a frame (``frame.read``) and its spots; ``name`` is the sweep's."""
    batches = sorted({spot.batch for spot in spots})
    blocks = [
        (block, [(line, _cells(entries, batches)) for line, entries in grouped(lines, "line").items()])
        for block, lines in grouped(spots, "block").items()
    ]
    return Table(notes.title(name, frame), batches, blocks, notes.notes(frame, spots))


def _cells(line: list[Spot], batches: list[int]) -> list[tuple[str, bool]]:
    there = {spot.batch: (f"{spot.text} {spot.marks}".rstrip(), spot.best) for spot in line}
    return [there.get(batch, (NOTHING, False)) for batch in batches]


def _split(cell: str) -> tuple[str, str]:
    """A text and the marks at its end."""
    text = cell.rstrip(MARKS)
    return text.rstrip(), cell[len(text) :]


def _styled(cell: str, best: bool, marked: bool) -> list[Text]:
    text, marks = _split(cell)
    style = "bold" if best else "" if cell[0].isdigit() else "dim"
    return [Text(text, style=style), *([Text(marks, style=style)] if marked else [])]


def _escaped(text: str) -> str:
    """Markdown without surprises from a user's names and reasons."""
    return "".join("\\" + letter if letter in "\\|*_`<[" else letter for letter in text)
