"""``python -m normbench.paper list``: the tables, what they claim and need, and how long they would take here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from normbench import grid
from normbench.cell import Cell
from normbench.errors import ConfigError
from normbench.grid.paper import GROUP
from normbench.paper import needs, published

INDENT = "    "


def run(tables: Sequence[str], words: Sequence[str], measure: bool) -> None:
    """Print each table; ``words``: what else a sweep of it would be told, such as device=, scale= or data.root=."""
    names = list(tables) or grid.Configs().options(GROUP)
    asked = {name: _asked(name, words) for name in names}
    console = Console(highlight=False, soft_wrap=True)
    where = _Where(measure, [cell for table in asked.values() for cell in _cells(table)])
    for name, table in asked.items():
        console.print(Text(f"{name}  ", style="bold") + Text(table.paper.title))
        for line in _lines(name, table, where):
            console.print(Text(INDENT + line))
    for note in where.notes():
        console.print(Text(note, style="dim"))


def _asked(name: str, words: Sequence[str]) -> grid.PaperGrid:
    """The table, told these words; a place of pictures is told to ImageNet's alone, the others are fetched."""
    own = [word for word in words if not word.startswith("data.root=")]
    table = grid.read_paper([f"{GROUP}={name}", *own])
    if len(own) < len(words) and any(cell.data.name == needs.IMAGENET for cell in _cells(table)):
        return grid.read_paper([f"{GROUP}={name}", *words])
    return table


def _lines(name: str, table: grid.PaperGrid, where: _Where) -> Iterator[str]:
    yield table.paper.claim
    cells = _cells(table)
    known = len(published.of(name))
    yield f"{_count(len(cells), 'run')}, {_count(known, 'published number')}; {where.told(cells)}"
    for options in {repr(cell.data): cell.data for cell in cells}.values():
        yield needs.told(options)


class _Where:
    """The machine at hand, which tells how long runs would take."""

    def __init__(self, measure: bool, cells: Sequence[Cell]) -> None:
        self.measure = measure
        devices = {cell.device for cell in cells}
        if len(devices) > 1:
            raise ConfigError(f"device: got {', '.join(sorted(devices))}, expected one")
        self.name = devices.pop() if devices else "auto"

    def told(self, cells: Sequence[Cell]) -> str:
        if not self.measure:
            return "cost not measured"
        from normbench import machine
        from normbench.paper import cost  # torch

        device = machine.device(self.name)
        return f"{cost.words(cost.seconds(cells, device))} on {self._machine()}"

    def _machine(self) -> str:
        import torch

        from normbench import machine

        device = machine.device(self.name)
        if device.type == "cuda":
            return f"one {torch.cuda.get_device_name(device)}"
        threads = torch.get_num_threads()
        return f"this {device.type.upper()} ({_count(threads, 'thread')})"

    def notes(self) -> list[str]:
        told = "To run one: make table-<name>, or python -m normbench.paper run <name>; scale=0.02 shortens its runs."
        if not self.measure:
            return [told]
        costs = (
            "Costs: runs one after another, by training steps of each network with BatchNorm on noise, timed here at "
            "few images and taken in proportion. Other normalizers cost more, and so does a disk that is slower. "
            "The times are kept in the cache's pace/: delete it to have them taken anew."
        )
        busy = "This machine has other work just now: what was timed meanwhile is too long."
        return [costs, *([busy] if _busy() else []), told]


def _busy() -> bool:
    """Whether more processes want to run than there are cores, where that can be told."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > 1.5 * (os.cpu_count() or 1)


def _cells(table: grid.PaperGrid) -> list[Cell]:
    return [item.cell for _, cells in table.lines for item in cells]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
