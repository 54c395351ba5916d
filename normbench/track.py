"""Weights & Biases as a mirror of the store: the same rows, and never a reason for a sweep to stop.

    group <sweep>/<data>-<arch>, job type cell, name bgn-b8-s0; the axes stand flat in the run's config, so that a
    workspace can be grouped by config.norm and config.batch, and the rest under cfg; train/… and val/… against epoch.

Whatever goes wrong (no package, no account, no network, an error of theirs) is told once, in one line; tracking is
then off and the sweep goes on. ``WANDB_MODE=offline`` needs neither network nor account; ``wandb sync`` sends it later.
Files go to ``WANDB_DIR``, else to ``wandb/`` in the sweep's folder; ``WANDB_PROJECT``, ``WANDB_ENTITY`` are heeded.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from normbench.errors import UnknownName

KINDS = ("none", "wandb")
# Flat in the run's config, under these names; with sweep and cell_id, which are always there.
AXES = ("norm", "batch", "workers", "seed", "arch", "data", "recipe", "epochs", "steps", "lr", "amp")
# What W&B calls the columns of a row; the others keep their names.
NAMES = {"train_loss": "train/loss", "lr": "train/lr", "top1": "val/top1", "top5": "val/top5", "loss": "val/loss"}
SUMMARY = (
    "status", "reason", "top1", "top5", "loss", "train_loss", "train_seconds", "images_per_s", "peak_memory_mib",
    "epoch", "step", "last_loss", "sites", "groups", "parameters", "split",
)  # fmt: skip
FINE = ("ok", "skipped")
INIT_SECONDS = 30  # W&B's own 90 would hold up a sweep on a machine without a network
FINISH_SECONDS = 60  # for sending what is left of a cell; without a limit it waits for days

Note = Callable[[str], None]


class Tracker(Protocol):
    """Mirrors the cells of a sweep: for each ``begin``, ``row`` per epoch, ``finish``; at the end ``close``.

    cell: ``cell_id``, ``sweep`` (its name) and the flat configuration. Several may be open at once, and what is said
    of one that is not open is nothing. No method raises.
    """

    note: Note

    def begin(self, cell: Mapping[str, Any]) -> None: ...
    def row(self, cell_id: str, row: Mapping[str, Any]) -> None: ...
    def finish(self, cell_id: str, result: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...


def make(kind: str | None, *, folder: Path | str | None = None, note: Note | None = None) -> Tracker:
    """The tracker of a sweep. kind: None, ``none`` or ``wandb``; folder: the sweep's; note: takes a line for people.

    Raises UnknownName for another kind.
    """
    note = note or (lambda line: print(line, file=sys.stderr))
    if kind in (None, "none", "off", False):
        return Off(note)
    if kind != "wandb":
        raise UnknownName("tracker", str(kind), KINDS)
    return Wandb(Path(folder) if folder is not None else None, note)


class Off:
    """Tracking off: the same methods, and nothing in them."""

    def __init__(self, note: Note = print) -> None:
        self.note = note

    def begin(self, cell: Mapping[str, Any]) -> None: ...
    def row(self, cell_id: str, row: Mapping[str, Any]) -> None: ...
    def finish(self, cell_id: str, result: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...


class Wandb:
    """One W&B run per cell. Its id follows from sweep and cell, so a cell that goes on, or is run again, is one run."""

    def __init__(self, folder: Path | None, note: Note) -> None:
        self.folder, self.note = folder, note
        self.off = False
        self._runs: dict[str, Any] = {}  # those that are open
        self._told = False

    def begin(self, cell: Mapping[str, Any]) -> None:
        self._try(self._begin, cell)

    def row(self, cell_id: str, row: Mapping[str, Any]) -> None:
        self._try(self._row, cell_id, row)

    def finish(self, cell_id: str, result: Mapping[str, Any]) -> None:
        self._try(self._finish, cell_id, result)

    def close(self) -> None:
        """End the runs that were left open: their cells were stopped from outside."""
        for cell_id in list(self._runs):
            self.finish(cell_id, {"status": "interrupted"})

    def _try(self, action: Callable[..., None], *content: Any) -> None:
        """Nothing of W&B's gets out of here but Ctrl-C: the first error is told, and is the last."""
        if self.off:
            return
        try:
            action(*content)
        except (Exception, SystemExit) as error:
            self.off = True
            self._runs.clear()  # what they have will be sent when the process ends, if it can be
            self.note(f"W&B: {_reason(error)}; tracking is off from here on, the sweep goes on, the store has it all")

    def _begin(self, cell: Mapping[str, Any]) -> None:
        cell_id = str(cell["cell_id"])
        if cell_id in self._runs:  # its process was lost and it goes on in another
            return
        run = self._runs[cell_id] = self._init(importlib.import_module("wandb"), cell)
        run.define_metric("epoch")
        for name in ("train/*", "val/*"):
            run.define_metric(name, step_metric="epoch")
        run.define_metric("val/top1", step_metric="epoch", summary="max,last")
        self._tell_where(run)

    def _row(self, cell_id: str, row: Mapping[str, Any]) -> None:
        if cell_id in self._runs:
            self._runs[cell_id].log({NAMES.get(key, key): value for key, value in row.items() if value is not None})

    def _finish(self, cell_id: str, result: Mapping[str, Any]) -> None:
        run = self._runs.pop(cell_id, None)
        if run is not None:
            run.summary.update({key: result[key] for key in SUMMARY if result.get(key) is not None})
            run.finish(exit_code=0 if result.get("status") in FINE else 1)

    def _init(self, wandb: Any, cell: Mapping[str, Any]) -> Any:
        wanted = {
            "console": "off",  # theirs would take stdout away from the live display
            "silent": True,
            "init_timeout": INIT_SECONDS,
            "finish_timeout": FINISH_SECONDS,
            "finish_timeout_raises": True,
            "reinit": "create_new",  # else a second cell would be written into the run of the first
        }
        known = getattr(wandb.Settings, "model_fields", wanted)  # the last three are young
        if "create_new" not in str(known.get("reinit")):
            del wanted["reinit"]
            if self._runs:
                raise RuntimeError("this version has one run open at a time; from 0.19.10 on there can be several")
        settings = wandb.Settings(**{key: value for key, value in wanted.items() if key in known})
        place = {} if os.environ.get("WANDB_DIR") or self.folder is None else {"dir": str(self.folder)}
        with _nobody_to_ask():
            return wandb.init(**describe(cell), **place, resume="allow", settings=settings)

    def _tell_where(self, run: Any) -> None:
        """Once per sweep: the page, or the files where there is none."""
        told, self._told = self._told, True
        if told:
            return
        files = os.environ.get("WANDB_DIR") or self.folder or "."
        if getattr(run, "offline", False):
            self.note(f"W&B: offline; to send it:  wandb sync {files}/wandb/offline-run-*")
        elif run.url:
            self.note(f"W&B: {run.url}")


