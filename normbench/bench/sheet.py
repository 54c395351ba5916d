"""A table of words: on the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

NOTHING = "–"

Lines = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Sheet:
    """about: the machine. notes: stand below."""

    title: str
    about: str
    header: Sequence[str]
    lines: Lines
    notes: Sequence[str]

    def markdown(self) -> str:
        notes = [f"- {note}" for note in self.notes]
        return "\n".join([f"**{self.title}**", "", self.about, "", *piped(self.header, self.lines), *notes]) + "\n"

    def show(self, console: Console) -> None:
        console.print(Text(self.title, style="bold"), soft_wrap=True)
        show(console, self.header, self.lines)
        show_notes(console, self.notes)


def show(console: Console, header: Sequence[str], lines: Lines) -> None:
    """On the terminal; where there is none, as wide as it wants to be."""
    grid = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="none")
    for k, word in enumerate(header):
        grid.add_column(word, justify="left" if k == 0 else "right", overflow="fold")
    for line in lines:
        grid.add_row(*(Text(cell, style="dim" if cell == NOTHING else "") for cell in line))
    if console.is_terminal:
        console.print(grid)
        return
    wide = Console(width=400, highlight=False)  # a log or a pipe has no width: nothing there may be cut
    with wide.capture() as captured:
        wide.print(grid)
    console.print("\n".join(line.rstrip() for line in captured.get().splitlines()), soft_wrap=True, markup=False)


def show_notes(console: Console, notes: Sequence[str]) -> None:
    for note in notes:
        console.print(Text(note, style="dim"), soft_wrap=True)


def piped(header: Sequence[str], lines: Lines) -> Iterator[str]:
    """As Markdown has it."""
    yield "| " + " | ".join(header) + " |"
    yield "|:---|" + "---:|" * (len(header) - 1)
    for line in lines:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
    yield ""


def two(value: float) -> str:
    """Two digits behind the point below ten, as ratios want it."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
