"""RMS Normalization of every pixel (Zhang & Sennrich, NeurIPS 2019), for maps: timm's RmsNorm2d.

    y = γ x / √(ν² + ε)          ν² = mean over C of x²
x, y: (N, C, H, W).  ν²: (N, 1, H, W), over the channels at each pixel, not centred.  γ: (C,).  There is no β.
Train and eval alike.  Works from N = 1; a pixel of zeros stays zero. eps is timm's own, 1e-6: the replaced BatchNorm's
does not carry over. The axes matter: over H, W of each channel the mean square is frn's; over C, H, W another layer's.
Differs from the paper, whose reference is a recollection, and which is of sequences: the form for maps is timm's. With
no β, a convolution without a bias before it is left with no shift at all; a replaced BatchNorm's is left out.
Equals torch.nn.RMSNorm(C) on (N, H, W, C): tests/norms/test_rms.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normbench.norms import core, plain, running
from normbench.norms.registry import Normalizer, register


def reference(x: Tensor, weight: Tensor, bias: None = None, *, eps: float = 1e-6) -> Tensor:
    """The plain formula; there is no bias."""
    nu2 = (x**2).mean(1, keepdim=True)
    return weight[:, None, None] * x / torch.sqrt(nu2 + eps)


class RMSNorm(nn.Module):
    """Divide each pixel by its rms over the channels: (N, C, H, W) → the same, then ``activation``."""

    weight: nn.Parameter | None
    bias: None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-6,
        affine: bool = True,
        *,
        activation: nn.Module | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps
        self.activation = activation
        weight = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype)) if affine else None
        self.register_parameter("weight", weight)
        self.register_parameter("bias", None)
        self.register_load_state_dict_pre_hook(running.leave_statistics_out)

    def forward(self, x: Tensor) -> Tensor:
        N, _, H, W = core.check_input(x, self.num_features, "rms")
        if H * W == 1:  # a pixel is an image, whose kernels there are
            return core.standardize(x, N, 1, self.eps, *core.affine(self), centered=False)
        y = x * torch.rsqrt(plain.mean_square(x, (1,), keepdim=True) + self.eps)
        y = plain.scale_shift(y, self.weight, None).to(x.dtype)
        return y if self.activation is None else self.activation(y)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"


register(
    Normalizer(
        name="rms",
        unit=RMSNorm,
        method="RMS Normalization of every pixel over its channels",
        paper="Zhang & Sennrich, NeurIPS 2019",
        mixes_samples=False,
        train_eval_differ=False,
        own_eps=True,
    )
)
