"""Which folders of a sweep are cells, and which cells lie there twice."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from normbench.files import legible
from normbench.records.cells import DUPLICATE, PLACE, UNREADABLE, Found
from normbench.records.problems import Problems

# A folder with one of these is a cell.
FILES = {"config.yaml", "result.json"}
# Folders beside the cells: W&B's files.
NO_CELLS = ("wandb",)
# Of two records of one cell the one further to the right is kept; of equal ones the later.
WORTH = ("killed", "interrupted", "skipped", "error", "timeout", "oom", "diverged", "ok")


class Listing(NamedTuple):
    """The cells' folders, the folders that cannot be entered, with the reason, and the names of other folders."""

    cells: list[Path]
    locked: list[tuple[Path, str]]
    others: list[str]


def listed(folder: Path) -> Listing:
    """The folders of a sweep by name; none that is only half there, whose name begins with a dot."""
    found = Listing([], [], [])
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and _may_be_cell(entry))
    except (FileNotFoundError, NotADirectoryError):
        return found
    for name in names:
        try:
            inside = FILES.intersection(os.listdir(folder / name))
        except OSError as error:
            found.locked.append((folder / name, error.strerror or str(error)))
            continue
        if inside:
            found.cells.append(folder / name)
        elif name not in NO_CELLS:
            found.others.append(name)
    return found


def _may_be_cell(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return True


def once(found: list[Found], same_anyway: Iterable[str], problems: Problems) -> list[Found]:
    """Of cells with one configuration the best is kept; the others were copied by hand, and are no repetitions.

    same_anyway: the keys of a configuration that tell no cells apart.
    """
    kept: dict[str, Found] = {}
    told = []
    for cell in sorted(found, key=_worth, reverse=True):
        best = kept.setdefault(_configuration(cell, frozenset(same_anyway)), cell)
        if best is not cell:
            problems.add("cells that are there twice, left out", cell.name, f"{best.name} is kept")
            end = {"status": DUPLICATE, "reason": f"the same cell as {legible(best.name)}"}
            cell = dataclasses.replace(cell, content={**cell.content, **end})
        elif cell.recorded != cell.name:
            problems.add("cells in a folder of another name than their own", cell.name, f"result of {cell.recorded}")
        told.append(cell)
    return told


def _worth(cell: Found) -> tuple[int, float, bool, str]:
    status = cell.content["status"]
    worth = WORTH.index(status) if status in WORTH else -1
    return worth, cell.ended, cell.recorded == cell.name, cell.name


def _configuration(cell: Found, same_anyway: frozenset[str]) -> str:
    """What tells a cell from others, as a key; without the pictures' hash its id does, which is made from it."""
    config = cell.content["config"]
    if cell.content["status"] == UNREADABLE or any(key not in config for key in PLACE):
        return f"unknown {cell.name}"
    if "data.source" not in config:
        return f"id {cell.recorded}"
    return json.dumps([(key, config[key]) for key in sorted(config) if key not in same_anyway])
