"""What a person sees while a sweep runs: the grid and the running cells, live; plain lines where there is no terminal.

On a terminal a bar for the grid and a line for each running cell stay at the foot, and finished cells scroll above
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

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, OverflowMethod, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from normbench.attempt import UNFINISHED
from normbench.progress import Progress, clock, end

REDRAW = 0.2  # seconds at least between two drawings
EPOCH_LINES = 5.0  # seconds at least between two lines about epochs, where lines stay
SHOW_CURSOR = "\x1b[?25h"
COLOURS = {"ok": "green", "skipped": "yellow", "interrupted": "yellow"}  # every other end is red


class Display:
    """``with Display(total, slots) as display:`` shows ``total`` cells, ``slots`` at a time; on stdout by default.

    ``begin``, ``step`` and ``row`` as often as there is something to say, ``finish``; in any order of the cells, and
    what is said of a cell that is not running is not shown. Not for several threads, nor for a signal's handler.
    ``note`` works before and after the ``with`` block too.
    """

    def __init__(self, total: int, slots: int = 1, *, console: Console | None = None) -> None:
        self.total, self.slots = total, slots
        self.console = console or Console(highlight=False)
        self.running: dict[str, Progress] = {}  # the one that has run longest first
        self._ended: dict[str, str] = {}  # the status of each cell that ended in this session
        self._done: set[str] = set()
        self._seconds = self._work = 0.0  # that ended cells ran, and shares of a cell that they did
        self._width = 0
        self._foot = ""
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
        self._width = max((cell_len(label) for _, label, _ in cells), default=0)
        self._redraw()

    def begin(self, cell_id: str, label: str, epochs: int, steps_per_epoch: int) -> None:
        """A cell starts; one that counted as done, or was running, is run again."""
        self._leave(cell_id)
        self._done.discard(cell_id)
        self._ended.pop(cell_id, None)
        self.running[cell_id] = Progress(label, epochs, steps_per_epoch)
        self._redraw()

    def step(self, cell_id: str, epoch: int, step_in_epoch: int, loss: float, images_per_s: float) -> None:
        """A training step is over; both numbers count from 1. Costs next to nothing unless a drawing is due."""
        if cell_id in self.running:
            self.running[cell_id].step(epoch, step_in_epoch, loss, images_per_s)
            self.refresh()

    def row(self, cell_id: str, row: Mapping[str, Any]) -> None:
        """An epoch is over: ``epoch train_loss top1 images_per_s`` of the row are shown."""
        if cell_id not in self.running:
            return
        cell = self.running[cell_id]
        cell.close_epoch(row)
        if self._live is None:
            cell.news = cell.told()
            self._tell_epoch()
        self.refresh()

    def finish(self, cell_id: str, label: str, result: Mapping[str, Any]) -> None:
        """A cell has ended, or will never begin: a line that stays. result: ``status``, ``reason``, measurements."""
        status = str(result.get("status", "error"))
        self._leave(cell_id, whole=status == "ok")
        self._done.add(cell_id)
        self._ended[cell_id] = status
        line = Text(self._encodable(f"{self._place(label, len(self._done))}  "))
        line.append(status, style=COLOURS.get(status, "red"))
        self._print(line.append(self._encodable(end(status, result))))
        self._redraw()

    def refresh(self) -> None:
        """Draw again if it is due: clocks go on while nothing happens."""
        if time.monotonic() >= self._due:
            self._redraw()

    def note(self, text: str) -> None:
        """A line of text that stays."""
        self._print(Text(self._encodable(text)))

    def stopping(self, text: str) -> None:
        """A line at the foot until the end, in place of an earlier one; a note where there is no terminal."""
        self._foot = text
        if self._live is None:
            self.note(text)
        self._redraw()

    def release(self, cell_id: str) -> None:
        """A cell is left to another process: it is not shown any more."""
        self._leave(cell_id)
        self._redraw()

    def _leave(self, cell_id: str, *, whole: bool = False) -> None:
        """The cell runs no more; its time and what it got done count for the pace."""
        cell = self.running.pop(cell_id, None)
        if cell is not None:
            self._seconds += cell.seconds
            self._work += cell.work + (1 - cell.share if whole else 0)

    def _tell_epoch(self) -> None:
        """One line, if it is time for one: of the cells with news the one whose last line is oldest."""
        now = time.monotonic()
        if now < self._line_due:
            return
        self._line_due = now + EPOCH_LINES
        cell = min((cell for cell in self.running.values() if cell.news), key=lambda cell: cell.told_at)
        self.note(f"{self._place(cell.label, len(self._done) + 1)}  {cell.news}")
        cell.news, cell.told_at = "", now

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
        label = label + " " * (self._width - cell_len(label))
        return f"[{number:>{len(str(self.total))}}/{self.total}] {label}"

    def _redraw(self) -> None:
        if self._live is not None:
            with self._or_quiet():
                self._live.refresh()
            self._due = time.monotonic() + REDRAW

    def _view(self) -> RenderableType:
        """The grid, the cells, the foot; on a low terminal fewer cells, with a line left for what scrolls above."""
        room, height = max(1, self.console.width - 1), self.console.height
        foot = list(Text(self._encodable(self._foot), style="yellow").wrap(self.console, room)) if self._foot else []
        cells, fit = list(self.running.values()), max(2, height - 2 - len(foot))
        shown = cells if len(cells) <= fit else cells[: fit - 1]
        lines = self._columns(shown, room)
        if len(shown) < len(cells):
            lines.append(Text(f"and {len(cells) - len(shown)} more", no_wrap=True))
        return Group(*[self._grid(room), *lines, *foot][:height])

    def _grid(self, room: int) -> RenderableType:
        """The bar and what is to be said of all cells; on a narrow terminal less of it, never half a word."""
        bar = min(30, self.console.width // 4)
        failed = sum(status not in COLOURS for status in self._ended.values())
        facts = [
            Text(f"{len(self._done)}/{self.total} cell{'s'[: self.total != 1]}"),
            Text(f"{failed} failed" if failed else "", style="red"),
            Text(clock(time.monotonic() - self._start)),
            Text(self._time_left()),
        ]
        grid = Table.grid(padding=(0, 2, 0, 0))
        share = sum(cell.share for cell in self.running.values())
        done = ProgressBar(self.total, len(self._done) + share, width=bar)
        grid.add_row(done, *_fitting([fact for fact in facts if fact], room - bar - 2))
        return grid

    def _columns(self, cells: Iterable[Progress], room: int) -> list[Text]:
        """A line per cell: label and facts, each in its column, as many columns as there is room for.

        A label is cut only where it would leave no room for the epoch, and keeps half the line then.
        """
        rows = [[self._encodable(part) for part in (cell.label, *cell.facts())] for cell in cells]
        widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
        if not rows:
            return []
        widths[0] = max(1, min(widths[0], max(room - 2 - widths[1], room // 2)))
        cut: OverflowMethod = "ellipsis" if self._encodable("…") == "…" else "crop"
        lines = []
        for row in rows:
            line = Text(row[0])
            line.truncate(widths[0], overflow=cut, pad=True)
            lines.append(line)
        left = room - widths[0]
        for number, width in enumerate(widths[1:], 1):
            if width + 2 > left:
                break
            if width:
                left -= width + 2
                for line, row in zip(lines, rows, strict=True):
                    gap = width - cell_len(row[number]) if number > 1 else 0  # numbers end alike, epochs begin alike
                    line.append(set_cell_size("  " + " " * gap + row[number], width + 2))
        return lines

    def _time_left(self) -> str:
        """For the whole grid, as if the cells to come took as long as those of this session did on average.

        That is the work to be done at the pace of the grid, or longer where the last cells will leave slots empty.
        """
        cells = self.running.values()
        work = self._work + sum(cell.work for cell in cells)
        if not work:
            return ""
        to_come = self.total - len(self._done)
        at_this_pace = (to_come - sum(cell.share for cell in cells)) / work * (time.monotonic() - self._start)
        each = (self._seconds + sum(cell.seconds for cell in cells)) / work
        # When each slot is free, and when the last cell ends if they take the waiting ones in turn.
        free = sorted([cell.expect(each) for cell in cells] + [0.0] * (self.slots - len(cells)))
        rounds, last = divmod(max(0, to_come - len(cells)) - 1, len(free))
        slowest = max(free[-1], free[last] + (rounds + 1) * each)
        return f"~{clock(max(at_this_pace, slowest))} left"

    def _sum(self) -> str:
        if not self._ended:
            before = len(self._done) == self.total
            return (
                f"nothing to run: {'the one cell is' if self.total == 1 else f'all {self.total} cells are'} done"
                if before
                else "no cell was finished"
            )
        ends = ", ".join(f"{count} {status}" for status, count in Counter(self._ended.values()).items())
        count = len(self._ended)
        return f"{count} cell{'s'[: count != 1]} in {clock(time.monotonic() - self._start)}: {ends}"


def _fitting(parts: Iterable[Text], room: int) -> list[Text]:
    """As many parts as fit beside each other, two spaces between; the first in any case, cut if it must be."""
    fitting: list[Text] = []
    for part in parts:
        if fitting and room < cell_len(part.plain):
            break
        part.truncate(max(room, 1), overflow="ellipsis")
        fitting.append(part)
        room -= cell_len(part.plain) + 2
    return fitting
