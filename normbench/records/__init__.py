"""The store: a folder a sweep, a folder a cell, rows, statuses, atomic writes. All else is made from it.

    runs/<name>/store.json          the schema's version
    runs/<name>/results.csv         one row per cell, made again from the cell folders as cells end
    runs/<name>/.choices/           what auto comes to in this sweep
    runs/<name>/.tune/              the trials that choose its learning rates: a store of the same kind
    runs/<name>/<cell>/config.yaml  the cell's whole configuration
                       rows.jsonl   one line per epoch
                       correct.npy  which pictures the trained network gets right, one bit each (correct.py)
                       result.json  how the cell ended; absent until then
                       provenance.json   versions, device, threads, attempt: what may not change a number
                       running-<attempt>.json   the process that works on it, and on what; gone when it has ended
                       checkpoint.pt     where it goes on after being stopped; gone when it has ended
                       log.txt           what it printed, if anything

Nothing here needs torch: a report can be made on a machine without it.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normbench import attempt
from normbench.attempt import SCHEMA, Attempt
from normbench.errors import StoreError
from normbench.files import TRIALS, legible, read_json, sweep_up, write_atomically
from normbench.records import cells, folders
from normbench.records.cells import DUPLICATE, UNREADABLE
from normbench.records.problems import Problems

# The axes every row shows, whether or not they vary.
AXES = ("arch", "data", "norm", "batch", "workers", "seed", "epochs", "lr")
# What a row measures, or says of how the cell ended: everything that is not configuration.
METRICS = (
    "cell_id", "status", "reason", "top1", "top5", "loss", "batch_top1", "batch_top5", "precise_top1", "precise_top5",
    "train_top1", "train_top5", "gap", "eval_flips", "train_loss", "train_seconds", "images_per_s", "peak_memory_mib",
    "execution", "epoch", "step", "last_loss", "split", "eval_count", "sites", "groups",
    "parameters", "compile_seconds", "example_weight", "chosen_memory_format", "chosen_amp", "chosen_threads",
    "tune_trials", "tune_top1", "tune_edge",
)  # fmt: skip
# What a row has where some cell of the sweep compiled, chose what auto leaves open, or tuned its rate.
SOMETIMES = METRICS[-8:]
# Measurements that are words: what is missing of them is empty.
WORDS = ("reason", "execution", "groups", "split", "chosen_memory_format", "chosen_amp", "tune_edge")
# Measurements that are counts, and those in percent; the others are numbers.
COUNTS = ("eval_flips", "epoch", "step", "eval_count", "sites", "parameters", "chosen_threads", "tune_trials")
SHARES = (
    "top1", "top5", "batch_top1", "batch_top5", "precise_top1", "precise_top5", "train_top1", "train_top5",
    "tune_top1",
)  # fmt: skip
# What every row has.
COLUMNS = ("cell_id", "status", "reason", *AXES, *METRICS[3 : -len(SOMETIMES)])
# Configuration that says where things are or run: it cannot change a number, so it tells no cells apart.
PLACES = ("device", "data.title", "data.root", "data.download", "data.loaders", "recipe.source")
# A failed cell has no final value of these, even if some epochs were finished: the last epoch is the headline.
FINAL = METRICS[3:14]
# The status of cells that no table counts: of those that cannot be read, and those that are there twice.
LEFT_OUT = (UNREADABLE, DUPLICATE)
# What each measurement is, for whoever checks one.
KINDS = {
    column: "word" if column in WORDS else "count" if column in COUNTS else "share" if column in SHARES else "number"
    for column in METRICS[2:]
}


class Store:
    """One sweep's folder, open for writing.

    Raises StoreError if the folder was written by another schema version or cannot be written.
    """

    def __init__(self, root: Path | str, name: str) -> None:
        self.folder = Path(root) / name
        check_schema(self.folder)

    def create(self) -> None:
        """Make the folder and prove that it can be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / "store.json", json.dumps({"schema": SCHEMA}) + "\n")
            sweep_up(self.folder, older_than=3600)
        except OSError as error:
            raise StoreError(
                f"runs: cannot write {str(self.folder)!r} ({error.strerror or error}); "
                "expected a folder this user can write; choose another with runs=FOLDER"
            ) from None

    @property
    def trials(self) -> Store:
        """The store of the trials that choose this sweep's learning rates, in its folder."""
        return Store(self.folder, TRIALS)

    @property
    def sweep(self) -> Path:
        """The folder of the sweep: that which a store of trials lies in, or this one."""
        return self.folder.parent if self.folder.name == TRIALS else self.folder

    def cell(self, cell_id: str) -> Path:
        return self.folder / cell_id

    def status(self, cell_id: str) -> str:
        """See ``cell_status``."""
        return cell_status(self.cell(cell_id))

    def begin(
        self, cell_id: str, config: Mapping[str, Any], known: Mapping[str, Any], *, after: int | None = None
    ) -> Attempt | None:
        """Open a new attempt at a cell (attempt.begin); None if another process is at it or was quicker."""
        return attempt.begin(self.cell(cell_id), config, known, after=after)

    def attempts(self, cell_id: str) -> int:
        """How many attempts were made at a cell."""
        return attempt.last(self.cell(cell_id))

    def write_results(self) -> Path:
        """Make results.csv again from the cell folders."""
        path = self.folder / "results.csv"
        with attempt.writing(self.folder):
            write_atomically(path, to_csv(rows(self.folder)))
        return path


