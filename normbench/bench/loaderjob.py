"""What the loader can give beside what the network can take, in images a second.

The loader alone, streaming training pictures with each number of processes; the network alone, training on a batch that
is on the device already; everyone takes a turn in every round. The lower of the two is what a run can reach.
"""

from __future__ import annotations

import csv
import io
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from rich.console import Console

from normbench import machine
from normbench.bench.ceiling import contestants
from normbench.bench.loader import Settings
from normbench.bench.progress import Bar
from normbench.bench.statistics import quartiles
from normbench.cell import Cell
from normbench.data.files import cores
from normbench.files import write_atomically, write_json

NETWORK = "network"


@dataclass(frozen=True)
class Row:
    """Images a second over the rounds: of the loader with so many ``processes``, or of the network (None)."""

    what: str
    processes: int | None
    batch: int
    images_per_s: float
    q25: float
    q75: float
    rounds: int

    @property
    def label(self) -> str:
        return NETWORK if self.processes is None else f"loader, {counted(self.processes)}"


def run(settings: Settings, words: Sequence[str]) -> bool:
    """Measure, leave the files, show the table. words: the whole command line."""
    console, folder = Console(highlight=False), Path(settings.out)
    folder.mkdir(parents=True, exist_ok=True)
    machine.keep_memory()  # as the runner has it
    torch.backends.cudnn.benchmark = True
    device = machine.device(settings.cell.device)
    turns = contestants(settings.cell, settings.loaders, settings.seconds, device)
    rates: dict[int | None, list[float]] = {processes: [] for processes in turns}
    with Bar(console, settings.rounds * len(turns)) as bar:
        for _ in range(settings.rounds):
            for processes in random.sample(list(turns), len(turns)):
                bar.at(NETWORK if processes is None else f"loader, {counted(processes)}")
                rates[processes].append(turns[processes]())
                bar.advance(1)
    rows = [row(settings.cell, processes, found) for processes, found in rates.items()]
    text = verdict(rows, cores())
    table = markdown(settings.cell, rows, text, on_cpu=device.type == "cpu")
    about = machine.provenance(device, torch.get_num_threads())
    about["command"] = ["python", "-m", "normbench.bench", *words]
    write_atomically(folder / "loader.csv", to_csv(rows))
    write_atomically(folder / "loader.md", table)
    write_json(folder / "loader.json", {**about, "rows": [asdict(one) for one in rows], "verdict": text})
    console.print(table, end="", soft_wrap=True, markup=False)
    console.print(f"{folder}/: loader.csv, loader.md, loader.json", style="dim", soft_wrap=True)
    return True


def counted(processes: int) -> str:
    return f"{processes} process{'es' if processes != 1 else ''}"


def row(cell: Cell, processes: int | None, rates: Sequence[float]) -> Row:
    middle = quartiles(rates)
    what = cell.arch.name if processes is None else "loader"
    return Row(what, processes, cell.images, middle.median, middle.low, middle.high, len(rates))


def verdict(rows: Sequence[Row], cores: int) -> str:
    """Which of both is the limit, and how many processes are enough, or would be."""
    network = next(row for row in rows if row.processes is None)
    told = f"the network takes {network.images_per_s:,.0f} images/s"
    loaders = sorted((row for row in rows if row.processes), key=lambda row: row.processes or 0)
    if not loaders:
        both = 1 / sum(1 / row.images_per_s for row in rows)
        return f"{told}; without processes the loader takes turns with it: {both:,.0f} images/s; give loaders=1,2,4 too"
    enough = next((row for row in loaders if row.images_per_s >= network.images_per_s), None)
    if enough is not None:
        gives = f"data.loaders={enough.processes} gives {enough.images_per_s:,.0f} and is enough"
        return f"{told}; {gives}: from there on the network is the limit"
    best = max(loaders, key=lambda row: row.images_per_s)
    each = max(row.images_per_s / (row.processes or 1) for row in loaders)
    need = math.ceil(network.images_per_s / each)
    most = f"{best.images_per_s:,.0f} images/s at most, of {counted(best.processes or 0)}"
    return (
        f"{told}; the loader is the limit: {most}; "
        f"{need} would be enough if each gave the {each:,.0f} of the best here, on as many cores (there are {cores})"
    )


def to_csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    for one in rows:
        writer.writerow(
            {key: f"{value:.5g}" if isinstance(value, float) else value for key, value in asdict(one).items()}
        )
    return text.getvalue()


def markdown(cell: Cell, rows: Sequence[Row], text: str, *, on_cpu: bool) -> str:
    lines = [
        f"**Images a second: the loader alone, and {cell.arch.name} alone** ({cell.data.name}, {cell.data.decoder}, "
        f"{cell.images} images a step, {cell.norm.name})",
        "",
        "| | images/s | quartiles | rounds |",
        "|:---|---:|---:|---:|",
        *(f"| {row.label} | {row.images_per_s:,.1f} | {row.q25:,.1f}–{row.q75:,.1f} | {row.rounds} |" for row in rows),
        "",
        f"{text}.",
    ]
    if on_cpu:
        lines.append("Each was measured alone; on a CPU the loader's processes and the network share the cores.")
    return "\n".join(lines) + "\n"
