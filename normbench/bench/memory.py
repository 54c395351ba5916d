"""What a forward holds on to until its backward, and what a module is made of: counted, not sampled, on any device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

MIB = 2**20


def kept_mib(forward: Callable[[], object], module: nn.Module) -> float:
    """MiB of the tensors that ``forward`` saves for its backward, each memory once, ``module``'s own left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    held: dict[int, int] = {}
    alive: list[Tensor] = []  # or memory given back meanwhile could be met again

    def pack(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor.detach())
        # Nothing is given back, as no backward follows: an output that its own graph holds would never be freed.

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda nothing: nothing):
        made = forward()
    del made
    return sum(held.values()) / MIB


def state_mib(module: nn.Module) -> float:
    """MiB of its parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers())) / MIB
