"""One optimizer step over batch × workers pictures, a chunk of workers at a time.

Whose statistics: the units take them over every ``batch`` consecutive pictures. Gradients of the chunks are summed, and
running statistics are the mean of what each worker would have kept: the same mathematics as one forward over all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normbench import norms
from normbench.cell import Cell
from normbench.checkpoint import draws, set_draws
from normbench.ranks import ALONE, Ranks

# Weights of auxiliary heads' losses, by their number: InceptionV3's one, GoogLeNet's two (arXiv:1409.4842, section 5;
# torchvision trains InceptionV3 with 0.4).
AUX_WEIGHT = {1: 0.4, 2: 0.3}


class Step:
    """One optimizer step over batch × workers pictures, a chunk of workers at a time.

    classes: given, labels are class + classes · domain, and the method is told the domains.
    """

    def __init__(
        self,
        cell: Cell,
        net: nn.Module,
        forward: Callable[..., Any],
        update: torch.optim.Optimizer,
        device: torch.device,
        ranks: Ranks = ALONE,
        classes: int | None = None,
    ) -> None:
        self.cell, self.net, self.forward, self.update, self.ranks = cell, net, forward, update, ranks
        self.classes = classes
        own = cell.images // ranks.count
        self.images = min(cell.batch * self.workers_at_once(cell), own)
        self.buffers = BufferMean(net) if self.images < own else None
        self.rate = torch.zeros((), device=device)  # the learning rate, where it is known on the device alone
        bf16 = cell.amp == "bfloat16"
        self.hooks = norms.step_hooks(net)
        self.precision: Callable[[], contextlib.AbstractContextManager[Any]] = (
            (lambda: torch.autocast(device.type, torch.bfloat16)) if bf16 else contextlib.nullcontext
        )

    @staticmethod
    def workers_at_once(cell: Cell) -> int:
        """Workers in one forward. A method that mixes pictures and cannot keep workers apart runs them one by one.

        One whose statistics are of all workers takes them all, whatever the ``chunk``.
        """
        row = norms.get(cell.norm.name, cell.norm.options)
        if row.joins_workers:
            return cell.workers
        together = row.takes_batch or not row.mixes_samples
        return (cell.chunk or cell.workers) if together else 1

    def __call__(self, x: Tensor, y: Tensor, lr: float | Tensor) -> Tensor:
        """One step over this rank's pictures; the mean loss over those of all ranks, still on the device.

        lr: the learning rate, a number, or a float32 tensor () on the device, which is not read here.
        """
        if isinstance(lr, Tensor):
            lr = self.rate.copy_(lr)
        for group in self.update.param_groups:
            group["lr"] = lr
        self.update.zero_grad(set_to_none=True)
        start = draws(x.device) if self.hooks.forwards_again else None
        loss = torch.zeros((), device=x.device)
        for part, labels, share in self._parts(x, y):
            with self.precision():
                out = self.forward(part)
                part_loss = classification_loss(out, labels, self.cell.recipe.label_smoothing)
                part_loss = part_loss * (share / self.ranks.count)
            part_loss.backward()  # statistics of gradients are the worker's too
            loss = loss + part_loss.detach()
        if self.ranks.count > 1:
            self._agree(loss)
        self.hooks.gradients()
        if self.cell.recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.cell.recipe.clip)
        self.update.step()
        self.hooks.updated(lambda: self._again(x, y, start))
        return loss

    def forget(self) -> None:
        """Leave a step that was broken off."""
        self.update.zero_grad(set_to_none=True)
        if self.buffers:
            self.buffers.forget()

    def _parts(self, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor, float]]:
        """A chunk's pictures and labels, and its share of this rank's; running statistics settle after the last."""
        for part, labels in zip(x.split(self.images), y.split(self.images), strict=True):
            share = len(labels) / len(y)
            if self.classes is not None:
                self.hooks.pictures(labels.div(self.classes, rounding_mode="floor"))
                labels = labels % self.classes
            with self.buffers.part(share) if self.buffers else contextlib.nullcontext():
                yield part.contiguous(memory_format=memory_format(self.cell)), labels, share
        if self.buffers:
            self.buffers.settle()

    @torch.no_grad()
    def _again(self, x: Tensor, y: Tensor, start: Any) -> None:
        """The same pictures forward once more, with the draws from ``start``; only buffers change."""
        end = draws(x.device)
        set_draws(start, x.device)
        for part, _, _ in self._parts(x, y):
            with self.precision():
                self.forward(part)
        set_draws(end, x.device)
        if self.ranks.count > 1:
            self.ranks.add_up(self._shares())

    def _shares(self) -> list[Tensor]:
        """The buffers that are statistics, each made this rank's share of their mean."""
        statistics = [buffer for buffer in self.net.buffers() if buffer.is_floating_point()]
        for buffer in statistics:
            buffer /= self.ranks.count
        return statistics

    def _agree(self, loss: Tensor) -> None:
        """Loss and gradients become the sum over the ranks, running statistics their mean.

        A parameter that got no gradient on one rank counts there as zero; one that got none on any keeps none. To know
        which is to wait for the device, on the ranks that lack some.
        """
        learned = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        lacking = [i for i, parameter in enumerate(learned) if parameter.grad is None]
        given = loss.new_ones(len(learned))  # on how many ranks there is a gradient
        for i in lacking:
            given[i] = 0
        grads = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in learned]
        self.ranks.add_up([loss, given, *grads, *self._shares()])
        counts = given.tolist() if lacking else []
        for i, (parameter, grad) in enumerate(zip(learned, grads, strict=True)):
            parameter.grad = grad if not lacking or counts[i] else None


class BufferMean:
    """Running statistics over chunks: the mean of what each worker would have kept, each from the same start."""

    def __init__(self, net: nn.Module) -> None:
        self.units = [module for module in net.modules() if norms.is_unit(module)]
        self.kept: list[tuple[Tensor, Tensor]] = []  # every buffer, and its value before the step
        self.total: list[Tensor] = []

    @contextlib.contextmanager
    def part(self, share: float) -> Iterator[None]:
        """One chunk, which holds ``share`` of the workers."""
        if not self.kept:
            self.kept = [(buffer, buffer.clone()) for unit in self.units for buffer in unit.buffers()]
            self.total = [torch.zeros_like(kept) for _, kept in self.kept]
        for buffer, kept in self.kept:
            buffer.copy_(kept)
        yield
        for buffer, total in self._averaged():
            total.add_(buffer, alpha=share)

    def settle(self) -> None:
        """After the last chunk: put the means in place. Counters stand as one chunk left them: one step."""
        for buffer, total in self._averaged():
            buffer.copy_(total)
        self.forget()

    def forget(self) -> None:
        """Begin anew with the next chunk."""
        self.kept, self.total = [], []

    def _averaged(self) -> Iterator[tuple[Tensor, Tensor]]:
        pairs = ((buffer, total) for (buffer, _), total in zip(self.kept, self.total, strict=True))
        return (pair for pair in pairs if pair[0].is_floating_point())


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
