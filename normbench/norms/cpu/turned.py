"""Changes of layout, for plans whose kernels take maps that lie one after another only (transposes.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from normbench.norms.cpu import compiler, team
from normbench.norms.cpu.blocks import SIDE, TRANSPOSE
from normbench.norms.cpu.ways import DTYPES, PIECE, Step, run, way


def maps(x: Tensor) -> Tensor:
    """A copy of x, which is in channels_last, with its maps one after another."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    _transpose(x, y, x.shape[2:].numel(), x.shape[1])
    return y


def pixels(x: Tensor) -> Tensor:
    """A copy of x, whose maps lie one after another, in channels_last."""
    y = torch.empty_like(x, memory_format=torch.channels_last)
    _transpose(x, y, x.shape[1], x.shape[2:].numel())
    return y


def _transpose(x: Tensor, y: Tensor, rows: int, columns: int) -> None:
    """Every image, ``rows`` × ``columns`` in memory, the other way round; torch's copy takes two to seven times as
    long.
    """
    strips, threads = len(x) * -(-rows // SIDE), team.threads_for(x.numel())
    chunk = strips if threads == 1 else max(1, min(PIECE // (SIDE * columns), strips // (4 * threads)))
    kernel = compiler.kernel("transposes", "transpose", DTYPES[x.dtype])
    run(way(kernel, [Step(0, strips, chunk, threads)]), TRANSPOSE.pack(rows, columns, x.data_ptr(), y.data_ptr()))
