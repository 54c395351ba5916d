"""Units that take the fused kernels, and what tells whether they do and what they keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from norm_cases import Case, make
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from normbench.norms import fused, repeated

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
both_formats = pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
both_modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
NAMES = ("bn", "ln", "in", "gn", "pn", "bgn", "frn", "brn", "gbn", "batch_group", "iebn", "proxy")
every_name = pytest.mark.parametrize("name", NAMES)
OPTIONS: dict[str, dict[str, Any]] = {
    "gn": {"num_groups": 3}, "bgn": {"num_groups": 3}, "batch_group": {"num_groups": 3}, "proxy": {"num_groups": 3},
    "gbn": {"ghost_size": 2}, "brn": {"r_max": 1.2, "d_max": 0.3},
}  # fmt: skip


def unit_of(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A unit with ReLU that takes the kernels, with parameters drawn at random."""
    return make(Case(name, OPTIONS.get(name, {}) | options), dtype=dtype, activation=nn.ReLU())


def call_of(y: Tensor) -> Any:
    """The call of the kernels, or what it went by, that was the last thing done; None if it was another."""
    return getattr(y.grad_fn, "call", None) or getattr(y.grad_fn, "ready", None)


def is_fused(y: Tensor) -> bool:
    """Whether the last thing done was done by the kernels."""
    return isinstance(call_of(y), fused.Call | repeated.Ready)


class Allocations(TorchDispatchMode):
    """Notes the operations that make a tensor of as many values as x in memory of its own."""

    def __init__(self, values: int) -> None:
        super().__init__()
        self.values, self.found = values, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        old = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, Tensor)}
        for tensor in result if isinstance(result, tuple | list) else (result,):
            new = isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in old
            if new and tensor.numel() >= self.values:
                self.found.append(func.overloadpacket.__name__)
        return result


def bytes_held(run: Callable[[], object]) -> int:
    """What ``run`` allocates and does not give back."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = run()
    del kept
    return sum(event.self_cpu_memory_usage for event in profiler.events())


def small(name: str, x: Tensor) -> int:
    """How many numbers may be kept beside x and y."""
    N, C, H, W = x.shape
    return 3 * N * H * W if name == "pn" else 12 * N * C
