"""The training loop most people would write, at torch's defaults: what ours is compared with.

A Dataset with torchvision's transforms picture by picture, a DataLoader with processes of its own, the untouched
network, torch.optim.SGD, the loss read at every step for the progress bar. The transforms work on uint8 tensors, which
takes them two thirds of the time that PIL pictures take. While it is another's turn its loaders stand still, stopped by
a signal: they neither slow the other down nor work ahead, so the loop goes on as if it had never waited.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from normbench.bench.ours import Batch
from normbench.cell import Cell
from normbench.data.arrays import Arrays
from normbench.data.sources import chosen, find
from normbench.errors import ConfigError
from normbench.step import classification_loss

LONG = 1000  # steps of an epoch at least: pictures come again before it ends
DEATH = 1  # PR_SET_PDEATHSIG of prctl(2)


class Pictures(Dataset[tuple[Tensor, int]]):
    """uint8 pictures (N, C, H, W) and labels; ``length`` pictures an epoch, the same ones again."""

    def __init__(self, x: Tensor, y: Tensor, length: int, transform: transforms.Compose) -> None:
        self.x, self.y, self.length, self.transform = x, y, length, transform

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        index %= len(self.x)
        return self.transform(self.x[index]), int(self.y[index])


class Source:
    """The uint8 pictures that a cell trains on, and how they are prepared; the same as in our loop."""

    def __init__(self, cell: Cell, size: int | None) -> None:
        """size: the side that pictures are brought to. Raises ConfigError for pictures that are streamed."""
        found = find(cell.data)
        if not isinstance(found, Arrays):
            raise ConfigError(
                f"data={cell.data.name}: got pictures that are not held in memory; expected a set that is, such as "
                "data=cifar10; streamed pictures are decoded by loaders in both loops"
            )
        _, at, _ = chosen(found, cell.data)
        self.x = torch.from_numpy(found.train_x[at])
        self.y = torch.from_numpy(found.train_y[at] % len(found.classes))
        self.transform = _transforms(cell, found, size)


def _transforms(cell: Cell, found: Arrays, size: int | None) -> transforms.Compose:
    channels, side = found.train_x.shape[1], found.train_x.shape[2:]
    steps: list[Any] = [transforms.RandomCrop(side, padding=cell.data.pad)] if cell.data.pad else []
    if cell.data.flip:
        steps.append(transforms.RandomHorizontalFlip())
    if size is not None and side != (size, size):
        steps += [transforms.Resize(size, antialias=True), transforms.CenterCrop(size)]
    steps.append(transforms.ConvertImageDtype(torch.float32))
    if channels == 1:
        steps.append(transforms.Lambda(_three))
    mean, std = ([value / 255 for value in (*values,) * (3 // channels)] for values in (found.mean, found.std))
    return transforms.Compose([*steps, transforms.Normalize(mean, std)])


def _three(x: Tensor) -> Tensor:
    """A grey picture as a network for colours takes it."""
    return x.expand(3, -1, -1)


class PlainLoop:
    """``turn()`` while it runs; ``fetch`` and ``train`` make a step of ``images`` pictures."""

    forwards = 1

    def __init__(
        self, cell: Cell, net: nn.Module, source: Source, device: torch.device, images: int, loaders: int
    ) -> None:
        self.net, self.device, self.bfloat16 = net.train(), device, cell.amp == "bfloat16"
        self.on_gpu = device.type == "cuda"
        recipe = cell.recipe
        self.optimizer = torch.optim.SGD(
            net.parameters(), lr=0.0, momentum=recipe.momentum, nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
        )  # fmt: skip
        length = max(len(source.x), LONG * images)
        self.loader = DataLoader(
            Pictures(source.x, source.y, length, source.transform), batch_size=images, shuffle=True, drop_last=True,
            num_workers=loaders, persistent_workers=loaders > 0, pin_memory=self.on_gpu,
            worker_init_fn=end_with_parent,
        )  # fmt: skip
        before = set(multiprocessing.active_children())
        self.batches: Iterator[list[Tensor]] | None = iter(self.loader)
        self.processes = [child.pid for child in multiprocessing.active_children() if child not in before and child.pid]
        self.shown = 0.0

    def fetch(self) -> Batch:
        assert self.batches is not None
        try:
            x, y = next(self.batches)
        except StopIteration:
            self.batches = iter(self.loader)
            x, y = next(self.batches)
        return x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)

    def train(self, batch: Batch) -> None:
        x, y = batch
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else contextlib.nullcontext():
            loss = classification_loss(self.net(x), y, 0.0)  # nn.CrossEntropyLoss, of auxiliary heads too
        loss.backward()
        self.optimizer.step()
        self.shown = loss.item()  # in the progress bar

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Its loaders are at work, and nobody else's time is taken."""
        self._signal("SIGCONT")
        try:
            yield
        finally:
            self._signal("SIGSTOP")

    def close(self) -> None:
        """End the loaders."""
        self._signal("SIGCONT")
        self.batches = None
        del self.loader

    def _signal(self, name: str) -> None:
        if hasattr(signal, name):  # not on Windows
            for process in self.processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, getattr(signal, name))


def end_with_parent(_: int) -> None:
    """A loader that was stopped sees nothing of its parent's end, unless the system ends it (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(DEATH, signal.SIGKILL)
