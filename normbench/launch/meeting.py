"""The ranks of one cell find each other: gloo between CPUs, NCCL between GPUs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta

import torch
from torch import distributed as dist

from normbench.ranks import Ranks

# One rank may read pictures for long while the others wait; a rank that dies is noticed by the parent, not by this.
PATIENCE = timedelta(hours=2)


@contextlib.contextmanager
def joined(rank: int, count: int, place: str, device: torch.device) -> Iterator[Ranks]:
    """This process as ``rank`` of ``count``; ``place``: a file of no content that all can reach, used for no other.

    After an exception the lines to the others stay open until this process ends: first it says what went wrong.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store = dist.FileStore(place, count)  # by the file's name: an address would not take every character
    store.set_timeout(PATIENCE)
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)
    yield Ranks(rank, count)
    dist.destroy_process_group()
