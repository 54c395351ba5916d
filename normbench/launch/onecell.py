"""A Local for a Slurm job: one cell, its display is the job's log, and it knows how Slurm signals."""

from __future__ import annotations

from normbench import track
from normbench.display import Display
from normbench.launch.local import Local
from normbench.records import Store


class OneCell(Local):
    """Slurm repeats its signals, and sends them to every process of the job."""

    def __init__(self, store: Store, ranks: int, timeout: float | None, threads: str | None) -> None:
        super().__init__(store, Display(1), track.make(None), 1, ranks, timeout, threads)

    def ask(self, *_: object) -> None:
        """Stop after a checkpoint. A second signal is the first one's echo: what ends a job at once is SIGKILL."""
        self.asked = 1

    _ask = ask

    def _pass_on(self) -> None:
        """Again and again: a cell that has just been forked does not listen yet."""
        if self.asked:
            for cell in self.running:
                cell.ask()
