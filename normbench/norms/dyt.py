"""Dynamic Tanh (Zhu, Chen, He, LeCun & Liu, CVPR 2025, arXiv:2503.10622), here a control: nothing is measured.

    y = γ tanh(α x) + β
x, y: (N, C, H, W).  No statistics, no buffers.  γ, β: (C,).  α: ``alpha`` (1,), one number a layer, from 0.5.
Train and eval alike.  Works from N = 1. eps is taken and not used, so that any norm's place will do.
Differs from the paper: that replaces layer norm, in transformers and ConvNeXt. An author says that it does not replace
BatchNorm without loss, so on a ResNet it shows what squashing without statistics is worth. Large |α x| let no gradient
through. α is never decayed here, whatever the recipe.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normbench.norms import core, plain, running
from normbench.norms.registry import Normalizer, register


def reference(x: Tensor, weight: Tensor, bias: Tensor, *, alpha: Tensor | float = 0.5) -> Tensor:
    """The plain formula."""
    return weight[:, None, None] * torch.tanh(alpha * x) + bias[:, None, None]


class DynamicTanh(nn.Module):
    """Squash each value, then scale and shift: (N, C, H, W) → the same, then ``activation``.

    ``alpha_init``: what α starts from.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        alpha_init: float = 0.5,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        activation: nn.Module | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_features, self.alpha_init, self.eps = num_features, alpha_init, eps
        self.activation = activation
        core.add_affine(self, num_features, affine, device=device, dtype=dtype)
        self.alpha = nn.Parameter(torch.full((1,), float(alpha_init), device=device, dtype=dtype))
        self.register_load_state_dict_pre_hook(running.leave_statistics_out)

    def forward(self, x: Tensor) -> Tensor:
        core.check_input(x, self.num_features, "dyt")
        squashed = torch.tanh(x.to(plain.at_least_float32(x.dtype)) * self.alpha)
        if self.weight is None:
            squashed = squashed.clone()  # the gradient of tanh is had from it, so nothing may work on it in place
        y = plain.scale_shift(squashed, self.weight, self.bias).to(x.dtype)
        return y if self.activation is None else self.activation(y)

    def extra_repr(self) -> str:
        return f"{self.num_features}, alpha_init={self.alpha_init}"


register(
    Normalizer(
        name="dyt",
        unit=DynamicTanh,
        method="Dynamic Tanh (no statistics)",
        paper="Zhu, Chen, He, LeCun & Liu, CVPR 2025, arXiv:2503.10622",
        mixes_samples=False,
        train_eval_differ=False,
    )
)