@dataclass(frozen=True)
class Contents:
    """What a sweep's folder holds: ``rows`` as in results.csv, and lines on what is wrong with some of its cells."""

    rows: list[dict[str, Any]]
    problems: list[str]


def read(folder: Path | str) -> Contents:
    """A dict per cell, all with the same keys, sorted by arch, data, norm, batch, seed; and what is wrong, if anything.

    A config key has a column if it was set or swept in any cell, differs from what the packaged configs say, or
    differs between cells of the same part (``norm.eps`` between cells of one norm), so that no reader averages over an
    axis that is not shown. Damaged cells are rows too; ``LEFT_OUT`` says which of them have no place in a table.
    Raises StoreError if the folder was written by another version of the schema, or is no store at all.
    """
    contents, problems = read_cells(folder)
    extra = _extra_columns(contents)
    table = [{column: _value(cell, column) for column in (*COLUMNS, *extra)} for cell in contents]
    table.sort(key=lambda row: [_sortable(row[key]) for key in ("arch", "data", "norm", "batch", "seed", "cell_id")])
    return Contents(table, problems)


def read_cells(folder: Path | str) -> tuple[list[dict[str, Any]], list[str]]:
    """Every cell of a sweep's folder as ``read_cell`` has it, and what is wrong; those ``LEFT_OUT`` are there too.

    Raises as ``read`` does.
    """
    folder = Path(folder)
    check_schema(folder)
    problems = Problems()
    listing = folders.listed(folder)
    found = [cells.read(path, KINDS, problems) for path in listing.cells]
    found += [cells.locked(path.name, why, problems) for path, why in listing.locked]
    for name in listing.others:
        problems.add("folders that hold no cell, passed over", name)
    contents = [{**cell.content, "cell_id": legible(cell.name)} for cell in folders.once(found, PLACES, problems)]
    return contents, problems.told()


def rows(folder: Path | str) -> list[dict[str, Any]]:
    """What results.csv holds: see ``read``."""
    return read(folder).rows


def read_cell(folder: Path) -> dict[str, Any]:
    """What the store knows of a cell: ``cell_id status reason``, what was measured, ``config`` (flat), ``changed``."""
    return {**cells.read(folder, KINDS, Problems()).content, "cell_id": folder.name}


def cells_of(folder: Path) -> list[Path]:
    """The cells' folders of a sweep; none that is only half there, whose name begins with a dot."""
    return folders.listed(folder).cells


def sweeps(folder: Path | str) -> list[Path]:
    """The sweep folder itself, or those directly below a store; ``reference`` only when it is the one named.

    Raises StoreError when there is neither.
    """
    folder = Path(folder)
    if is_sweep(folder):
        return [folder]
    found = [path for path in sorted(folder.glob("*/")) if is_sweep(path) and path.name != "reference"]
    if found:
        return found
    raise StoreError(f"{str(folder)!r} {_lack(folder)}; expected runs/ or runs/<name>, as normbench.sweep leaves them")


