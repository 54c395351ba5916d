"""Rounds in which everyone takes a turn, so that a machine that slows down slows everyone down.

A sample repeats its call until it is long enough to time; in every round the order is another one, so that nobody
always follows the same neighbour. Only times of one round are divided by one another.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from normbench.errors import one_line

SAMPLE = 2e-3  # seconds that a sample lasts at least
MOST_REPEATS = 1000
FEW = 3  # rounds that are enough where they take long
LONG = 5  # times the least time: then few rounds are enough


@dataclass(frozen=True)
class Call:
    """Something to be timed: ``backward`` is given what ``forward`` returns.

    turn: what holds only while it is this one's turn, made ready and put back outside of the time. elsewhere: in
    place of ``forward``, makes so many calls in another process and gives their seconds.
    """

    forward: Callable[[], Any]
    backward: Callable[[Any], object] | None = None
    turn: Callable[[], AbstractContextManager[Any]] = nullcontext
    elsewhere: Callable[[int], float] | None = None

    def __call__(self) -> None:
        if self.elsewhere is not None:
            self.elsewhere(1)
            return
        made = self.forward()
        if self.backward is not None:
            self.backward(made)


@dataclass(frozen=True)
class Rule:
    """When it is enough: ``rounds`` and ``seconds`` are both reached, or a few rounds took much longer than that."""

    rounds: int
    seconds: float

    def enough(self, rounds: int, seconds: float) -> bool:
        few = min(FEW, self.rounds)
        return seconds >= self.seconds and (
            rounds >= self.rounds or (rounds >= few and seconds >= LONG * self.seconds > 0)
        )


@dataclass
class Samples:
    """Seconds of one call, one number a round; ``forward``: the part before the backward, where it can be told.

    reason: why there is none.
    """

    seconds: list[float] = field(default_factory=list)
    forward: list[float] = field(default_factory=list)
    repeats: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Slice:
    """How long a sample is at least: in seconds and in calls."""

    seconds: float
    calls: int


def race(
    makers: Mapping[str, Callable[[], Call]], device: torch.device, rule: Rule, slice_: Slice | None = None
) -> dict[str, Samples]:
    """Samples of everyone. Who raises an error, when made or when called, has its message as a reason instead."""
    least = slice_ or Slice(SAMPLE, 1)
    found = {name: Samples() for name in makers}
    calls: dict[str, Call] = {}
    with _no_collection():
        for name, make in makers.items():
            with _reasoned(found[name]):
                calls[name] = make()
                with calls[name].turn():
                    found[name].repeats = _repeats(calls[name], device, least)
        order, turns, start = random.Random(0), 0, time.perf_counter()
        while True:
            running = [name for name in calls if not found[name].reason]
            if not running or rule.enough(turns, time.perf_counter() - start):
                return found
            for name in order.sample(running, len(running)):
                with _reasoned(found[name]), calls[name].turn():
                    total, forward = sample(calls[name], found[name].repeats, device)
                    found[name].seconds.append(total)
                    found[name].forward.append(forward)
            turns += 1


def sample(call: Call, repeats: int, device: torch.device) -> tuple[float, float]:
    """Mean seconds of a call and of its forward; NaN for the forward alone on a GPU, where waiting would slow it."""
    if call.elsewhere is not None:
        return call.elsewhere(repeats) / repeats, math.nan
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / repeats, math.nan
    if device.type != "cpu" or call.backward is None:
        _wait(device)
        begin = time.perf_counter()
        for _ in range(repeats):
            call()
        _wait(device)
        return (time.perf_counter() - begin) / repeats, math.nan
    forward, begin = 0.0, time.perf_counter()
    for _ in range(repeats):
        now = time.perf_counter()
        made = call.forward()
        forward += time.perf_counter() - now
        call.backward(made)
        del made
    return (time.perf_counter() - begin) / repeats, forward / repeats


def _repeats(call: Call, device: torch.device, least: Slice) -> int:
    """How many calls make a sample. The first call, in which kernels are compiled, is not counted."""
    call()
    once = math.inf
    for _ in range(3):
        once = min(once, sample(call, 1, device)[0])
        if once > least.seconds:
            break
    return max(least.calls, min(MOST_REPEATS, math.ceil(least.seconds / max(once, 1e-7))))


def _wait(device: torch.device) -> None:
    if device.type == "mps":
        torch.mps.synchronize()


@contextmanager
def _reasoned(samples: Samples) -> Iterator[None]:
    """Any error becomes the reason: a unit that fails on one shape must not cost the others theirs."""
    try:
        yield
    except Exception as error:
        samples.reason = f"{type(error).__name__}: {one_line(error)}"[:300]
        samples.seconds, samples.forward = [], []


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python's cycle collector stays out of the samples."""
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
