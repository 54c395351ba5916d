"""Which part of the machine each slot gets: its GPUs, or its share of the cores."""

from __future__ import annotations

import os

import torch


class Places:
    """``slots`` cells at a time of ``ranks`` processes each."""

    def __init__(self, slots: int, ranks: int) -> None:
        self.slots, self.ranks = slots, ranks
        self.gpus = _gpus()

    @property
    def threads(self) -> int | None:
        """Threads of each process: its share of the cores; None: as many as torch takes."""
        processes = self.slots * self.ranks
        if processes == 1 or "OMP_NUM_THREADS" in os.environ:
            return None
        return max(1, _cores() // processes)

    @property
    def loaders(self) -> int | None:
        """Processes that decode for each process of a cell, where nobody said how many; None: as many as it likes."""
        return None if self.slots == 1 else max(1, _cores() // (self.slots * self.ranks))

    def gpus_of(self, slot: int, device: str) -> list[str]:
        """The GPUs that the processes of a slot get: of their own as long as there are some, else shared ones in turn.

        A device with a number is the user's choice.
        """
        kind, _, number = device.partition(":")
        if not self.gpus or kind not in ("auto", "cuda"):
            return []
        if number:
            return [self.gpus[int(number)]] * self.ranks
        return [self.gpus[(slot * self.ranks + rank) % len(self.gpus)] for rank in range(self.ranks)]

    def environment(self, slot: int, device: str) -> dict[str, str]:
        """What the processes of a slot see of the GPUs: theirs, under numbers from 0; all where the user chose one."""
        if device not in ("auto", "cuda") or self.slots * self.ranks == 1:
            return {}
        own = self.gpus_of(slot, device)
        return {"CUDA_VISIBLE_DEVICES": ",".join(own)} if own else {}


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> list[str]:
    """The GPUs of this process, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]
