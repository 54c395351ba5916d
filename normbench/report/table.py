"""The table norm × batch of one sweep: on the terminal, as CSV and as Markdown, with what a reader must know below it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pandas as pd
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from normbench.report import frame as frames

REASON = 100  # characters of a reason; the rest stands in results.csv
FAILURES = 12  # lines of failures; likewise


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
        return Measurement.get(console, options.update(max_width=10_000), self._part(columns)).maximum

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


def make(name: str, frame: pd.DataFrame, summary: pd.DataFrame) -> Table:
    """The table of a frame (``frames.read``) and its summary; ``name`` is the sweep's."""
    batches = sorted(int(batch) for batch in summary["batch"].unique())
    blocks = [
        (block, [(line, _cells(part, batches)) for line, part in lines.groupby("line", sort=False)])
        for block, lines in summary.groupby("block", sort=False)
    ]
    return Table(_title(name, frame), batches, blocks, [*_caption(frame, summary), *_told(frame), *_failures(frame)])


def _cells(line: pd.DataFrame, batches: list[int]) -> list[tuple[str, bool]]:
    there = {row.batch: (row.text, bool(row.best)) for row in line.itertuples()}
    return [there.get(batch, (frames.NOTHING_YET, False)) for batch in batches]


def _styled(cell: str, best: bool) -> Text:
    return Text(cell, style="bold" if best else "" if cell[0].isdigit() else "dim")


def _title(name: str, frame: pd.DataFrame) -> str:
    """``runs' name: resnet8 on digits, 10 epochs``: what does not vary."""
    one = {c: frame[c].dropna().unique() for c in ("arch", "data", "epochs") if c in frame}
    same = {c: frames.word(values[0]) for c, values in one.items() if len(values) == 1}
    where = " on ".join(same[c] for c in ("arch", "data") if c in same)
    length = f"{same['epochs']} epoch{'' if same['epochs'] == '1' else 's'}" if "epochs" in same else ""
    what = ", ".join(part for part in (where, length) if part)
    return f"{name}: {what}" if what else name


def _caption(frame: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
    splits = [str(split) for split in frame.get("split", pd.Series(dtype=object)).dropna().unique() if split]
    seen = f", {' and '.join(sorted(splits))} split" if splits else ""
    spread = ", mean ± s.d. over seeds (n)" if len(summary) and summary["n"].max() > 1 else ""
    bold = "; bold: best of its batch" if len(summary) and summary["best"].any() else ""
    twins = any(" #" in line for line in frame["line"])
    caption = f"top-1 (%){seen}, last epoch{spread}{bold}"
    told = "lines marked #2, #3 … have the configuration of the first, but other data or another file of the user's"
    return [caption, told] if twins else [caption]


def _told(frame: pd.DataFrame) -> list[str]:
    """What varies but stands in no label, as it follows the batch or belongs to one norm: ``lr 0.01, 0.04 at batch 2, 8``."""
    whole = frame[frame["line"] != ""]
    hidden: dict[str, list[str]] = {}
    for column, norms in frames.shown(whole).items():
        for key, cells in whole[~whole["norm"].isin(norms)].groupby(["block", "line"], sort=False):
            said = _values_by_batch(column.removeprefix("norm."), cells.set_index("batch")[column])
            if said:
                hidden.setdefault(said, []).append(" ".join(part for part in key if part))
    lines = whole.groupby(["block", "line"]).ngroups
    return [said if len(who) == lines else f"{', '.join(who)}: {said}" for said, who in hidden.items()]


def _values_by_batch(name: str, values: pd.Series) -> str:
    texts = {batch: frames.word(value) or "default" for batch, value in values.sort_index().items()}
    if set(texts.values()) == {"default"}:
        return ""
    if len(set(texts.values())) == 1:
        return f"{name} {next(iter(texts.values()))}"
    return f"{name} {', '.join(texts.values())} at batch {', '.join(map(str, texts))}"


def _failures(frame: pd.DataFrame) -> list[str]:
    """Who has no result, and why: cells with the same status and reason share a line."""
    groups: dict[str, list[tuple[str, str, str]]] = {}
    for row in frame[frame["status"] != "ok"].to_dict("records"):
        reason = " ".join(frames.word(row["reason"]).split())
        short = reason if len(reason) <= REASON else reason[: REASON - 1].rstrip() + "…"
        who = " ".join(part for part in (row["block"], row["line"]) if part)
        cell = (who, frames.word(row["batch"]), frames.word(row["seed"])) if who else (str(row["cell_id"]), "", "")
        groups.setdefault(f"{row['status']}|{short}", []).append(cell)
    seeds = frame["seed"].nunique() > 1
    said = [_failure(*key.split("|", 1), _who(cells, seeds)) for key, cells in groups.items()]
    more = len(said) - FAILURES
    return said if more <= 0 else [*said[:FAILURES], f"… and {more} more reasons: see results.csv"]


def _failure(status: str, reason: str, who: str) -> str:
    return f"{status}: {who}" + (f" ({reason})" if reason else "")


def _who(cells: list[tuple[str, str, str]], seeds: bool) -> str:
    """``bn at batch 2, 4; frn at batch 128 seeds 0, 2``."""
    lines: dict[str, dict[str, list[str]]] = {}
    for line, batch, seed in cells:
        lines.setdefault(line, {}).setdefault(batch, []).append(seed)
    return "; ".join(line + _where(batches, seeds) for line, batches in lines.items())


def _where(batches: dict[str, list[str]], seeds: bool) -> str:
    if "" in batches:
        return ""
    if not seeds:
        return f" at batch {', '.join(batches)}"
    places = (f"{batch} seed{'s'[: len(which) > 1]} {', '.join(which)}" for batch, which in batches.items())
    return f" at batch {', batch '.join(places)}"


def _escaped(text: str) -> str:
    """Markdown without surprises from a user's names and reasons."""
    return "".join("\\" + letter if letter in "\\|*_`<[" else letter for letter in text)


def text(renderables: Iterable[object], width: int = 120) -> str:
    """Renderables as plain text, as a file or a test wants them."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    for renderable in renderables:
        console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]
