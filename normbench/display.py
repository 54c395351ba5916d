"""What a person sees while a sweep runs: the grid and the current cell, live; plain lines where there is no terminal.

On a terminal a bar for the grid and a line for the current cell stay at the foot, and finished cells scroll above
them. Elsewhere (a log, a pipe) one line per finished cell, and at most one every five seconds for finished epochs.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

REDRAW = 0.2  # seconds at least between two drawings
EPOCH_LINES = 5.0  # seconds at least between two lines about epochs, where lines stay
UNFINISHED = ("new", "running", "killed", "interrupted")  # states of a plan that leave a cell to be run
COLOURS = {"ok": "green", "skipped": "yellow"}  # every other end is red


class Display:
    """``with Display(total) as display:`` shows the progress of ``total`` cells on the console, stdout by default.

    Not for several threads. ``note`` works before and after the ``with`` block too.
    """

    def __init__(self, total: int, *, console: Console | None = None) -> None:
        self.total = total
        self.console = console or Console(highlight=False)
        self.cell = Progress("", 1, 1)
        self._ended: Counter[str] = Counter()
        self._done: set[str] = set()
        self._width = 0
        self._live: Live | None = None
        self._due = math.inf
        self._line_due = 0.0
        self._start = time.monotonic()

    def __enter__(self) -> Display:
        self._start = time.monotonic()
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._live = Live(get_renderable=self._view, console=self.console, auto_refresh=False, transient=True)
            self._live.start()
            self._redraw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._due = math.inf
        if self._live is not None:
            self._live.stop()
            self._live = None
        self.note(self._sum())

    def plan(self, cells: Iterable[tuple[str, str, str]]) -> None:
        """The grid: id, label and state of each cell. A state in ``UNFINISHED`` is still to be run, others are done."""
        cells = list(cells)
        self._done |= {cell_id for cell_id, _, state in cells if state not in UNFINISHED}
        self._width = max((len(label) for _, label, _ in cells), default=0)
        self._redraw()

    def begin(self, cell_id: str, label: str, epochs: int, steps_per_epoch: int) -> None:
        """A cell starts; one that counted as done is run again."""
        self._done.discard(cell_id)
        self.cell = Progress(label, epochs, steps_per_epoch)
        self._redraw()

    def step(self, epoch: int, step_in_epoch: int, loss: float, images_per_s: float) -> None:
        """A training step is over; both numbers count from 1. Costs next to nothing unless a drawing is due."""
        self.cell.at = (epoch, step_in_epoch, loss, images_per_s)
        if time.monotonic() >= self._due:
            self._redraw()

    def row(self, row: Mapping[str, Any]) -> None:
        """An epoch is over: ``epoch train_loss top1 images_per_s`` of the row are shown."""
        self.cell.close_epoch(row)
        self._redraw()
        if self._live is None and time.monotonic() >= self._line_due:
            self._line_due = time.monotonic() + EPOCH_LINES
            self.note(f"{self._place(self.cell.label, len(self._done) + 1)}  {self.cell.told()}")

    def finish(self, cell_id: str, label: str, result: Mapping[str, Any]) -> None:
        """A cell has ended with ``result`` (its ``status``, ``reason`` and measurements): one line that stays."""
        self._done.add(cell_id)
        status = str(result.get("status", "error"))
        self._ended[status] += 1
        self.cell = Progress("", 1, 1)
        line = Text(f"{self._place(label, len(self._done))}  ")
        line.append(status, style=COLOURS.get(status, "red"))
        self._print(line.append(_end(status, result)))
        self._redraw()

    def note(self, text: str) -> None:
        """A line of text that stays."""
        self._print(Text(text))

    def _print(self, line: Text) -> None:
        # A log keeps its lines whole; a terminal breaks them at words.
        self.console.print(line, soft_wrap=self._live is None)

    def _place(self, label: str, number: int) -> str:
        return f"[{number:>{len(str(self.total))}}/{self.total}] {label:<{self._width}}"

    def _redraw(self) -> None:
        if self._live is not None:
            self._live.refresh()
            self._due = time.monotonic() + REDRAW

    def _view(self) -> RenderableType:
        failed = sum(count for status, count in self._ended.items() if status not in COLOURS)
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_row(
            ProgressBar(self.total, len(self._done) + self.cell.share, width=min(30, self.console.width // 4)),
            f"{len(self._done)}/{self.total} cells",
            *([Text(f"{failed} failed", style="red")] if failed else []),
            clock(time.monotonic() - self._start),
            self._time_left(),
        )
        said = f"{self.cell.label}  {self.cell.told()}" if self.cell.label else ""
        return Group(grid, Text(said, no_wrap=True, overflow="ellipsis"))

    def _time_left(self) -> str:
        """For the whole grid, as if the cells to come took as long as those of this session did on average."""
        share = sum(self._ended.values()) - self._ended["skipped"] + self.cell.share
        if not share:
            return ""
        pace = (time.monotonic() - self._start) / share
        return f"~{clock(pace * (self.total - len(self._done) - self.cell.share))} left"

    def _sum(self) -> str:
        if not self._ended:
            before = len(self._done) == self.total
            return (
                f"nothing to run: {'the one cell is' if self.total == 1 else f'all {self.total} cells are'} done"
                if before
                else "no cell was finished"
            )
        ends = ", ".join(f"{count} {status}" for status, count in self._ended.items())
        count = self._ended.total()
        return f"{count} cell{'s'[: count != 1]} in {clock(time.monotonic() - self._start)}: {ends}"


class Progress:
    """How far the current cell is. ``at``: epoch, step in it (both from 1), loss, images/s."""

    def __init__(self, label: str, epochs: int, steps_per_epoch: int) -> None:
        self.label, self.epochs, self.steps = label, max(epochs, 1), max(steps_per_epoch, 1)
        self.at: tuple[int, int, float, float] = (0, 0, math.nan, math.nan)
        self.top1 = math.nan
        self._start = time.monotonic()

    @property
    def share(self) -> float:
        """Part of the training steps that are done, 0 to 1."""
        epoch, step, *_ = self.at
        return min(1.0, max(0.0, ((epoch - 1) * self.steps + step) / (self.epochs * self.steps))) if epoch else 0.0

    def close_epoch(self, row: Mapping[str, Any]) -> None:
        """Take over the row of a finished epoch."""
        loss, speed = _number(row, "train_loss"), _number(row, "images_per_s")
        self.at = (int(row.get("epoch") or self.at[0]), self.steps, loss, speed)
        self.top1 = _number(row, "top1")

    def told(self) -> str:
        """``epoch 4/10  loss 0.213  top-1 97.2  1520 images/s  ~0:12 left``."""
        epoch, _, loss, speed = self.at
        if not epoch:
            return "starting"
        left = (time.monotonic() - self._start) * (1 / self.share - 1) if self.share else math.nan
        said = (
            f"epoch {epoch}/{self.epochs}",
            _said("loss {:.3f}", loss),
            _said("top-1 {:.1f}", self.top1),
            _said("{:.0f} images/s", speed),
            f"~{clock(left)} left" if self.share else "",
        )
        return "  ".join(part for part in said if part)


def clock(seconds: float) -> str:
    """``0:07``, ``12:40``, ``3:05:00``."""
    minutes, second = divmod(round(max(seconds, 0)), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def _end(status: str, result: Mapping[str, Any]) -> str:
    """What follows the status: the measurements, or the reason."""
    if status != "ok":
        reason = " ".join(str(result.get("reason") or "").split())
        return f"  {reason}" if reason else ""
    said = (
        _said("top-1 {:.1f}", _number(result, "top1")),
        _said("{:.1f} s", _number(result, "train_seconds")),
        _said("{:.0f} images/s", _number(result, "images_per_s")),
    )
    return "".join(f"  {part}" for part in said if part)


def _number(row: Mapping[str, Any], key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else math.nan


def _said(form: str, value: float) -> str:
    return "" if math.isnan(value) else form.format(value)