def _lack(folder: Path) -> str:
    """Why a folder is no store, as far as it shows."""
    if folder.is_file():
        return "is a file"
    if not folder.is_dir():
        return "does not exist"
    if is_sweep(folder.parent):
        return f"is a folder of the sweep {str(folder.parent)!r}"
    if cells_of(folder):
        return f'has cells but no store.json; if this normbench wrote them, write {{"schema": {SCHEMA}}} into one'
    return "holds no sweep"


def is_sweep(folder: Path) -> bool:
    return os.path.isfile(folder / "store.json")


def check_schema(folder: Path) -> None:
    """Raise StoreError if ``folder`` was written by another version of the schema, or is no store at all."""
    path = folder / "store.json"
    if is_sweep(folder):
        found = read_json(path).get("schema")
        if found != SCHEMA:
            raise StoreError(
                f"{str(folder)!r} was written with schema {found}, this normbench reads and writes schema {SCHEMA}; "
                "read it with the normbench that wrote it, or start another with name=… or runs=…"
            )
    elif os.path.exists(folder / "results.csv"):
        raise StoreError(
            f"{str(folder)!r} holds results but no store.json; if this normbench wrote them, write "
            f'{{"schema": {SCHEMA}}} into one, or choose another folder with name=… or runs=…'
        )


def cell_status(folder: Path) -> str:
    """``new``, ``running``, or how the cell ended; ``killed`` when its process went away without a word."""
    return cells.status(folder)


def epochs(folder: Path) -> list[dict[str, Any]]:
    """The rows of rows.jsonl; a last line cut short by a power cut is left out, and so is any other damaged one."""
    return cells.rows(folder)[0]


def read_rows(folder: Path) -> tuple[list[dict[str, Any]], int]:
    """``epochs``, and how many lines of rows.jsonl were left out."""
    return cells.rows(folder)


def latest(epochs: Iterable[float]) -> list[int]:
    """Places of the epochs in rising order; of one that was written twice, by two attempts, that of the last."""
    places = {epoch: place for place, epoch in enumerate(epochs)}
    return [places[epoch] for epoch in sorted(places)]


def to_csv(table: Iterable[Mapping[str, Any]]) -> str:
    """CSV text with a header; missing measurements read ``NaN``, missing words are empty."""
    table = list(table)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = list(table[0]) if table else list(COLUMNS)
    writer.writerow(header)
    writer.writerows([_cell_text(row[column], column) for column in header] for row in table)
    return text.getvalue()


def _cell_text(value: Any, column: str) -> Any:
    if value is None:
        return "" if column in WORDS or column not in METRICS else "NaN"
    if isinstance(value, bool):
        return str(value).lower()
    return "NaN" if isinstance(value, float) and math.isnan(value) else value


def _extra_columns(cells: list[dict[str, Any]]) -> list[str]:
    named = {key for cell in cells for key in cell.get("changed", ())}
    measured = [column for column in SOMETIMES if any(column in cell for cell in cells)]
    met: dict[tuple[str, Any], Any] = {}
    for cell in cells:
        config = cell.get("config", {})
        for key, value in config.items():
            if key in PLACES:
                continue
            # norm.eps is compared among the cells of one norm, data.limit among those of one data set, amp among all.
            family = (key, config.get(key.split(".")[0]) if "." in key else None)
            if met.setdefault(family, value) != value:
                named.add(key)
    return measured + sorted(named - set(AXES) - set(METRICS))


def _value(cell: Mapping[str, Any], column: str) -> Any:
    if column in METRICS:
        value = cell.get(column)
        failed = column in FINAL and cell.get("status") != "ok"
        return math.nan if failed or (value is None and column not in WORDS) else value
    value = cell.get("config", {}).get(column)
    return json.dumps(value) if isinstance(value, list | dict) else value


def _sortable(value: Any) -> tuple[int, float, str]:
    return (0, float(value), "") if isinstance(value, int | float) else (1, 0.0, str(value))
