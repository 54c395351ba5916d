"""Stores of several machines put together: each cell once, its best end."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from normbench.attempt import writing
from normbench.errors import StoreError
from normbench.files import CHOICES, TRIALS, read_json, temporary, write_atomically
from normbench.records import LEFT_OUT, Store, cell_status, cells_of, check_schema, is_sweep, read_cell, sweeps
from normbench.records.folders import WORTH


def merge(sources: Sequence[Path | str], target: Path | str) -> dict[str, int]:
    """Copy the cells of ``sources`` into ``target``: all sweeps, or all stores of sweeps, put together by their names.

    Nothing is taken away: a cell that both have keeps its better end (``ok`` before failures, finished before
    unfinished, the later of equal ones). Returns how many cells were ``new``, ``better`` and ``kept``; trials of
    tune.lr are put together likewise, and not counted.
    Raises StoreError for what is no store, a mixture, another schema, a cell that is at work, or a target that cannot
    be written.
    """
    kinds = {is_sweep(Path(source)) for source in sources}
    if len(kinds) != 1:
        raise StoreError("expected stores (runs/) or sweeps (runs/<name>) to merge, and not some of each")
    (one,) = kinds
    counts = dict.fromkeys(("new", "better", "kept"), 0)
    found = [sweep for source in sources for sweep in sweeps(source)]
    for sweep in found:
        check_schema(sweep)
    for sweep in found:
        place = Path(target) if one else Path(target) / sweep.name
        store = Store(place.parent, place.name)
        store.create()
        _take_choices(sweep, place)
        for cell in cells_of(sweep):
            counts[_take(cell, store)] += 1
        store.write_results()
        if is_sweep(sweep / TRIALS):
            merge([sweep / TRIALS], place / TRIALS)
    return counts


def _take_choices(sweep: Path, place: Path) -> None:
    """What auto came to, for the sweep's cells to come. Raises StoreError where two sweeps chose another format."""
    for found in sorted((sweep / CHOICES).glob("*.json")):
        there = place / CHOICES / found.name
        if not there.exists():
            there.parent.mkdir(exist_ok=True)
            write_atomically(there, found.read_text())
            continue
        own, other = (read_json(path).get("values") for path in (found, there))
        if own != other and "memory_format" in (own or {}):
            raise StoreError(
                f"{str(found)!r} says {own}, {str(there)!r} says {other}: cells of the two are not alike; merge them "
                "into different folders"
            )


def _take(cell: Path, store: Store) -> str:
    there = store.cell(cell.name)
    for folder in (cell, there):
        if cell_status(folder) == "running":
            raise StoreError(f"{str(folder)!r} is at work; merge when it is done, or stop its sweep")
    known = there.exists()
    if known and _worth(cell) <= _worth(there):
        return "kept"
    with writing(store.folder), temporary(there) as own:
        shutil.copytree(cell, own)
        with temporary(there) as old:
            if known:
                there.rename(old)
            own.rename(there)
    return "better" if known else "new"


def _worth(cell: Path) -> tuple[Any, ...]:
    status = cell_status(cell)
    usable = status in WORTH and read_cell(cell)["status"] not in LEFT_OUT
    ended = read_json(cell / "result.json").get("ended")
    return (WORTH.index(status) if usable else -1, ended if isinstance(ended, int | float) else 0.0)
