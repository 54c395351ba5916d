"""Weights & Biases as a projection of the store: made from it at any time, and never a reason for a sweep to stop.

    cell.py        what W&B is to hold of a cell, read from the store
    runs.py        writes cells into their runs, each row once
    fragments.py   the runs written offline, which ``wandb sync`` sends later
    live.py        track=wandb: a sweep names the cells that moved to a process of its own, and waits for nothing
    mirror.py      that process
    push.py        python -m normbench.track push: what is in the store and not in W&B
    workspace.py   python -m normbench.track dashboard: the dashboard as code

Group <sweep>/<data>-<arch>, job type cell, name bgn-b8-s0; the axes stand flat in the run's config, so that a workspace
can be grouped by config.line, config.batch and config.global_batch, and the rest under cfg; train/… and val/… against
epoch. Files go to ``WANDB_DIR``, else to ``wandb/`` in the sweep's folder; ``WANDB_MODE``, ``WANDB_PROJECT``,
``WANDB_ENTITY`` are heeded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from normbench.errors import UnknownName

KINDS = ("none", "wandb")

Note = Callable[[str], None]


class Tracker(Protocol):
    """Mirrors the cells of a sweep: for each ``begin``, ``row`` per epoch, ``finish``; at the end ``close``.

    Each is called when the store has what it tells of; cell: at least ``cell_id``. No method raises or waits, but for
    ``close``, which waits for a bounded time.
    """

    note: Note

    def begin(self, cell: Mapping[str, Any]) -> None: ...
    def row(self, cell_id: str, row: Mapping[str, Any]) -> None: ...
    def finish(self, cell_id: str, result: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...


def make(kind: str | None, *, folder: Path | str = ".", note: Note | None = None) -> Tracker:
    """The tracker of a sweep. kind: None, ``none`` or ``wandb``; folder: the sweep's; note: takes a line for people.

    Raises UnknownName for another kind.
    """
    note = note or (lambda line: print(line, file=sys.stderr))
    if kind in (None, "none", "off", False):
        return Off(note)
    if kind != "wandb":
        raise UnknownName("tracker", str(kind), KINDS)
    from normbench.track.live import Live

    return Live(Path(folder), note)


class Off:
    """Tracking off: the same methods, and nothing in them."""

    def __init__(self, note: Note = print) -> None:
        self.note = note

    def begin(self, cell: Mapping[str, Any]) -> None: ...
    def row(self, cell_id: str, row: Mapping[str, Any]) -> None: ...
    def finish(self, cell_id: str, result: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...
