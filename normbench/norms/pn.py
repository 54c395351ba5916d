"""Positional Normalization (Li, Wu, Weinberger & Belongie, NeurIPS 2019, arXiv:1907.04312), as a classifier's layer.

    y = γ (x − μ) / √(σ² + ε) + β
x, y: (N, C, H, W).  μ, σ²: (N, 1, H, W), over the channels at each pixel; σ² biased unless ``unbiased``.  γ, β: (C,).
Train and eval alike.  Works from N = 1.  C = 1 gives y = β, and NaN when unbiased.
Differs from the paper: γ, β one per channel, where the official class has them per position and switched off; it stands
in BatchNorm's place, not before it; no Moment Shortcut (for generators). The official PyTorch code takes the unbiased
variance (``unbiased=true``), the TensorFlow code the biased one (the default here, as every method here has it).
Equals torch.nn.LayerNorm(C) on (N, H, W, C): tests/norms/test_identities.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normbench.norms import core, running
from normbench.norms.registry import Normalizer, register


def reference(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5, unbiased: bool = False) -> Tensor:
    """The plain formula."""
    mu = x.mean(1, keepdim=True)
    var = ((x - mu) ** 2).sum(1, keepdim=True) / (x.shape[1] - unbiased)
    return weight[:, None, None] * (x - mu) / torch.sqrt(var + eps) + bias[:, None, None]


class PositionalNorm(nn.Module):
    """Normalize each pixel over its channels: (N, C, H, W) → the same, then ``activation``."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        unbiased: bool = False,
        affine: bool = True,
        *,
        activation: nn.Module | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.unbiased = num_features, eps, unbiased
        self.activation = activation
        core.add_affine(self, num_features, affine, device=device, dtype=dtype)
        self.register_load_state_dict_pre_hook(running.leave_statistics_out)

    def forward(self, x: Tensor) -> Tensor:
        core.check_input(x, self.num_features, "pn")
        return core.positional(x, self.eps, self.unbiased, *core.affine(self))

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, unbiased={self.unbiased}"


register(
    Normalizer(
        name="pn",
        unit=PositionalNorm,
        method="Positional Normalization",
        paper="Li, Wu, Weinberger & Belongie, NeurIPS 2019, arXiv:1907.04312",
        mixes_samples=False,
        train_eval_differ=False,
    )
)
