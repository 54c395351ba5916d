"""What a step of each of the table's entries cost: its time and memory, as one machine ran it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pandas as pd

from normbench import files
from normbench.report.frame import Spot, places, word

# What makes the times of two cells comparable (provenance.json), in the order in which they are told.
MACHINE = ("device", "processor", "machine", "cores", "threads", "ranks", "torch")
Machine = tuple[str, ...]


@dataclass(frozen=True)
class Cost:
    """Of one entry.  step_ms: of a step of batch × workers images.  memory_mib: at its peak.  NaN: not measured.

    Medians over its seeds, as one that shared the machine with others was slowed.
    """

    spot: Spot
    step_ms: float
    memory_mib: float


@dataclass(frozen=True)
class Costs:
    """Of one block and batch, on the machine that ran most of it; elsewhere: the lines that have none from there."""

    costs: tuple[Cost, ...]
    machine: Machine
    elsewhere: tuple[str, ...]


def measure(folder: Path, frame: pd.DataFrame, spots: Iterable[Spot]) -> Costs:
    """Of spots of one block and batch, those with a result."""
    cells = {place: some[some["status"] == "ok"] for place, some in places(frame)}
    own = {spot.line: (spot, cells[spot.block, spot.line, spot.batch]) for spot in spots if spot.values}
    ran = {cell: _machine(folder, cell) for _, some in own.values() for cell in some["cell_id"].map(str)}
    count = Counter(machine for _, some in own.values() for machine in {ran[cell] for cell in some["cell_id"].map(str)})
    machine = max(sorted(count), key=lambda one: count[one], default=())
    kept = {line: some[[ran[cell] == machine for cell in some["cell_id"].map(str)]] for line, (_, some) in own.items()}
    costs = [_cost(own[line][0], some) for line, some in kept.items() if len(some)]
    return Costs(tuple(costs), machine, tuple(line for line, some in kept.items() if not len(some)))


def _machine(folder: Path, cell: str) -> Machine:
    """Empty where it was not recorded."""
    known = files.read_json(folder / cell / "provenance.json") if Path(cell).name == cell else {}
    return tuple(word(known.get(key)) for key in MACHINE) if known else ()


def _cost(spot: Spot, cells: pd.DataFrame) -> Cost:
    rows = [{str(key): value for key, value in row.items()} for row in cells.to_dict("records")]
    steps = [1000 * spot.batch * (_positive(row, "workers") or 1) / speed
             for row in rows if (speed := _positive(row, "images_per_s"))]  # fmt: skip
    memory = [mib for row in rows if (mib := _positive(row, "peak_memory_mib"))]
    return Cost(spot, median(steps) if steps else float("nan"), median(memory) if memory else float("nan"))


def _positive(row: Mapping[str, object], key: str) -> float | None:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and value > 0 else None


def told(machine: Machine) -> str:
    """``cpu, Intel(R) Xeon(R) Processor, 1 thread``."""
    if not machine:
        return "a machine that was not recorded"
    known = dict(zip(MACHINE, machine, strict=True))
    count = known["threads"] if known["device"] == "cpu" else ""
    threads = f"{count} thread{'' if count == '1' else 's'}" if count else ""
    processor = (known["processor"] or known["machine"]) if known["device"] == "cpu" else ""
    ranks = f"{known['ranks']} ranks" if known["ranks"] not in ("", "1") else ""
    return ", ".join(filter(None, (known["device"], " ".join(processor.split()), threads, ranks)))


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Of (cost, top-1) the names that nothing beats, which would cost no more and be better; the cheapest first."""
    kept: list[str] = []
    best = -float("inf")
    for name, (_, top1) in sorted(points.items(), key=lambda entry: (entry[1][0], -entry[1][1])):
        if top1 > best:
            best = top1
            kept.append(name)
    return kept
