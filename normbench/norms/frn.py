"""Filter Response Normalization and its Thresholded Linear Unit (Singh & Krishnan, CVPR 2020, arXiv:1911.09737).

    ν² = mean over H, W of x²
    y = γ x / √(ν² + |ε|) + β          ε + |ε_l| in place of |ε| with ``learn_eps``
    z = max(y, τ)
x, y, z: (N, C, H, W).  ν²: (N, C), not centred.  γ, β, τ: (C,); ε_l: one number, learned, from 1e-4.
Train and eval alike.  Works from N = 1; 1 × 1 maps want ``learn_eps`` (without it FRN is nearly a sign function there).
eps is FRN's own, 1e-6: the replaced BatchNorm's does not carry over.
Differs from the paper: TLU stands only where a ReLU stood; any other activation is kept, and with none FRN is alone.
The paper learns ε_l where maps are 1 × 1, one number a layer is our reading. At a tie y = τ the gradient goes to τ:
with τ = 0 what y gets is what relu gives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normbench.norms import core, running
from normbench.norms.registry import Normalizer, mark, register

LEARNED_EPS = 1e-4


def reference(
    x: Tensor, weight: Tensor, bias: Tensor, *, eps: float | Tensor = 1e-6, threshold: Tensor | None = None
) -> Tensor:
    """The plain formula; ``eps`` with the learned share in it."""
    nu2 = (x**2).mean((2, 3), keepdim=True)
    y = weight[:, None, None] * x / torch.sqrt(nu2 + eps) + bias[:, None, None]
    return y if threshold is None else torch.where(y <= threshold[:, None, None], threshold[:, None, None], y)


class TLU(nn.Module):
    """Thresholded Linear Unit, max(y, τ): (N, C, H, W) → the same. A ReLU at the start (threshold τ (C,) = 0).

    A residual is added before.
    """

    def __init__(self, num_features: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.num_features = num_features
        mark(self, "frn")  # it may stand alone, after a residual sum
        self.threshold = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))

    def forward(self, y: Tensor, residual: Tensor | None = None) -> Tensor:
        if residual is not None and not _alike(y, residual):  # either may broadcast, and be no map at all
            y, residual = y + residual, None
        core.check_input(y, self.num_features, "TLU")
        return core.thresholded(y, core.parameter(self, "threshold"), residual)

    def extra_repr(self) -> str:
        return f"{self.num_features}"


def _alike(y: Any, residual: Any) -> bool:
    if not (isinstance(y, Tensor) and isinstance(residual, Tensor)):
        return False
    return y.shape == residual.shape and y.dtype == residual.dtype


class FilterResponseNorm(nn.Module):
    """Divide each channel of each image by its rms: (N, C, H, W) → the same; then TLU or ``activation``."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    threshold: nn.Parameter | None
    eps_l: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-6,
        learn_eps: bool = False,
        affine: bool = True,
        *,
        activation: nn.Module | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps
        factory = {"device": device, "dtype": dtype}
        takes_over = isinstance(activation, nn.ReLU)
        self.activation = None if takes_over else activation
        core.add_affine(self, num_features, affine, **factory)
        threshold = nn.Parameter(torch.zeros(num_features, **factory)) if takes_over else None
        self.register_parameter("threshold", threshold)
        self.register_parameter("eps_l", nn.Parameter(torch.tensor(LEARNED_EPS, **factory)) if learn_eps else None)
        self.register_load_state_dict_pre_hook(running.leave_statistics_out)

    def forward(self, x: Tensor) -> Tensor:
        N, C, *_ = core.check_input(x, self.num_features, "frn")
        learned, threshold = core.parameter(self, "eps_l"), core.parameter(self, "threshold")
        eps = self.eps if learned is None else self.eps + learned.abs()
        return core.standardize(x, N, C, eps, *core.affine(self), centered=False, threshold=threshold)

    def extra_repr(self) -> str:
        learned = "" if self.eps_l is None else " + |eps_l|"
        return f"{self.num_features}, eps={self.eps}{learned}, tlu={self.threshold is not None}"


register(
    Normalizer(
        name="frn",
        unit=FilterResponseNorm,
        method="Filter Response Normalization with TLU",
        paper="Singh & Krishnan, CVPR 2020, arXiv:1911.09737",
        mixes_samples=False,
        train_eval_differ=False,
        own_activation=True,
        own_eps=True,
        drop_in=False,
        sum_activation=TLU,
    )
)
