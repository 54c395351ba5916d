"""The story of one cell: seed, build, replace the normalizers, then for each epoch train, evaluate, record."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from normbench import machine, models, norms, surgery
from normbench.cell import Cell
from normbench.data import Description, Pictures, open_pictures
from normbench.errors import NormbenchError
from normbench.evaluate import evaluate
from normbench.optimize import learning_rate, optimizer, warmup_steps
from normbench.step import Step, memory_format

# Reading the loss makes the host wait for the device; on a CPU it costs a microsecond. A loss that is no longer finite
# is noticed within so many steps.
CHECK_EVERY = {"cpu": 1}
CHECK_EVERY_ELSEWHERE = 50
# Side in pixels of streamed pictures where neither the data nor the network asks for one.
STREAMED_SIZE = 224


class Watch(Protocol):
    """Who looks on: the live display, the store, W&B."""

    def step(self, epoch: int, step: int, loss: float, images_per_s: float) -> None: ...
    def row(self, row: dict[str, Any]) -> None: ...


class DivergedError(NormbenchError):
    """The loss is no longer finite. ``reached``: epoch, step, last_loss (the last finite one)."""

    def __init__(self, what: str, reached: dict[str, Any]) -> None:
        self.reached = reached
        super().__init__(f"{what} in epoch {reached['epoch']}, step {reached['step']}")


@dataclass(frozen=True)
class Length:
    """How long a run is: optimizer steps in all, steps of one pass over the pictures, passes begun."""

    total: int
    per_epoch: int

    @property
    def epochs(self) -> int:
        return math.ceil(self.total / self.per_epoch)


def length(cell: Cell, description: Description) -> Length:
    """The run's length over ``description.train`` pictures; the last, smaller step of an epoch is dropped."""
    per_epoch = max(1, description.train // cell.images)
    return Length(cell.length("steps") or (cell.length("epochs") or 0) * per_epoch, per_epoch)


def picture_size(cell: Cell, description: Description) -> int | None:
    """The side in pixels that pictures come at; None if they are streamed and come at the network's own."""
    return description.height or cell.data.size


def fed_size(cell: Cell, description: Description) -> tuple[int, int]:
    """Height and width in pixels of what the network is fed."""
    size = net_size(cell, description)
    if size is None and description.height and description.width:
        return description.height, description.width
    side = size or cell.data.size or STREAMED_SIZE
    return side, side


def net_size(cell: Cell, description: Description) -> int | None:
    """The side in pixels that pictures are brought to for the network; None: as they are."""
    return models.resolve(cell.arch, picture_size=picture_size(cell, description)).size


def open_for(cell: Cell, description: Description, device: torch.device) -> Pictures:
    """The pictures of a cell as its network wants them."""
    return open_pictures(cell.data, size=net_size(cell, description), device=device)


def prepare(cell: Cell, description: Description, device: torch.device) -> nn.Module:
    """The network of a cell. Its weights are drawn from the seed before any normalizer is chosen: the same for all."""
    torch.manual_seed(cell.seed)
    size = picture_size(cell, description)
    plain = models.build(cell.arch, num_classes=len(description.classes), picture_size=size)
    shape = (3, *fed_size(cell, description))
    net = surgery.apply(plain, cell.norm.name, batch=cell.batch, input_shape=shape, **cell.norm.options)
    return net.to(device).to(memory_format=memory_format(cell))


def tell_steps(net: nn.Module, total: int) -> None:
    """Tell the units that have a schedule of their own (``run_steps``) how many optimizer steps the run has."""
    for unit in filter(norms.is_unit, net.modules()):
        if hasattr(unit, "run_steps"):
            unit.run_steps = total  # type: ignore[assignment]


def train(cell: Cell, net: nn.Module, pictures: Pictures, device: torch.device, watch: Watch) -> dict[str, Any]:
    """Train ``net`` as the cell says; the result of the last epoch, with times and peak memory.

    Raises DivergedError when the training or the evaluation loss is no longer finite.
    """
    run = length(cell, pictures.description)
    tell_steps(net, run.total)
    update = optimizer(net, cell.recipe, cell.peak_lr)
    warmup = warmup_steps(cell.recipe, run.per_epoch, run.total)
    rate = partial(learning_rate, peak=cell.peak_lr, total=run.total, warmup=warmup, recipe=cell.recipe)
    forward: nn.Module = torch.compile(net) if cell.compile else net  # type: ignore[assignment]
    step = Step(cell, net, forward, update, device)
    machine.reset_peak_memory(device)
    # Dropout and the like draw from here on; the weights' draws differ in number between architectures, not norms.
    torch.manual_seed(cell.seed + 1)

    done, seconds, compile_seconds, last, row = 0, 0.0, 0.0, math.nan, {}
    for epoch in range(1, run.epochs + 1):
        steps = min(run.per_epoch, run.total - done)
        batches = pictures.train(seed=cell.seed, epoch=epoch, batch=cell.images)
        meter = Meter(epoch, done, cell.images, device, watch, last)
        net.train()
        for x, y in itertools.islice(batches, steps):
            meter.add(step(x, y, rate(done)))
            done += 1
            if done == 1 and cell.compile:
                compile_seconds = meter.restart()
        epoch_seconds = meter.close()
        seconds, last = seconds + epoch_seconds, meter.last

        found = evaluate(
            forward, pictures.test(cell.data.eval_batch), pictures.description.test,
            precision=step.precision, memory_format=memory_format(cell),
        )  # fmt: skip
        row = {
            "epoch": epoch, "step": done, "lr": rate(done - 1), "train_loss": meter.mean, **found,
            "images_per_s": meter.images_per_s(epoch_seconds), "train_seconds": seconds,
        }  # fmt: skip
        watch.row(row)
        if not math.isfinite(found["loss"]):
            reached = {"epoch": epoch, "step": done, "last_loss": meter.last}
            raise DivergedError(f"the evaluation loss is {found['loss']}", reached)
    timed = done - 1 if cell.compile and done > 1 else done
    measured = {"images_per_s": timed * cell.images / seconds, "peak_memory_mib": machine.peak_memory_mib(device)}
    if cell.compile:
        measured["compile_seconds"] = compile_seconds
    del row["lr"]  # the last step's; a cell's lr is its peak
    return row | measured | {"last_loss": last, "split": pictures.description.split}


class Meter:
    """Adds up an epoch's losses on the device, and tells the watch when it has read them.

    last: the last loss that was read and finite, from the epoch before until this one has its own.
    """

    def __init__(
        self, epoch: int, done: int, images: int, device: torch.device, watch: Watch, last: float = math.nan
    ) -> None:
        self.epoch, self.done, self.images, self.device, self.watch = epoch, done, images, device, watch
        self.every = CHECK_EVERY.get(device.type, CHECK_EVERY_ELSEWHERE)
        self.steps, self.unread, self.read = 0, torch.zeros((), device=device), 0.0
        self.last = last
        self.untimed = 0
        self.since = time.perf_counter()

    @property
    def mean(self) -> float:
        return self.read / max(1, self.steps)

    def add(self, loss: Tensor) -> None:
        self.unread = self.unread + loss
        self.steps += 1
        if self.steps % self.every == 0:
            self.check()

    def restart(self) -> float:
        """Leave what has been done so far out of the time: the first step of a compiled network. Its seconds."""
        seconds = self._seconds()
        self.since, self.untimed = time.perf_counter(), self.steps
        return seconds

    def images_per_s(self, seconds: float) -> float:
        """Over the steps that were timed; over all if there was only one."""
        return (self.steps - self.untimed or self.steps) * self.images / seconds

    def check(self) -> None:
        waiting = (self.steps - 1) % self.every + 1
        value = float(self.unread)
        if not math.isfinite(value):
            reached = {"epoch": self.epoch, "step": self.done + self.steps, "last_loss": self.last}
            raise DivergedError(f"the training loss is {value}", reached)
        self.read, self.last, self.unread = self.read + value, value / waiting, torch.zeros_like(self.unread)
        speed = self.images_per_s(time.perf_counter() - self.since)
        self.watch.step(self.epoch, self.steps, self.last, speed)

    def close(self) -> float:
        """Read what is left; seconds since the epoch began, the device's work done."""
        if self.steps % self.every:
            self.check()
        return self._seconds()

    def _seconds(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - self.since
