"""What a trained network gets right: every picture once, in evaluation mode."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normbench.errors import DataError


@torch.no_grad()
def evaluate(
    model: nn.Module,
    pictures: Iterable[tuple[Tensor, Tensor]],
    count: int,
    *,
    precision: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    memory_format: torch.memory_format = torch.contiguous_format,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, float]:
    """``top1`` and ``top5`` in percent, mean cross-entropy ``loss`` in nats, over exactly ``count`` pictures.

    Running statistics are used where the method keeps them (the units are in evaluation mode); the model is left in
    evaluation mode. Sums stay on the device until the end: one wait for the whole pass. With fewer than five classes
    top5 counts the true class among all of them. Raises DataError if a picture was left out or seen twice.

    reduce: adds a small vector up over ranks; ``pictures`` are then this rank's, none perhaps, ``count`` those of all
    ranks, and every rank gets the same numbers.
    """
    model.eval()
    sums, seen = None, 0
    for x, y in pictures:
        with precision():
            logits = model(x.contiguous(memory_format=memory_format))
        part = _sums(logits.to(torch.promote_types(logits.dtype, torch.float32)), y)
        sums = part if sums is None else sums + part
        seen += len(y)
    sums = _nothing(model) if sums is None else sums
    if reduce is None:
        top1, top5, loss = sums.tolist()
    else:
        top1, top5, loss, total = reduce(torch.cat([sums, sums.new_full((1,), seen)])).tolist()
        seen = round(total)
    if seen != count or not seen:
        raise DataError(
            f"evaluation saw {seen} pictures, expected each of {count} once; "
            "the data set changed meanwhile, or its reader is wrong"
        )
    return {"top1": 100 * top1 / count, "top5": 100 * top5 / count, "loss": loss / count, "eval_count": count}


def _sums(logits: Tensor, y: Tensor) -> Tensor:
    """Pictures right at once, right within five, and summed loss, as one small float64 tensor on the device."""
    best = within_five(logits, y)
    loss = F.cross_entropy(logits, y, reduction="sum")
    kind = _kind(logits.device)
    return torch.stack([best[:, 0].sum().to(kind), best.sum().to(kind), loss.to(kind)])


def within_five(logits: Tensor, y: Tensor) -> Tensor:
    """Whether the true class is the first guess, the second … the fifth: bool (N, 5), fewer for fewer classes."""
    return logits.topk(min(5, logits.shape[1]), dim=1).indices == y[:, None]


def _nothing(model: nn.Module) -> Tensor:
    """The sums of no picture, where the model is: a rank without pictures has to add something up, too."""
    held = next(itertools.chain(model.parameters(), model.buffers()), torch.zeros(()))
    return torch.zeros(3, dtype=_kind(held.device), device=held.device)


def _kind(device: torch.device) -> torch.dtype:
    """float32 adds up thousands of losses well enough per batch; across batches float64 does (MPS has none)."""
    return torch.float32 if device.type == "mps" else torch.float64
