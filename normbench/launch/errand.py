"""One cell as a Slurm job: what submitit carries to the node and calls there, and what the job's signals mean to it."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normbench import claim, track
from normbench.display import Display
from normbench.launch import forkserver
from normbench.launch.local import Local
from normbench.preflight import Planned
from normbench.records import Store

UNFINISHED = ("new", "killed", "interrupted")
# Seconds that a job which was told to end waits for Slurm to end it: were it to go by itself, a job that makes room for
# another would count as completed, and not be queued again. More than the grace that clusters give.
GRACE = 600.0


class OneCell(Local):
    """A Local of one slot inside a job. Slurm repeats its signals, and sends them to every process of the job."""

    def ask(self, *_: object) -> None:
        """Stop after a checkpoint. A second signal is the first one's echo: what ends a job at once is SIGKILL."""
        self.asked = 1

    _ask = ask

    def _pass_on(self) -> None:
        """Again and again: a cell that has just been forked does not listen yet."""
        if self.asked:
            for cell in self.running:
                cell.signal(signal.SIGTERM, group=False)


@dataclass
class Errand:
    """Run one cell to its result, whatever that is: it stands in the store, and the job's own end says nothing.

    USR2 (submitit's word for: make room, or time is up): a checkpoint, then the job is queued again and goes on from
    it. SIGTERM (scancel, or a cluster's own way to make room): a checkpoint, and Slurm ends or requeues the job.
    folder: the sweep's. threads: of all the cell's processes together; None: as many as there are cores.
    """

    folder: Path
    item: Planned
    ranks: int = 1
    timeout: float | None = None
    threads: int | None = None

    def __call__(self) -> str:
        """The cell's status."""
        if self.threads is not None:
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, self.threads // self.ranks)))
        store = Store(self.folder.parent, self.folder.name)
        item = self._fresh(store)
        if item is None:
            return store.status(self.item.cell_id)
        _start_server()
        local = OneCell(store, Display(1), track.make(None), 1, self.ranks, self.timeout)
        heard: list[int] = []

        def make_room(number: int, _: Any) -> None:
            heard.append(number)
            local.ask()

        requeue: Any = signal.signal(signal.SIGUSR2, make_room)
        stopped = False
        try:
            local.run([item])
        except KeyboardInterrupt:
            stopped = store.status(item.cell_id) in UNFINISHED
        finally:
            signal.signal(signal.SIGUSR2, requeue)
        if stopped and heard and callable(requeue):
            requeue(signal.SIGUSR2, None)  # submitit's: it asks for ``checkpoint``, requeues and does not come back
        elif stopped:
            time.sleep(GRACE)
        return store.status(item.cell_id)

    def checkpoint(self) -> Any:
        """What submitit queues again: the same cell, whose checkpoint lies in the store."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _fresh(self, store: Store) -> Planned | None:
        """The cell as the store knows it now; None if another process finished it since it was planned.

        A job that comes back after a crash waits until its own last claim, maybe on another machine, counts as dead.
        """
        until = time.monotonic() + claim.STALE + 2 * claim.BEAT
        while (status := store.status(self.item.cell_id)) == "running" and time.monotonic() < until:
            time.sleep(1)
        attempts = store.attempts(self.item.cell_id)
        if attempts != self.item.attempts and status not in UNFINISHED:
            return None
        return dataclasses.replace(self.item, status=status, attempts=attempts)


def _start_server() -> None:
    """The fork server, deaf to what Slurm sends to all: it starts nothing new, and its end would be its children's."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGUSR2)}
    forkserver.shared()
    for number, handler in before.items():
        signal.signal(number, handler)
