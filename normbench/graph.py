"""A training step recorded once, in a CUDA graph, and replayed: one launch and no Python in place of thousands.

The whole step is in it: pictures gathered and augmented, learning rate, forward, loss, backward, clipping, optimizer,
running statistics. It reads and writes tensors that stay where they are, and knows by one of them which step of the
epoch it is (data.Feed).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from normbench import models, norms
from normbench.cell import Cell
from normbench.data import Feed
from normbench.errors import ConfigError, one_line
from normbench.options import AUTO
from normbench.step import Step

# Steps made as always before one is recorded: kernels are chosen and compiled in them, optimizers make their state.
# They are steps of the run like all others.
FIRST = 3

NO_FEED = "a step cannot be recorded in a CUDA graph where its pictures come from a disk or a loader of one's own"
WAITING = "its ranks wait for each other in every step"

Work = Callable[[], None]


class Recorder(Protocol):
    """Who can record work on a device."""

    def run(self, work: Work) -> None:
        """Do it, where it will be recorded."""
        ...

    def record(self, work: Work) -> Work:
        """What does all that ``work`` asks of the device again. Nothing of it is done yet; its Python has run once."""
        ...


class CudaRecorder:
    """Records in a CUDA graph, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def run(self, work: Work) -> None:
        """See ``Recorder``."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            work()
        current.wait_stream(self.stream)

    def record(self, work: Work) -> Work:
        """See ``Recorder``."""
        graph = torch.cuda.CUDAGraph()
        # Other threads (who writes a checkpoint, who tells the parent) are none of the recording's business.
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            work()
        return graph.replay


class Recorded:
    """A run's steps: the ``FIRST`` as always, then one recorded, and it and all others replayed.

    per_epoch: steps of an epoch. strict: what cannot be recorded is an error; else all steps are made as always, with a
    warning.
    """

    def __init__(self, step: Step, feed: Feed, per_epoch: int, recorder: Recorder, *, strict: bool = True) -> None:
        device = step.rate.device
        self.step, self.feed, self.recorder, self.strict = step, feed, recorder, strict
        self.rates = torch.zeros(per_epoch, device=device)
        self.loss = torch.zeros((), device=device)
        self.first: float = FIRST  # steps that are still made as always
        self.replay: Work | None = None

    def begin(self, rates: Sequence[float], *, seed: int, epoch: int, start: int) -> None:
        """Stand before step ``start`` of an epoch. rates: the learning rates of its steps, of the first on."""
        self.feed.begin(seed=seed, epoch=epoch, start=start)
        self.rates[: len(rates)] = torch.tensor(rates)

    def __call__(self) -> Tensor:
        """The next step; its loss, on the device, until the step after it."""
        if not self.first and self.replay is None:
            self._record()
        if self.replay is not None:
            self.replay()
        else:
            self.recorder.run(self._work)
            self.first -= 1
        return self.loss

    @property
    def replays(self) -> bool:
        return self.replay is not None

    def _record(self) -> None:
        try:
            self.replay = self.recorder.record(self._work)
        except Exception as error:
            if self.strict:
                raise
            # Nothing of the step has been done on the device, so what Python remembers of it is forgotten too.
            self.step.forget()
            said = f"a step could not be recorded in a CUDA graph, so all are made without: {one_line(error)[:300]}"
            warnings.warn(said, RuntimeWarning, stacklevel=2)
            self.first = math.inf

    def _work(self) -> None:
        rate = self.rates.index_select(0, self.feed.at).squeeze(0)
        x, y = self.feed()
        self.loss.copy_(self.step(x, y, rate))


def wanted(cell: Cell, device: torch.device, ranks: int) -> bool:
    """Whether a cell's steps are to be recorded: as it says, or, with ``auto``, where nothing speaks against it."""
    if cell.graph != AUTO:
        return bool(cell.graph)
    own = models.source_hash(cell.arch.name) is not None  # may do more than ask a device for work
    return not (own or why_not(cell, device, ranks) or why_not_by_method(cell))


def refused(why: str) -> ConfigError:
    """What ``graph=true`` ends with where it cannot be."""
    return ConfigError(f"graph=true: {why}; take graph=auto")


def why_not(cell: Cell, device: torch.device, ranks: int = 1) -> str:
    """Why a cell's steps cannot be recorded here, whatever its method; empty if they can."""
    if device.type != "cuda":
        return f"it takes a CUDA device, and this is {device.type}"
    if cell.compile:
        return "compile=true is another way to the same end"
    return WAITING if ranks > 1 else ""


def why_not_by_method(cell: Cell) -> str:
    """Why a step with the cell's normalizer cannot be recorded; empty if it can."""
    return norms.get(cell.norm.name, cell.norm.options).no_graph
