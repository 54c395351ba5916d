"""What a person sees while a sweep runs: the grid and the current cell, live; plain lines where there is no terminal.

On a terminal a bar for the grid and a line for the current cell stay at the foot, and finished cells scroll above
them. Elsewhere (a log, a pipe) one line per finished cell, and at most one every five seconds for finished epochs.
Where nothing can be shown any more (a pipe that was closed, a full disk) the display goes quiet and the sweep goes on.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

from rich.cells import cell_len
from rich.console import Console, Group, OverflowMethod, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

REDRAW = 0.2  # seconds at least between two drawings
EPOCH_LINES = 5.0  # seconds at least between two lines about epochs, where lines stay
UNFINISHED = ("new", "running", "killed", "interrupted")  # states of a plan that leave a cell to be run
SHOW_CURSOR = "\x1b[?25h"
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
            with self._or_quiet():
                self._live.start()
            self._redraw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._due = math.inf
        if self._live is not None:
            live, self._live = self._live, None
            with self._or_quiet():
                live.stop()
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
        line = Text(self._encodable(f"{self._place(label, len(self._done))}  "))
        line.append(status, style=COLOURS.get(status, "red"))
        self._print(line.append(self._encodable(_end(status, result))))
        self._redraw()

    def note(self, text: str) -> None:
        """A line of text that stays."""
        self._print(Text(self._encodable(text)))

    def _print(self, line: Text) -> None:
        with self._or_quiet():
            # A log keeps its lines whole; a terminal breaks them at words.
            self.console.print(line, soft_wrap=self._live is None)

    @contextlib.contextmanager
    def _or_quiet(self) -> Iterator[None]:
        """What cannot be shown must not cost a cell: nothing more is shown, and the terminal given back if it can be.

        SystemExit is rich's answer to a closed pipe, ValueError Python's to a closed file or a letter without a code.
        """
        try:
            yield
        except (OSError, ValueError, SystemExit):
            self.console.quiet = True
            live, self._live = self._live, None
            if live is not None:
                with contextlib.suppress(Exception, SystemExit):  # half started, rich fails in ways of its own
                    live.stop()
                with contextlib.suppress(OSError, ValueError):
                    self.console.file.write(SHOW_CURSOR)

    def _encodable(self, text: str) -> str:
        """``?`` for what the terminal or log has no code for."""
        return text.encode(self.console.encoding, "replace").decode(self.console.encoding)

    def _place(self, label: str, number: int) -> str:
        return f"[{number:>{len(str(self.total))}}/{self.total}] {label:<{self._width}}"

    def _redraw(self) -> None:
        if self._live is not None:
            with self._or_quiet():
                self._live.refresh()
            self._due = time.monotonic() + REDRAW

    def _view(self) -> RenderableType:
        """A line for the grid and one for the cell; on a narrow terminal with fewer facts, never with half a word."""
        room, bar = self.console.width - 1, min(30, self.console.width // 4)
        failed = sum(count for status, count in self._ended.items() if status not in COLOURS)
        facts = [
            Text(f"{len(self._done)}/{self.total} cell{'s'[: self.total != 1]}"),
            Text(f"{failed} failed" if failed else "", style="red"),
            Text(clock(time.monotonic() - self._start)),
            Text(self._time_left()),
        ]
        grid = Table.grid(padding=(0, 2, 0, 0))
        done = ProgressBar(self.total, len(self._done) + self.cell.share, width=bar)
        grid.add_row(done, *_fitting([fact for fact in facts if fact], room - bar - 2))
        said = [Text(self._encodable(part)) for part in (self.cell.label, *self.cell.facts()) if self.cell.label]
        cut: OverflowMethod = "ellipsis" if self._encodable("…") == "…" else "crop"
        return Group(grid, Text("  ").join(_fitting(said, room, cut)))

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
        return "  ".join(self.facts())

    def facts(self) -> list[str]:
        """The parts of ``told``, the first the most important."""
        epoch, _, loss, speed = self.at
        if not epoch:
            return ["starting"]
        said = (
            f"epoch {epoch}/{self.epochs}",
            _said("loss {:.3f}", loss),
            _said("top-1 {:.1f}", self.top1),
            _speed(speed),
            f"~{clock((time.monotonic() - self._start) * (1 / self.share - 1))} left" if 0 < self.share < 1 else "",
        )
        return [part for part in said if part]


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
        _speed(_number(result, "images_per_s")),
    )
    return "".join(f"  {part}" for part in said if part)


def _number(row: Mapping[str, Any], key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else math.nan


def _said(form: str, value: float) -> str:
    return "" if math.isnan(value) else form.format(value)


def _speed(value: float) -> str:
    """Below ten with a decimal: a slow net is not at a standstill."""
    return _said("{:.1f} images/s" if value < 9.95 else "{:.0f} images/s", value)


def _fitting(parts: Iterable[Text], room: int, cut: OverflowMethod = "ellipsis") -> list[Text]:
    """As many parts as fit beside each other, two spaces between; the first in any case, cut if it must be."""
    fitting: list[Text] = []
    for part in parts:
        if fitting and room < cell_len(part.plain):
            break
        part.truncate(max(room, 1), overflow=cut)
        fitting.append(part)
        room -= cell_len(part.plain) + 2
    return fitting
