"""What W&B is to hold of one cell, read from the store: a pure function of the cell's folder."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from normbench import records
from normbench.files import plain

# Flat in the run's config, under these names; with those of ``Content`` that are always there.
AXES = ("norm", "batch", "workers", "seed", "arch", "data", "recipe", "epochs", "steps", "lr", "amp")
# Axes whose value may be a user's file; and where the user's pictures lie: folders are nobody else's business.
NAMED, HIDDEN = ("norm", "arch", "data"), ("data.root", "data.prepared")
# What was set or swept and ``line`` does not say: its first word or the run's group does, or what else runs are grouped
# by (batch and images a step, which workers often keep the same), or it cannot change a number.
NOT_IN_LINE = (*NAMED, "batch", "workers", "seed", "tune", *records.PLACES)
# What W&B calls the columns of a row; the others keep their names.
NAMES = {"train_loss": "train/loss", "lr": "train/lr", "top1": "val/top1", "top5": "val/top5", "loss": "val/loss"}
# Measurements that differ from attempt to attempt of one and the same training.
CLOCK = ("train_seconds", "images_per_s")
FINE = ("ok", "skipped")


@dataclass(frozen=True)
class Content:
    """One cell as W&B has it.

    id: follows from sweep and cell, so a cell that goes on, or is run again, is one run. rows: what is logged, in the
    order of their epochs, each epoch once. summary: status, reason and what was measured, without what is missing.
    """

    cell_id: str
    status: str
    id: str
    group: str
    name: str
    config: dict[str, Any]
    rows: tuple[dict[str, Any], ...]
    summary: dict[str, Any]

    @property
    def tags(self) -> tuple[str, ...]:
        return (f"status:{self.status}",)

    @property
    def exit_code(self) -> int:
        """0: W&B calls the run finished; 1: failed. One at work has not failed."""
        return 0 if self.status in (*FINE, "running") else 1

    @cached_property
    def digest(self) -> str:
        """Changes when anything does."""
        return _digest([self.group, self.name, self.config, self.rows, self.summary])

    @property
    def epochs(self) -> int:
        """The last that has a row; 0: none has."""
        return self.rows[-1]["epoch"] if self.rows else 0

    def curves(self, epochs: int) -> str:
        """Changes when a row of the first ``epochs`` epochs does, times aside."""
        rows = [row for row in self.rows if row["epoch"] <= epochs]
        return _digest([{key: value for key, value in row.items() if key not in CLOCK} for row in rows])


def read(folder: Path) -> Content:
    """The cell in ``folder``, whatever state it is in: ended, at work, killed, damaged."""
    cell = records.read_cell(folder)
    sweep, config = folder.resolve().parent.name, cell.get("config") or {}
    norm, batch, seed = (config.get(key) for key in ("norm", "batch", "seed"))
    return Content(
        cell_id=folder.name,
        status=str(cell["status"]),
        id="nb" + hashlib.sha256(f"{sweep}/{folder.name}".encode()).hexdigest()[:12],
        group=f"{sweep}/{_short(config.get('data'))}-{_short(config.get('arch'))}"[:128],
        name=f"{_short(norm)}-b{batch}-s{seed}"[:128],
        config=plain(_config(sweep, folder.name, config, cell.get("changed") or ())),
        rows=_rows(folder),
        summary=_summary(cell, config),
    )


def project() -> str:
    return os.environ.get("WANDB_PROJECT") or "normbench"


def _config(sweep: str, cell_id: str, config: Mapping[str, Any], changed: Any) -> dict[str, Any]:
    """The axes, and what was set or swept, as flat scalars; the whole below ``cfg``.

    Runs of one group, ``line``, ``batch`` and ``global_batch`` are averaged over seeds, and over nothing else that was
    set or swept; a user's files are known by their names.
    """
    config = {key: _without_folders(value) for key, value in config.items() if key not in HIDDEN}
    chosen = [key for key in changed if key in config]
    flat = {"sweep": sweep, "cell_id": cell_id, **{key: _short(config[key]) for key in NAMED if key in config}}
    flat |= {key: config[key] for key in AXES if key in config and key not in NAMED}
    flat["line"] = _line(config, chosen)
    flat |= {key.replace(".", "_"): config[key] for key in chosen if "." in key}
    if isinstance(config.get("batch"), int) and isinstance(config.get("workers"), int):
        flat["global_batch"] = config["batch"] * config["workers"]
    return {**flat, "cfg": _nested({key: value for key, value in config.items() if key not in AXES})}


def _line(config: Mapping[str, Any], chosen: Iterable[str]) -> str:
    """The norm and all that was set or swept: ``bgn num_groups=16 lr=0.1``, ``bn tuned over 0.01, 0.1 on …``.

    A run knows no other cell, so what merely follows the batch is told like the rest. A rate that trials chose is not.
    """
    tuned = config.get("tune")
    keys = {key for key in chosen if key not in NOT_IN_LINE and not (tuned and key == "lr")}
    own_first = sorted(keys, key=lambda key: (not key.startswith("norm."), key))
    words = [f"{key.removeprefix('norm.')}={config[key]}" for key in own_first]
    return " ".join([_short(config.get("norm")), *words, *([f"tuned over {tuned}"] if tuned else [])])


def _rows(folder: Path) -> tuple[dict[str, Any], ...]:
    """A row per epoch; of an epoch that is there twice the later one."""
    whole = [row for row in records.epochs(folder) if isinstance(row.get("epoch"), int)]
    return tuple(
        {NAMES.get(key, key): value for key, value in plain(whole[place]).items() if value is not None}
        for place in records.latest(row["epoch"] for row in whole)
    )


def _summary(cell: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What results.csv says of the cell, and the time of an optimizer step. A failed cell has no final values."""
    columns = (key for key in records.METRICS if key != "cell_id")
    final = () if cell["status"] == "ok" else records.FINAL
    found = {key: cell.get(key) for key in columns if key not in final}
    images, speed = config.get("batch"), cell.get("images_per_s")
    if isinstance(images, int) and isinstance(speed, int | float) and math.isfinite(speed) and speed > 0:
        found["step_time_ms"] = 1000 * images * (config.get("workers") or 1) / speed
    kept = {key: value for key, value in plain(found).items() if value is not None}
    return {"reason": "", **kept}


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
    """A user's ``/home/me/my.py:Norm`` without the folders."""
    return str(name).rpartition("/")[2]


def _without_folders(value: Any) -> Any:
    """The same, but for absolute paths, whole or in a list, of which the last part is left."""
    if isinstance(value, list | tuple):
        return [_without_folders(item) for item in value]
    return _short(value.rstrip("/")) if isinstance(value, str) and value.startswith(("/", "~")) else value


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
