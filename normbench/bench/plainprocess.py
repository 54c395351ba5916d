"""The plain loop in a process of its own, as it would be run: with none of what a sweep sets for its processes.

Not the allocator's thresholds, not OpenMP's shorter spinning. It works only while it is its turn: between turns it
waits to be asked, and its loaders stand still.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import torch

from normbench.bench import breakdown, ours
from normbench.bench.ours import Checked
from normbench.bench.plainloop import PlainLoop, Source, end_with_parent
from normbench.errors import one_line
from normbench.spinning import COUNT, VARIABLE
from normbench.train import net_size

WARM_UP = 3  # steps before anything is timed, and as many more as the loaders work ahead
AHEAD = 2  # batches that each of torch's loaders works ahead


class PlainProcess:
    """``train(steps)`` gives their seconds, ``parts()`` where these go. What it raises there is a RuntimeError here."""

    forwards = 1

    def __init__(self, checked: Checked, device: torch.device, loaders: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.line, theirs = context.Pipe()
        given = checked.cell, checked.description, device, loaders, torch.get_num_threads()
        self.process = context.Process(target=_serve, args=(theirs, *given))
        with _without(VARIABLE):
            self.process.start()
        theirs.close()
        self._answer()

    def train(self, steps: int) -> float:
        self.line.send(("train", steps))
        return float(self._answer())

    def parts(self) -> dict[str, float]:
        self.line.send(("parts", 0))
        found: dict[str, float] = self._answer()
        return found

    def close(self) -> None:
        """End it, and its loaders."""
        self.line.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def _answer(self) -> Any:
        try:
            ok, value = self.line.recv()
        except EOFError:
            self.process.join()
            ok, value = False, f"the plain loop's process ended with code {self.process.exitcode}"
        if not ok:
            raise RuntimeError(value)
        return value


@contextlib.contextmanager
def _without(name: str) -> Iterator[None]:
    """A variable left out of the environment, if it is as a sweep has it."""
    kept = os.environ.pop(name) if os.environ.get(name) == COUNT else None
    try:
        yield
    finally:
        if kept is not None:
            os.environ[name] = kept


def _serve(line: Connection, cell: Any, description: Any, device: torch.device, loaders: int, threads: int) -> None:
    """The process: make the loop, then do what is asked until the line is closed."""
    end_with_parent(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    loop = None
    try:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = device.type == "cuda"  # as everyone sets it
        checked = Checked(cell, description, 0, 1, None)
        net = ours.untouched(checked, device, torch.contiguous_format)
        loop = PlainLoop(cell, net, Source(cell, net_size(cell, description)), device, cell.images, loaders)
        with loop.turn():
            seconds(loop, WARM_UP + AHEAD * loaders)
        line.send((True, None))
        while True:
            what, steps = line.recv()
            with loop.turn():
                line.send((True, seconds(loop, steps) if what == "train" else parts(loop, device)))
    except EOFError:
        pass
    except Exception as error:
        line.send((False, f"{type(error).__name__}: {one_line(error)}"))
    finally:
        if loop is not None:
            loop.close()


def seconds(loop: PlainLoop, steps: int) -> float:
    """Of so many steps; the loss of each is read, so the last one is done."""
    begin = time.perf_counter()
    for _ in range(steps):
        loop.train(loop.fetch())
    return time.perf_counter() - begin


def parts(loop: breakdown.Loop, device: torch.device) -> dict[str, float]:
    """Where a loop's time goes, and the threads it goes in."""
    shares = breakdown.breakdown(loop, device) if device.type in ("cpu", "cuda") else {}
    return {"step_threads": torch.get_num_threads(), **shares}
