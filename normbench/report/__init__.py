"""Tables and plots of a sweep, made from its store alone: no torch, and as often as one likes.

    python -m normbench.report runs/first          # or runs/, for all of them
    normbench.report.write("runs/first")

pandas and matplotlib (a second together) are imported when a report is written, so that a sweep starts without them.
"""

from __future__ import annotations

import dataclasses
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


def write(folder: Path | str, baseline: str | None = None) -> Report:
    """Write a sweep's tables, pictures and page into its folder, each file whole or not at all.

    Data, with numbers in columns of their own: results.csv and results.parquet have a row per cell, epochs.parquet one
    per cell and epoch (``report.parquet``), table.csv one per entry of the table, a mean over seeds (``report.tidy``),
    tune.csv one per trial where rates were tuned (``report.tuned``). To read: table.md, table.tex, the pictures
    (``report.pictures.SHOWN``, PNG and SVG; one without anything to show is not made, and an earlier one deleted), and
    report.html with all of it (``report.page``). What is wrong with the store, if anything, stands below the table.
    baseline: the line, or the normalizer, that the others are compared with; ``bn``, where it is there, if not given.
    Raises StoreError if the folder is no sweep, was written by another schema version, holds no cell, or cannot be
    written; UnknownName for a baseline that stands in no line.
    """
    from normbench.report import epochs, frame, latex, notes, page, parquet, pictures, statistics, table, tidy, tuned

    folder = Path(folder)
    if not records.is_sweep(folder):
        raise StoreError(f"{str(folder)!r} is no sweep; expected runs/<name>, as normbench.sweep leaves it")
    found = records.read(folder)
    cells = frame.make(folder, found.rows)
    _save(folder / "results.csv", records.to_csv(found.rows))  # first: it needs neither table nor plot
    curves, more = epochs.read(folder)
    unused = records.Problems()
    spots = statistics.judged(folder, cells, frame.spots(cells), baseline, unused)
    made = table.make(folder.resolve().name, cells, spots)
    trials, troubles = tuned.read(folder)
    made = dataclasses.replace(made, notes=[*made.notes, *found.problems, *unused.told(), *more, *troubles])
    drawn = pictures.draw(folder, made.title, cells, spots, notes.settings(cells), curves)
    contents: dict[str, str | bytes] = {
        "table.csv": records.to_csv(tidy.rows(cells, spots)),
        "table.md": made.markdown(),
        "table.tex": latex.latex(made),
        "results.parquet": parquet.results(found.rows),
        "epochs.parquet": parquet.epochs(curves),
        **({"tune.csv": records.to_csv(trials)} if trials else {}),
        **drawn,
    }
    plots = {name: svg for name, svg in drawn.items() if name.endswith(".svg")}
    contents["report.html"] = page.make(folder, cells, spots, made, plots, curves)
    written = [_save(folder / name, content) for name, content in contents.items()]
    pictures.sweep(folder, drawn)
    return Report(folder, made, (folder / "results.csv", *written))


def _save(path: Path, content: str | bytes) -> Path:
    try:
        files.write_atomically(path, content)
    except OSError as error:
        why = error.strerror or error
        raise StoreError(f"cannot write {str(path)!r}: {why}; expected a folder this user can write") from None
    return path
