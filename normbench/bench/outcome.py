"""What every mode begins and ends with: the machine made ready and told of, the folder, the files left in it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console

from normbench import machine, norms, spinning
from normbench.bench.results import to_csv
from normbench.errors import one_line
from normbench.files import write_atomically, write_json


class Shown(Protocol):
    """A table of the results."""

    def markdown(self) -> str: ...
    def show(self, console: Console) -> None: ...


Table = Callable[[Sequence[Any], Sequence[str], str], Shown]  # of rows, notes and the machine on one line
Plot = Callable[[Sequence[Any], str], Mapping[str, bytes]]  # of rows and the machine; by the kind of file


@dataclass(frozen=True)
class Files:
    """Names without their ends: of the CSV, of the Markdown, of the pictures and the JSON."""

    rows: str
    table: str
    plot: str


@dataclass
class Outcome:
    """about: the machine and the command, for whoever judges a time later. notes: what stands below the table."""

    device: torch.device
    folder: Path
    about: dict[str, Any]
    console: Console
    notes: list[str] = field(default_factory=list)

    @property
    def told(self) -> str:
        """The machine on one line."""
        about = self.about
        processor = about["processor"] or about["machine"]
        where = processor if about["device"] in ("cpu", processor) else f"{about['device']} beside {processor}"
        threads = f"{about['threads']} thread{'s' if about['threads'] > 1 else ''} on {about['cores']} cores"
        return f"{where}, {threads}, torch {about['torch']}; memory: {about['memory']}"

    @contextlib.contextmanager
    def keeping(self, files: Files, table: Table, draw: Plot | None = None) -> Iterator[list[Any]]:
        """Rows to be filled; what is there at the end is written, when the run is stopped too."""
        rows: list[Any] = []
        try:
            yield rows
        except KeyboardInterrupt:
            self.notes.append("stopped before all was measured")
            raise
        finally:
            if rows:
                self.write(files, rows, table, draw)

    def write(self, files: Files, rows: Sequence[Any], table: Table, draw: Plot | None = None) -> None:
        """The rows first: a plot that cannot be drawn must not cost them. Without a measured row nothing but these."""
        facts = {key: self.about[key] for key in ("threads", "device", "torch")}
        write_atomically(self.folder / f"{files.rows}.csv", to_csv(rows, facts))
        write_json(self.folder / f"{files.plot}.json", {**self.about, "notes": self.notes})
        if not any(row.measured for row in rows):
            reasons = dict.fromkeys(row.reason for row in rows if row.reason)
            self.console.print("nothing could be measured: " + "; ".join(reasons), soft_wrap=True)
            return
        made = table(rows, self.notes, self.told)
        write_atomically(self.folder / f"{files.table}.md", made.markdown())
        made.show(self.console)
        names = [f"{files.rows}.csv", f"{files.table}.md"]
        if draw is not None:
            try:
                for kind, data in draw(rows, self.told).items():
                    write_atomically(self.folder / f"{files.plot}.{kind}", data)
                    names.append(f"{files.plot}.{kind}")
            except Exception as error:
                self.console.print(f"the plot could not be drawn: {one_line(error)}")
        self.console.print(f"{self.folder}/: {', '.join([*names, f'{files.plot}.json'])}", style="dim", soft_wrap=True)


def prepared(device: str, threads: int | None) -> torch.device:
    """The device, and this process as a cell's: freed memory kept, so many threads."""
    machine.keep_memory()
    found = machine.device(device)
    if threads:
        torch.set_num_threads(threads)
    if found.type == "cuda":
        torch.cuda.set_device(found)  # where events are recorded
    return found


def begin(out: str, device: torch.device, words: Sequence[str]) -> Outcome:
    """The folder made, the machine told."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        **machine.provenance(device, torch.get_num_threads()),
        "kernels": norms.kernels(device),
        "command": ["python", "-m", "normbench.bench", *words],
        "spin": os.environ.get(spinning.VARIABLE),
    }
    outcome = Outcome(device, folder, about, Console(highlight=False))
    outcome.console.print(outcome.told, style="dim", soft_wrap=True)
    return outcome
