"""How long a table would take on this machine: from real training steps of its network, timed on noise.

A step of n images takes ``fixed + each · n`` seconds: timed at two numbers of images where pictures are small, at one
where they are large, with BatchNorm. What was timed is kept in the user's cache, by machine, torch and threads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from normbench import machine, steptime
from normbench.bench import ours
from normbench.cell import Cell, NormOptions
from normbench.data import Description, describe
from normbench.data.official import KNOWN
from normbench.data.sources import published
from normbench.files import cache_folder, read_json, write_json
from normbench.train import fed_size, length

SMALL = 64  # pixels a side up to which pictures are small
# Images of the steps that are timed: of small pictures, of large ones; by the kind of device.
TIMED = {"cpu": ((8, 64), (2,))}
TIMED_ELSEWHERE = ((8, 256), (32,))
SECONDS, MOST = 1.0, 20  # of timed steps of one size, and steps
LONG = 4.0  # seconds of a first step after which it is the only one, though the first is the slowest
# Of a training step's time an image takes as much to be evaluated: the forward of three like passes.
EVALUATED = 1 / 3
DAY, YEAR = 86400.0, 31557600.0
UNITS = (("second", 1.0), ("minute", 60.0), ("hour", 3600.0), ("day", DAY), ("month", YEAR / 12), ("year", YEAR))


@dataclass(frozen=True)
class Pace:
    """Seconds of a training step by its images; images: of the steps that were timed."""

    fixed: float
    each: float
    images: tuple[int, ...]

    def step(self, images: int) -> float:
        return self.fixed + self.each * images


def seconds(cells: Iterable[Cell], device: torch.device) -> float:
    """Of all these runs, one after another, evaluation after every epoch included; pictures are as fast as the net."""
    total = 0.0
    for cell in cells:
        description = described(cell)
        pace, run = of(cell, description, device), length(cell, description)
        total += run.total * pace.step(cell.images) + run.epochs * description.test * pace.each * EVALUATED
    return total


def described(cell: Cell) -> Description:
    """The data by what is published of it, so that nothing need be there or listed."""
    if cell.data.name in KNOWN or cell.data.name == "imagenet":
        return published(cell.data)
    return describe(cell.data, fetch=False)


def of(cell: Cell, description: Description, device: torch.device) -> Pace:
    """The pace of a cell's network on its pictures, from the cache or timed now."""
    side, at = fed_size(cell, description), _timed(cell, description, device)
    question = [dataclasses.asdict(cell.arch), side, len(description.classes), at, cell.amp, cell.memory_format]
    where = steptime.place(device, torch.get_num_threads())
    mark = hashlib.sha256(json.dumps([question, where], sort_keys=True, default=str).encode()).hexdigest()[:16]
    path = cache_folder() / "pace" / f"{mark}.json"
    found = read_json(path).get("seconds")
    if not isinstance(found, list) or len(found) != len(at):
        found = [_step_seconds(cell, description, images, device) for images in at]
        with contextlib.suppress(OSError):  # a cache that cannot be written costs only time
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"question": question, "where": where, "seconds": found})
    return _line(at, found)


def _timed(cell: Cell, description: Description, device: torch.device) -> tuple[int, ...]:
    small, large = TIMED.get(device.type, TIMED_ELSEWHERE)
    return small if max(fed_size(cell, description)) <= SMALL else large


def _line(at: Sequence[int], found: Sequence[float]) -> Pace:
    """Through the times; one alone, or a line that would begin below zero, is in proportion."""
    each = (found[-1] - found[0]) / (at[-1] - at[0]) if len(at) > 1 else 0.0
    fixed = found[0] - each * at[0]
    if len(at) == 1 or each <= 0 or fixed < 0:
        fixed, each = 0.0, found[-1] / at[-1]
    return Pace(fixed, each, tuple(at))


def _step_seconds(cell: Cell, description: Description, images: int, device: torch.device) -> float:
    """The fastest of a few steps of this many images, so that other work on the machine counts least; the first is not
    among them unless it was long already.
    """
    plain = dataclasses.replace(
        cell, norm=NormOptions("bn"), batch=images, workers=1, chunk=None, steps=None, epochs=1, lr=0.0, graph=False
    )
    checked = ours.Checks()(plain, description)
    machine.seed(0)
    trainer = ours.Trainer(checked, ours.network(checked, device), device)
    x = torch.randn(images, 3, *fed_size(cell, description), device=device)
    y = torch.randint(len(description.classes), (images,), device=device)
    first = _seconds(trainer, (x, y), device)
    if first > LONG:
        return first
    times: list[float] = []
    while sum(times) < SECONDS and len(times) < MOST:
        times.append(_seconds(trainer, (x, y), device))
    return min(times)


def _seconds(trainer: ours.Trainer, batch: ours.Batch, device: torch.device) -> float:
    """Of one step."""
    start = time.perf_counter()
    trainer.train(batch)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def words(seconds: float) -> str:
    """``about 40 minutes``, ``about 9 years``: in the largest unit of which there are at least two."""
    name, size = next((unit for unit in reversed(UNITS) if seconds >= 2 * unit[1]), UNITS[0])
    count = seconds / size
    rounded = f"{count:,.0f}" if count >= 10 else f"{count:.1f}".removesuffix(".0")
    return f"about {rounded} {name}" + ("" if rounded == "1" else "s")
