"""The table norm × batch of one sweep: on the terminal, as CSV, as Markdown; below it what a reader must know."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from normbench.report.frame import Spot, grouped, shown, word

REASON = 100  # characters of a reason; the rest stands in results.csv
FAILURES = 12  # lines of failures; likewise
NOTHING = "–"  # no such cell in the sweep, or none yet


@dataclass(frozen=True)
class Table:
    """A sweep's table. Printing it with rich breaks it by batch where the terminal is too narrow.

    title: what all cells share.  blocks: per (data, architecture) its name and lines; a line is its label and, per
    batch, the text and whether it is the best.  notes: lines below the table.
    """

    title: str
    batches: list[int]
    blocks: list[tuple[str, list[tuple[str, list[tuple[str, bool]]]]]]
    notes: list[str]

    def csv(self) -> str:
        """One row a line, one column a batch, texts as in the table; the block leads where there are several."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        several = any(name for name, _ in self.blocks)
        writer.writerow([*(["block"] if several else []), "norm", *self.batches])
        for name, lines in self.blocks:
            for label, cells in lines:
                writer.writerow([*([name] if several else []), label, *(cell for cell, _ in cells)])
        return text.getvalue()

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
            count = len(columns)
            while count > 1 and self._width(columns[:count], console, options) > options.max_width:
                count -= 1
            yield self._part(columns[:count])
            columns = columns[count:]

    def _width(self, columns: list[int], console: Console, options: ConsoleOptions) -> int:
        unlimited = options.update(max_width=10_000)
        return Measurement.get(console, unlimited, self._part(columns)).maximum

    def _part(self, columns: list[int]) -> RichTable:
        table = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="none")
        table.add_column("norm \\ batch", no_wrap=True)
        for k in columns:
            table.add_column(str(self.batches[k]), justify="right", no_wrap=True)
        for name, lines in self.blocks:
            if name:
                table.add_row(Text(name, style="italic"))
            for label, cells in lines:
                table.add_row(Text(label), *(_styled(*cells[k]) for k in columns))
        return table


def make(name: str, frame: pd.DataFrame, spots: list[Spot]) -> Table:
    """The table of a frame (``frame.read``) and its spots; ``name`` is the sweep's."""
    batches = sorted({spot.batch for spot in spots})
    blocks = [
        (block, [(line, _cells(entries, batches)) for line, entries in grouped(lines, "line").items()])
        for block, lines in grouped(spots, "block").items()
    ]
    return Table(title(name, frame), batches, blocks, [*_caption(frame, spots), *_told(frame), *_failures(frame)])


def title(name: str, frame: pd.DataFrame) -> str:
    """``first: resnet8 on digits, 10 epochs``: the sweep and what its cells share."""
    one = {c: frame[c].dropna().unique() for c in ("arch", "data", "epochs") if c in frame}
    same = {c: word(values[0]) for c, values in one.items() if len(values) == 1}
    where = " on ".join(same[c] for c in ("arch", "data") if c in same)
    length = f"{same['epochs']} epoch{'' if same['epochs'] == '1' else 's'}" if "epochs" in same else ""
    what = ", ".join(part for part in (where, length) if part)
    return f"{name}: {what}" if what else name


def _cells(line: list[Spot], batches: list[int]) -> list[tuple[str, bool]]:
    there = {spot.batch: (spot.text, spot.best) for spot in line}
    return [there.get(batch, (NOTHING, False)) for batch in batches]


def _styled(cell: str, best: bool) -> Text:
    return Text(cell, style="bold" if best else "" if cell[0].isdigit() else "dim")


def _caption(frame: pd.DataFrame, spots: list[Spot]) -> list[str]:
    splits = [str(split) for split in frame.get("split", pd.Series(dtype=object)).dropna().unique() if split]
    seen = f", {' and '.join(sorted(splits))} split" if splits else ""
    spread = ", mean ± s.d. over seeds (n)" if any(spot.n > 1 for spot in spots) else ""
    bold = "; bold: best of its batch" if any(spot.best for spot in spots) else ""
    caption = f"top-1 (%){seen}, last epoch{spread}{bold}"
    twins = any(" #" in line for line in frame["line"])
    told = "lines marked #2, #3 … have the configuration of the first, but other data or another file of the user's"
    return [caption, told] if twins else [caption]


