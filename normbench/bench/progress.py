"""What a person sees while cases are measured: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

EVERY = 15.0  # seconds at least between two lines, where lines stay


class Bar:
    """``with Bar(console, total) as bar:`` ``total`` and the steps are in any unit, such as foretold seconds."""

    def __init__(self, console: Console, total: float) -> None:
        self.console, self.total, self.done = console, total, 0.0
        self._due = time.monotonic() + EVERY
        columns = (
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        self._progress = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self._task = self._progress.add_task("", total=total) if self._progress else None

    def __enter__(self) -> Bar:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress:
            self._progress.stop()

    def at(self, what: str) -> None:
        """What is being measured now."""
        if self._progress and self._task is not None:
            self._progress.update(self._task, description=what)
        elif time.monotonic() >= self._due:
            self._due = time.monotonic() + EVERY
            self.console.print(f"{100 * self.done / max(self.total, 1e-9):3.0f} %  {what}", highlight=False)

    def advance(self, step: float) -> None:
        self.done += step
        if self._progress and self._task is not None:
            self._progress.advance(self._task, step)


def duration(seconds: float) -> str:
    """``40 seconds``, ``12 minutes``, ``1.5 hours``: an estimate has no more digits."""
    if seconds < 90:
        return f"{max(2, round(seconds))} seconds"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