def describe(cell: Mapping[str, Any]) -> dict[str, Any]:
    """``wandb.init``'s project, group, job_type, name, id and config for a cell."""
    sweep, cell_id = str(cell["sweep"]), str(cell["cell_id"])
    norm, batch, seed = (cell.get(key) for key in ("norm", "batch", "seed"))
    return {
        "project": os.environ.get("WANDB_PROJECT") or "normbench",
        "group": f"{sweep}/{_short(cell.get('data'))}-{_short(cell.get('arch'))}"[:128],
        "job_type": "cell",
        "name": f"{_short(norm)}-b{batch}-s{seed}"[:128],
        "id": "nb" + hashlib.sha256(f"{sweep}/{cell_id}".encode()).hexdigest()[:12],
        "config": _config(cell),
    }


def _config(cell: Mapping[str, Any]) -> dict[str, Any]:
    axes = ("sweep", "cell_id", *(key for key in AXES if key in cell))
    flat = {key: cell[key] for key in axes}
    if isinstance(cell.get("batch"), int) and isinstance(cell.get("workers"), int):
        flat["global_batch"] = cell["batch"] * cell["workers"]
    return {**flat, "cfg": _nested({key: value for key, value in cell.items() if key not in axes})}


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as a tree."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[last] = value
    return tree


def _short(name: object) -> str:
    """A user's ``/home/me/my.py:Norm`` without the folders, which are nobody else's business."""
    return str(name).rpartition("/")[2]


@contextlib.contextmanager
def _nobody_to_ask() -> Iterator[None]:
    """Without an API key W&B asks for one and waits, if it finds a terminal to ask at; so it finds none.

    What it would say beside its exception is held back too: we say it, in one line.
    """
    keyboard, sys.stdin = sys.stdin, io.StringIO()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        sys.stdin = keyboard


def _reason(error: BaseException) -> str:
    if isinstance(error, ImportError):
        return f"the package cannot be imported ({error})"
    lines = str(error).strip().splitlines() or ["no reason given"]
    hint = " (WANDB_MODE=offline needs no account)" if "api key" in lines[0].lower() else ""
    return f"{type(error).__name__}: {lines[0][:200].rstrip('.')}{hint}"
