"""Population statistics ("precise" batch norm): moments of many training batches, exact, in place of running averages.

    σ² = mean of the batches' variances + variance of their means
The second term is what a mean of batch variances lacks: at two images a batch it is a large part of the whole. Both are
of equal batches, and summed in float64 by Chan, Golub & LeVeque's update (1979), without a difference of large numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_open: Population | None = None


class Population:
    """The moments that units have met in training forwards since ``gathering`` began."""

    def __init__(self) -> None:
        self.found: dict[nn.Module, tuple[int, Tensor, Tensor]] = {}

    @torch.no_grad()
    def add(self, unit: nn.Module, mean: Tensor, var: Tensor) -> None:
        """Rows of mean and biased variance, (rows, K) each, each of as many values as any other row of the unit."""
        dtype = torch.float32 if mean.device.type == "mps" else torch.float64
        mean, var = mean.detach().to(dtype), var.detach().to(dtype)
        rows, m = len(mean), mean.mean(0)
        v = var.mean(0) + (mean - m).square().mean(0)
        if unit in self.found:
            before, old_m, old_v = self.found[unit]
            share = rows / (before + rows)
            v = torch.lerp(old_v, v, share) + share * (1 - share) * (m - old_m).square()
            m, rows = torch.lerp(old_m, m, share), before + rows
        self.found[unit] = rows, m, v

    @torch.no_grad()
    def settle(self) -> int:
        """Put what was found in the place of the units' running statistics; how many units have such."""
        for unit, (_, mean, var) in self.found.items():
            take: Any = getattr(unit, "take_population", None)
            if take is not None:
                take(mean, var)
                continue
            for name, value in (("running_mean", mean), ("running_var", var)):
                buffer = unit._buffers.get(name)
                if buffer is not None:
                    buffer.copy_(value)
        return len(self.found)


@contextlib.contextmanager
def gathering() -> Iterator[Population]:
    """Have the units' training forwards tell the moments they meet."""
    global _open
    before, _open = _open, Population()
    try:
        yield _open
    finally:
        _open = before


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Nothing is gathered in the block."""
    global _open
    before, _open = _open, None
    try:
        yield
    finally:
        _open = before


def wanted() -> bool:
    """Whether somebody gathers."""
    return _open is not None


def met(unit: nn.Module, mean: Tensor, var: Tensor) -> None:
    """A training forward of ``unit`` has met these moments: mean and biased variance of its rows, (rows, K) each."""
    if _open is not None:
        _open.add(unit, mean, var)
