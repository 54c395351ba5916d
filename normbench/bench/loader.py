"""``python -m normbench.bench.loader``: what the loader can give beside what the network can take, in images a second.

The loader alone, streaming training pictures with each number of processes; the network alone, training on a batch that
is on the device already; everyone takes a turn in every round. The lower of the two is what a run can reach.
"""

from __future__ import annotations

import csv
import io
import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from normbench import grid
from normbench.bench.statistics import quartiles
from normbench.cell import Cell
from normbench.errors import ConfigError, NormbenchError, UnknownName, one_line
from normbench.files import write_atomically, write_json

DONE, FAILED, BAD_COMMAND, STOPPED = 0, 1, 2, 130
NETWORK = "network"
DEFAULTS = {"arch": "resnet50", "data": "imagenet", "norm": "bn"}
HELP = """\
python -m normbench.bench.loader [KEY=VALUE ...]

How many images a second the loader can give, without a network, for each number of its processes, and how many the
network can take, without the loader: which of the two is the limit, and how many processes would be enough.

  python -m normbench.bench.loader data.root=/data/imagenet batch=64 loaders=1,2,4,8
  python -m normbench.bench.loader data.root=/data/imagenet data.prepared=/data/copy arch=resnet18 device=cuda

Keys, beside all those of a cell (python -m normbench.sweep --help), of which arch=resnet50 data=imagenet norm=bn here
  loaders=0,1,2,4   processes that read and decode; 0: the one that trains
  rounds=5          turns of each
  seconds=2         of a turn, about
  out=bench         folder for loader.csv, loader.md and loader.json

Exit code: 0 done; 1 nothing measured; 2 a bad command, nothing measured; 130 stopped by Ctrl-C, nothing written.
"""


@dataclass(frozen=True)
class Settings:
    cell: Cell
    loaders: tuple[int, ...] = (0, 1, 2, 4)
    rounds: int = 5
    seconds: float = 2.0
    out: str = "bench"


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


def main(words: Sequence[str] | None = None) -> int:
    """Measure what ``words`` ask for; the exit code says how it ended."""
    words = sys.argv[1:] if words is None else list(words)
    if any(word in ("--help", "-h", "help") for word in words):
        print(HELP, end="")
        return DONE
    try:
        run(read(words), words)
        return DONE
    except NormbenchError as error:
        print(f"normbench: {one_line(error)}", file=sys.stderr)
        return BAD_COMMAND
    except OSError as error:
        print(f"normbench: {one_line(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("normbench: stopped; nothing was written", file=sys.stderr)
        return STOPPED


def read(words: Sequence[str]) -> Settings:
    """The settings that ``words`` give. Raises ConfigError."""
    own: dict[str, Any] = {}
    rest = []
    for word in words:
        key, _, value = word.partition("=")
        if key not in PARSERS:
            rest.append(word)
        elif key in own:
            raise ConfigError(f"{key}: given twice; expected it once")
        else:
            own[key] = PARSERS[key](key, value)
    given = {word.partition("=")[0] for word in rest}
    for key in given & {*grid.SWEEP_KEYS}:
        raise UnknownName("key", key, PARSERS, "It is of a sweep; here nothing is swept or recorded.")
    if "data.loaders" in given:
        raise ConfigError("data.loaders: is what is measured here; give the numbers as loaders=1,2,4")
    defaults = [f"{key}={value}" for key, value in DEFAULTS.items() if key not in given]
    try:
        cells = grid.read([*defaults, *rest]).cells
    except UnknownName as error:
        if error.what != "key":
            raise
        raise UnknownName("key", error.got, [*PARSERS, *error.choices]) from None
    if len(cells) > 1:
        raise ConfigError(f"got {len(cells)} cells; expected one value for each key but loaders")
    return Settings(cells[0].cell, **own)


def run(settings: Settings, words: Sequence[str]) -> None:
    """Measure, leave the files, show the table."""
    # torch is imported from here on: whatever can be told without it has been told.
    import torch
    from rich.console import Console

    from normbench import machine
    from normbench.bench.ceiling import contestants
    from normbench.bench.progress import Bar
    from normbench.data.files import cores

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
    about["command"] = ["python", "-m", "normbench.bench.loader", *words]
    write_atomically(folder / "loader.csv", to_csv(rows))
    write_atomically(folder / "loader.md", table)
    write_json(folder / "loader.json", {**about, "rows": [asdict(one) for one in rows], "verdict": text})
    console.print(table, end="", soft_wrap=True, markup=False)
    console.print(f"{folder}/: loader.csv, loader.md, loader.json", style="dim", soft_wrap=True)


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


def _processes(key: str, value: str) -> tuple[int, ...]:
    words = [word.strip() for word in value.split(",")]
    if not all(word.isdecimal() for word in words) or len(set(words)) < len(words):
        raise ConfigError(f"{key}: got {value!r}, expected numbers of processes, each once, such as 0,1,2,4")
    return tuple(map(int, words))


def _count(key: str, value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise ConfigError(f"{key}: got {value!r}, expected a whole number, 1 or more")
    return int(value)


def _seconds(key: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < math.inf:
        raise ConfigError(f"{key}: got {value!r}, expected a number of seconds, 0 or more")
    return number


def _folder(key: str, value: str) -> str:
    if not value:
        raise ConfigError(f"{key}: got nothing; expected a folder")
    return value


PARSERS: dict[str, Callable[[str, str], Any]] = {
    "loaders": _processes, "rounds": _count, "seconds": _seconds, "out": _folder,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
