"""Which cells of a store stand for which published number, and where their protocol is not the paper's.

A stored cell is held against the cell that the paper's protocol has at its batch, on every line of its normalizer, and
belongs to the line from which it differs least. Nothing but the store and conf/paper is needed: neither the commands
that made the cells, nor data, nor torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from normbench import grid, records
from normbench.attempt import UNFINISHED
from normbench.errors import ConfigError
from normbench.grid.paper import Line, Paper
from normbench.paper import published
from normbench.paper.published import Entry

# What of a cell's configuration is no part of a protocol: where and how it runs, and what others follow from.
NO_PROTOCOL = {
    "seed", "device", "chunk", "memory_format", "compile", "graph", "deterministic", "data.root", "data.download",
    "data.loaders", "data.decoder", "data.stream", "data.eval_batch", "recipe.source", "recipe.epochs", "recipe.steps",
    "recipe.base_lr", "recipe.base_batch", "recipe.lr_rule",
}  # fmt: skip
LENGTH = ("epochs", "steps")
# A recipe that another one stands for is told by its name alone, and so is an architecture.
WHOLE = {"recipe": ("recipe.", "lr"), "arch": ("arch.",)}
TOLD = (*LENGTH, *WHOLE, "data")


@dataclass(frozen=True)
class Stored:
    """A cell of the store. top1: in percent, NaN if it did not end ok."""

    cell_id: str
    status: str
    config: Mapping[str, Any]
    top1: float


@dataclass(frozen=True)
class Row:
    """One entry of the table: theirs beside ours.

    seeds: how many the protocol has.  differs: where the protocol of ``runs`` is not the paper's.  others: runs of
    still other protocols, left out.  interval: of 95 % for the mean of ours, where there is one.
    """

    line: str
    norm: str
    batch: int
    workers: int
    theirs: Entry | None
    recovered: bool = True
    seeds: int = 1
    runs: tuple[Stored, ...] = ()
    differs: tuple[str, ...] = ()
    others: int = 0
    interval: tuple[float, float] | None = None

    @property
    def values(self) -> list[float]:
        return [run.top1 for run in self.runs if run.status == "ok" and not math.isnan(run.top1)]

    @property
    def ours(self) -> float:
        """Mean top-1 in percent; NaN without a run that ended ok."""
        return fmean(self.values) if self.values else math.nan

    @property
    def sd(self) -> float:
        """Of the sample; NaN for fewer than two."""
        return stdev(self.values) if len(self.values) > 1 else math.nan

    @property
    def ended(self) -> dict[str, int]:
        """How the runs without a value ended, or stand."""
        return dict(sorted(Counter(run.status for run in self.runs if run.status != "ok").items()))

    @property
    def difference(self) -> float:
        """Ours − theirs in points; NaN where one is missing."""
        return self.ours - self.theirs.value if self.theirs else math.nan

    @property
    def missing(self) -> int:
        """Seeds of the protocol that have no run."""
        return max(self.seeds - len(self.runs), 0)

    @property
    def states(self) -> list[str]:
        """What a reader must know of it before comparing; nothing where both are there in the paper's protocol."""
        found = [] if self.theirs else ["not published" if self.recovered else "not recovered"]
        if not self.runs:
            found.append("not run")
        elif self.missing:
            found.append(f"{self.missing} of {self.seeds} seeds not run")
        found += [f"{count} {'not done' if status in UNFINISHED else status}" for status, count in self.ended.items()]
        return found


def compared(
    paper: Paper, folder: Path, scale: float, configs: grid.Configs, asked: Iterable[tuple[Line, int]] = ()
) -> tuple[list[Row], list[str]]:
    """The table's entries, and lines on what in the store could not be compared.

    Line by line as conf/paper has them; then what was ``asked`` for, line and batch, or run, and is published nowhere.
    Raises StoreError for a store of another schema.
    """
    expected = Expected(paper, scale, configs)
    known = published.of(paper.name)
    found: dict[tuple[str, int], Row] = {}

    def place(line: Line, batch: int) -> tuple[str, int]:
        """Where an entry stands; it is made when it is first met."""
        at = line.label, batch
        if at not in found:
            found[at] = expected.row(line, batch, known.get(at))
        return at

    own = [(line, batch) for line in paper.lines for batch in line.batches]
    for line, batch in [*own, *asked]:
        place(line, batch)
    groups: dict[tuple[str, int], dict[tuple[str, ...], list[Stored]]] = {}
    stored, problems = _stored(folder)
    nowhere = 0
    for run in stored:
        lines = expected.lines(run)
        nowhere += not lines
        for line, differs in lines:
            groups.setdefault(place(line, run.config["batch"]), {}).setdefault(differs, []).append(run)
    if nowhere:
        problems.append(f"left out: {nowhere} runs in this folder whose batch does not divide the images of a step")
    for at, by_protocol in groups.items():
        differs = min(by_protocol, key=lambda one: (len(one), -len(by_protocol[one]), one))
        rest = sum(len(runs) for other, runs in by_protocol.items() if other != differs)
        runs = tuple(sorted(by_protocol[differs], key=lambda run: run.cell_id))
        found[at] = replace(found[at], runs=runs, differs=differs, others=rest)
    order = list(dict.fromkeys(label for label, _ in found))
    return sorted(found.values(), key=lambda row: order.index(row.line)), problems


