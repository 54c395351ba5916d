"""Tables and plots of a sweep, made from its store alone: no torch, and as often as one likes.

    python -m normbench.report runs/first          # or runs/, for all of them
    normbench.report.write("runs/first")

pandas and matplotlib (a second together) are imported when a report is written, so that a sweep starts without them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from normbench import files, records
from normbench.errors import StoreError

if TYPE_CHECKING:
    from normbench.report.table import Table

__all__ = ["Report", "write"]


@dataclass(frozen=True)
class Report:
    """What ``write`` made: ``table`` can be printed with rich, ``paths`` are the files."""

    folder: Path
    table: Table
    paths: tuple[Path, ...]

    def __str__(self) -> str:
        """The table and where its files are, as the terminal at hand can show them."""
        from rich.console import Console

        console = Console(highlight=False)
        with console.capture() as said:
            console.print(self.table)
            written = ", ".join(path.name for path in self.paths)
            console.print(f"wrote {self.folder}/: {written}", markup=False, soft_wrap=True)
        return said.get()


def write(folder: Path | str) -> Report:
    """Write results.csv, table.csv, table.md, plot.png, plot.svg, report.html into a sweep's folder, each whole or not.

    results.csv has a row per cell, table.csv one per entry of the table (a mean over seeds): both are data, numbers in
    columns of their own (``report.tidy.rows``). table.md and the plots are for reading, report.html shows all of
    it in a browser (``report.page``).
    Raises StoreError if the folder is no sweep, was written by another schema version, holds no cell, or cannot be
    written.
    """
    from normbench.report import frame, notes, page, plot, table, tidy

    folder = Path(folder)
    if not records.is_sweep(folder):
        raise StoreError(f"{str(folder)!r} is no sweep; expected runs/<name>, as normbench.sweep leaves it")
    rows = records.rows(folder)
    cells = frame.make(folder, rows)
    _save(folder / "results.csv", records.to_csv(rows))  # first: it needs neither table nor plot
    spots = frame.spots(cells)
    made = table.make(folder.resolve().name, cells, spots)
    pictures = plot.draw(made.title, spots, notes.settings(cells))
    contents = {
        "table.csv": records.to_csv(tidy.rows(cells, spots)),
        "table.md": made.markdown(),
    } | {f"plot.{k}": v for k, v in pictures.items()}
    drawn = {name: svg for name, svg in contents.items() if isinstance(svg, bytes) and name.endswith(".svg")}
    contents["report.html"] = page.make(folder, cells, spots, made, drawn)
    written = [_save(folder / name, content) for name, content in contents.items()]
    return Report(folder, made, (folder / "results.csv", *written))


def _save(path: Path, content: str | bytes) -> Path:
    try:
        files.write_atomically(path, content)
    except OSError as error:
        why = error.strerror or error
        raise StoreError(f"cannot write {str(path)!r}: {why}; expected a folder this user can write") from None
    return path
