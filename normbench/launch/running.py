"""A cell at work in its processes, as the process that started them sees it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from normbench.launch import ends, forkserver
from normbench.launch.order import Order
from normbench.preflight import Planned


class Running:
    """A cell at work: its processes (one for each rank), what they told, and how they ended."""

    def __init__(self, item: Planned, slot: int, order: Order, log: Path) -> None:
        self.item, self.slot, self.order, self.log = item, slot, order, log
        self.log_start = log.stat().st_size  # what was there before is another attempt's
        self.pids: dict[int, int] = {}  # of the processes that have not ended: number → rank
        self.first = 0  # process number of rank 0, which keeps the records
        self.codes: list[tuple[int, int]] = []  # rank and wait status, in the order they ended
        self.talk, self.child_end = os.pipe()
        os.set_blocking(self.talk, False)
        self._heard = b""
        self.began = time.monotonic()
        self.memory_kills = ends.memory_kills()
        self.attempt: int | None = None
        self.reached: dict[str, Any] = {}  # epoch, step, last_loss
        self.store_error: str | None = None
        self.why: dict[str, Any] | None = None  # the end that this process gave it

    def ask(self) -> None:
        """Ask for a checkpoint and an end."""
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGTERM)

    def kill(self) -> None:
        """End the processes and all that they started."""
        for pid in self.pids:
            forkserver.end(pid, signal.SIGKILL)

    def messages(self) -> Iterator[dict[str, Any]]:
        """What the processes have told since the last call."""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self.talk, 2**16):
                self._heard += part
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):  # one that was too long
                yield json.loads(line)

    def words(self) -> str:
        """The end of what the processes printed."""
        with contextlib.suppress(OSError), self.log.open("rb") as file:
            file.seek(max(self.log_start, self.log.stat().st_size - 4000))
            return file.read().decode(errors="replace")
        return ""

    def close(self, *, ours: bool = True) -> None:
        """Let go of it. ours: the cell was this process's, and so is its log, which goes if it is empty."""
        os.close(self.talk)
        with contextlib.suppress(OSError):
            if ours and self.log.stat().st_size == 0:
                self.log.unlink()
        if self.order.meeting:
            shutil.rmtree(Path(self.order.meeting).parent, ignore_errors=True)