def with_intervals(rows: Sequence[Row], folder: Path) -> list[Row]:
    """The rows, with the report's interval where it has one for the very same cells."""
    if all(len(row.values) < 2 for row in rows):
        return list(rows)
    from normbench.report import frame, statistics  # pandas

    cells = frame.read(folder)
    known = {frozenset(spot.cells): spot.interval for spot in statistics.judged(folder, cells, frame.spots(cells))}
    ok = [frozenset(run.cell_id for run in row.runs if run.status == "ok") for row in rows]
    return [replace(row, interval=known.get(cells)) for row, cells in zip(rows, ok, strict=True)]


class Expected:
    """The cells of the paper's protocol, at any batch; each composed once."""

    def __init__(self, paper: Paper, scale: float, configs: grid.Configs) -> None:
        self.paper, self.scale, self.configs = paper, scale, configs
        self._flat: dict[tuple[str, int], dict[str, Any]] = {}

    def row(self, line: Line, batch: int, theirs: Entry | None) -> Row:
        flat = self.flat(line, batch)
        seeds = line.settings.get("seed")
        many = len(seeds) if isinstance(seeds, list) else 1
        return Row(line.label, str(flat["norm"]), batch, flat["workers"], theirs, line.recovered, many)

    def flat(self, line: Line, batch: int) -> dict[str, Any]:
        key = (line.label, batch)
        if key not in self._flat:
            known = any(other.label == line.label for other in self.paper.lines)
            own = self.paper.line(line.label, batch) if known else line
            self._flat[key] = grid.line_cell(self.paper, own, batch, self.scale, self.configs).flat()
        return self._flat[key]

    def lines(self, run: Stored) -> list[tuple[Line, tuple[str, ...]]]:
        """The lines that a cell differs least from, and in what; none if it has no configuration left."""
        norm, batch = run.config.get("norm"), run.config.get("batch")
        if not isinstance(norm, str) or not isinstance(batch, int):
            return []
        lines = {line.label: line for line in self.paper.lines if line.norm == norm} or {norm: self.paper.added(norm)}
        found = []
        for line in lines.values():
            try:
                found.append((line, differences(self.flat(line, batch), run.config)))
            except ConfigError:  # a batch that does not divide the images of a step: not of this line
                continue
        if not found:
            return []
        least = min(len(differs) for _, differs in found)
        nearest = [(line, differs) for line, differs in found if len(differs) == least]
        at_home = [pair for pair in nearest if self._has(pair[0].label, batch)]
        return at_home or nearest[:1]

    def _has(self, label: str, batch: int) -> bool:
        return any(batch in line.batches for line in self.paper.lines if line.label == label)


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> tuple[str, ...]:
    """Where our flat configuration is not that of the paper's protocol: ``steps 20 (epochs 200)``, theirs in brackets.

    Keys that ours does not know are of a younger normbench, and no difference.
    """
    told: list[str] = []
    hidden: list[str] = []
    for key, follow in WHOLE.items():
        if ours.get(key) != theirs[key]:
            told.append(f"{key} {_word(ours.get(key))} ({theirs[key]})")
            hidden += follow
    if ours.get("data") != theirs["data"]:
        told.append(f"other pictures: data {_word(ours.get('data'))} ({theirs['data']})")
    if any(key in ours and ours[key] != theirs[key] for key in LENGTH):
        told.append(f"{_length(ours)} ({_length(theirs)})")
    options = [key for key in ours if key.startswith("norm.") and not key.endswith(".source")]
    for key in dict.fromkeys([*theirs, *options]):
        skip = key in NO_PROTOCOL or key in TOLD or any(key.startswith(start) for start in hidden)
        if skip or (key not in ours and not key.startswith("norm.")):
            continue
        if not _alike(ours.get(key), theirs.get(key)):
            told.append(f"{key} {_word(ours.get(key))} ({_word(theirs.get(key))})")
    return tuple(told)


def _stored(folder: Path) -> tuple[list[Stored], list[str]]:
    """The cells of a sweep's folder that have a place in a table, and what is wrong with the folder."""
    if not records.is_sweep(folder):
        return [], []
    found, problems = records.read_cells(folder)
    kept = [
        cell for cell in found if cell["status"] not in records.LEFT_OUT and {"norm", "batch"} <= cell["config"].keys()
    ]
    return [_run(cell) for cell in kept], problems


def _run(cell: Mapping[str, Any]) -> Stored:
    top1 = cell.get("top1") if cell["status"] == "ok" else None
    return Stored(cell["cell_id"], cell["status"], cell["config"], math.nan if top1 is None else float(top1))


def _length(config: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {config[key]}" for key in LENGTH if config.get(key) is not None)


def _alike(ours: Any, theirs: Any) -> bool:
    """Numbers but for their rounding; a tuple is the list that JSON makes of it."""
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=1e-9)
    if isinstance(ours, Sequence) and isinstance(theirs, Sequence):
        return list(ours) == list(theirs)
    return bool(ours == theirs)


def _word(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value).rsplit("/", 1)[-1]