def _told(frame: pd.DataFrame) -> list[str]:
    """What varies but stands in no label, as it follows the batch or belongs to one norm.

    ``lr 0.01, 0.04 at batch 2, 8``; ``gn: num_groups 16``.
    """
    whole = frame[frame["line"] != ""]
    blocks = {str(line): set(cells["block"]) for line, cells in whole.groupby("line", sort=False)}
    said: dict[str, dict[str, set[str]]] = {}
    for column, norms in shown(whole).items():
        for (block, line), cells in whole[~whole["norm"].isin(norms)].groupby(["block", "line"], sort=False):
            values = _values_by_batch(column.removeprefix("norm."), cells.set_index("batch")[column])
            if values:
                said.setdefault(values, {}).setdefault(str(line), set()).add(str(block))
    return [_whose(lines, blocks) + values for values, lines in said.items()]


def _whose(lines: dict[str, set[str]], blocks: dict[str, set[str]]) -> str:
    """Whom a note is about: nobody's name if it is about all, no block's where it holds in all of a line's blocks."""
    if lines == blocks:
        return ""
    names = [
        f"{block} {line}".strip()
        for line, where in lines.items()
        for block in ([""] if where == blocks[line] else sorted(where))
    ]
    return f"{', '.join(names)}: "


def _values_by_batch(name: str, values: pd.Series) -> str:
    texts = {batch: word(value) or "default" for batch, value in values.sort_index().items()}
    if set(texts.values()) == {"default"}:
        return ""
    if len(set(texts.values())) == 1:
        return f"{name} {next(iter(texts.values()))}"
    return f"{name} {', '.join(texts.values())} at batch {', '.join(map(str, texts))}"


def _failures(frame: pd.DataFrame) -> list[str]:
    """Who has no result, and why: cells with the same status and reason share a line."""
    failed = frame[frame["status"] != "ok"]
    causes = failed.groupby(["status", failed["reason"].map(_shortened)], sort=False)
    said = [f"{status}: {_who(cells, frame)}" + (f" ({why})" if why else "") for (status, why), cells in causes]
    more = len(said) - FAILURES
    return said if more <= 0 else [*said[:FAILURES], f"… and {more} more reasons: see results.csv"]


def _shortened(reason: object) -> str:
    words = " ".join(word(reason).split())
    return words if len(words) <= REASON else words[: REASON - 1].rstrip() + "…"


def _who(cells: pd.DataFrame, frame: pd.DataFrame) -> str:
    """``bn at batch 2, 4; frn at batch 128 (seeds 0, 2)``; seeds only where not all of them failed alike."""
    said = [str(cell_id) for cell_id in cells.loc[cells["line"] == "", "cell_id"]]
    for (block, line), part in cells[cells["line"] != ""].groupby(["block", "line"], sort=False):
        whole = frame[(frame["block"] == block) & (frame["line"] == line)]
        places: dict[str, list[str]] = {}
        for batch, seeds in part.groupby("batch", sort=False)["seed"]:
            some = len(seeds) < (whole["batch"] == batch).sum()
            which = f" (seed{'s'[: len(seeds) > 1]} {', '.join(map(str, seeds))})" if some else ""
            places.setdefault(which, []).append(str(batch))
        where = "; ".join(f"{', '.join(batches)}{which}" for which, batches in places.items())
        said.append(f"{block} {line}".strip() + f" at batch {where}")
    return "; ".join(said)


def _escaped(text: str) -> str:
    """Markdown without surprises from a user's names and reasons."""
    return "".join("\\" + letter if letter in "\\|*_`<[" else letter for letter in text)
