"""What takes turns: the loader with each number of processes, and the network on a batch that is there already."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from normbench.bench.measure import Call, sample
from normbench.cell import Cell
from normbench.data import Description, Pictures, describe
from normbench.errors import ConfigError
from normbench.optimize import optimizer
from normbench.step import Step, memory_format
from normbench.train import open_for, prepare, tell_steps

# Measures once, and returns images a second.
Turn = Callable[[], float]


def contestants(cell: Cell, loaders: Sequence[int], seconds: float, device: torch.device) -> dict[int | None, Turn]:
    """Number of processes, or None for the network → a turn of ``seconds``, about.

    Each has had one already: processes have started, files and kernels are warm.
    Raises ConfigError for pictures that are not streamed, or too few.
    """
    description = describe(cell.data)
    if not description.streamed:
        raise ConfigError(
            f"data={cell.data.name}: its pictures are held in memory, where no loader is; expected streamed ones, such "
            "as data=imagenet, or data.stream=true"
        )
    if cell.images > description.train:
        raise ConfigError(
            f"a step takes {cell.images} pictures, data={cell.data.name} has {description.train}; take a smaller batch"
        )
    found: dict[int | None, Turn] = {}
    for processes in loaders:
        data = dataclasses.replace(cell.data, loaders=processes)
        pictures = open_for(dataclasses.replace(cell, data=data), description, device)
        found[processes] = loading(pictures, cell.images, processes, seconds, device)
    first = next(iter(pictures.train(seed=0, epoch=0, batch=cell.images, start=description.train // cell.images - 1)))
    found[None] = training(cell, description, first, seconds, device)
    return found


def loading(pictures: Pictures, batch: int, processes: int, seconds: float, device: torch.device) -> Turn:
    """A turn of the loader: passes over the last steps of epochs, so that nothing is left to decode after it."""
    per_epoch, epochs = pictures.train_steps(batch), itertools.count()
    # Until all processes are at work the batches come late; those are not timed.
    untimed = max(1, processes)

    def batches(count: int) -> Iterator[object]:
        while count > 0:
            some = min(count, per_epoch)
            yield from pictures.train(seed=0, epoch=next(epochs), batch=batch, start=per_epoch - some)
            count -= some

    def timed(count: int) -> float:
        coming = batches(untimed + count)
        for _ in range(untimed):
            next(coming)
        wait(device)
        start = time.perf_counter()
        for _ in coming:
            pass
        wait(device)
        return count * batch / (time.perf_counter() - start)

    count = untimed * 2
    timed(count)  # the processes start
    count = untimed * max(2, math.ceil(seconds * timed(count) / batch / untimed))
    return lambda: timed(count)


def training(
    cell: Cell, description: Description, pictures: tuple[Tensor, Tensor], seconds: float, device: torch.device
) -> Turn:
    """A turn of the network: forward, backward and update, again and again on the same ``pictures``."""
    net = prepare(cell, description, device)
    tell_steps(net, 1)
    net.train()
    step = Step(cell, net, net, optimizer(net, cell.recipe, cell.peak_lr), device, classes=description.domain_classes)
    x, y = pictures
    x = x.contiguous(memory_format=memory_format(cell))
    call = Call(lambda: step(x, y, 0.0))  # with a rate of 0 all steps do the same work
    call()
    once, _ = sample(call, 1, device)
    count = max(1, math.ceil(seconds / once))
    return lambda: cell.images / sample(call, count, device)[0]


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
