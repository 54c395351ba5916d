"""Instance Normalization (Ulyanov, Vedaldi & Lempitsky 2016, arXiv:1607.08022).

    y = γ (x − μ) / √(σ² + ε) + β
x, y: (N, C, H, W).  μ, σ²: (N, C), over H, W; σ² biased.  γ, β: (C,).
Train and eval alike (no running statistics).  Works from N = 1; on a 1 × 1 map y = β, where torch's raises.
Differs from the paper: no.  Equals torch.nn.InstanceNorm2d(C, affine=True): tests/norms/test_identities.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normbench.norms import core, running
from normbench.norms.registry import Normalizer, register


def reference(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5) -> Tensor:
    """The plain formula."""
    mu = x.mean((2, 3), keepdim=True)
    var = ((x - mu) ** 2).mean((2, 3), keepdim=True)
    return weight[:, None, None] * (x - mu) / torch.sqrt(var + eps) + bias[:, None, None]


class InstanceNorm(nn.Module):
    """Normalize each channel of each image: (N, C, H, W) → the same, then ``activation``."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        activation: nn.Module | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps
        self.activation = activation
        core.add_affine(self, num_features, affine, device=device, dtype=dtype)
        self.register_load_state_dict_pre_hook(running.leave_statistics_out)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        N, C, *_ = core.check_input(x, self.num_features, "in")
        return core.standardize(x, N, C, self.eps, *core.affine(self), residual=residual)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"


register(
    Normalizer(
        name="in",
        unit=InstanceNorm,
        method="Instance Normalization",
        paper="Ulyanov, Vedaldi & Lempitsky 2016, arXiv:1607.08022",
        mixes_samples=False,
        train_eval_differ=False,
    )
)
