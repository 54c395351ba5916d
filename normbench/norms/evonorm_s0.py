"""EvoNorm-S0, normalization and activation in one (Liu, Brock, Simonyan & Le, NeurIPS 2020, arXiv:2004.02967).

    y = γ x sigmoid(v x) / √(σ² + ε) + β
x, y: (N, C, H, W).  σ²: (N, G), over H, W and the C/G channels of a group, biased; no mean is subtracted.  γ, β: (C,).
v: (C,), from 1.
Train and eval alike.  Works from N = 1.  G = 32 by default; where that does not divide C, the next lower number that
does, as in the official code (not the gcd of the other methods: 24 of 48, not 16); timm asserts. A number given:
normbench/norms/groups.py.
It stands in the place of the rectifier that follows (evonorm_b0.RECTIFIERS: ReLU and its relatives). A site without
one, or with another activation, which is kept, gets γ x + β alone, without v: official and timm's code without the
nonlinearity do not normalize either. So of the ResNets take the pre-activation ones; in the others, which the official
code refuses, the norm before every sum is scale and shift alone.
Differs from the paper, whose text was not seen: the formula is that of the official ResNet code; that relatives of the
ReLU are replaced too is our choice. eps is the replaced BatchNorm's, as there; timm has 1e-5.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normbench.norms import core, groups, plain, running
from normbench.norms.evonorm_b0 import RECTIFIERS
from normbench.norms.registry import Normalizer, register

DEFAULT_GROUPS = 32


def reference(x: Tensor, weight: Tensor, bias: Tensor, *, v: Tensor, num_groups: int, eps: float = 1e-5) -> Tensor:
    """The plain formula."""
    C = x.shape[1]
    y = torch.empty_like(x)
    for g in range(num_groups):
        members = [c for c in range(C) if (c * num_groups) // C == g]
        own = x[:, members]
        var = own.var((1, 2, 3), correction=0, keepdim=True)
        y[:, members] = own * torch.sigmoid(v[members][:, None, None] * own) / torch.sqrt(var + eps)
    return weight[:, None, None] * y + bias[:, None, None]


class EvoNormS0(nn.Module):
    """Gate by itself, divide by a group's deviation: (N, C, H, W) → the same, in place of norm and rectifier.

    ``num_groups`` becomes the effective number, None where nothing is normalized. Raises InputError if the number given
    does not divide C (``strict``).
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    v: nn.Parameter | None

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
        wanted, self.group_fit = groups.choose(num_groups, group_fit, DEFAULT_GROUPS, groups.LOWER)
        what = f"num_features={num_features}"
        fitted = groups.fit(num_features, wanted, self.group_fit, "evonorm_s0", what)
        takes_over = isinstance(activation, RECTIFIERS)
        self.num_groups = fitted if takes_over else None
        self.activation = None if takes_over else activation
        core.add_affine(self, num_features, affine, device=device, dtype=dtype)
        v = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype)) if takes_over else None
        self.register_parameter("v", v)
        self.register_load_state_dict_pre_hook(running.leave_statistics_out)

    def forward(self, x: Tensor) -> Tensor:
        N, C, *_ = core.check_input(x, self.num_features, "evonorm_s0")
        if self.v is None or self.num_groups is None:
            x = x if self.weight is not None else x.clone()  # what works in place behind it must not reach its input
            return core.scale_shift(x, self.weight, self.bias, self.activation)
        var = plain.spread(plain.pool(*plain.moments(x), N, self.num_groups)[1], N, C)
        scale = torch.rsqrt(var + self.eps)
        wide = x.to(scale.dtype)
        gated = wide * torch.sigmoid(wide * self.v[:, None, None])
        scale = scale if self.weight is None else scale * self.weight
        return plain.scale_shift(gated, scale, self.bias).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_features}, num_groups={self.num_groups}, eps={self.eps}, nonlinearity={self.v is not None}"


register(
    Normalizer(
        name="evonorm_s0",
        unit=EvoNormS0,
        method="EvoNorm-S0, normalization and activation by group variance",
        paper="Liu, Brock, Simonyan & Le, NeurIPS 2020, arXiv:2004.02967",
        mixes_samples=False,
        train_eval_differ=False,
        own_activation=True,
        drop_in=False,
    )
)
