"""The story of one cell: seed, build, replace the normalizers, then for each epoch train, evaluate, record.

Whose statistics: one optimizer step sees batch × workers pictures; the units take statistics over every ``batch``
consecutive ones. Workers may be run a ``chunk`` at a time and their gradients summed; it is the same mathematics.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normbench import machine, models, norms, surgery
from normbench.cell import Cell
from normbench.data import Description, Pictures, open_pictures
from normbench.errors import NormbenchError
from normbench.evaluate import evaluate
from normbench.optimize import learning_rate, optimizer, warmup_steps

# Reading the loss makes the host wait for the device; on a CPU it costs a microsecond. A loss that is no longer finite
# is noticed within so many steps.
CHECK_EVERY = {"cpu": 1}
CHECK_EVERY_ELSEWHERE = 50
# Side in pixels of streamed pictures where neither the data nor the network asks for one.
STREAMED_SIZE = 224
# Weights of auxiliary heads' losses, by their number: InceptionV3's one, GoogLeNet's two (arXiv:1409.4842, section 5;
# torchvision trains InceptionV3 with 0.4).
AUX_WEIGHT = {1: 0.4, 2: 0.3}


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
    size = models.resolve(cell.arch, picture_size=picture_size(cell, description)).size
    if size is None and description.height and description.width:
        return description.height, description.width
    side = size or cell.data.size or STREAMED_SIZE
    return side, side


def open_for(cell: Cell, description: Description, device: torch.device) -> Pictures:
    """The pictures of a cell as its network wants them."""
    size = models.resolve(cell.arch, picture_size=picture_size(cell, description)).size
    return open_pictures(cell.data, size=size, device=device)


def prepare(cell: Cell, description: Description, device: torch.device) -> nn.Module:
    """The network of a cell. Its weights are drawn from the seed before any normalizer is chosen: the same for all."""
    torch.manual_seed(cell.seed)
    size = picture_size(cell, description)
    plain = models.build(cell.arch, num_classes=len(description.classes), picture_size=size)
    shape = (3, *fed_size(cell, description))
    net = surgery.apply(plain, cell.norm.name, batch=cell.batch, input_shape=shape, **cell.norm.options)
    return net.to(device).to(memory_format=memory_format(cell))


def train(cell: Cell, net: nn.Module, pictures: Pictures, device: torch.device, watch: Watch) -> dict[str, Any]:
    """Train ``net`` as the cell says; the result of the last epoch, with times and peak memory.

    Raises DivergedError when the training or the evaluation loss is no longer finite.
    """
    run = length(cell, pictures.description)
    update = optimizer(net, cell.recipe, cell.peak_lr)
    warmup = warmup_steps(cell.recipe, run.per_epoch, run.total)
    rate = partial(learning_rate, peak=cell.peak_lr, total=run.total, warmup=warmup, recipe=cell.recipe)
    forward: nn.Module = torch.compile(net) if cell.compile else net  # type: ignore[assignment]
    step = Step(cell, net, forward, update, device)
    machine.reset_peak_memory(device)
    # Dropout and the like draw from here on; the weights' draws differ in number between architectures, not norms.
    torch.manual_seed(cell.seed + 1)

    done, seconds, row = 0, 0.0, {}
    for epoch in range(1, run.epochs + 1):
        steps = min(run.per_epoch, run.total - done)
        batches = pictures.train(seed=cell.seed, epoch=epoch, batch=cell.images)
        meter = Meter(epoch, done, cell.images, device, watch)
        net.train()
        for x, y in _first(batches, steps):
            meter.add(step(x, y, rate(done)))
            done += 1
        epoch_seconds = meter.close()
        seconds += epoch_seconds

        found = evaluate(
            forward, pictures.test(cell.data.eval_batch), pictures.description.test,
            precision=step.precision, memory_format=memory_format(cell),
        )  # fmt: skip
        row = {
            "epoch": epoch, "step": done, "lr": rate(done - 1), "train_loss": meter.mean, **found,
            "images_per_s": steps * cell.images / epoch_seconds, "train_seconds": seconds,
        }  # fmt: skip
        watch.row(row)
        if not math.isfinite(found["loss"]):
            reached = {"epoch": epoch, "step": done, "last_loss": meter.mean}
            raise DivergedError(f"the evaluation loss is {found['loss']}", reached)
    speed = {"images_per_s": done * cell.images / seconds, "peak_memory_mib": machine.peak_memory_mib(device)}
    return row | speed | {"last_loss": row["train_loss"], "split": pictures.description.split}


class Step:
    """One optimizer step over batch × workers pictures, a chunk of workers at a time."""

    def __init__(
        self,
        cell: Cell,
        net: nn.Module,
        forward: Callable[..., Any],
        update: torch.optim.Optimizer,
        device: torch.device,
    ) -> None:
        self.cell, self.net, self.forward, self.update = cell, net, forward, update
        self.images = cell.batch * self.workers_at_once(cell)
        self.buffers = BufferMean(net) if self.images < cell.images else None
        bf16 = cell.amp == "bfloat16"
        self.precision: Callable[[], contextlib.AbstractContextManager[Any]] = (
            (lambda: torch.autocast(device.type, torch.bfloat16)) if bf16 else contextlib.nullcontext
        )

    @staticmethod
    def workers_at_once(cell: Cell) -> int:
        """Workers in one forward. A method that mixes pictures and cannot keep workers apart runs them one by one."""
        row = norms.get(cell.norm.name)
        together = row.takes_batch or not row.mixes_samples
        return (cell.chunk or cell.workers) if together else 1

    def __call__(self, x: Tensor, y: Tensor, lr: float) -> Tensor:
        """The mean loss over all pictures, still on the device."""
        for group in self.update.param_groups:
            group["lr"] = lr
        self.update.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=x.device)
        for part, labels in zip(x.split(self.images), y.split(self.images), strict=True):
            share = len(labels) / len(y)
            with self.buffers.part(share) if self.buffers else contextlib.nullcontext(), self.precision():
                out = self.forward(part.contiguous(memory_format=memory_format(self.cell)))
                part_loss = classification_loss(out, labels, self.cell.recipe.label_smoothing) * share
            part_loss.backward()
            loss = loss + part_loss.detach()
        if self.buffers:
            self.buffers.settle()
        if self.cell.recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.cell.recipe.clip)
        self.update.step()
        return loss


class BufferMean:
    """Running statistics over chunks: the mean of what each worker would have kept, each from the same start."""

    def __init__(self, net: nn.Module) -> None:
        self.units = [module for module in net.modules() if norms.is_unit(module)]
        self.start: list[tuple[Tensor, Tensor]] = []
        self.total: list[Tensor] = []

    @contextlib.contextmanager
    def part(self, share: float) -> Iterator[None]:
        """One chunk, which holds ``share`` of the workers."""
        if not self.start:
            self.start = [
                (buffer, buffer.clone())
                for unit in self.units
                for buffer in unit.buffers()
                if buffer.is_floating_point()
            ]
            self.counts = [
                (buffer, buffer.clone())
                for unit in self.units
                for buffer in unit.buffers()
                if not buffer.is_floating_point()
            ]
            self.total = [torch.zeros_like(kept) for _, kept in self.start]
        for buffer, kept in (*self.start, *self.counts):
            buffer.copy_(kept)
        yield
        for (buffer, _), total in zip(self.start, self.total, strict=True):
            total.add_(buffer, alpha=share)

    def settle(self) -> None:
        """After the last chunk: put the means in place. Counters stand as one chunk left them: one step."""
        for (buffer, _), total in zip(self.start, self.total, strict=True):
            buffer.copy_(total)
        self.start, self.total = [], []


class Meter:
    """Adds up an epoch's losses on the device, and tells the watch when it has read them."""

    def __init__(self, epoch: int, done: int, images: int, device: torch.device, watch: Watch) -> None:
        self.epoch, self.done, self.images, self.device, self.watch = epoch, done, images, device, watch
        self.every = CHECK_EVERY.get(device.type, CHECK_EVERY_ELSEWHERE)
        self.steps, self.unread, self.read = 0, torch.zeros((), device=device), 0.0
        self.last = math.nan
        self.since = time.perf_counter()

    @property
    def mean(self) -> float:
        return self.read / max(1, self.steps)

    def add(self, loss: Tensor) -> None:
        self.unread = self.unread + loss
        self.steps += 1
        if self.steps % self.every == 0:
            self.check()

    def check(self) -> None:
        waiting = (self.steps - 1) % self.every + 1
        value = float(self.unread)
        if not math.isfinite(value):
            reached = {"epoch": self.epoch, "step": self.done + self.steps, "last_loss": self.last}
            raise DivergedError(f"the training loss is {value}", reached)
        self.read, self.last, self.unread = self.read + value, value / waiting, torch.zeros_like(self.unread)
        speed = self.steps * self.images / (time.perf_counter() - self.since)
        self.watch.step(self.epoch, self.steps, self.last, speed)

    def close(self) -> float:
        """Read what is left; seconds since the epoch began, the device's work done."""
        if self.steps % self.every:
            self.check()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - self.since


def classification_loss(out: Any, y: Tensor, smoothing: float) -> Tensor:
    """Mean cross-entropy in nats; auxiliary heads (a tuple's further members) count by AUX_WEIGHT."""
    main, *aux = [out] if isinstance(out, Tensor) else [head for head in out if head is not None]
    loss = _cross_entropy(main, y, smoothing)
    for head in aux:
        loss = loss + AUX_WEIGHT[len(aux)] * _cross_entropy(head, y, smoothing)
    return loss


def _cross_entropy(logits: Tensor, y: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), y, label_smoothing=smoothing)


def memory_format(cell: Cell) -> torch.memory_format:
    return torch.channels_last if cell.memory_format == "channels_last" else torch.contiguous_format


def _first(batches: Iterable[tuple[Tensor, Tensor]], count: int) -> Iterator[tuple[Tensor, Tensor]]:
    for index, item in enumerate(batches):
        if index == count:
            return
        yield item
