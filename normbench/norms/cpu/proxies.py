"""The statistics of proxy normalization on CPU: one call forward and one backward (the kernel: quantiles.py)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normbench.norms.cpu import compiler
from normbench.norms.cpu.blocks import QUANTILES
from normbench.norms.cpu.ways import DTYPES, run_alone


def forward(gamma: Tensor, beta: Tensor, grid: Tensor, ends: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Scale and shift that standardize relu(γ Y + β) by the grid, (C,) each."""
    scale, shift = torch.empty_like(gamma), torch.empty_like(gamma)
    _run(gamma, beta, grid, ends, scale, shift, None, None, None, None, eps)
    return scale, shift


def backward(
    gamma: Tensor, beta: Tensor, grid: Tensor, ends: Tensor, eps: float, dscale: Tensor, dshift: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of γ and β."""
    dgamma, dbeta = torch.empty_like(gamma), torch.empty_like(gamma)
    _run(gamma, beta, grid, ends, None, None, dscale.contiguous(), dshift.contiguous(), dgamma, dbeta, eps)
    return dgamma, dbeta


def _run(gamma: Tensor, beta: Tensor, grid: Tensor, ends: Tensor, *rest: Any) -> None:
    *tensors, eps = rest
    addresses = [0 if t is None else t.data_ptr() for t in (gamma, beta, grid, ends, *tensors)]
    block = QUANTILES.pack(len(gamma), len(grid), *addresses, eps)
    kernel = compiler.kernel("quantiles", "quantiles", DTYPES[gamma.dtype])
    run_alone(kernel, block)
