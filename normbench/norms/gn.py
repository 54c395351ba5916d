"""Group Normalization (Wu & He, ECCV 2018, arXiv:1803.08494).

    y = γ (x − μ) / √(σ² + ε) + β
x, y: (N, C, H, W).  μ, σ²: (N, G), over H, W and the C/G channels of a group; σ² biased.  γ, β: (C,).
Train and eval alike.  Works from N = 1.  Where G does not divide C: normbench/norms/groups.py.
Differs from the paper: no; its G = 32 is the default, where it divides.  Equals torch.nn.GroupNorm:
tests/norms/test_identities.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normbench.norms import core, groups, running
from normbench.norms.registry import Normalizer, register

DEFAULT_GROUPS = 32


def reference(x: Tensor, weight: Tensor, bias: Tensor, *, num_groups: int, eps: float = 1e-5) -> Tensor:
    """The plain formula."""
    C = x.shape[1]
    y = torch.empty_like(x)
    for g in range(num_groups):
        members = [c for c in range(C) if (c * num_groups) // C == g]
        mu = x[:, members].mean((1, 2, 3), keepdim=True)
        var = ((x[:, members] - mu) ** 2).mean((1, 2, 3), keepdim=True)
        y[:, members] = (x[:, members] - mu) / torch.sqrt(var + eps)
    return weight[:, None, None] * y + bias[:, None, None]


class GroupNorm(nn.Module):
    """Normalize groups of channels of each image: (N, C, H, W) → the same, then ``activation``.

    ``num_groups`` becomes the effective number. Raises InputError if the number given does not divide C (``strict``).
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        num_groups: int | None = None,
        group_fit: str | None = None,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        activation: nn.Module | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps
        wanted, self.group_fit = groups.choose(num_groups, group_fit, DEFAULT_GROUPS, "gcd")
        self.num_groups = groups.fit(num_features, wanted, self.group_fit, "gn", f"num_features={num_features}")
        self.activation = activation
        core.add_affine(self, num_features, affine, device=device, dtype=dtype)
        self.register_load_state_dict_pre_hook(running.leave_statistics_out)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        N, *_ = core.check_input(x, self.num_features, "gn")
        return core.standardize(x, N, self.num_groups, self.eps, *core.affine(self), residual=residual)

    def extra_repr(self) -> str:
        return f"{self.num_features}, num_groups={self.num_groups}, eps={self.eps}"


register(
    Normalizer(
        name="gn",
        unit=GroupNorm,
        method="Group Normalization",
        paper="Wu & He, ECCV 2018, arXiv:1803.08494",
        mixes_samples=False,
        train_eval_differ=False,
    )
)
