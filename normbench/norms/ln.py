"""Layer Normalization, in its form for convolutions (Ba, Kiros & Hinton 2016, arXiv:1607.06450).

    y = γ (x − μ) / √(σ² + ε) + β
x, y: (N, C, H, W).  μ, σ²: (N,), over C, H, W; σ² biased.  γ, β: (C,).
Train and eval alike.  Works from N = 1.
Differs from the paper: γ, β one per channel, as every other method here has them, and not one per value (which would
fix H × W).  Equals torch.nn.GroupNorm(1, C): tests/norms/test_identities.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normbench.norms import core, running
from normbench.norms.registry import Normalizer, register


def reference(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5) -> Tensor:
    """The plain formula."""
    mu = x.mean((1, 2, 3), keepdim=True)
    var = ((x - mu) ** 2).mean((1, 2, 3), keepdim=True)
    return weight[:, None, None] * (x - mu) / torch.sqrt(var + eps) + bias[:, None, None]


class LayerNorm(nn.Module):
    """Normalize each image as a whole: (N, C, H, W) → the same, then ``activation``."""

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
        N, *_ = core.check_input(x, self.num_features, "ln")
        return core.standardize(x, N, 1, self.eps, *core.affine(self), residual=residual)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"


register(
    Normalizer(
        name="ln",
        unit=LayerNorm,
        method="Layer Normalization",
        paper="Ba, Kiros & Hinton 2016, arXiv:1607.06450",
        mixes_samples=False,
        train_eval_differ=False,
    )
)
