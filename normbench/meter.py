"""The losses of an epoch: read seldom, noticed when they are no longer finite, told to who looks on."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from normbench.errors import NormbenchError

# Reading the loss makes the host wait for the device; on a CPU it costs a microsecond. A loss that is no longer finite
# is noticed within so many steps.
CHECK_EVERY = {"cpu": 1}
CHECK_EVERY_ELSEWHERE = 50


class Watch(Protocol):
    """Who looks on: the live display, the store, W&B."""

    def step(self, epoch: int, step: int, loss: float, images_per_s: float) -> None: ...
    def row(self, row: dict[str, Any]) -> None: ...
    def right(self, right: np.ndarray) -> None: ...


class EndedError(NormbenchError):
    """The run ended before its last step. ``reached``: epoch, step, last_loss (the last finite one)."""

    def __init__(self, what: str, reached: dict[str, Any]) -> None:
        self.reached = reached
        super().__init__(f"{what} in epoch {reached['epoch']}, step {reached['step']}")


class DivergedError(EndedError):
    """The loss is no longer finite."""


class StoppedError(EndedError):
    """The run was asked to stop, and has left a checkpoint."""


class Meter:
    """Adds up an epoch's losses on the device, and tells the watch when it has read them.

    last: the last loss that was read and finite, from the epoch before until this one has its own.
    """

    def __init__(
        self, epoch: int, done: int, images: int, device: torch.device, watch: Watch, last: float = math.nan
    ) -> None:
        self.epoch, self.done, self.images, self.device, self.watch = epoch, done, images, device, watch
        self.every = CHECK_EVERY.get(device.type, CHECK_EVERY_ELSEWHERE)
        self.steps, self.read, self.last = 0, 0.0, last
        self.unread, self.waiting = torch.zeros((), device=device), 0  # losses not read yet: their sum and number
        self.untimed, self.spent = 0, 0.0  # steps that are left out of the time, and their seconds
        self.since = time.perf_counter()

    @property
    def mean(self) -> float:
        return self.read / max(1, self.steps)

    def add(self, loss: Tensor) -> None:
        self.unread = self.unread + loss
        self.steps += 1
        self.waiting += 1
        if self.steps % self.every == 0:
            self.check()

    def state(self) -> dict[str, Any]:
        """What ``restore`` goes on from."""
        self.check()
        kept = ("epoch", "done", "steps", "read", "last", "untimed")
        return {**{key: getattr(self, key) for key in kept}, "seconds": self._seconds(), "spent": self.spent}

    def restore(self, state: Mapping[str, Any]) -> None:
        for key in ("epoch", "done", "steps", "read", "last", "untimed"):
            setattr(self, key, state[key])
        self.since, self.spent = time.perf_counter() - state["seconds"], state.get("spent", 0.0)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is not training's."""
        began = time.perf_counter()
        yield
        self.since += time.perf_counter() - began

    @contextlib.contextmanager
    def preparing(self) -> Iterator[None]:
        """A step in which something is made ready that later ones go by, such as a compiled network: not timed."""
        self._wait()
        began = time.perf_counter()
        yield
        self._wait()
        spent = time.perf_counter() - began
        self.since, self.spent, self.untimed = self.since + spent, self.spent + spent, self.untimed + 1

    def images_per_s(self, seconds: float) -> float:
        """Over the steps that were timed, in so many seconds; over all if none was."""
        timed = self.steps - self.untimed
        return timed * self.images / seconds if timed else self.steps * self.images / (seconds + self.spent)

    def check(self) -> None:
        """Read what is left to read. Raises DivergedError."""
        if not self.waiting:
            return
        value, waiting = float(self.unread), self.waiting
        if not math.isfinite(value):
            reached = {"epoch": self.epoch, "step": self.done + self.steps, "last_loss": self.last}
            raise DivergedError(f"the training loss is {value}", reached)
        self.read, self.last = self.read + value, value / waiting
        self.unread, self.waiting = torch.zeros_like(self.unread), 0
        speed = self.images_per_s(time.perf_counter() - self.since)
        self.watch.step(self.epoch, self.steps, self.last, speed)

    def close(self) -> float:
        """Read what is left; seconds since the epoch began, the device's work done."""
        self.check()
        return self._seconds()

    def _seconds(self) -> float:
        self._wait()
        return time.perf_counter() - self.since

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
