"""The process that mirrors a sweep while it runs: python -m normbench.track.mirror FOLDER

On its standard input it reads names of cells that moved, one a line, and brings their runs up to what the store has;
what is for people it prints. Cells that moved again meanwhile are looked at once, so that however slow W&B is, no more
is waited for than there are cells. When the input ends, so does this process, within ``LONGEST`` seconds whatever
W&B does: it ends itself, and wandb-core, which watches it, goes too.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from normbench.track import cell, fragments
from normbench.track.push import alone
from normbench.track.runs import Runs, reason

# Seconds that are waited after the end of the input: for a first answer, between two signs of life, in all.
SILENT, IDLE, LONGEST = 5.0, 15.0, 60.0
# How far this process stands back behind the training.
NICE = 5
GAVE_UP = 1  # its exit code after it said why
LATER = "the store has it all; to send it:  python -m normbench.track push {}"


class Moved:
    """The cells that moved, each once, in order; read by a thread, so that whoever names them never waits."""

    def __init__(self, stream: TextIO) -> None:
        self.ended = threading.Event()
        self._names: dict[str, None] = {}
        self._news = threading.Condition()
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def _read(self, stream: TextIO) -> None:
        for line in stream:
            with self._news:
                self._names[line.strip()] = None
                self._news.notify()
        with self._news:
            self.ended.set()
            self._news.notify()

    def __iter__(self) -> Iterator[str]:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._names or self.ended.is_set())
                if not self._names:
                    return
                name = next(iter(self._names))
                del self._names[name]
            yield name


def main(folder: Path, stream: TextIO) -> int:
    """Follow the sweep in ``folder``; its exit code: 0, or GAVE_UP."""
    runs, moved = Runs(folder), Moved(stream)
    threading.Thread(target=_limit, args=(runs, moved, folder), daemon=True).start()
    told = False
    try:
        with alone(folder):
            for name in moved:
                runs.show(cell.read(folder / name))
                told = told or _tell_where(runs)
            for content in [cell.read(folder / run.cell_id) for run in runs.open.values()]:
                runs.show(content, end=True)  # left open: stopped from outside
    except (Exception, SystemExit) as error:
        say(f"W&B: {reason(error)}; tracking is off from here on, the sweep goes on, {LATER.format(folder)}")
        return GAVE_UP
    return 0


def _tell_where(runs: Runs) -> bool:
    """Once per sweep: the page, or what sends the files where there is none."""
    if runs.offline:
        say(f"W&B: offline; {fragments.sending(runs.folder)}")
    elif runs.url:
        say(f"W&B: {runs.url}")
    return bool(runs.offline or runs.url)


def _limit(runs: Runs, moved: Moved, folder: Path) -> None:
    """End this process when too long nothing went well after the end of the input."""
    moved.ended.wait()
    since = time.monotonic()
    while True:
        now = time.monotonic()
        idle = now - max(since, runs.moved)
        if idle > (SILENT if runs.waiting else IDLE) or now - since > LONGEST:
            say(f"W&B: no answer within {max(idle, 0):.0f} s of the sweep's end; {LATER.format(folder)}")
            os._exit(GAVE_UP)
        time.sleep(0.1)


def say(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        print(line, flush=True)


if __name__ == "__main__":
    with contextlib.suppress(OSError, AttributeError):
        os.nice(NICE)
    # Not by way of W&B's own ending, which waits: what was finished is sent, and wandb-core sees that we are gone.
    os._exit(main(Path(sys.argv[1]), sys.stdin))
