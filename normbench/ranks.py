"""The processes that share one cell: how many there are, which this is, and what they tell each other.

Every rank takes its share of each step's workers. After the backward pass one exchange adds up loss and gradients, and
takes the mean of the buffers, so all ranks hold the same network at every step: what virtual workers do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch import distributed as dist

from normbench.errors import LostRankError

T = TypeVar("T")


class Ranks:
    """This process among the ``count`` of its cell; ``rank`` 0 keeps the records."""

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @torch.no_grad()
    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Make each tensor the sum over the ranks, in place: one exchange for each dtype."""
        if self.count == 1:
            return
        kinds: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault(tensor.dtype, []).append(tensor)
        for same in kinds.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in same])
            with together():
                dist.all_reduce(flat)
            for tensor, part in zip(same, flat.split([tensor.numel() for tensor in same]), strict=True):
                tensor.copy_(part.view(tensor.shape))

    def total(self, value: Tensor) -> Tensor:
        """The sum over the ranks."""
        if self.count > 1:
            value = value.clone()
            with together():
                dist.all_reduce(value)
        return value

    def any(self, flags: list[bool], device: torch.device) -> list[bool]:
        """Of each flag, whether it is set on one of the ranks, or more."""
        if self.count == 1:
            return flags
        return [value > 0 for value in self.total(torch.tensor(flags, dtype=torch.float32, device=device)).tolist()]

    def everybodys(self, value: object) -> list[object]:
        """A picklable value of each rank's, in their order."""
        if self.count == 1:
            return [value]
        found: list[object] = [None] * self.count
        with together():
            dist.all_gather_object(found, value)
        return found

    def first(self, value: T) -> T:
        """Rank 0's picklable value, on every rank; what the others give is not looked at."""
        if self.count == 1:
            return value
        found: list[Any] = [value if self.rank == 0 else None]
        with together():
            dist.broadcast_object_list(found)
        return cast("T", found[0])


_apart = False


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """What one rank computes while the others wait: units do not look for them."""
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


def together_now() -> int:
    """How many processes take a step together, for a unit that shares statistics with them."""
    there = dist.is_available() and dist.is_initialized() and not _apart
    return dist.get_world_size() if there else 1


@contextlib.contextmanager
def together() -> Iterator[None]:
    """An exchange. Between CPUs a rank that went away ends it; between GPUs it waits until somebody ends it."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise LostRankError(f"an exchange between the ranks failed: {error}") from error


ALONE = Ranks()
