"""One cell as a Slurm job: what submitit carries to the node and calls there, and what the job's signals mean to it.

Until submitit has loaded this, USR2 would end the job: so torch is imported later, and the cell comes packed.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normbench import claim
from normbench.launch import forkserver
from normbench.records import Store

if TYPE_CHECKING:
    from normbench.preflight import Planned

# States of a cell that a job may still turn into another, by being queued again.
UNFINISHED = ("new", "killed", "interrupted")
# Seconds that a job which was told to end waits for Slurm to end it: were it to go by itself, a job that makes room for
# another would count as completed, and not be queued again. More than the grace that clusters give.
GRACE = 600.0


@dataclass
class Errand:
    """Run one cell to its result, whatever that is: it stands in the store, and the job's own end says nothing.

    USR2 (submitit's word for: make room, or time is up): a checkpoint, then the job is queued again and goes on from
    it. SIGTERM (scancel, or a cluster's own way to make room): a checkpoint, and Slurm ends or requeues the job.
    folder: the sweep's. packed: the cell, a Planned.
    """

    folder: Path
    packed: bytes
    ranks: int = 1
    timeout: float | None = None
    threads: str | None = None

    def __call__(self) -> str:
        """The cell's status."""
        cpus = os.environ.get("SLURM_CPUS_ON_NODE", "")  # the job's; not every cluster holds it to them
        if cpus.isdigit():
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, int(cpus) // self.ranks)))
        _start_server()
        from normbench.launch.onecell import OneCell  # torch, while the server imports it too

        store = Store(self.folder.parent, self.folder.name)
        planned: Planned = pickle.loads(self.packed)
        item = _fresh(planned, store)
        if item is None:
            return store.status(planned.cell_id)
        local = OneCell(store, self.ranks, self.timeout, self.threads)
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


def _fresh(item: Planned, store: Store) -> Planned | None:
    """The cell as the store knows it now; None if another process finished it since it was planned.

    A job that comes back after a crash waits until its own last claim, maybe on another machine, counts as dead.
    """
    until = time.monotonic() + claim.STALE + 2 * claim.BEAT
    while (status := store.status(item.cell_id)) == "running" and time.monotonic() < until:
        time.sleep(1)
    attempts = store.attempts(item.cell_id)
    if attempts != item.attempts and status not in UNFINISHED:
        return None
    return dataclasses.replace(item, status=status, attempts=attempts)


def _start_server() -> None:
    """The fork server, deaf to what Slurm sends to all: it starts nothing new, and its end would be its children's."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGUSR2)}
    forkserver.shared()
    for number, handler in before.items():
        signal.signal(number, handler)
