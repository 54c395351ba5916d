"""What a process is told that shall run a cell: plain values, so that they can stand in a file or go down a pipe."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normbench import cell as cells
from normbench.cell import Cell
from normbench.records import Store


@dataclass(frozen=True)
class Order:
    """One attempt at one cell.

    folder: the sweep's. config: nested, as ``Cell.nested`` gives it. known: what every record of the cell repeats.
    after: the number of the last attempt that is known of; whoever finds another one there leaves the cell alone.
    values: in the maps of one forward. threads: at most so many (None: the machine's own); loaders: as many, where the
    cell does not say how many processes decode. exactly: so many threads whatever the size. chosen: what auto comes to.
    question: not to run the cell, but to measure this (a choices.Question in plain values). rank of ranks; meeting: the
    file through which ranks find each other. cwd, path, argv, env: of the process that gives the order.
    """

    folder: str
    cell_id: str
    config: Mapping[str, Any]
    known: Mapping[str, Any]
    after: int
    values: int
    threads: int | None = None
    loaders: int | None = None
    exactly: int | None = None
    chosen: Mapping[str, str] = field(default_factory=dict)
    question: Mapping[str, Any] | None = None
    rank: int = 0
    ranks: int = 1
    meeting: str = ""
    cwd: str = field(default_factory=os.getcwd)
    path: tuple[str, ...] = field(default_factory=lambda: tuple(sys.path))
    argv: tuple[str, ...] = field(default_factory=lambda: tuple(sys.argv))
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    @property
    def store(self) -> Store:
        return Store(Path(self.folder).parent, Path(self.folder).name)

    @property
    def cell(self) -> Cell:
        return cells.make(self.config)

    def text(self) -> str:
        """As JSON. Floats keep every bit; a float that JSON has no word for is written as Python's json does."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def read(cls, text: str) -> Order:
        found = json.loads(text, object_hook=_numbered)
        return cls(**{**found, "path": tuple(found["path"]), "argv": tuple(found["argv"])})


def _numbered(found: dict[str, Any]) -> dict[Any, Any]:
    """A table by number (BGN's groups by batch) as it was: JSON has no numbers for keys."""
    return {int(key): value for key, value in found.items()} if found and all(map(str.isdigit, found)) else found
